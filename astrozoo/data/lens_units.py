"""Units and pixel scales of images of lenses, as headers or the user state them."""

from __future__ import annotations

from astrozoo.data.lens_files import Plane
from astrozoo.data.units import pixel_unit, scale_of_unit
from astrozoo.data.wcs import celestial_wcs, has_celestial, pixel_scale
from astrozoo.errors import DataError, InputError

__all__ = ["is_rate", "pixel_scale_of", "unit_of"]

_SCALES = (1e-4, 60.0)
"""[arcsec] Smallest and largest pixel scale that is plausible."""
_CARDS = ("PIXSCALE", "PIXELSCL", "PIXSCAL", "SECPIX", "D001SCAL")
"""Cards with a pixel scale in arcsec, for headers without a WCS."""


def unit_of(plane: Plane, given: str | None) -> tuple[str, str]:
    """The unit of an image, as astropy spells it, and where it comes from.

    The unit is "" (unknown) if the header has no ``BUNIT`` or one that is not understood: a fit does not
    depend on it.

    Args:
        plane: the image.
        given: by the user; it replaces that of the header.

    Raises:
        InputError: the given unit is no unit of pixels.
    """
    if given is not None:
        return pixel_unit(given, "--unit").to_string(), "given"
    text = str(plane.header.get("BUNIT", "")).strip()
    if not text:
        return "", "unknown: the header has no BUNIT"
    try:
        return pixel_unit(text).to_string(), f"BUNIT {text!r}"
    except InputError:
        return "", f"unknown: BUNIT {text!r} is not understood"


def is_rate(unit: str) -> bool:
    """Whether a unit is one of electrons or counts per second."""
    if not unit:
        return False
    try:
        return scale_of_unit(pixel_unit(unit), pixel_area=1.0).per_second
    except InputError:  # fluxes per wavelength
        return False


def pixel_scale_of(plane: Plane, given: float | None) -> tuple[float, str]:
    """The pixel scale [arcsec], and where it comes from.

    Args:
        plane: the image.
        given: by the user; it replaces that of the header.

    Raises:
        InputError: the given scale is implausible.
        DataError: the header has none, or its cards are zero, not finite, or differ between the axes.
    """
    low, high = _SCALES
    if given is not None:
        if not low < given < high:
            raise InputError("--pixel-scale", given, f"a number between {low:g} and {high:g} [arcsec]")
        return given, "given"
    header, where = plane.header, f"pixel scale of {plane.address}"
    flag = "give it with --pixel-scale ARCSEC"
    if has_celestial(header):
        try:
            scale = pixel_scale(celestial_wcs(header, where), where)
        except DataError as error:
            raise DataError(where, error.got, f"{error.expected}; or {flag}") from error
        if not low < scale < high:
            raise DataError(where, f"{scale:.4g} arcsec", f"between {low:g} and {high:g} arcsec; or {flag}")
        return scale, "WCS"
    for card in _CARDS:
        value = header.get(card)
        if value is not None:
            if not (isinstance(value, int | float) and low < value < high):
                expected = f"a number between {low:g} and {high:g} [arcsec]; or {flag}"
                raise DataError(where, f"card {card} = {value!r}", expected)
            return float(value), f"card {card}"
    raise DataError(where, "no WCS", f"one in the header; or {flag}")
