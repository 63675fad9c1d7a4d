"""Files of weak-lensing surveys: catalogues of ellipticities, and maps of shear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.data.fits_file import open_fits
from astrozoo.data.wcs import celestial_wcs, has_celestial, pixel_scale
from astrozoo.errors import DataError, InputError

__all__ = ["Maps", "is_image", "read_columns", "read_maps"]

_NAMES: Mapping[str, Sequence[str]] = {
    "ra": ("ra", "alpha_j2000", "alphawin_j2000", "raj2000", "ra_deg"),
    "dec": ("dec", "delta_j2000", "deltawin_j2000", "dej2000", "dec_deg"),
    "e1": ("e1", "g1", "gamma1", "shear1", "e_1", "g_1"),
    "e2": ("e2", "g2", "gamma2", "shear2", "e_2", "g_2"),
    "weight": ("weight", "w", "weights", "wt", "shape_weight"),
}
"""Names of columns that are known, in any case. A name that the user gives goes first."""
_READERS = {".fits": "fits", ".fit": "fits", ".gz": "fits", ".csv": "ascii.csv", ".parquet": "parquet"}
"""Endings of files, and their formats in astropy."""


class Maps(NamedTuple):
    """Maps of shear from files; ``pixel`` [arcmin] and ``wcs`` are None where no header has them."""

    shear: Float[np.ndarray, "2 y x"]
    noise: Float[np.ndarray, "2 y x"]
    mask: Bool[np.ndarray, "y x"]
    pixel: float | None
    wcs: WCS | None


def is_image(path: Path) -> bool:
    """Whether a file is a FITS file whose first data are an image."""
    if path.suffix not in (".fits", ".fit", ".gz", ".fz"):
        return False
    with open_fits(path) as hdus:
        first = next((hdu for hdu in hdus if hdu.header.get("NAXIS", 0) > 0), None)
        return first is not None and first.is_image


def read_columns(path: Path, **given: str | None) -> dict[str, Float[np.ndarray, "n"]]:
    """Columns ra, dec [deg], e1, e2 and weight of a catalogue. A catalogue without weights has equal ones.

    Args:
        path: ends in .fits, .csv, .parquet or .npz.
        given: names of columns, by what they contain; None: one of the names that are known.

    Raises:
        DataError: the file is missing or unreadable, or lacks a column; the message lists those it has.
    """
    table = _table(path)
    names = {name.lower(): name for name in table}
    columns: dict[str, np.ndarray] = {}
    for what, known in _NAMES.items():
        wanted = given.get(what)
        if wanted is not None and wanted.lower() not in names:
            raise DataError(str(path), f"columns {', '.join(table)}", f"a column {wanted!r} ({what})")
        found = next((names[n] for n in ([wanted.lower()] if wanted else known) if n in names), None)
        if found is None and what == "weight":
            columns[what] = np.ones(len(columns["ra"]))
        elif found is None:
            raise DataError(
                str(path), f"columns {', '.join(table)}", f"a column for {what}: name it with --{what}"
            )
        else:
            columns[what] = _numbers(table[found], f"{path}, column {found}")
    return columns


def _numbers(column: np.ndarray, what: str) -> Float[np.ndarray, "n"]:
    """In double precision; missing values are NaN."""
    try:
        values: np.ndarray = np.ma.filled(np.ma.asarray(column, dtype=float), np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(what, f"values of type {column.dtype}", "numbers") from error
    if values.ndim != 1:
        raise DataError(what, f"an array of shape {values.shape}", "one number per galaxy")
    return values


def _table(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(str(path), "no such file", "a catalogue or a map of shear")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix not in _READERS:
        raise DataError(str(path), f"a file that ends in {path.suffix!r}", f"{', '.join(_READERS)} or .npz")
    try:
        table = Table.read(path, format=_READERS[path.suffix])
    except Exception as error:  # astropy's readers raise many types for a corrupt file
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a table") from error
    return {name: table[name] for name in table.colnames}


def read_maps(
    path: Path,
    second: str | Path | None = None,
    noise: str | Path | None = None,
    mask: str | Path | None = None,
) -> Maps:
    """Maps of shear from FITS images.

    Pixels whose shear or noise is not finite, or whose noise is 0 or less, have no data.

    Args:
        path: both components, ``[2, y, x]`` or ``[y, x, 2]``, or the first.
        second: the second component.
        noise: SD of a component, ``[y, x]`` or as the shear. It is needed.
        mask: pixels above 0 have data; all, if it is not given.

    Raises:
        DataError: a file is missing or unreadable.
        InputError: shapes that do not agree, no noise map, or no pixel with data.
    """
    plane, wcs, pixel = _image(path)
    if plane.ndim == 2 and second is None:
        raise InputError("second", "none", f"the file of the second component: {path} has one")
    shear = _planes(plane, path) if second is None else np.stack((plane, _image(Path(second))[0]))
    if noise is None:
        raise InputError("noise_map", "none", "a map of the SD of each pixel")
    sd = _image(Path(noise))[0]
    sd = np.stack((sd, sd)) if sd.ndim == 2 else _planes(sd, Path(noise))
    good = np.ones(shear.shape[1:], bool) if mask is None else _image(Path(mask))[0] > 0
    for name, shape in {"noise_map": sd.shape[1:], "mask_map": good.shape}.items():
        if shape != shear.shape[1:]:
            raise InputError(name, f"{shape} pixels", f"those of the shear, {shear.shape[1:]}")
    good &= np.isfinite(shear).all(0) & np.isfinite(sd).all(0) & (sd > 0).all(0)
    if not good.any():
        raise InputError("maps", "no pixel with data", "pixels with finite shear and noise above 0")
    return Maps(np.where(good, shear, 0.0), np.where(good, sd, 1.0), good, pixel, wcs)


def _planes(image: np.ndarray, path: Path) -> np.ndarray:
    if image.ndim == 3 and len(image) == 2:
        return image
    if image.ndim == 3 and image.shape[2] == 2:
        return np.moveaxis(image, 2, 0)
    raise InputError(str(path), f"an image of shape {image.shape}", "[y, x], [2, y, x] or [y, x, 2]")


def _image(path: Path) -> tuple[np.ndarray, WCS | None, float | None]:
    """The first image of a file, its WCS and the side of its pixels [arcmin]."""
    with open_fits(path) as hdus:
        hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
        if hdu is None:
            raise DataError(str(path), "no image", "a FITS image")
        image = np.asarray(hdu.data, dtype=float)
        if not has_celestial(hdu.header):
            return image, None, None
        wcs = celestial_wcs(hdu.header, str(path))
        return image, wcs, pixel_scale(wcs, str(path)) / 60
