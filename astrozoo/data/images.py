"""Calibrated survey images in electrons: the input of every image model of the zoo.

Pixel convention, everywhere in astrozoo: ``x`` is the column and ``y`` the row, 0-based, and integer
coordinates are the *centres* of pixels. ``array[y, x]`` is the pixel centred on ``(x, y)``. FITS headers
count from 1; :mod:`astropy.wcs` is always called with ``origin=0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.errors import DataError, InputError

__all__ = [
    "Field",
    "GaussianMixture",
    "Image",
    "Psf",
    "check_overlap",
    "crop",
    "pixel_map",
    "reference_image",
    "wide_stamp",
]

_MAX_NONLINEARITY = 0.1
"""[px] Largest deviation of the map between two images from a linear one: a tenth of a pixel is under the
position errors of all but the brightest sources."""


@dataclass(frozen=True)
class GaussianMixture:
    """A PSF as a sum of Gaussians, normalised to one.

    Args:
        weights: sum to 1.
        means: (x, y) of each component relative to the source [px].
        covariances: [px^2], rows and columns ordered (x, y).
        residual: rms of (stamp - mixture), over the stamp's peak; 0 if the PSF is defined by the mixture.
        worst: largest absolute difference of stamp and mixture, over the stamp's peak.
    """

    weights: Float[np.ndarray, "component"]
    means: Float[np.ndarray, "component 2"]
    covariances: Float[np.ndarray, "component 2 2"]
    residual: float = 0.0
    worst: float = 0.0


class Psf(Protocol):
    """A point-spread function that may vary over the image."""

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The PSF at pixel (x, y), centred on the central pixel of an odd-sized stamp, summing to 1."""
        ...

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The PSF at pixel (x, y) as a Gaussian mixture."""
        ...


@dataclass(frozen=True)
class Image:
    """One exposure in one band.

    Sky and calibration may be given as one number for all pixels.

    A pixel's model is ``counts ~ Poisson(sky + calibration * flux)``. Read noise of variance R enters as a
    shifted Poisson: readers add R to both ``counts`` and ``sky``, which matches the first two moments.

    Args:
        band: filter name.
        counts: electrons, including the sky.
        sky: electrons expected without any source: the sky plus the read-noise variance.
        calibration: electrons per nanomaggy.
        valid: True where the pixel may be used.
        saturated: True where the detector saturated (never valid).
        wcs: celestial WCS of this array.
        psf: point-spread function in this array's pixel coordinates.
        name: shown in messages and reports.
    """

    band: str
    counts: Float[np.ndarray, "y x"]
    sky: Float[np.ndarray, "y x"]
    calibration: Float[np.ndarray, "y x"]
    valid: Bool[np.ndarray, "y x"]
    saturated: Bool[np.ndarray, "y x"]
    wcs: WCS
    psf: Psf
    name: str = ""

    def __post_init__(self) -> None:
        what, shape = f"image {self.name or self.band!r}", np.shape(self.counts)
        if len(shape) != 2 or not np.size(self.counts):
            raise InputError(f"{what}: counts", f"shape {shape}", "rows and columns of pixels")
        for label in ("sky", "calibration"):
            if np.ndim(getattr(self, label)) == 0:
                object.__setattr__(self, label, np.full(shape, float(getattr(self, label))))
        for label in ("sky", "calibration", "valid", "saturated"):
            got = np.shape(getattr(self, label))
            if got != shape:
                raise InputError(f"{what}: {label}", got, f"the shape of counts, {shape}")
        for label in ("valid", "saturated"):
            dtype = getattr(self, label).dtype
            if dtype.kind != "b":  # ~ of an integer inverts its bits, so that 0 and 1 are both True
                raise InputError(f"{what}: {label}", f"dtype {dtype}", "booleans, such as mask == 0")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.counts.shape[0], self.counts.shape[1]

    @property
    def nanomaggies(self) -> Float[np.ndarray, "y x"]:
        """Sky-subtracted surface brightness [nanomaggies per pixel]."""
        return (self.counts - self.sky) / self.calibration

    def crop(self, rows: slice, columns: slice) -> Image:
        """The part of the image inside ``rows`` and ``columns`` (views, not copies)."""
        y0, y1, _ = rows.indices(self.shape[0])
        x0, x1, _ = columns.indices(self.shape[1])
        if y1 <= y0 or x1 <= x0:
            raise InputError(
                "crop", f"rows {y0}:{y1}, cols {x0}:{x1}", f"a box that overlaps the {self.shape} image"
            )
        box = (slice(y0, y1), slice(x0, x1))
        return replace(
            self,
            counts=self.counts[box],
            sky=self.sky[box],
            calibration=self.calibration[box],
            valid=self.valid[box],
            saturated=self.saturated[box],
            wcs=self.wcs[box],
            psf=_ShiftedPsf(self.psf, x0, y0),
        )


@dataclass(frozen=True)
class _ShiftedPsf:
    """A PSF seen from a cropped array whose pixel (0, 0) was (x0, y0)."""

    psf: Psf
    x0: int
    y0: int

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        return self.psf.stamp(x + self.x0, y + self.y0)

    def mixture(self, x: float, y: float) -> GaussianMixture:
        return self.psf.mixture(x + self.x0, y + self.y0)

    def wide_stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        return wide_stamp(self.psf, x + self.x0, y + self.y0)


def wide_stamp(psf: Psf, x: float, y: float) -> Float[np.ndarray, "n n"]:
    """The PSF at pixel (x, y) with its wings: its method ``wide_stamp`` if it has one, else its stamp."""
    return getattr(psf, "wide_stamp", psf.stamp)(x, y)


@dataclass(frozen=True)
class Field:
    """Images of one patch of sky, in any bands and epochs, each with its WCS and PSF.

    Args:
        images: the exposures.
        name: shown in catalogues and reports.
        meta: provenance, strings only (survey, run, file names).
    """

    images: tuple[Image, ...]
    name: str = "field"
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError(f"field {self.name!r}", "no images", "at least one image")

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names in order of first appearance."""
        return tuple(dict.fromkeys(image.band for image in self.images))


def reference_image(images: Field, band: str = "r") -> Image:
    """The first image of ``band``, or the first of all if the field has no such band."""
    return next((image for image in images if image.band == band), images.images[0])


def check_overlap(images: Field) -> None:
    """Raise unless every image shows some of the sky of the reference image.

    Raises:
        DataError: an image lies elsewhere on the sky.
    """
    reference = reference_image(images)
    rows, columns = reference.shape
    for image in images:
        height, width = image.shape
        corners = np.array([[0, 0, width, width], [0, height, 0, height]]) - 0.5
        with np.errstate(invalid="ignore"):
            x, y = reference.wcs.all_world2pix(*image.wcs.all_pix2world(*corners, 0), 0, quiet=True)
        inside = x.max() > -0.5 and x.min() < columns - 0.5 and y.max() > -0.5 and y.min() < rows - 0.5
        if not inside:  # also where the projection has no value
            got = f"columns {x.min():.0f} to {x.max():.0f}, rows {y.min():.0f} to {y.max():.0f}"
            raise DataError(
                f"image {image.name or image.band!r}",
                f"{got} of image {reference.name or reference.band!r}",
                "an image that shows some of the same sky",
            )


def crop(images: Field, rows: slice, columns: slice, *, margin: int = 3) -> Field:
    """Every image cut to one patch of sky.

    Args:
        images: the field.
        rows: rows of the reference image (:func:`reference_image`), which is cut to exactly this box.
        columns: columns of the reference image.
        margin: width added on each side of the same sky in the other images [px].

    Raises:
        InputError: the box misses the reference image, or the patch misses another image.
    """
    reference = reference_image(images)
    patch = reference.crop(rows, columns)
    height, width = patch.shape
    corners = np.array([[0, 0, width, width], [0, height, 0, height]]) - 0.5  # outer corners, (x, y)
    sky = patch.wcs.all_pix2world(*corners, 0)
    cut = []
    for image in images:
        if image is reference:
            cut.append(patch)
            continue
        x, y = image.wcs.all_world2pix(*sky, 0)
        low = [max(0, int(np.ceil(v.min() - 0.5 - 1e-6)) - margin) for v in (y, x)]
        high = [max(0, int(np.floor(v.max() + 0.5 + 1e-6)) + margin) for v in (y, x)]
        cut.append(image.crop(slice(low[0], high[0]), slice(low[1], high[1])))
    return replace(images, images=tuple(cut))


def pixel_map(reference: Image, image: Image) -> Float[np.ndarray, "2 3"]:
    """The linear map from (x, y, 1) of one image to (x, y) of another, by their WCS.

    Raises:
        InputError: the map is not linear to a tenth of a pixel.
    """
    rows, columns = reference.shape
    grid = np.meshgrid(np.linspace(0, columns - 1, 5), np.linspace(0, rows - 1, 5))
    x, y = (axis.ravel() for axis in grid)
    target = np.column_stack(image.wcs.all_world2pix(*reference.wcs.all_pix2world(x, y, 0), 0))
    design = np.column_stack([x, y, np.ones_like(x)])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    miss = np.abs(design @ solution - target).max()
    if not miss <= _MAX_NONLINEARITY:
        what = f"WCS of {image.name or image.band} against {reference.name or reference.band}"
        expected = "images that differ by a shift, scale and rotation"
        raise InputError(what, f"{miss:.2g} px from linear", expected)
    return solution.T
