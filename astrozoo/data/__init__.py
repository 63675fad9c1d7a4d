"""Readers of survey data, simulators, and the location of local data."""

from __future__ import annotations

import os
from pathlib import Path

from astrozoo.errors import DataError

__all__ = ["root"]


def root() -> Path | None:
    """The folder of local survey data, or None if there is none.

    The environment variable ``ASTROZOO_DATA`` names it. If that is not set, it is ``../shared/data``,
    relative to the checkout of this package or else to the current folder.

    Raises:
        DataError: ``ASTROZOO_DATA`` names a folder that does not exist.
    """
    named = os.environ.get("ASTROZOO_DATA")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError("ASTROZOO_DATA", named, "an existing folder")
        return folder
    for start in (Path(__file__).resolve().parents[2], Path.cwd()):
        folder = start.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    return None
