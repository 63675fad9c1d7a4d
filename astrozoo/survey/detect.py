"""Detection of a field's sources by SEP (Source Extractor) with forced photometry.

The catalogue is the start of a fit, and the baseline that a fit is compared with. All images are resampled
to the pixel grid of a reference image and averaged with inverse-variance weights. Sources are detected on the
mean of all bands. Their fluxes are measured on the mean of each band, in the same elliptical aperture.

References:
    Bertin & Arnouts 1996, A&AS 117, 393; Barbary 2016, JOSS 1, 58 (SEP).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import sep
from astropy.table import Table
from jaxtyping import Bool, Float
from scipy.ndimage import affine_transform, binary_dilation

from astrozoo.data.images import Field, Image, pixel_map, reference_image
from astrozoo.errors import InputError
from astrozoo.survey.cores import fill_cores
from astrozoo.survey.fields import with_finite_noise
from astrozoo.survey.fragments import join_fragments

__all__ = ["detect"]

_BACKGROUND_CELL = 64
"""Side of a cell of the background mesh [px]: SExtractor's usual value, several times the size of sources."""
_KRON_FACTOR = 2.5
"""Radius of an aperture in Kron radii: SExtractor's default, which contains 94 % of a galaxy's light."""
_MIN_RADIUS = 3.5
"""Smallest radius of an aperture [px]: SExtractor's default."""
_MAX_STAR_SIZE = 1.2
"""A source is guessed to be a star if its half-light radius is below this multiple of the PSF's."""


@dataclass(frozen=True)
class _Stack:
    """Mean of images on the reference grid: nanomaggies per pixel, variance, electrons per nanomaggy."""

    flux: Float[np.ndarray, "y x"]
    variance: Float[np.ndarray, "y x"]
    gain: float

    @property
    def empty(self) -> Bool[np.ndarray, "y x"]:
        return ~np.isfinite(self.variance)

    @property
    def filled(self) -> Float[np.ndarray, "y x"]:
        """The variance, with a large number where there are no data, because SEP needs finite variances."""
        return np.where(self.empty, 1e6 * self.variance[~self.empty].max(), self.variance)


def detect(field: Field, *, threshold: float = 4.0, minimum_area: int = 4, contrast: float = 1e-5) -> Table:
    """Find and measure the sources of a field.

    Saturated pixels are used in detection, with the value that the survey's pipeline left there, because a
    masked core would break a bright star into pieces. Cores without any value are filled from their rims
    (:func:`astrozoo.survey.cores.fill_cores`). Their sources are flagged as saturated.

    Args:
        field: images that overlap on the sky.
        threshold: signal to noise above which a pixel is detected, after a filter that is somewhat narrower
            than the PSF.
        minimum_area: smallest number of connected pixels above the threshold that make a source.
        contrast: fraction of a blend's flux above which a part is a separate source. SExtractor's default of
            0.005 loses the neighbours of a bright star, which are connected to it by its wings, and the
            stars of a globular cluster.

    Returns:
        One row per source; no rows if none is detected. The columns are ``ra``, ``dec`` [deg]; ``x``, ``y``
        [px] in the reference image (``table.meta["reference"]``); for each band b ``flux_b``, ``fluxerr_b``
        [nanomaggies] in the Kron ellipse; ``a``, ``b`` [px], ``theta`` [rad, from +x to +y]: second moments;
        ``flux_radius`` [px]: the observed half-light radius; ``half_light_radius`` [arcsec]: the same, less
        the PSF's in quadrature; ``is_star``: a guess by size; ``snr``: signal to noise of the mean of all
        bands in the aperture; ``edge``, ``saturated``, ``blended``: flags.

    Raises:
        InputError: every pixel is masked, or the threshold is not positive.
    """
    if not threshold > 0:
        raise InputError("detection threshold", threshold, "a positive signal to noise")
    if not any(image.valid.any() for image in field):
        raise InputError(f"field {field.name!r}", "every pixel masked", "an image with valid pixels")
    field = replace(field, images=tuple(fill_cores(with_finite_noise(image)) for image in field))
    reference = reference_image(field)
    maps = [_affine(reference, image) for image in field]
    bands = {
        band: _stack(
            [(image, m) for image, m in zip(field, maps, strict=True) if image.band == band], reference
        )
        for band in field.bands
    }
    total = _combine(list(bands.values()))
    if total.empty.all():
        raise InputError(
            f"field {field.name!r}", "no valid pixel on the reference image", "overlapping images"
        )
    psf = _mean_psf(field, maps, reference)
    kernel = psf[_middle(len(psf), 4)] ** 2  # narrower than the PSF: 6 % less signal, separates closer pairs
    with _roomy_sep(total.flux.size):
        # whitened, because SEP with a map of variances deblends at the threshold of the last pixel it read
        objects, segments = sep.extract(
            total.flux / np.sqrt(total.filled),
            threshold * np.sqrt(np.sum(kernel**2)) / kernel.sum(),  # in noise of an unfiltered pixel
            mask=total.empty,
            minarea=minimum_area,
            filter_kernel=kernel,
            filter_type="conv",  # "matched" mixes fluxes and signal-to-noise when it deblends and cleans
            deblend_cont=contrast,
            segmentation_map=True,
        )
        light = np.where(total.empty, 0.0, total.flux / np.sqrt(total.filled))
        photons = 1 / (total.gain * np.sqrt(total.filled))
        objects, segments = join_fragments(light, photons, objects, segments, psf)
        table = _measure(objects, segments, total, bands, psf)
    _add_sky(table, reference)
    saturated = _saturated_map(field, maps, reference)
    table["edge"] = _touches(segments, _near_edge(total.empty), len(table)) | ((objects["flag"] & 8) > 0)
    table["saturated"] = _touches(segments, saturated, len(table))
    table["blended"] = (objects["flag"] & 1) > 0
    table.meta.update(field=field.name, reference=reference.name, threshold=threshold)
    return table


def _affine(reference: Image, image: Image) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, "2"]]:
    """(matrix, offset) of the (row, column) of ``image`` as a linear function of those of ``reference``."""
    to_image = pixel_map(reference, image)[::-1]  # rows (y, x), columns (x, y, 1)
    return to_image[:, 1::-1], to_image[:, 2]


def _warp(array: np.ndarray, to_image: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling on the reference grid; zero outside."""
    matrix, offset = to_image
    return affine_transform(np.asarray(array, float), matrix, offset, output_shape=shape, order=1)


def _stack(pairs: list[tuple[Image, tuple[np.ndarray, np.ndarray]]], reference: Image) -> _Stack:
    """Inverse-variance-weighted mean of the images of one band.

    Bilinear resampling lowers the variance of a pixel but correlates it with its neighbours: over an aperture
    the two cancel, so the variance carried along is that of the original pixels.
    """
    weighted, weight, gain = np.zeros(reference.shape), np.zeros(reference.shape), 0.0
    for image, to_image in pairs:
        usable = image.valid | image.saturated
        if not usable.any():
            continue
        flux = image.nanomaggies - _background(image)
        inverse = np.where(usable, image.calibration**2 / image.sky, 0.0)
        area = abs(np.linalg.det(to_image[0]))  # image pixels per reference pixel: scales flux and variance
        weighted += _warp(inverse * np.where(usable, flux, 0), to_image, reference.shape)
        weight += _warp(inverse, to_image, reference.shape) / area
        gain += float(np.median(image.calibration))
    covered = weight > 1e-3 * weight.max()
    flux = np.divide(weighted, weight, out=np.zeros(reference.shape), where=covered)
    return _Stack(flux, np.divide(1, weight, out=np.full(reference.shape, np.inf), where=covered), gain)


def _combine(stacks: list[_Stack]) -> _Stack:
    weights = [
        np.divide(1, stack.variance, where=~stack.empty, out=np.zeros_like(stack.flux)) for stack in stacks
    ]
    weight = sum(weights)
    covered = weight > 0
    flux = np.zeros_like(weight)
    np.divide(sum(w * s.flux for w, s in zip(weights, stacks, strict=True)), weight, out=flux, where=covered)
    variance = np.divide(1, weight, out=np.full_like(weight, np.inf), where=covered)
    return _Stack(flux, variance, sum(stack.gain for stack in stacks))


def _background(image: Image) -> Float[np.ndarray, "y x"]:
    """Background [nanomaggies] that the survey's sky does not include; 0 where noise explains it."""
    flux = np.where(image.valid, image.nanomaggies, 0)
    background = sep.Background(flux, mask=~image.valid, bw=_BACKGROUND_CELL, bh=_BACKGROUND_CELL)
    noise = np.sqrt(np.median(image.sky[image.valid] / image.calibration[image.valid] ** 2))
    return background.back() if np.abs(background.back()).max() > 0.1 * noise else np.zeros(image.shape)


def _mean_psf(
    field: Field, maps: list[tuple[np.ndarray, np.ndarray]], reference: Image
) -> Float[np.ndarray, "n n"]:
    """The PSF of the mean of all images at the middle of the field."""
    middle = np.array([(side - 1) / 2 for side in reference.shape])
    stamps, weights = [], []
    for image, (matrix, offset) in zip(field, maps, strict=True):
        if image.valid.any():
            y, x = matrix @ middle + offset
            stamps.append(image.psf.stamp(float(x), float(y)))
            weights.append(np.median((image.calibration**2 / image.sky)[image.valid]))
    size = min(len(stamp) for stamp in stamps)
    return np.average([stamp[_middle(len(stamp), size // 2)] for stamp in stamps], axis=0, weights=weights)


def _middle(size: int, half: int) -> tuple[slice, slice]:
    low = max(0, size // 2 - half)
    return slice(low, size - low), slice(low, size - low)


@contextmanager
def _roomy_sep(pixels: int) -> Iterator[None]:
    """Raise SEP's limits for a crowded image, and restore them afterwards."""
    stack, objects = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(max(stack, pixels))
    sep.set_sub_object_limit(max(objects, 8192))
    try:
        yield
    finally:
        sep.set_extract_pixstack(stack)
        sep.set_sub_object_limit(objects)


def _measure(
    objects: np.ndarray,
    segments: np.ndarray,
    total: _Stack,
    bands: dict[str, _Stack],
    psf: Float[np.ndarray, "n n"],
) -> Table:
    """Centroids, sizes, and the fluxes of every band in the same Kron ellipse of each source."""
    numbers = np.arange(1, len(objects) + 1, dtype=np.int32)
    a, b, theta = (np.array(objects[name]) for name in ("a", "b", "theta"))
    b = np.maximum(np.nan_to_num(b), 0.3)
    a = np.maximum(np.nan_to_num(a), b)
    theta = np.clip(np.nan_to_num(theta), -np.pi / 2, np.pi / 2)
    masking = {"mask": total.empty, "segmap": segments, "seg_id": numbers}
    psf_radius = _half_light(psf)
    width = np.full(len(objects), psf_radius / 1.1774)  # SD of a Gaussian with that half-light radius
    x, y, _ = sep.winpos(total.flux, objects["x"], objects["y"], width, mask=total.empty)
    moved = np.hypot(x - objects["x"], y - objects["y"]) > 1
    x, y = np.where(moved, objects["x"], x), np.where(moved, objects["y"], y)
    kron, _ = sep.kron_radius(total.flux, x, y, a, b, theta, 6.0, **masking)
    scale = _KRON_FACTOR * np.clip(np.nan_to_num(kron), 1.2, 4.0)
    scale = np.maximum(scale, _MIN_RADIUS / np.sqrt(a * b))
    table = Table({"x": x, "y": y})
    for band, stack in bands.items():
        flux, error = _aperture(stack, x, y, a, b, theta, scale, segments, numbers)
        table[f"flux_{band}"], table[f"fluxerr_{band}"] = flux, error
    flux, error = _aperture(total, x, y, a, b, theta, scale, segments, numbers)
    radius, _ = sep.flux_radius(
        total.flux, x, y, scale * a, 0.5, normflux=np.maximum(flux, 1e-12), subpix=5, **masking
    )
    table["a"], table["b"], table["theta"] = objects["a"], objects["b"], theta
    table["flux_radius"] = radius
    table["half_light_radius"] = np.sqrt(np.maximum(radius**2 - psf_radius**2, 0))
    table["is_star"] = radius < _MAX_STAR_SIZE * psf_radius
    table["snr"] = flux / error
    return table


def _aperture(
    stack: _Stack,
    x: np.ndarray,
    y: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    theta: np.ndarray,
    scale: np.ndarray,
    segments: np.ndarray,
    numbers: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error in the ellipse ``scale * (a, b, theta)``; pixels of neighbours are left out."""
    if stack.empty.all():
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    flux, error, _ = sep.sum_ellipse(
        stack.flux,
        x,
        y,
        a,
        b,
        theta,
        scale,
        var=stack.filled,
        mask=stack.empty,
        gain=stack.gain,
        subpix=5,
        segmap=segments,
        seg_id=numbers,
    )
    return flux, error


def _half_light(stamp: Float[np.ndarray, "n n"]) -> float:
    """Radius of the circle that contains half of a stamp's flux [px]."""
    middle = np.array([len(stamp) // 2], dtype=float)
    reach = np.array([len(stamp) / 2])
    radius, _ = sep.flux_radius(
        np.ascontiguousarray(stamp),
        middle,
        middle,
        reach,
        0.5,
        normflux=stamp.sum(keepdims=True).ravel(),
        subpix=5,
    )
    return float(radius[0])


def _add_sky(table: Table, reference: Image) -> None:
    ra, dec = (
        reference.wcs.all_pix2world(table["x"], table["y"], 0) if len(table) else (np.zeros(0), np.zeros(0))
    )
    table.add_columns([ra, dec], names=["ra", "dec"], indexes=[0, 0])
    scale = np.sqrt(abs(np.linalg.det(reference.wcs.pixel_scale_matrix))) * 3600
    table["half_light_radius"] *= scale


def _saturated_map(
    field: Field, maps: list[tuple[np.ndarray, np.ndarray]], reference: Image
) -> Bool[np.ndarray, "y x"]:
    saturated = np.zeros(reference.shape, bool)
    for image, to_image in zip(field, maps, strict=True):
        if image.saturated.any():
            saturated |= _warp(image.saturated, to_image, reference.shape) > 0
    return saturated


def _near_edge(empty: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Pixels with data at the edge of the images or next to a pixel without data."""
    return binary_dilation(np.pad(empty, 1, constant_values=True), np.ones((3, 3)))[1:-1, 1:-1]


def _touches(
    segments: np.ndarray, region: Bool[np.ndarray, "y x"], sources: int
) -> Bool[np.ndarray, "source"]:
    return np.bincount(segments[region], minlength=sources + 1)[1:] > 0
