"""World coordinate systems of headers, with all their distortions, and the pixel scale."""

from __future__ import annotations

import warnings

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, WcsError
from astropy.wcs.utils import proj_plane_pixel_scales

from astrozoo.errors import DataError

__all__ = ["celestial_wcs", "has_celestial", "pixel_scale", "tangent_wcs"]

_SCALES = ("CD1_1", "CD1_2", "CD2_1", "CD2_2", "CDELT1", "CDELT2")
_LARGEST_PIXEL = 600.0
"""[arcsec] Pixels larger than this are refused: without CD or CDELT cards, FITS pixels are 1 degree wide."""
_SQUARE = 0.01
"""Greatest relative difference of the two sides of a pixel that is called square."""


def has_celestial(header: fits.Header) -> bool:
    """Whether a header names celestial axes."""
    return any(str(header.get(f"CTYPE{k}", "")).upper().startswith(("RA", "DEC", "GLON")) for k in (1, 2))


def celestial_wcs(header: fits.Header, what: str) -> WCS:
    """The celestial WCS of an image's header, with SIP, TPV and other distortions, CROTA2 and LONPOLE.

    Args:
        header: of the image.
        what: the file, for the message of an error.

    Raises:
        DataError: no celestial axes, no pixel scale, or one that is zero or absurd.
    """
    if not has_celestial(header):
        got = f"axes {[header.get('CTYPE1', 'none'), header.get('CTYPE2', 'none')]}"
        raise DataError(what, got, "a celestial WCS, such as RA---TAN, DEC--TAN")
    if not any(key in header for key in _SCALES):
        raise DataError(what, "a WCS without a pixel scale", f"cards {', '.join(_SCALES[:4])} or CDELT1, 2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)  # dates and old names of cards
            wcs = WCS(header, naxis=2).celestial
            scales = proj_plane_pixel_scales(wcs) * 3600
            there = np.asarray(wcs.all_pix2world(*wcs.wcs.crpix, 1), float)
    except (WcsError, ValueError, KeyError, TypeError, MemoryError) as error:
        detail = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise DataError(what, f"{type(error).__name__}: {detail}", "a celestial WCS") from error
    if not (np.isfinite(there).all() and (scales > 0).all() and scales.max() < _LARGEST_PIXEL):
        got = f"pixels of {scales[0]:.4g} x {scales[1]:.4g} arcsec"
        raise DataError(what, got, f"sides between 0 and {_LARGEST_PIXEL:g} arcsec (CD or CDELT cards)")
    return wcs


def pixel_scale(wcs: WCS, what: str) -> float:
    """Side of a square pixel [arcsec].

    Raises:
        DataError: the two sides differ by more than a per cent.
    """
    x, y = proj_plane_pixel_scales(wcs) * 3600
    if abs(x - y) > _SQUARE * max(x, y):
        raise DataError(what, f"pixels of {x:.4g} x {y:.4g} arcsec", "square pixels")
    return float(np.sqrt(x * y))


def tangent_wcs(
    shape: tuple[int, int], scale: float, *, ra: float = 0.0, dec: float = 0.0, rotation: float = 0.0
) -> WCS:
    """A gnomonic WCS about the middle of an array.

    Args:
        shape: rows and columns.
        scale: side of a pixel [arcsec].
        ra, dec: of the middle of the array [deg].
        rotation: position angle of the y axis, from north through east [deg]. East is to the left at 0.
    """
    angle = np.deg2rad(rotation)
    cos, sin = np.cos(angle), np.sin(angle)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = (np.array(shape[::-1]) + 1) / 2
    wcs.wcs.cd = scale / 3600 * np.array([[-cos, sin], [sin, cos]])
    wcs.wcs.set()
    return wcs
