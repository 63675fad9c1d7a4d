"""Units and pixel scales of images of lenses, as headers state them."""

from __future__ import annotations

import re
import warnings

import numpy as np
from astropy import units
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales

from astrozoo.data.lens_files import Plane
from astrozoo.errors import DataError

__all__ = ["normal_unit", "pixel_scale_of", "unit_of"]

_UNEQUAL = 0.01
"""Largest relative difference of the two pixel scales: the models have square pixels."""
_SCALES = (1e-4, 60.0)
"""[arcsec] Smallest and largest pixel scale that is plausible."""
_CARDS = ("PIXSCALE", "PIXELSCL", "PIXSCAL", "SECPIX", "D001SCAL")
"""Cards with a pixel scale in arcsec."""
_EVERYDAY = {
    "electrons": "electron",
    "e": "electron",
    "e-": "electron",
    "els": "electron",
    "counts": "ct",
    "count": "ct",
    "cts": "ct",
    "dn": "adu",
    "photons": "photon",
    "adus": "adu",
    "cps": "ct/s",
    "eps": "electron/s",
    "nanomaggies": "nmgy",
    "nanomaggy": "nmgy",
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "ujy": "uJy",
    "njy": "nJy",
    "mjy": "mJy",
    "jy": "Jy",
}
"""Words of ``BUNIT`` that are common and that astropy does not know, in lower case."""


def normal_unit(text: str) -> str:
    """A unit as astropy reads it. "" (no unit) stays "".

    Raises:
        ValueError: it is unknown.
    """
    text = text.strip()
    try:
        units.Unit(text)
    except ValueError:
        parts = [part.strip().lower() for part in re.split(r"/|\bper\b", text)]
        known = "/".join(_EVERYDAY.get(part, part) for part in parts)
        units.Unit(known)
        return known
    return text


def unit_of(plane: Plane, given: str | None) -> str:
    """The unit of an image: the one that is given, or its header's ``BUNIT``; "" if it has none.

    Raises:
        DataError: the unit is unknown.
    """
    text = str(plane.header.get("BUNIT", "")) if given is None else given
    try:
        return normal_unit(text)
    except ValueError as error:
        expected = "a unit such as electron/s, adu, uJy; give it with --unit"
        raise DataError(f"unit of {plane.address}", repr(text), expected) from error


def pixel_scale_of(plane: Plane, given: float | None) -> tuple[float, str]:
    """The pixel scale [arcsec], and where it comes from.

    Args:
        plane: the image.
        given: by the user; it replaces that of the header.

    Raises:
        DataError: the header has none, or its cards are zero, not finite, or differ between the axes.
    """
    if given is not None:
        return given, "given"
    header, where = plane.header, f"pixel scale of {plane.address}"
    flag = "one in the header; give it with --pixel-scale ARCSEC"
    if any(card in header for card in ("CD1_1", "CDELT1", "PC1_1")) and "CTYPE1" in header:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)  # astropy rewrites dates into the current form
            try:
                scales = np.asarray(proj_plane_pixel_scales(WCS(header, naxis=2).celestial)) * 3600
            except (ValueError, TypeError, KeyError, MemoryError) as error:
                raise DataError(where, f"an unusable WCS ({error})", flag) from error
        if (
            scales.shape != (2,)
            or not (np.isfinite(scales) & (scales > _SCALES[0]) & (scales < _SCALES[1])).all()
        ):
            raise DataError(where, f"a WCS with {scales} arcsec", flag)
        if abs(scales[0] - scales[1]) > _UNEQUAL * scales.max():
            raise DataError(where, f"{scales[0]:.5g} by {scales[1]:.5g} arcsec", f"square pixels, {flag}")
        return float(scales.mean()), "WCS"
    for card in _CARDS:
        value = header.get(card)
        if isinstance(value, int | float) and _SCALES[0] < value < _SCALES[1]:
            return float(value), f"card {card}"
    raise DataError(where, "no WCS", flag)
