"""Warnings that follow from where a source lies: at saturated pixels, at an edge, near another source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

from astrozoo.data.images import Field, Image

__all__ = ["POSITION_FLAGS", "position_flags"]

POSITION_FLAGS = {
    "saturated": "a saturated pixel within 3 px, or in the detected footprint",
    "edge": "at the edge of the images or of a hole in them",
    "blended": "detected in one piece with another source, or less than 4 arcsec from one",
    "no_core": "no valid pixel within 1 px in one of the images: what is known comes from the wings",
}
"""Name and meaning of each flag of :func:`position_flags`."""

_MARGIN = 3
"""Half size of the square around a source that is searched for saturated or missing pixels [px].

Two or three pixels are the radius of a typical PSF's core, which decides a source's flux and size."""
_CORE = 1
"""Half size of the square at a source's centre that is its core [px]: about the radius of half its light."""
_BLEND_DISTANCE = 4.0
"""Distance to the nearest source below which a source is flagged as blended [arcsec].

About three times the PSF's full width at half maximum in SDSS: wings overlap noticeably."""


def position_flags(images: Field, sources: Table) -> dict[str, Bool[np.ndarray, "s"]]:
    """The flags of sources by their positions.

    Args:
        images: the field.
        sources: ``ra`` and ``dec`` [deg]. A column with a flag's name (detection makes such columns) is
            returned unchanged; to ``blended``, sources near another one are added.

    Returns:
        an array for each of :data:`POSITION_FLAGS`.
    """
    compute: dict[str, Callable[[Field, Table], np.ndarray]] = {
        "saturated": _near_saturated,
        "edge": _near_edge,
        "blended": _near_another,
        "no_core": _without_core,
    }
    flags = {
        name: np.asarray(sources[name], bool) if name in sources.colnames else flag(images, sources)
        for name, flag in compute.items()
    }
    return flags | {"blended": flags["blended"] | _near_another(images, sources)}


def _near_saturated(images: Field, sources: Table) -> Bool[np.ndarray, "s"]:
    return np.any([_any_near(image.saturated, _pixels(image, sources), False) for image in images], axis=0)


def _near_edge(images: Field, sources: Table) -> Bool[np.ndarray, "s"]:
    missing = [~(image.valid | image.saturated) for image in images]
    near = [
        _any_near(pixels, _pixels(image, sources), True)
        for pixels, image in zip(missing, images, strict=True)
    ]
    return np.any(near, axis=0)


def _pixels(image: Image, sources: Table) -> Float[np.ndarray, "s 2"]:
    ra, dec = (np.asarray(sources[name], float) for name in ("ra", "dec"))
    return np.stack(image.wcs.all_world2pix(ra, dec, 0), -1)


def _any_near(
    values: Bool[np.ndarray, "y x"], xy: Float[np.ndarray, "s 2"], outside: bool
) -> Bool[np.ndarray, "s"]:
    """Whether any pixel of the square around each position is set; beyond the image all are ``outside``."""
    pad = _MARGIN + 1
    padded = np.pad(values, pad, constant_values=outside)
    ny, nx = values.shape
    near = np.zeros(len(xy), bool)
    for i, (x, y) in enumerate(xy):
        column, row = int(np.clip(round(x), -1, nx)) + pad, int(np.clip(round(y), -1, ny)) + pad
        square = padded[row - _MARGIN : row + _MARGIN + 1, column - _MARGIN : column + _MARGIN + 1]
        near[i] = square.any()
    return near


def _without_core(images: Field, sources: Table) -> Bool[np.ndarray, "s"]:
    """Whether an image that contains a source has no valid pixel at its centre."""
    missing = []
    for image in images:
        xy = np.nan_to_num(np.rint(_pixels(image, sources)), nan=-9).astype(int)
        ny, nx = image.shape
        inside = ((xy >= 0) & (xy < (nx, ny))).all(-1)
        x, y = xy.clip(0, (nx - 1, ny - 1)).T
        seen = maximum_filter(image.valid, size=2 * _CORE + 1)[y, x]
        missing.append(inside & ~seen)
    return np.any(missing, axis=0)


def _near_another(images: Field, sources: Table) -> Bool[np.ndarray, "s"]:
    ra, dec = (np.asarray(sources[name], float) for name in ("ra", "dec"))
    if len(ra) < 2:
        return np.zeros(len(ra), bool)
    east = ((ra - ra[0] + 180) % 360 - 180) * np.cos(np.deg2rad(dec))
    sky = 3600 * np.stack((east, dec), -1)
    return cKDTree(sky).query(sky, k=2)[0][:, 1] < _BLEND_DISTANCE
