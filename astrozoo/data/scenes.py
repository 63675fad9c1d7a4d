"""Cut-outs with several sources: images in any number of bands, their PSFs, and a list of sources.

All images of a scene have one pixel grid. Pixels are (x, y) with integer coordinates at their centres, as
everywhere in astrozoo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.errors import InputError

__all__ = ["Scene", "detect_sources", "psf_fwhm"]

_LEAST_DISTANCE = 0.5
"""[px] Least distance of two galaxies, or of two stars. Nearer ones cannot be told apart, so that the prior
alone would split their light."""
_LARGEST_IMAGE = 300
"""[px] Largest side of a scene. The Fourier frames of larger ones would not fit into memory."""
_THRESHOLD = 3.0
"""[SD] Detection threshold of a filtered pixel. It is lower than that of surveys, because a source that is
not detected biases its neighbours."""
_MINIMUM_AREA = 5
"""[px] Fewest connected pixels above the threshold."""
_CONTRAST = 1e-3
"""Fraction of a blend's light above which a part is a separate source."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A cut-out with a list of sources.

    Args:
        images: sky-subtracted, in any unit of flux per pixel.
        noise: SD of each pixel [unit of the images].
        mask: True where a pixel is used.
        psfs: of each band, with the pixel response; centred, of odd sides; normalised here to sum 1.
        bands: names.
        sources: table with the columns ``x`` and ``y`` [px], and ``is_star``; further columns are kept.
        name: shown in reports.
        wcs: of the pixel grid, where it is known.
        notes: what was measured or assumed.

    Raises:
        InputError: shapes that do not fit, values that are not finite in used pixels, noise that is not
            positive, a PSF that is missing or empty, no source, a source outside the image, two sources at
            one place, or a source without any used pixel.
    """

    images: Float[np.ndarray, "band y x"]
    noise: Float[np.ndarray, "band y x"]
    mask: Bool[np.ndarray, "band y x"]
    psfs: Float[np.ndarray, "band k l"]
    bands: tuple[str, ...]
    sources: Table
    name: str = "scene"
    wcs: WCS | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_pixels(self)
        psfs = _checked_psfs(self.psfs, self.bands)
        object.__setattr__(self, "psfs", psfs)
        sources = self.sources.copy()
        for name in ("x", "y"):
            if name not in sources.colnames:
                raise InputError("sources", f"columns {sources.colnames}", "x and y [px]")
            sources[name] = np.asarray(sources[name], float)
        if "is_star" not in sources.colnames:
            sources["is_star"] = np.zeros(len(sources), bool)
        sources["is_star"] = np.asarray(sources["is_star"], bool)
        _check_sources(sources, self)
        object.__setattr__(self, "sources", sources)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def used(self) -> Bool[np.ndarray, "band"]:
        """Bands with at least one used pixel."""
        return np.asarray(self.mask.any((1, 2)))


def psf_fwhm(psf: Float[np.ndarray, "k l"]) -> float:
    """Full width at half maximum of a PSF [px], from the area above half of its peak."""
    area = float((psf >= psf.max() / 2).sum())
    return max(2 * np.sqrt(area / np.pi), 1.0)


def _check_pixels(scene: Scene) -> None:
    if scene.images.ndim != 3 or not scene.images.size:
        raise InputError("images", f"shape {scene.images.shape}", "[band, y, x]")
    shape, n = scene.images.shape, len(scene.images)
    if max(shape[1:]) > _LARGEST_IMAGE:
        raise InputError("images", f"{shape[1]} x {shape[2]} px", f"{_LARGEST_IMAGE} px or less; cut a box")
    if len(scene.bands) != n or len(set(scene.bands)) != n:
        raise InputError("bands", scene.bands, f"{n} different names")
    for name in ("noise", "mask"):
        got = getattr(scene, name).shape
        if got != shape:
            raise InputError(name, f"shape {got}", f"that of the images, {shape}")
    for band, image, noise, mask in zip(scene.bands, scene.images, scene.noise, scene.mask, strict=True):
        if not np.isfinite(image[mask]).all():
            bad = int((~np.isfinite(image[mask])).sum())
            raise InputError(
                f"image of band {band}", f"{bad} used pixels that are NaN or infinite", "numbers"
            )
        if not (np.isfinite(noise[mask]).all() and (noise[mask] > 0).all()):
            raise InputError(f"noise of band {band}", "an SD that is not a positive number", "SDs above 0")
    if not scene.mask.any():
        raise InputError("mask", "no used pixel in any band", "used pixels")


def _checked_psfs(psfs: np.ndarray, bands: tuple[str, ...]) -> Float[np.ndarray, "band k l"]:
    if psfs.ndim != 3 or len(psfs) != len(bands):
        raise InputError("psfs", f"shape {psfs.shape}", f"[band, y, x] with {len(bands)} bands")
    if psfs.shape[1] % 2 == 0 or psfs.shape[2] % 2 == 0:
        raise InputError("psfs", f"shape {psfs.shape}", "odd sides, with the centre in the middle pixel")
    total = psfs.sum((1, 2))
    for band, value in zip(bands, total, strict=True):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"PSF of band {band}", f"a sum of {value}", "a positive sum")
    return psfs / total[:, None, None]


def _check_sources(sources: Table, scene: Scene) -> None:
    if not len(sources):
        raise InputError("sources", "none", "at least one, in a table or detected")
    ny, nx = scene.shape
    x, y = np.asarray(sources["x"]), np.asarray(sources["y"])
    star = np.asarray(sources["is_star"])
    outside = ~((x >= -0.5) & (x <= nx - 0.5) & (y >= -0.5) & (y <= ny - 0.5))
    if outside.any():
        i = int(outside.argmax())
        got = f"x={x[i]:g}, y={y[i]:g}"
        raise InputError(f"source {i}", got, f"a place in the image of {nx} x {ny} px")
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    distance[(star[:, None] != star) | (np.arange(len(x))[:, None] == np.arange(len(x)))] = np.inf
    if distance.min() < _LEAST_DISTANCE:
        i, j = sorted(np.unravel_index(distance.argmin(), distance.shape))
        raise InputError(
            f"sources {i} and {j}",
            f"{distance[i, j]:.2f} px apart",
            f"{_LEAST_DISTANCE} px or more: merge them",
        )
    fwhm = min(psf_fwhm(psf) for psf in scene.psfs)
    rows, columns = np.mgrid[:ny, :nx]
    for i in range(len(x)):
        near = np.hypot(columns - x[i], rows - y[i]) <= max(fwhm / 2, 1.0)
        if not scene.mask[:, near].any():
            raise InputError(f"source {i}", "no used pixel near its centre in any band", "one or more")


def detect_sources(scene_images: np.ndarray, noise: np.ndarray, mask: np.ndarray, fwhm: float) -> Table:
    """Sources in the noise-weighted mean of all bands, by SEP.

    Args:
        scene_images, noise, mask: ``[band, y, x]``.
        fwhm: of the PSF [px], for the filter.

    Returns:
        columns x, y [px]; no rows if nothing is detected.
    """
    # Each band counts by its signal-to-noise ratio: with inverse variances a deep blue band would hide red
    # sources.
    signal = np.where(mask, scene_images / np.where(mask, noise, 1.0), 0.0).sum(0)
    count = mask.sum(0)
    mean = np.ascontiguousarray(signal / np.sqrt(np.maximum(count, 1)), dtype=float)
    half = max(int(np.ceil(fwhm)), 1)
    axis = np.arange(-half, half + 1)
    bell = np.exp(-0.5 * (axis / (fwhm / 2.3548 * 0.7)) ** 2)
    kernel = bell[:, None] * bell
    threshold = _THRESHOLD * np.sqrt((kernel**2).sum()) / kernel.sum()
    found = sep.extract(
        mean,
        threshold,
        mask=count == 0,
        minarea=_MINIMUM_AREA,
        filter_kernel=kernel,
        filter_type="conv",
        deblend_cont=_CONTRAST,
    )
    return Table({"x": found["x"], "y": found["y"]})
