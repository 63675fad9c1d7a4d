"""PSFs of PSFEx: images whose coefficients are a polynomial of the position.

References:
    Bertin 2011, ADASS XX, 435.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.io import fits
from jaxtyping import Float

from astrozoo.data.fits_file import open_fits
from astrozoo.data.images import GaussianMixture
from astrozoo.data.psf import MixtureGrid, fit_mixture
from astrozoo.errors import DataError, InputError

__all__ = ["PsfexPsf", "read_psfex"]


@dataclass(frozen=True)
class PsfexPsf:
    """A PSFEx model. It includes the pixel's response, as stars in the image do.

    Args:
        basis: image of each term of the polynomial: 1, u, u^2, ..., v, u v, ..., v^2, ...
        degree: of the polynomial.
        zero, scale: u = (x + 1 - zero) / scale with 0-based x [px]; (x, y) each.
        sampling: pixels of the image per sample of the basis.
        middle: (x, y) of the image's middle, where the first mixture is fitted [px].
        components: Gaussians per mixture, where they suffice.
    """

    basis: Float[np.ndarray, "k n n"]
    degree: int
    zero: tuple[float, float]
    scale: tuple[float, float]
    sampling: float
    middle: tuple[float, float]
    components: int = 3
    _grid: MixtureGrid = field(init=False, repr=False, compare=False)
    _start: list[GaussianMixture] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms, shape = (self.degree + 1) * (self.degree + 2) // 2, np.shape(self.basis)
        if len(shape) != 3 or shape[0] != terms or shape[1] != shape[2]:
            raise InputError("PSFEx basis", f"shape {shape}", f"[{terms}, n, n] for degree {self.degree}")
        if not (min(self.sampling, *self.scale) > 0 and np.isfinite(self.basis).all()):
            got = f"sampling {self.sampling:g}, scale {self.scale}"
            raise InputError("PSFEx model", got, "positive numbers and a finite basis")
        object.__setattr__(self, "_grid", MixtureGrid(self._fitted))

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The PSF at pixel (x, y), summing to 1, resampled to the image's pixels by Lanczos interpolation."""
        u, v = ((p + 1 - z) / s for p, z, s in zip((x, y), self.zero, self.scale, strict=True))
        powers = [(i, j) for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        image = np.tensordot([u**i * v**j for i, j in powers], self.basis, axes=1)
        model = galsim.InterpolatedImage(
            galsim.Image(np.ascontiguousarray(image, float)),
            scale=self.sampling,
            x_interpolant=galsim.Lanczos(3),
        )
        size = int(len(image) * self.sampling - 1) // 2 * 2 + 1
        stamp = model.drawImage(nx=size, ny=size, scale=1.0, method="no_pixel", dtype=float).array
        return stamp / stamp.sum()

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture at pixel (x, y), interpolated between the nodes around it."""
        return self._grid.at(x, y)

    def _fitted(self, x: float, y: float) -> GaussianMixture:
        if not self._start:
            self._start.append(fit_mixture(self.stamp(*self.middle), self.components))
        return fit_mixture(self.stamp(x, y), start=self._start[0])


def read_psfex(
    path: Path,
    *,
    shape: tuple[int, int],
    row: int | str = 0,
    origin: tuple[float, float] = (0.0, 0.0),
) -> PsfexPsf:
    """A PSFEx model of a ``.psf`` file, or of a table with the models of several detectors.

    Args:
        path: the file.
        shape: rows and columns of the image.
        row: of the table; or its value in the column ``ccdname``.
        origin: (x, y) of the image's first pixel in the array that PSFEx used, counted from 0 [px].

    Raises:
        DataError: the file is no PSFEx model, or its polynomial is not one of x and y in the image.
    """
    with open_fits(path, "a PSFEx file") as hdus:
        table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU) and _has_basis(hdu)), None)
        if table is None:
            raise DataError(str(path), f"HDUs {[hdu.name for hdu in hdus]}", "a table with PSF_MASK")
        at = _row(table, row, path)
        record = {name.lower(): table.data[name][at] for name in table.columns.names}
        header = {key.lower(): value for key, value in table.header.items() if key}
    keys: dict[str, Any] = header | record
    names = [str(keys.get(f"polname{k}", "X_IMAGE" if k == 1 else "Y_IMAGE")).strip() for k in (1, 2)]
    axes, groups = int(keys.get("polnaxis", 2)), int(keys.get("polngrp", 1))
    straight = all(
        name.startswith(axis) and name.endswith("IMAGE") for axis, name in zip("XY", names, strict=True)
    )
    if axes != 2 or groups > 1 or not straight:
        raise DataError(str(path), f"a polynomial of {names}", "one of X_IMAGE and Y_IMAGE")
    try:
        zero, scale = ((float(keys[f"pol{what}1"]), float(keys[f"pol{what}2"])) for what in ("zero", "scal"))
        sampling, degree = float(keys["psf_samp"]), int(keys.get("poldeg1", 0))
    except KeyError as error:
        raise DataError(str(path), f"no {error.args[0].upper()}", "a PSFEx model") from error
    basis = np.asarray(keys["psf_mask"], float)
    basis = basis[None] if basis.ndim == 2 else basis
    terms = (degree + 1) * (degree + 2) // 2  # tables of several detectors may be padded
    ny, nx = shape
    try:
        return PsfexPsf(
            basis[:terms],
            degree,
            (zero[0] - origin[0], zero[1] - origin[1]),
            scale,
            sampling if sampling > 0 else 1.0,
            ((nx - 1) / 2, (ny - 1) / 2),
        )
    except InputError as error:
        raise DataError(f"{path}: {error.what}", error.got, error.expected) from error


def _has_basis(table: fits.BinTableHDU) -> bool:
    return "psf_mask" in [name.lower() for name in table.columns.names]


def _row(table: fits.BinTableHDU, row: int | str, path: Path) -> int:
    if isinstance(row, str):
        names = {name.lower(): name for name in table.columns.names}
        detectors = [str(n).strip() for n in table.data[names["ccdname"]]] if "ccdname" in names else []
        if row not in detectors:
            raise DataError(str(path), f"no ccdname {row!r}", f"one of {', '.join(detectors) or 'none'}")
        return detectors.index(row)
    if not 0 <= row < len(table.data):
        raise DataError(str(path), f"{len(table.data)} rows", f"row {row}, counted from 0")
    return row
