"""Images of any survey, from a description: pixels become electrons, with sky, calibration, mask and PSF.

The model of a pixel is ``counts ~ Poisson(sky + calibration * flux)`` in electrons (:class:`Image`). Three
things are needed for it: the flux of one unit of the file, the electrons of one unit (the gain), and the
variance of a pixel without sources. The variance is, in this order, that of a noise map, that of the sky's
level and the read noise, or that measured from the scatter of empty pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Bool, Float

from astrozoo.data.arrays import read_array, read_number, read_text
from astrozoo.data.description import ArrayAt, Cards, ImageDescription
from astrozoo.data.description_file import load_description, parse_images
from astrozoo.data.exposure_noise import (
    effective_gain,
    empty_scatter,
    noise_correlation,
    sky_level,
    without_sources,
)
from astrozoo.data.images import Field, Image, check_overlap
from astrozoo.data.masks import read_mask
from astrozoo.data.psf_described import described_psf
from astrozoo.data.units import PixelScale, pixel_unit, scale_of_unit
from astrozoo.data.wcs import celestial_wcs, has_celestial, tangent_wcs
from astrozoo.errors import DataError, InputError

__all__ = ["read_described", "read_image", "read_images_of"]

_EXPOSURE_CARDS = ("EXPTIME", "EXPOSURE", "TEXPTIME")
"""Cards with the exposure time [s], for units per second."""
_DISAGREE = 0.02
"""Greatest relative difference of a unit of flux and a zero point that are both given."""
_OFF_SKY = 3.0
"""[sigma] Greatest distance of the median pixel from the sky that noise and crowded sources explain."""
_NEGATIVE = 5.0
"""[sigma] Pixels with fewer counts than this below zero are broken. Others count as zero."""


def read_described(path: Path, *, ready: dict[str, Any] | None = None) -> Field:
    """The images of a description: a YAML file, or a table with one image per row.

    Args:
        path: of the description. Names of files in it are relative to its folder.
        ready: defaults of a survey, for keys that the description does not have.

    Returns:
        the field; ``meta["notes"]`` has one line for everything that was measured or assumed.

    Raises:
        DataError: the description or a file of it is not what it should be; the message names the file and
            the key. All of the description is checked before any image is read.
    """
    content = load_description(path)
    descriptions = parse_images(content, path.parent, path.name, ready)
    survey = str(content.get("survey", "described"))
    return read_images_of(descriptions, str(content.get("name", path.stem)), survey)


def read_images_of(descriptions: Sequence[ImageDescription], name: str, survey: str) -> Field:
    """The field of checked descriptions, with the survey's name in ``meta``.

    Raises:
        DataError: a file is not what it should be, or two images do not show the same sky.
    """
    remarks: dict[str, list[str]] = {}
    images, meta = [], {"survey": survey}
    for description in descriptions:
        image, of_image = read_image(description)
        images.append(image)
        for text, value in of_image:
            remarks.setdefault(text, []).append(f"{image.name} {value}".strip())
        if description.wavelength is not None:
            meta[f"wavelength {image.band}"] = str(description.wavelength)
    notes = [f"{text}: {', '.join(of)}" for text, of in remarks.items()]
    out = Field(tuple(images), name=name, meta=meta | ({"notes": "\n".join(notes)} if notes else {}))
    check_overlap(out)
    return out


@dataclass
class _Raw:
    """The pixels of one image in the file's unit, and what its header says."""

    about: ImageDescription
    value: Float[np.ndarray, "y x"]
    header: fits.Header
    plane: int | None
    usable: Bool[np.ndarray, "y x"]
    notes: list[tuple[str, str]] = field(default_factory=list)

    def note(self, text: str, value: object = "") -> None:
        """Remember what was measured or assumed."""
        self.notes.append((text, f"{value:.4g}" if isinstance(value, float) else str(value)))

    def number(self, key: str, *, above: float | None = None) -> float | np.ndarray | None:
        """A number or an array of the description; None where it has neither."""
        given = getattr(self.about, key)
        if given is None:
            return None
        what = f"{self.about.where}: {key}"
        if isinstance(given, ArrayAt):
            array = self.array(given, what).astype(float)
            good = np.isfinite(array) & (array > (-np.inf if above is None else above))
            bad = int((self.usable & ~good).sum())
            if not (self.usable & good).any():
                raise DataError(what, f"no usable value in {given}", "finite values" + _above(above))
            if bad:
                self.note(f"masked pixels without a usable value of {key}", bad)
            self.usable &= good
            return np.where(good, array, np.median(array[self.usable]))
        return read_number(given, self.header, what, above=above)

    def array(self, at: ArrayAt, what: str) -> np.ndarray:
        array, _ = read_array(at, plane=self.plane)
        if array.shape != self.value.shape:
            raise DataError(
                f"{what} ({at})", f"shape {array.shape}", f"that of the image, {self.value.shape}"
            )
        return array


def _above(above: float | None) -> str:
    return "" if above is None else f" above {above:g}"


def read_image(about: ImageDescription) -> tuple[Image, list[tuple[str, str]]]:
    """One image of a description, and what was measured or assumed: texts with values.

    Raises:
        DataError: a file is not what it should be, or something is missing that the header does not say.
    """
    array, header = read_array(about.image)
    value = array.astype(float)
    raw = _Raw(about, value, header, about.image.plane, np.isfinite(value))
    if not raw.usable.any():
        raise DataError(str(about.image), "no finite pixel", "an image")
    saturated = np.zeros(value.shape, bool)
    if about.saturation is not None:
        level = read_number(about.saturation, header, f"{about.where}: saturation")
        saturated |= np.nan_to_num(value, nan=-np.inf) >= level
    if about.mask is not None:
        bad, full = read_mask(about.mask, f"{about.where}: mask", value.shape, raw.plane)
        saturated |= full
        raw.usable &= ~bad
    raw.usable &= ~saturated
    if not raw.usable.any():
        raise DataError(str(about.image), "every pixel masked", "an image with pixels that may be used")
    wcs = _wcs(raw)
    scale = _pixel_scale(raw, wcs)
    flux = _flux_of_unit(raw, scale)
    gain, excess, empty = _electrons(raw, scale)
    _check_sky(raw, float(np.median((gain * excess / np.sqrt(empty))[raw.usable])))
    correlation = about.noise_correlation
    if correlation is None:
        z = gain * excess / np.sqrt(empty)
        correlation = noise_correlation(z, raw.usable)
        raw.note("measured variance of sums of empty pixels, over the stated one", correlation)
        alone = float(np.median(empty_scatter(z, raw.usable)[raw.usable])) ** 2 / correlation
        raw.note("chi2 per pixel of noise alone, because pixels are correlated", alone)
    gain, empty = gain / correlation, empty / correlation
    counts = gain * excess + empty
    broken = ~np.isfinite(counts) | (counts < -_NEGATIVE * np.sqrt(empty))
    valid = raw.usable & ~broken
    if not valid.any():
        raise DataError(str(about.image), "no pixel with counts above zero", "a sky that fits the image")
    band = read_text(about.band, header, f"{about.where}: band", about.image.file.name)
    image = Image(
        band=band,
        counts=np.where(broken, empty, counts).clip(0),
        sky=empty,
        calibration=np.broadcast_to(gain / flux, value.shape).copy(),
        valid=valid,
        saturated=saturated,
        wcs=wcs,
        psf=described_psf(about.psf, about.where, header, wcs, value.shape, raw.plane),
        name=about.name or f"{band}-{about.image.file.name.split('.')[0]}",
    )
    return image, raw.notes


def _wcs(raw: _Raw) -> WCS:
    given, shape = raw.about.wcs, (raw.value.shape[0], raw.value.shape[1])
    if isinstance(given, ArrayAt):
        _, header = read_array(given, plane=raw.plane)
        return celestial_wcs(header, f"{raw.about.where}: wcs: {given}")
    if given is not None:
        if not {"ra", "dec"} <= given.keys():
            raw.note("no sky position is given, the middle of the image is put at RA 0, Dec 0")
        return tangent_wcs(shape, **given)
    if not has_celestial(raw.header):
        expected = "a header with a WCS, or the key wcs with pixel_scale (and ra, dec)"
        raise DataError(f"{raw.about.where}: wcs", f"none in {raw.about.image}", expected)
    return celestial_wcs(raw.header, str(raw.about.image))


def _pixel_scale(raw: _Raw, wcs: WCS) -> PixelScale:
    """What a unit of the file is; no unit at all is one of flux whose size the zero point says."""
    about = raw.about
    text = about.unit or str(raw.header.get("BUNIT", "")).strip()
    what = f"{about.where}: unit"
    calibrated = about.zero_point is not None or about.calibration is not None
    if not text:
        if calibrated:
            return PixelScale("", False, None)
        raise DataError(what, f"no BUNIT in {about.image}", "the key unit, zero_point or calibration")
    area = float(np.prod(proj_plane_pixel_scales(wcs))) * 3600**2
    try:
        unit = pixel_unit(text, what)
        return scale_of_unit(unit, pixel_area=area, wavelength=about.wavelength, what=what)
    except InputError as error:
        if not about.unit and calibrated and not isinstance(error, DataError):
            raw.note(f"the header's unit {text!r} is not known, the zero point replaces it")
            return PixelScale("", False, None)
        raise DataError(error.what, error.got, error.expected) from error


def _exposure(raw: _Raw) -> float | np.ndarray:
    """[s]"""
    given = raw.number("exposure", above=0)
    if given is not None:
        return given
    name = next((name for name in _EXPOSURE_CARDS if name in raw.header), None)
    if name is None:
        expected = f"the key exposure [s], or a card {', '.join(_EXPOSURE_CARDS)}"
        raise DataError(f"{raw.about.where}: exposure", f"none in {raw.about.image}", expected)
    return read_number(Cards((name,)), raw.header, f"{raw.about.image}: {name}", above=0)


def _flux_of_unit(raw: _Raw, scale: PixelScale) -> float | np.ndarray:
    """Nanomaggies of one unit of the file."""
    about, where = raw.about, raw.about.where
    if about.calibration is not None:
        if about.zero_point is not None:
            raise DataError(f"{where}: calibration", "a zero_point too", "one of them")
        given = raw.number("calibration", above=0)
        assert given is not None
        return given
    if about.zero_point is None:
        if scale.nanomaggies is None:
            expected = "the key zero_point (AB magnitude of one unit) or calibration (nMgy of one unit)"
            raise DataError(f"{where}: zero_point", f"none, and pixels in {scale.detector}", expected)
        return scale.nanomaggies
    per_second = about.zero_point_per_second
    if about.zero_point == "hst":
        flam, plam = (
            read_number(Cards((name,)), raw.header, f"{about.image}: {name}", above=0)
            for name in ("PHOTFLAM", "PHOTPLAM")
        )
        magnitude = -2.5 * np.log10(flam) - 5 * np.log10(plam) - 2.408
        per_second = not scale.per_second
    else:
        assert not isinstance(about.zero_point, str)
        magnitude = read_number(about.zero_point, raw.header, f"{where}: zero_point")
    nanomaggies: float | np.ndarray = 10 ** (0.4 * (22.5 - magnitude))
    if per_second and not scale.per_second:
        nanomaggies = nanomaggies / _exposure(raw)
    if scale.nanomaggies is not None and not np.allclose(nanomaggies, scale.nanomaggies, rtol=_DISAGREE):
        got = f"{np.mean(nanomaggies):.4g} nMgy, and {scale.nanomaggies:.4g} nMgy by the unit"
        raise DataError(f"{where}: zero_point", got, "one of them, or equal ones (unit: replaces BUNIT)")
    return nanomaggies


def _electrons(
    raw: _Raw, scale: PixelScale
) -> tuple[float | np.ndarray, Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
    """Electrons per unit; pixels without the sky [unit]; variance of empty pixels [electrons^2]."""
    about, where = raw.about, raw.about.where
    gain = _gain(raw, scale)
    level = raw.number("sky")
    if about.sky_subtracted:
        excess = raw.value
    else:
        if level is None:
            level = sky_level(raw.value, raw.usable)
            raw.note("measured sky, in the unit of the file", float(np.median(level[raw.usable])))
        excess = raw.value - level
    if about.noise is not None:
        variance = _variance(raw, excess)
        if gain is None:
            gain = effective_gain(excess, variance, raw.usable)
            raw.note("electrons per unit of the file, from the noise map", gain)
        return gain, excess, without_sources(excess, variance, gain, raw.usable)
    scatter = empty_scatter(excess, raw.usable)
    known = gain is not None
    if gain is None:
        gain = effective_gain(excess, scatter**2, raw.usable)
        raw.note("no gain is given, the noise of the sources themselves is neglected")
    if level is None or not known:
        raw.note("measured noise of empty pixels, in the unit of the file", float(np.median(scatter)))
        return gain, excess, np.broadcast_to((gain * scatter) ** 2, excess.shape).copy()
    read_noise = read_number(about.read_noise, raw.header, f"{where}: read_noise", above=-1e-12)
    empty = np.broadcast_to(gain * level + read_noise**2, excess.shape).copy()
    typical = float(np.median(empty[raw.usable]))
    if typical <= 0:
        got = f"a sky and read noise of {typical:.4g} electrons"
        raise DataError(where, got, "above zero; say sky_subtracted: true if the sky is not in the image")
    raw.usable &= empty > 0
    empty = np.where(empty > 0, empty, typical)
    stated, seen = np.sqrt(typical), float(np.median(np.sqrt(np.square(gain * scatter))[raw.usable]))
    if not 0.7 < seen / stated < 1.4:
        raw.note(
            "check gain and sky: empty pixels scatter otherwise than they say (measured, said) [electron]",
            f"{seen:.4g}, {stated:.4g}",
        )
    return gain, excess, empty


def _check_sky(raw: _Raw, median: float) -> None:
    """Raise if most pixels are far below the sky, and note if they are far above it [sigma]."""
    if median < -_OFF_SKY:
        got = f"most pixels {-median:.3g} sigma below the sky"
        expected = "a lower sky, or sky_subtracted: true if the image does not contain the sky"
        raise DataError(f"{raw.about.where}: sky", got, expected)
    if median > _OFF_SKY and (raw.about.sky_subtracted or raw.about.sky is not None):
        raw.note("check the sky: most pixels are above it by (sigma)", median)


def _gain(raw: _Raw, scale: PixelScale) -> float | np.ndarray | None:
    """Electrons per unit of the file, or None if nothing says it."""
    gain = raw.number("gain", above=0)
    if gain is None:
        if scale.detector == "adu" and raw.about.noise is None and not raw.about.sky_subtracted:
            expected = "the key gain (electrons per count), a noise map, or sky_subtracted: true"
            raise DataError(f"{raw.about.where}: gain", f"none, and pixels in {scale.detector}", expected)
        if scale.detector != "electron":
            return None
        gain = 1.0
    return gain * _exposure(raw) if scale.per_second else gain


def _variance(raw: _Raw, excess: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """The variance of a noise map [unit^2]; pixels without a usable value are masked."""
    noise = raw.about.noise
    assert noise is not None
    what = f"{raw.about.where}: noise: {noise.kind}"
    array = raw.array(noise.at, what).astype(float)
    with np.errstate(all="ignore"):  # zeros and values that are not finite are masked below
        inverse = 1 / array
        variance = {"sigma": array**2, "variance": array}.get(noise.kind, inverse)
    good = np.isfinite(variance) & (variance > 0) & (array > 0)
    if not (raw.usable & good).any():
        raise DataError(what, f"no positive value in {noise.at}", "a noise map")
    raw.usable &= good
    typical = float(np.median(variance[raw.usable]))
    variance = np.where(good, variance, typical)
    if noise.kind == "weight":  # of unknown scale, such as exposure times
        scatter = empty_scatter(excess * np.sqrt(typical / variance), raw.usable)
        raw.note("measured noise of empty pixels, in the unit of the file", float(np.median(scatter)))
        variance = variance / typical * np.median(scatter[raw.usable]) ** 2
    return variance
