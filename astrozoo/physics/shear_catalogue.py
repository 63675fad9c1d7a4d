"""From a catalogue of ellipticities to maps of shear: tangent plane, weighted means, noise.

Maps have rows from south to north and columns from east to west, as images with north up and east left.
Shear components refer to the same axes: x points west and y points north.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.errors import InputError

__all__ = ["MOST_PIXELS", "BinnedShear", "bin_shear", "checked_rows", "sky_frame", "tangent_wcs"]

MOST_PIXELS = 4_000_000
"""Most pixels of a map: of 2,000 x 2,000, a few GB in all of a fit. A typing error in the side of a pixel
would otherwise fill the memory."""


class BinnedShear(NamedTuple):
    """Maps of binned ellipticities.

    Args:
        shear: weighted mean ellipticity of each pixel, 0 in pixels without galaxies.
        noise: its standard error. It is 1 in pixels without galaxies.
        mask: whether a pixel has galaxies.
        galaxies: number of galaxies in each pixel.
        outside: number of galaxies beyond the edges of the map.
    """

    shear: Float[np.ndarray, "2 y x"]
    noise: Float[np.ndarray, "2 y x"]
    mask: Bool[np.ndarray, "y x"]
    galaxies: Float[np.ndarray, "y x"]
    outside: int


def checked_rows(
    ra: Float[np.ndarray, "n"],
    dec: Float[np.ndarray, "n"],
    e1: Float[np.ndarray, "n"],
    e2: Float[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
) -> None:
    """Refuse values that no catalogue of shear has.

    Calibrated ellipticities of single galaxies may exceed 1, because noise is divided by a small response.
    A median above 1 is not that of a shear estimate.

    Raises:
        InputError: columns of different lengths, or empty; values that are NaN or infinite; a declination
            beyond the poles; a negative weight, or weights that are all 0; a median |e| above 1.
    """
    columns = {"ra": ra, "dec": dec, "e1": e1, "e2": e2, "weight": weight}
    if len({len(column) for column in columns.values()}) != 1 or len(ra) == 0:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise InputError("catalogue", f"columns of {sizes} rows", "columns of one length, with galaxies")
    for name, column in columns.items():
        bad = ~np.isfinite(column)
        if bad.any():
            got = f"{bad.sum()} of {len(bad)} values NaN or infinite, the first in row {bad.argmax()}"
            raise InputError(f"catalogue column {name}", got, "finite numbers; remove these rows")
    if np.abs(dec).max() > 90:
        raise InputError("catalogue column dec", f"{dec[np.abs(dec).argmax()]:g}", "degrees from -90 to 90")
    if weight.min() < 0 or weight.max() == 0:
        raise InputError("catalogue column weight", f"{weight.min():g} to {weight.max():g}", "weights > 0")
    size = float(np.median(np.hypot(e1, e2)))
    if size > 1:
        raise InputError("catalogue columns e1, e2", f"a median |e| of {size:.3g}", "shear estimates below 1")


def tangent_wcs(
    ra: Float[np.ndarray, "n"], dec: Float[np.ndarray, "n"], pixel: float, margin: int = 0
) -> tuple[WCS, tuple[int, int]]:
    """A tangent-plane map with north up that contains all positions, and its shape (multiples of 8).

    The centre is the middle of the positions on the sky, so that a field may cross RA 0.

    Args:
        ra, dec: positions [deg].
        pixel: side of a pixel [arcmin].
        margin: empty pixels to add on every side. The map is periodic in a fit.

    Raises:
        InputError: a field of more than a hemisphere, or of more than :data:`MOST_PIXELS` pixels.
    """
    sky = SkyCoord(ra, dec, unit="deg").cartesian
    mean = np.array([sky.x.mean(), sky.y.mean(), sky.z.mean()])
    centre = SkyCoord(*mean, representation_type="cartesian").spherical
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [centre.lon.deg, centre.lat.deg]
    wcs.wcs.cdelt = [-pixel / 60, pixel / 60]
    wcs.wcs.crpix = [1, 1]
    directions = np.stack((sky.x, sky.y, sky.z))
    if (mean / np.linalg.norm(mean) @ directions).min() < math.cos(math.radians(60)):
        raise InputError("catalogue", "positions more than 60 degrees from their centre", "a smaller field")
    x, y = wcs.all_world2pix(ra, dec, 0)
    low = np.array([x.min(), y.min()])
    high = np.array([x.max(), y.max()])
    spans = high - low
    sides = [8 * math.ceil((span + 1 + 2 * margin) / 8) for span in spans]  # as networks need
    if sides[0] * sides[1] > MOST_PIXELS:
        raise InputError(
            "pixel", f"{pixel:g} arcmin: a map of {sides[1]} x {sides[0]}", f"at most {MOST_PIXELS:,} pixels"
        )
    # The middle of the positions is the middle of the map.
    wcs.wcs.crpix = [1 + (side - 1) / 2 - (a + b) / 2 for side, a, b in zip(sides, low, high, strict=True)]
    return wcs, (sides[1], sides[0])


def sky_frame(e2: Float[np.ndarray, "n"], axis: Literal["west", "east"] = "west") -> Float[np.ndarray, "n"]:
    """e2 in a frame whose x axis points west.

    Args:
        axis: where the catalogue's x axis points. With "east" e2 changes its sign, and e1 does not.
    """
    return e2 if axis == "west" else -e2


def bin_shear(
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    ellipticity: Float[np.ndarray, "2 n"],
    weight: Float[np.ndarray, "n"],
    shape: tuple[int, int],
    sigma_e: float | None = None,
) -> BinnedShear:
    """Weighted mean ellipticities of pixels, and their standard errors.

    The standard error is ``sigma_e sqrt(sum w^2) / sum w``.

    Args:
        x, y: positions [px], integers at the centres of pixels.
        ellipticity: components in the frame of the map.
        shape: rows and columns of the map.
        sigma_e: SD of a component of the ellipticity of one galaxy. It is the weighted rms of the catalogue
            if it is not given, for each component.
    """
    columns, rows = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    inside = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0]) & (weight > 0)
    index, w, e = rows[inside] * shape[1] + columns[inside], weight[inside], ellipticity[:, inside]
    size = shape[0] * shape[1]

    def total(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(index, values, minlength=size).reshape(shape)

    weights, count = total(w), total().astype(float)
    mask = count > 0
    divisor = np.where(mask, weights, 1.0)
    shear = np.stack([total(w * component) / divisor for component in e])
    if sigma_e is None:
        scatter = np.sqrt((w * e**2).sum(1) / w.sum()) if len(w) else np.ones(2)
    else:
        scatter = np.full(2, sigma_e)
    relative = np.where(mask, np.sqrt(total(w**2)) / divisor, 1.0)
    noise = np.where(mask, scatter[:, None, None] * relative, 1.0)
    return BinnedShear(shear, noise, mask, count, int((~inside).sum()))
