"""A private module or name of a room is imported by that room only; others use public names.

Import contracts (pyproject.toml) cannot say this: their patterns match neither the prefix of a module's name,
nor names inside a module, nor experiments.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("astrozoo", "models", "guides", "experiments")


def _imports(source: str) -> Iterator[str]:
    """Dotted names of all that a file imports from astrozoo, such as ``astrozoo.infer.svi.svi``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _foreign(importer: str, imported: str) -> bool:
    """True if a part of the imported name is private to a room, or to a file, that the importer is not in.

    Args:
        importer: dotted name of the file, such as ``experiments.bench.vi``.
    """
    parts = imported.split(".")
    if parts[0] != "astrozoo":
        return False
    private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.endswith("__")]
    if not private or private == [1]:  # private modules of astrozoo itself are shared by the repository
        return False
    owner = ".".join(parts[: private[0]])
    return not (importer == owner or importer.startswith(f"{owner}."))


@pytest.mark.parametrize(
    ("importer", "imported", "foreign"),
    [
        ("experiments.bench.vi", "astrozoo.infer.svi._step", True),
        ("astrozoo.infer.auto", "astrozoo.infer.svi._step", True),
        ("astrozoo.survey.fields", "astrozoo.infer._metric", True),
        ("astrozoo.models.celeste", "astrozoo.infer._metric.Dense", True),
        ("astrozoo.infer.hmc", "astrozoo.infer._metric.Dense", False),
        ("astrozoo.infer.hmc", "astrozoo.infer.options.HMCSettings", False),
        ("experiments.lens_real", "astrozoo._files.replacing", False),
        ("astrozoo.cli", "astrozoo.__version__", False),
    ],
)
def test_the_rule(importer, imported, foreign):
    assert _foreign(importer, imported) is foreign


def test_no_file_imports_what_is_private_to_another_room():
    offences = []
    for folder in _FOLDERS:
        files = sorted((_ROOT / folder).rglob("*.py"))
        assert files
        for file in files:
            parts = file.relative_to(_ROOT).with_suffix("").parts
            importer = ".".join(parts if folder in ("astrozoo", "experiments") else ("astrozoo", *parts))
            importer = importer.removesuffix(".__init__")
            offences += [
                f"{importer}: {name}" for name in _imports(file.read_text()) if _foreign(importer, name)
            ]
    assert not offences, "\n".join(offences)
