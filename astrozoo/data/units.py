"""Units of pixels, as files write them: electrons, detector counts, fluxes and surface brightnesses."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from astropy import units

from astrozoo.errors import InputError

__all__ = ["NANOMAGGY", "PixelScale", "pixel_unit", "scale_of_unit"]

NANOMAGGY = 3.631e-6
"""[Jy] Flux density of one nanomaggy: that of AB magnitude 22.5."""
_NAMES = {
    "electron": ("e", "el", "elec", "electron", "electrons", "photoelectron", "photoelectrons"),
    "adu": ("adu", "adus", "dn", "dns", "ct", "cts", "count", "counts", "datanumber"),
    "nmgy": ("nmgy", "nanomaggy", "nanomaggie", "nanomaggies"),
    "mgy": ("mgy", "maggy", "maggie", "maggies"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "erg": ("erg", "ergs"),
    "Angstrom": ("a", "aa", "ang", "angstrom", "angstroms"),
    "micron": ("um", "micron", "microns"),
    "uJy": ("ujy", "microjy", "microjansky"),
    "nJy": ("njy", "nanojy", "nanojansky"),
    "Jy": ("jy", "jansky"),
    "sr": ("sr", "steradian"),
    "arcsec": ("arcsec", "arcseconds"),
    "Hz": ("hz",),
}
"""Spellings of a unit in files, in lower case."""
_SPELLINGS = {spelling: name for name, spellings in _NAMES.items() for spelling in spellings}
_PER_PIXEL = re.compile(r"\s*(?:/|\bper\b)\s*pix(?:els?)?\b|\s*\bpix(?:els?)?(?:\^|\*\*)?\(?-1\)?", re.I)
_EXAMPLES = "'electron', 'electron/s', 'adu', 'counts/s', 'nmgy', 'uJy' or 'MJy/sr'"


def pixel_unit(text: str, what: str = "unit") -> units.UnitBase:
    """The unit that a ``BUNIT`` card or a person writes, such as ``ELECTRONS/S``, ``cps``, ``e-/s``, ``DN``.

    Upper and lower case, plurals and "per pixel" do not matter. Detector counts, data numbers and ADU are
    one unit, ``adu``. ``MJY`` is refused unless it is per steradian, because it could be milli or mega.

    Args:
        text: the unit.
        what: what has the unit, for the message of an error.

    Raises:
        InputError: the text is no unit, or is ambiguous.
    """
    plain = _PER_PIXEL.sub("", text.strip().strip("[]").strip())
    plain = re.sub(r"\be-(?!\d)|\be\^-", "electron", plain, flags=re.I)
    plain = re.sub(r"\bper\b", "/", plain, flags=re.I)
    plain = re.sub(r"\bcps\b", "adu/s", plain, flags=re.I)

    def name(match: re.Match[str]) -> str:
        word = match[0]
        if word.lower() == "mjy":
            if word in ("mJy", "MJy"):
                return word
            if re.search(r"\bsr\b|steradian", plain, re.I):
                return "MJy"
            raise InputError(what, repr(text), "'mJy' or 'MJy': this spelling could be either")
        return _SPELLINGS.get(word.lower(), word)

    plain = re.sub(r"[A-Za-zµμ]+", name, plain)
    if plain.count("/") > 1 and "(" not in plain:  # erg/s/cm2: every part after the first is divided by
        first, *rest = plain.split("/")
        plain = f"{first}/({' '.join(rest)})"
    try:
        unit = units.Unit(plain)
    except (ValueError, TypeError) as error:
        raise InputError(what, repr(text), f"a unit of pixels, such as {_EXAMPLES}") from error
    if not plain or unit == units.dimensionless_unscaled:
        raise InputError(what, repr(text), f"a unit of pixels, such as {_EXAMPLES}")
    return unit


@dataclass(frozen=True)
class PixelScale:
    """What one unit of a pixel's value is.

    Args:
        detector: "electron", "adu", or "" for a unit of flux.
        per_second: the unit is a rate.
        nanomaggies: flux of one unit [nMgy]; None for a unit of the detector.
    """

    detector: str
    per_second: bool
    nanomaggies: float | None


def scale_of_unit(
    unit: units.UnitBase, *, pixel_area: float, wavelength: float | None = None, what: str = "unit"
) -> PixelScale:
    """What a unit of pixels means.

    Args:
        unit: from :func:`pixel_unit`.
        pixel_area: [arcsec^2], for surface brightnesses.
        wavelength: pivot wavelength of the band [nm], for fluxes per wavelength.
        what: what has the unit, for the message of an error.

    Raises:
        InputError: the unit is neither of the detector nor of flux, or needs the wavelength.
    """
    for detector in (units.electron, units.adu):
        for known in (detector, detector / units.s):
            if unit.is_equivalent(known):
                if not np.isclose(unit.to(known), 1):
                    raise InputError(what, str(unit), f"{known} without a factor")
                return PixelScale(detector.to_string(), known != detector, None)
    for flux in (1 * unit, pixel_area * units.arcsec**2 * unit):
        if flux.unit.is_equivalent(units.mgy):
            return PixelScale("", False, float(flux.to_value(units.nmgy)))
        if flux.unit.is_equivalent(units.Jy):
            return PixelScale("", False, float(flux.to_value(units.Jy)) / NANOMAGGY)
        if flux.unit.is_equivalent(units.Jy * units.Hz / units.m):
            if wavelength is None:
                raise InputError(what, str(unit), "the key 'wavelength' [nm], because it is per wavelength")
            density = units.spectral_density(wavelength * units.nm)
            return PixelScale("", False, float(flux.to_value(units.Jy, density)) / NANOMAGGY)
    raise InputError(what, str(unit), f"a unit of pixels, such as {_EXAMPLES}")
