"""What a description says of an image: where it is, its band, unit, calibration, noise, mask and PSF.

:mod:`astrozoo.data.description_file` makes these records of a file, :mod:`astrozoo.data.described` reads the
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "ArrayAt",
    "Cards",
    "ImageDescription",
    "MaskDescription",
    "NoiseDescription",
    "Number",
    "PsfDescription",
]


@dataclass(frozen=True)
class Cards:
    """Header cards that contain a number or text; of several, the mean of those that the header has.

    Args:
        names: of the cards.
        values: replacements of texts, such as ``{"HSC-R": "r"}``.
    """

    names: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)


Number = float | Cards


@dataclass(frozen=True)
class ArrayAt:
    """Where an array is.

    Args:
        file: FITS (plain or compressed), ``.npy`` or ``.npz``.
        hdu: number or name; None for the first HDU with an image.
        array: name of the array in an ``.npz``.
        plane: index along the first axis of a cube; None where the array has two axes.
    """

    file: Path
    hdu: int | str | None = None
    array: str = ""
    plane: int | None = None

    def __str__(self) -> str:
        extra = [str(self.hdu)] if self.hdu is not None else []
        extra += [self.array] if self.array else []
        extra += [f"plane {self.plane}"] if self.plane is not None else []
        return f"{self.file}[{', '.join(extra)}]" if extra else str(self.file)


@dataclass(frozen=True)
class NoiseDescription:
    """A noise map.

    Args:
        at: the array.
        kind: "sigma", "variance" or "inverse_variance" in the image's unit, or "weight": an inverse variance
            of unknown scale, which is measured from the scatter of empty pixels.
    """

    at: ArrayAt
    kind: str


@dataclass(frozen=True)
class MaskDescription:
    """A mask and the meaning of its values.

    Args:
        at: the array.
        good: the value of pixels that may be used; None if ``bad`` says it.
        bad: bits (or, with ``codes``, values) of pixels that may not be used, by number or by name of the
            plane; None if every value but 0 is bad.
        saturated: the same of saturated pixels, which are never used.
        codes: values of the mask are codes, of which a pixel has one; else they are sums of bits.
        planes: number of each named bit. ``MP_<NAME>`` cards of the mask's header come first.
    """

    at: ArrayAt
    good: int | None
    bad: tuple[int | str, ...] | None
    saturated: tuple[int | str, ...]
    codes: bool
    planes: Mapping[str, int]


@dataclass(frozen=True)
class PsfDescription:
    """The effective PSF (as stars have it in the image, so including the pixel) of one image.

    Args:
        kind: "stamp", "psfex", "gaussians" or "moffat".
        at: the stamp or the PSFEx file.
        row: of a PSFEx file that contains the models of several detectors: its index, or its ``ccdname``.
        origin: (x, y) of the image's first pixel in the array that PSFEx used, counted from 0 [px].
        oversampling: samples of the stamp per pixel.
        weights, sigmas: of round Gaussians; sigmas [arcsec].
        fwhm: of the Moffat profile [arcsec, or px with ``in_pixels``].
        beta: its exponent.
        axis_ratio, angle: its ellipticity: minor over major axis; from +x towards +y [deg].
        wing: of a stamp that is cut, or falls to zero at its edge: the light of the wing, relative to the
            stamp's, and the sigma of the round Gaussian that represents it [arcsec].
    """

    kind: str
    at: ArrayAt | None = None
    row: int | str = 0
    origin: tuple[float, float] = (0.0, 0.0)
    oversampling: float = 1.0
    weights: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    fwhm: Number = 0.0
    in_pixels: bool = False
    beta: float = 3.5
    axis_ratio: float = 1.0
    angle: float = 0.0
    wing: tuple[float, float] | None = None


@dataclass(frozen=True)
class ImageDescription:
    """What is known of one image. ``where`` names the description's file and entry in messages.

    Args:
        unit: of a pixel; "" for the header's BUNIT.
        zero_point: AB magnitude of one unit (of one unit per second, if ``zero_point_per_second``), or
            "hst" for the header's PHOTFLAM and PHOTPLAM.
        calibration: nanomaggies of one unit.
        wavelength: pivot wavelength [nm].
        exposure: [s]; needed for units per second.
        gain: electrons per count, or per unit if the unit is a flux.
        sky: level of the sky [unit]; None to measure it.
        sky_subtracted: the image's pixels do not contain the sky.
        read_noise: [electrons].
        noise_correlation: variance of a sum over many pixels, over that of as many independent pixels; None
            to measure it.
        saturation: pixels of this value or more are saturated [unit].
        wcs: where the header with the WCS is; or ``{pixel_scale, ra, dec, rotation}``; None: the header's.
    """

    where: str
    image: ArrayAt
    band: str | Cards
    psf: PsfDescription
    unit: str = ""
    zero_point: Number | str | None = None
    zero_point_per_second: bool = False
    calibration: Number | ArrayAt | None = None
    wavelength: float | None = None
    exposure: Number | ArrayAt | None = None
    gain: Number | ArrayAt | None = None
    sky: Number | ArrayAt | None = None
    sky_subtracted: bool = False
    read_noise: Number = 0.0
    noise: NoiseDescription | None = None
    noise_correlation: float | None = 1.0
    mask: MaskDescription | None = None
    saturation: Number | None = None
    wcs: ArrayAt | Mapping[str, float] | None = None
    name: str = ""
