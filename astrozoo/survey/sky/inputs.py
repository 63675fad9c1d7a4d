"""The fields of a survey: what they are, and how a worker reads one."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from astropy.io.registry import IORegistryError
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.data.simulate_sky import SimulatedSky
from astrozoo.data.surveys import check_survey, read_images
from astrozoo.errors import DataError

__all__ = ["Spec", "list_fields", "read_spec", "simulated_fields"]

Spec = dict[str, Any]
"""What a field is: ``name``; and ``path`` and ``survey`` of its files, or ``sky``, ``row`` and ``column`` of
a simulated one. It is sent to workers in place of the images."""
_TABLES = (".csv", ".ecsv", ".tsv", ".fits", ".parquet", ".vot", ".xml")
_READ = 3
"""Number of fields that a worker keeps in memory: boxes next to each other need the same few. An SDSS field
of five bands takes half a gigabyte."""


def list_fields(path: Path, survey: str | None = None) -> list[Spec]:
    """The fields of a survey.

    Args:
        path: a folder that has a folder (or a description) for each field, or is a field itself; or a table
            with a column ``path``, relative to the table's folder, and perhaps ``name`` and ``survey``.
        survey: name of the ready description of all fields.

    Raises:
        DataError: there is no field, or two fields have one name.
    """
    if survey is not None:
        check_survey(survey)
    if not path.exists():
        raise DataError(str(path), "nothing there", "a folder of fields, or a table of their paths")
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        parts += sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        holds_images = any(p.is_file() and ".fit" in p.name for p in path.iterdir())
        parts = [path] if holds_images or not parts else parts
        specs: list[Spec] = [{"name": p.stem, "path": str(p.resolve()), "survey": survey} for p in parts]
    elif path.suffix in _TABLES:
        specs = _of_table(path, survey)
    else:
        specs = [{"name": path.stem, "path": str(path.resolve()), "survey": survey}]
    names = [spec["name"] for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(str(path), f"several fields named {', '.join(twice[:5])}", "names that differ")
    if not specs:
        raise DataError(str(path), "no field", "a folder for each field, or a table of their paths")
    return specs


def _of_table(path: Path, survey: str | None) -> list[Spec]:
    try:
        table = Table.read(path)
    except (OSError, IORegistryError, ValueError) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a table of fields") from error
    if "path" not in table.colnames:
        raise DataError(str(path), f"columns {', '.join(table.colnames)}", "a column path, one field a row")
    specs: list[Spec] = []
    for row in table:
        where = (path.parent / str(row["path"])).resolve()
        name = str(row["name"]) if "name" in table.colnames else where.stem
        of = str(row["survey"]) if "survey" in table.colnames else survey
        specs.append({"name": name, "path": str(where), "survey": of or None})
    return specs


def simulated_fields(sky: SimulatedSky) -> list[Spec]:
    """The fields of a simulated sky, which workers simulate when they need them."""
    return [
        {"name": f"simulated-{i}-{j}", "sky": sky.settings, "row": i, "column": j}
        for i in range(sky.rows)
        for j in range(sky.columns)
    ]


def read_spec(spec: Spec) -> Field:
    """The images of a field; the last few that were read stay in memory.

    Raises:
        DataError: its files are missing, or are not what they should be.
    """
    return _read(json.dumps(spec, sort_keys=True))


@lru_cache(_READ)
def _read(text: str) -> Field:
    spec = json.loads(text)
    if "sky" in spec:
        return SimulatedSky(**spec["sky"]).field(spec["row"], spec["column"])
    return read_images(spec["path"], spec["survey"])
