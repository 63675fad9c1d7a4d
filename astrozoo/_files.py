"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from astrozoo.errors import OutputError

__all__ = ["replacing", "write_json"]


@contextmanager
def replacing(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary name of the same suffix to write to; it becomes ``path`` if all goes well.

    Args:
        shared: several processes may write the file at the same time, each under a name of its own.

    Raises:
        OutputError: if it cannot be written; a file that was at ``path`` before is then unchanged.
    """
    path = Path(path)
    word = uuid.uuid4().hex[:8] if shared else "partial"
    partial = path.with_name(f".{path.stem}.{word}{path.suffix}")
    try:
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def write_json(values: Mapping[str, Any], path: str | Path) -> None:
    """Write a mapping; arrays as lists, numbers that are not finite (which JSON lacks) as null.

    Raises:
        OutputError: if it cannot be written.
    """

    def plain(value: Any) -> Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with replacing(path) as partial:
        partial.write_text(json.dumps(plain(values), indent=2, default=str) + "\n", encoding="utf-8")
