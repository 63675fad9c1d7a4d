"""Checkpoints: named sets of arrays on disk, from which a killed run continues."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from astrozoo._files import replacing
from astrozoo.errors import DataError, InputError, OutputError

__all__ = ["SAVE_INTERVAL", "Checkpoint"]

SAVE_INTERVAL = 30.0
"""Time between two savings of work in progress [s]: a kill loses at most so much work, and saving takes under
1 % of the time."""


class Checkpoint:
    """NumPy archives (no pickles) that belong to one run. Each is written whole or not at all.

    The run is described by a header, which every archive holds. The main archive is written, without arrays,
    when the checkpoint is made, so that a path that cannot be written is an error before any work.

    Args:
        path: of the main archive, ``NAME.npz``. Part ``x`` is beside it, as ``NAME.x.npz``. None keeps
            nothing.
        header: whatever tells this run from another: digest, method, seed, settings.

    Raises:
        InputError: if the archive there belongs to a run with another header.
        DataError: if it cannot be read.
        OutputError: if it cannot be written.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, str]) -> None:
        self.path = None if path is None else Path(path)
        self.header = dict(header)
        self._saved_at = time.monotonic()
        if self.path is None or self.path.exists():
            self.load()
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.path.parent}: {error}") from error
        self.save({})

    @property
    def due(self) -> bool:
        """Whether it is time to save work in progress."""
        return self.path is not None and time.monotonic() - self._saved_at >= SAVE_INTERVAL

    def part_path(self, part: str) -> Path | None:
        """The archive of a part; of the main part, "", the path itself."""
        if self.path is None or not part:
            return self.path
        return self.path.with_suffix(f".{part}.npz")

    def load(self, part: str = "") -> dict[str, np.ndarray] | None:
        """The arrays of a part, or None where none have been saved.

        Raises:
            InputError: if they belong to a run with another header.
            DataError: if they cannot be read.
        """
        path = self.part_path(part)
        if path is None or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(str(arrays.pop("header")))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(
                str(path),
                f"an unreadable file ({error})",
                "a checkpoint; remove it to begin anew",
            ) from error
        for name, value in self.header.items():
            if header.get(name) != value:
                raise InputError(f"checkpoint {path}", f"{name} {header.get(name)}", f"{name} {value}")
        return arrays or None

    def save(self, arrays: Mapping[str, Any], part: str = "") -> None:
        """Write a part under a temporary name, then rename it.

        Raises:
            OutputError: if it cannot be written.
        """
        path = self.part_path(part)
        if path is None:
            return
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays, header=np.asarray(json.dumps(self.header)))
        self._saved_at = time.monotonic()
