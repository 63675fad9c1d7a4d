"""Files of density fields: grids of counts, density contrast or convergence, and linear power spectra."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError, InputError

__all__ = ["Grid", "read_grid", "read_mask", "read_spectrum"]

Kind = Literal["counts", "density", "kappa"]
_AXES: dict[str, int] = {"counts": 3, "density": 3, "kappa": 2}
"""Kinds of values, and how many axes their grids have."""

_LEAST_PEAK = 10.0
"""[(Mpc / h)^3] The spectrum of matter today reaches about 24,000. Tables of the dimensionless power, or of
another unit, stay below this."""


class Grid(NamedTuple):
    """A grid of values from a file; what the file does not say is None."""

    values: Float[np.ndarray, "*cells"]
    kind: Kind
    box: float | None
    mean: float | None
    noise: Float[np.ndarray, "*cells"] | float | None
    mask: Bool[np.ndarray, "*cells"] | None


def read_grid(path: Path, kind: Kind | None = None) -> Grid:
    """A grid from an NPZ file (:func:`astrozoo.models.nbody_grid.read` names its arrays) or a FITS image.

    Args:
        kind: what the values are. Of an NPZ file, the name of its array by default; of a FITS file, counts.

    Raises:
        DataError: the file is missing or unreadable, or has no such grid.
    """
    if path.suffix == ".npz":
        arrays = _npz(path)
        names = [name for name in _AXES if name in arrays and kind in (None, name)]
        if len(names) != 1:
            raise DataError(
                str(path), f"arrays {', '.join(arrays)}", f"one array of {kind or ', '.join(_AXES)}"
            )
        chosen: Any = names[0]
        box, mean = (_number(arrays, name, path) for name in ("box", "mean"))
        mask = arrays["mask"].astype(bool) if "mask" in arrays else None
        return Grid(_values(arrays[chosen], chosen, path), chosen, box, mean, arrays.get("noise"), mask)
    image, header = _fits(path)
    chosen = kind or "counts"
    box = float(header["BOX"]) if "BOX" in header else None
    return Grid(_values(image, chosen, path), chosen, box, None, None, None)


def _values(array: np.ndarray, kind: str, path: Path) -> Float[np.ndarray, "*cells"]:
    if array.ndim != _AXES[kind] or array.dtype.kind not in "fiu":
        got = f"shape {array.shape} of {array.dtype}"
        raise DataError(str(path), got, f"{kind}: numbers with {_AXES[kind]} axes")
    return array.astype(float)


def _number(arrays: dict[str, np.ndarray], name: str, path: Path) -> float | None:
    if name not in arrays:
        return None
    if arrays[name].size != 1:
        raise DataError(f"{path}, {name}", f"shape {arrays[name].shape}", "a number")
    return float(arrays[name].item())


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NPZ file") from error


def _fits(path: Path) -> tuple[np.ndarray, Any]:
    with open_fits(path) as hdus:
        image = next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
        if image is None:
            raise DataError(str(path), "no image in any HDU", "a grid")
        return np.asarray(image.data, dtype=image.data.dtype.newbyteorder("=")), image.header


def read_mask(path: Path) -> Bool[np.ndarray, "*cells"]:
    """A grid that is not 0 in cells with data, from a NPY or FITS file.

    Raises:
        DataError: the file is missing or unreadable.
    """
    if path.suffix != ".npy":
        return _fits(path)[0] != 0
    try:
        return np.load(path, allow_pickle=False) != 0
    except (OSError, ValueError, EOFError) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NPY file") from error


def read_spectrum(path: Path) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Columns k [h / Mpc] and P [(Mpc / h)^3] of a text file.

    Raises:
        DataError: the file is missing or unreadable, or has no such columns.
        InputError: a spectrum in other units.
    """
    try:
        table = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None)
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "two columns: k and P") from error
    if table.ndim != 2 or table.shape[1] < 2:
        raise DataError(str(path), f"an array of shape {table.shape}", "two columns: k and P")
    k, power = table[:, 0], table[:, 1]
    if power.max() < _LEAST_PEAK:
        raise InputError("spectrum", f"powers up to {power.max():.3g}", "P(k) today in (Mpc/h)^3")
    return k, power
