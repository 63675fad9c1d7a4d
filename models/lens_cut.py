"""The part of an image that a lens model explains: a square around the lens, without its neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import binary_dilation, label

from astrozoo.data.lens_image import LensImage
from astrozoo.errors import InputError
from astrozoo.models.lens_exposure import observe
from astrozoo.models.lens_guess import Guess, guess, smoothed

__all__ = ["cut_out"]

_LARGEST = 14.0
"""[arcsec] Side of the square in which a lens is looked for: arcs of a galaxy are within 3 arcsec of it."""
_MARGIN = (1.7, 0.5)
"""[Einstein radius, arcsec] Half the side of the square is the sum of these: images of a source lie within
1.5 Einstein radii."""
_STEP = 16
"""[px] Sides of squares are multiples of this: lenses of one shape share a compiled graph."""
_NEIGHBOUR = 1.6
"""[Einstein radius] Significant light whose mean distance from the lens is larger is that of neighbours."""


def cut_out(lens: LensImage, crop: float | None = None, core: float | None = None) -> LensImage:
    """The square around the lens, with neighbours and a core masked.

    Args:
        lens: the image.
        crop: side of the square [arcsec]; 0 keeps the whole image, and masks no neighbours. By default the
            arcs decide.
        core: radius around the lens in which pixels are masked [arcsec]. By default the smallest outside
            which a Sersic profile follows the light of the lens.

    Raises:
        InputError: a negative size, or a square smaller than the PSF.
    """
    for name, value in (("crop", crop), ("core", core)):
        if value is not None and not value >= 0:
            raise InputError(name, value, "an angle of 0 or more [arcsec]")
    whole = lens.shape
    if crop is None:
        lens = _square(lens, (0.0, 0.0), _LARGEST)
    found = guess(observe(lens))
    if crop != 0:
        reach = crop if crop is not None else 2 * (_MARGIN[0] * float(found.radii[0]) + _MARGIN[1])
        cut = _square(lens, (float(found.centre[0]), float(found.centre[1])), reach)
        if cut.shape != lens.shape:
            lens = cut
            found = guess(observe(lens))
    notes = {}
    if lens.shape != whole:
        notes["part"] = f"{lens.shape[1]} x {lens.shape[0]} of {whole[1]} x {whole[0]} pixels"
    mask = lens.mask
    if crop is None and found.found:
        mask = mask & ~_neighbours(lens, found)
        if (count := int((lens.mask & ~mask).sum())) > 0:
            notes["neighbours"] = f"{count} pixels masked"
    radius = found.core if core is None else core
    if radius > 0:
        x, y = lens.coordinates()
        outside = np.hypot(x - found.centre[0], y - found.centre[1]) > radius
        if (mask & outside).any():
            mask = mask & outside
            notes["core"] = f"masked within {radius:.2f} arcsec"
    return replace(lens, mask=mask, provenance={**lens.provenance, **notes})


def _square(lens: LensImage, centre: tuple[float, float], side: float) -> LensImage:
    """The square of about that side around a position [arcsec], shifted to lie inside the image.

    The PSF is trimmed to the square.
    """
    pixels = max(_STEP, _STEP * round(side / lens.pixel_scale / _STEP))
    if pixels >= min(lens.shape):
        return lens
    box = []
    for n, c in zip(lens.shape, centre[::-1], strict=True):
        middle = round(c / lens.pixel_scale + (n - 1) / 2)
        first = min(max(middle - pixels // 2, 0), n - pixels)
        box.append(slice(first, first + pixels))
    most = pixels - 1 + pixels % 2
    return (lens.trim_psf(most) if len(lens.psf) > most else lens).cut(*box)


def _neighbours(lens: LensImage, found: Guess) -> Bool[np.ndarray, "y x"]:
    """Pixels of significant light that is too far from the lens to be the source's."""
    x, y = lens.coordinates()
    distance = np.hypot(x - found.centre[0], y - found.centre[1])
    bright = lens.mask & (smoothed(found.residual / found.sigma) > 2.5)
    parts, count = label(bright, np.ones((3, 3)))
    out = np.zeros(lens.shape, bool)
    for i in range(1, count + 1):
        part = parts == i
        if (part & found.arcs).any() and distance[part].mean() > _NEIGHBOUR * found.radii[0]:
            out |= part
    return binary_dilation(out, iterations=2)
