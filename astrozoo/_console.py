"""What commands print: tables on standard output, messages on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_rows", "print_table", "say"]

_WIDTH = 1000
"""Width of tables that do not go to a terminal [characters]: wide enough that no line is wrapped."""


def print_table(rows: Iterable[Sequence[str]], columns: Sequence[str] = ("", "")) -> None:
    """Print rows in aligned columns, with a header if the columns have names.

    Text is wrapped on a terminal only, so that the output can be searched line by line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold", show_header=any(columns))
    for i, name in enumerate(columns):
        table.add_column(name, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def print_rows(rows: Mapping[str, Any]) -> None:
    """Print a mapping as two columns. A mapping among its values becomes ``key value, key value ...``.

    A list becomes one row for each of its items.
    """

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {part}" for key, part in value.items())
        return str(value)

    lines: list[tuple[str, str]] = []
    for name, value in rows.items():
        items = list(value) if isinstance(value, list | tuple) else [value]
        lines += [(name if k == 0 else "", text(item)) for k, item in enumerate(items)]
    print_table(lines)


def say(text: str) -> None:
    """Print one line on standard error."""
    print(f"astrozoo: {' '.join(text.split())}", file=sys.stderr)
