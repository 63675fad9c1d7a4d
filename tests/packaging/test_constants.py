"""Every numeric constant of the core has a docstring: what it limits, its unit, and why this value."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_FILES = ("astrozoo/*.py", *(f"astrozoo/{room}/*.py" for room in ("infer", "train", "physics", "nets")))
_ALL = (*_FILES, "guides/*.py", "experiments/bench/*.py")


def _undocumented(source: str) -> Iterator[str]:
    """Names of the numeric constants without a docstring, or that share a line with another."""
    body = ast.parse(source).body
    for node, following in zip(body, [*body[1:], None], strict=False):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        nodes = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        names = [name.id for name in nodes if name.id.isupper()]
        inside = [part.value for part in ast.walk(node.value or node) if isinstance(part, ast.Constant)]
        if not names or not any(type(value) in (int, float) for value in inside):
            continue
        if any(isinstance(value, str) for value in inside):
            continue
        documented = (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        )
        if not documented or len(names) > 1:
            yield from names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("LIMIT = 3", ["LIMIT"]),
        ("_LIMIT: float = 3.0  # [s] a comment", ["_LIMIT"]),
        ("LIMIT = 3\n'''[s] What it limits.'''", []),
        ("FIRST, LAST = 1, 2\n'''Two in one.'''", ["FIRST", "LAST"]),
        ("RATES = (0.1, 2**-3)\nother = 1", ["RATES"]),
        ("NAMES = ('a', 'b')\nlower = 3", []),
    ],
)
def test_the_rule(source, names):
    assert list(_undocumented(source)) == names


def test_every_constant_of_the_core_has_a_docstring():
    files = [file for pattern in _ALL for file in sorted(_ROOT.glob(pattern))]
    assert len(files) > 80
    found = [
        f"{file.relative_to(_ROOT)}: {name}" for file in files for name in _undocumented(file.read_text())
    ]
    assert not found, "\n".join(found)
