"""What a killed fit of a field goes on from: a folder of NumPy archives, each written whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from astrozoo._files import replacing
from astrozoo.data.images import Field
from astrozoo.errors import DataError, InputError, OutputError

__all__ = ["Checkpoint", "fingerprint"]

_EVERY = 30.0  # [s] between two savings of work in progress


def fingerprint(images: Field, *settings: object) -> str:
    """A hash of all pixels, their places on the sky, the PSFs, and the settings: what a checkpoint is of."""
    h = hashlib.sha256()

    def add(part: object) -> None:
        array = part if isinstance(part, np.ndarray) else None
        said = repr(part) if array is None else f"{array.dtype}{array.shape}"
        h.update(
            f"{len(said)}:{said}".encode()
        )  # its length, so that no two lists of parts run together alike
        if array is not None:
            h.update(np.ascontiguousarray(array).tobytes())

    for image in images:
        ny, nx = image.shape
        corners = np.array([[0.0, 0.0, nx - 1.0, nx - 1.0], [0.0, ny - 1.0, 0.0, ny - 1.0]])
        add(image.band)
        for array in (image.counts, image.sky, image.calibration, image.valid):
            add(array)
        add(np.stack(image.wcs.all_pix2world(*corners, 0)))
        add(image.psf.stamp((nx - 1) / 2, (ny - 1) / 2))
    for setting in settings:
        add(setting)
    return h.hexdigest()[:16]


class Checkpoint:
    """A folder of named parts of the work on one field; ``folder=None`` keeps nothing.

    Raises:
        InputError: if the folder holds work on another field, or with other settings.
        DataError: if a part cannot be read.
        OutputError: if a part cannot be written.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self.key = folder, key
        self._saved_at = time.monotonic()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder}: {error}") from error
        held = self.load("key")
        if held is None:
            self.save("key", {"key": np.frombuffer(key.encode(), np.uint8)})
        elif held["key"].tobytes().decode() != key:
            raise InputError(
                str(folder),
                "a checkpoint of another field, catalogue, seed or setting",
                "one of this run; remove it",
            )

    @property
    def due(self) -> bool:
        """Whether it is time to save work in progress."""
        return self.folder is not None and time.monotonic() - self._saved_at > _EVERY

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """A part, or None where there is none."""
        path = None if self.folder is None else self.folder / f"{name}.npz"
        if path is None or not path.is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:  # closed, if no archive
                return {k: held[k] for k in held.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise DataError(
                str(path), f"an unreadable file ({error})", "a checkpoint; remove it to begin anew"
            ) from error

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a part under a temporary name, then rename it."""
        if self.folder is None:
            return
        with replacing(self.folder / f"{name}.npz") as partial:
            np.savez(partial, allow_pickle=False, **arrays)
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Remove all parts: the work is done and saved elsewhere."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
