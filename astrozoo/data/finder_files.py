"""Stamps of lens candidates from files, in one or several bands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError, InputError

__all__ = ["MISSING", "LensStamps", "read_stamps"]

MISSING = 100.0
"""Value of pixels without data in the stamps of the Bologna Lens Factory's challenges."""
_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")
_LABELS = {"lens": 1.0, "lenses": 1.0, "nolens": 0.0, "nonlens": 0.0, "nonlenses": 0.0}
"""Names of folders whose stamps are labelled."""


@dataclass(frozen=True, eq=False)
class LensStamps:
    """Stamps of one size in the same bands.

    Attributes:
        image: sky may be included; NaN in pixels without data.
        names: of the stamps.
        bands: their names.
        label: 1 of lenses, 0 of others; None if it is not known.
    """

    image: Float[Tensor, "n band y x"]
    names: tuple[str, ...]
    bands: tuple[str, ...]
    label: Float[Tensor, "n"] | None = None

    def __len__(self) -> int:
        return len(self.names)


def read_stamps(path: Path, *, bands: str | None = None, missing: float = MISSING) -> LensStamps:
    """Stamps of a file or of a folder.

    A folder has either a FITS file per stamp, with one image HDU or plane per band, or a folder per band,
    whose files belong to the same stamps in the order of the numbers that end their names. Folders ``lens``
    and ``nolens`` label the stamps in them. An NPZ file has ``images`` [n, band, y, x] or [n, y, x], and may
    have ``names``, ``bands`` and ``label``.

    Args:
        path: of the file or folder.
        bands: names of the bands to use, separated by commas, in the order of the weights' bands. Bands are
            named by their folders, by the file, or by numbers from 1. None: all, as they are.
        missing: value of pixels without data, besides NaN.

    Raises:
        DataError: a file is missing or unreadable; there are no stamps; stamps differ in size or in their
            number of bands; or bands have different numbers of stamps.
        InputError: a band of ``bands`` does not exist.
    """
    if path.is_dir():
        labelled = sorted(p for p in path.iterdir() if p.is_dir() and p.name.lower() in _LABELS)
        if labelled:
            parts = [_folder(folder) for folder in labelled]
            stamps = _joined(path, parts, [_LABELS[folder.name.lower()] for folder in labelled])
        else:
            stamps = _folder(path)
    elif path.suffix == ".npz":
        stamps = _npz(path)
    elif path.name.lower().endswith(_SUFFIXES):
        stamps = _files([path])
    else:
        raise DataError(str(path), "a file of another kind", "a folder, a FITS file or an NPZ file")
    chosen = stamps if bands is None else _chosen(stamps, bands)
    image = torch.where(chosen.image == missing, torch.nan, chosen.image)
    return LensStamps(image, chosen.names, chosen.bands, chosen.label)


def _folder(folder: Path) -> LensStamps:
    files = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(_SUFFIXES)]
    if files:
        return _files(files)
    below = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    bands = {p.name: _by_number(p) for p in below}
    bands = {name: files for name, files in bands.items() if files}
    if not bands:
        raise DataError(str(folder), "no FITS files", "FITS files, or a folder of FITS files for each band")
    first_name, first = next(iter(bands.items()))
    for name, files in bands.items():
        if [_number(p) for p in files] != [_number(p) for p in first]:
            got = f"{len(files)} files in {name} and {len(first)} in {first_name}, or other numbers"
            raise DataError(str(folder), got, "the same stamps in all bands")
    columns = [_files(files).image for files in bands.values()]
    if len({c.shape for c in columns}) != 1:
        got = ", ".join(f"{name} {tuple(c.shape[2:])}" for name, c in zip(bands, columns, strict=True))
        raise DataError(str(folder), f"bands of different shapes: {got}", "one shape in all bands")
    names = tuple(_number(p) or p.name for p in first)
    return LensStamps(torch.cat(columns, 1), names, tuple(bands))


def _by_number(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.name.lower().endswith(_SUFFIXES)]
    return sorted(files, key=lambda p: (_number(p).zfill(20), p.name))


def _number(path: Path) -> str:
    """The number that ends a file's name, or the name if there is none."""
    stem = path.name.split(".")[0]
    match = re.search(r"(\d+)$", stem)
    return match.group(1) if match else stem


def _files(files: Sequence[Path]) -> LensStamps:
    images = []
    for path in files:
        with open_fits(path) as hdus:
            planes = [np.asarray(hdu.data, float) for hdu in hdus if hdu.is_image and hdu.data is not None]
        planes = [plane for array in planes for plane in (array if array.ndim == 3 else [array])]
        if not planes or any(plane.ndim != 2 for plane in planes):
            raise DataError(str(path), "no images of two axes", "an image HDU for each band")
        if len({plane.shape for plane in planes}) != 1:
            got = f"bands of different shapes: {[plane.shape for plane in planes]}"
            raise DataError(str(path), got, "one shape in all bands")
        images.append(np.stack(planes))
    names = tuple(path.name for path in files)
    _same_shape(images, names)
    bands = tuple(str(k + 1) for k in range(len(images[0])))
    return LensStamps(torch.from_numpy(np.stack(images)).float(), names, bands)


def _same_shape(images: Sequence[np.ndarray], names: Sequence[str]) -> None:
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            got = f"shape {image.shape} (band, y, x)"
            raise DataError(
                f"stamp {name}", got, f"{images[0].shape}, that of {names[0]}: stamps of one size"
            )


def _npz(path: Path) -> LensStamps:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"unreadable ({error})", "an NPZ file with images") from error
    images = content.get("images")
    if images is None or images.ndim not in (3, 4) or images.dtype.kind not in "fiu" or not len(images):
        got = f"arrays {sorted(content)}" if images is None else f"images of shape {images.shape}"
        raise DataError(str(path), got, "images of shape [n, band, y, x] or [n, y, x]")
    images = images[:, None] if images.ndim == 3 else images
    names = tuple(map(str, content.get("names", range(len(images)))))
    bands = tuple(map(str, content.get("bands", range(1, images.shape[1] + 1))))
    label = content.get("label")
    counts = {"names": (len(names), len(images)), "bands": (len(bands), images.shape[1])}
    counts["label"] = (len(images) if label is None else len(label), len(images))
    for name, (count, expected) in counts.items():
        if count != expected:
            raise DataError(f"{name} of {path}", count, f"{expected}, as of images")
    tensor = torch.from_numpy(images.astype(np.float32))
    return LensStamps(tensor, names, bands, None if label is None else torch.from_numpy(label).float())


def _joined(path: Path, parts: Sequence[LensStamps], labels: Sequence[float]) -> LensStamps:
    first = parts[0]
    for part in parts:
        if part.image.shape[1:] != first.image.shape[1:] or part.bands != first.bands:
            got = f"stamps of shape {tuple(part.image.shape[1:])} and {tuple(first.image.shape[1:])}"
            raise DataError(str(path), got, "stamps of one size in the same bands")
    label = torch.cat([torch.full((len(p),), value) for p, value in zip(parts, labels, strict=True)])
    names = tuple(name for part in parts for name in part.names)
    return LensStamps(torch.cat([part.image for part in parts]), names, first.bands, label)


def _chosen(stamps: LensStamps, bands: str) -> LensStamps:
    wanted = [band.strip() for band in bands.split(",")]
    unknown = [band for band in wanted if band not in stamps.bands]
    if unknown:
        raise InputError("--bands", unknown, f"some of {', '.join(stamps.bands)}")
    index = [stamps.bands.index(band) for band in wanted]
    return LensStamps(stamps.image[:, index], stamps.names, tuple(wanted), stamps.label)
