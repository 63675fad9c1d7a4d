"""The noise of an image: its sky and scatter measured, and noise maps turned into Poisson counts."""

from __future__ import annotations

import numpy as np
import sep
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, gaussian_filter

__all__ = ["effective_gain", "empty_scatter", "noise_correlation", "sky_level", "without_sources"]

_CELL = 64
"""[px] Side of the cells in which sky and scatter are measured: several times the size of most sources."""
_MOST_ELECTRONS = 1e7
"""[electron] Variance of empty pixels where a noise map does not depend on the light of sources. The Poisson
noise of sources is then negligible, and log likelihoods keep their precision."""
_BRIGHT = 5.0
"""[sigma] Pixels above this show whether a noise map includes the noise of sources."""
_LAG = 4
"""[px] Largest distance, along an axis, of pixels whose noise is correlated: kernels of drizzling and of
resampling are narrower."""
_WINGS = 3.0
"""[px] Width of the Gaussian that makes faint wings of sources visible. Light that is missed counts as
correlation: with a mask of bright pixels alone, wings of HST's PSF doubled it."""
_SOURCE = 3.5
"""[sigma] Pixels above this, smoothed or not, and those within two widths of the smoothing are left out when
correlations are measured."""
_ENOUGH = 20
"""[1] Least number of bright pixels from which the gain is measured."""


def sky_level(value: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """The sky of an image, measured on a coarse mesh and interpolated [unit of the image]."""
    return _background(value, usable).back()


def empty_scatter(
    excess: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]
) -> Float[np.ndarray, "y x"]:
    """Standard deviation of empty pixels, measured on a coarse mesh [unit of the image].

    In a cut-out of less than two cells, light may fill the mesh. The scatter is then at most that of the
    differences of adjacent pixels, which light changes little.
    """
    rms = _background(excess, usable).rms()
    positive = rms > 0
    rms = (
        np.where(positive, rms, np.median(rms[positive])) if positive.any() else np.full(excess.shape, np.inf)
    )
    if min(excess.shape) < 2 * _CELL or not positive.any():
        steps = [np.diff(excess, axis=k)[_both(usable, k)] for k in (0, 1)]
        absolute = np.abs(np.concatenate(steps))
        difference = 1.4826 / np.sqrt(2) * float(np.median(absolute)) if absolute.size else 0.0
        if difference > 0:
            rms = np.minimum(rms, difference)
    values = excess[usable]
    return np.where(np.isfinite(rms), rms, float(values.std()) or 1.0)


def _both(usable: Bool[np.ndarray, "y x"], axis: int) -> Bool[np.ndarray, "y x"]:
    """Pairs of pixels that are adjacent along an axis, and both usable."""
    low, high = (slice(None, -1), slice(1, None))
    return usable[low] & usable[high] if axis == 0 else usable[:, low] & usable[:, high]


def noise_correlation(z: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]) -> float:
    """The variance of a sum over many empty pixels, over that of as many independent ones: 1 or more.

    It is the sum of the covariances of pixels up to :data:`_LAG` px apart, away from sources.

    Args:
        z: pixels without the sky, in units of their stated noise.
        usable: pixels that may be used.
    """
    z = z - sky_level(z, usable)
    empty = usable & ~_light(z, usable)
    if empty.sum() < 20 * (2 * _LAG + 1) ** 2:
        return 1.0  # too few empty pixels to tell
    z = np.where(empty, z - z[empty].mean(), 0.0)
    ny, nx = z.shape
    total = 0.0
    for dy in range(-_LAG, _LAG + 1):
        for dx in range(-_LAG, _LAG + 1):
            here = (slice(max(dy, 0), ny + min(dy, 0)), slice(max(dx, 0), nx + min(dx, 0)))
            there = (slice(max(-dy, 0), ny + min(-dy, 0)), slice(max(-dx, 0), nx + min(-dx, 0)))
            pairs = int((empty[here] & empty[there]).sum())
            total += float((z[here] * z[there]).sum()) / max(pairs, 1)
    return max(total, 1.0)


def _light(z: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Pixels of sources and of their faint wings, which stand out where the image is smoothed."""
    share = gaussian_filter(usable.astype(float), _WINGS)
    smooth = gaussian_filter(np.where(usable, z, 0.0), _WINGS) / np.maximum(share, 1e-3)
    middle = np.median(smooth[usable])
    spread = 1.4826 * np.median(np.abs(smooth[usable] - middle))
    peaks = np.abs(z) > _SOURCE * empty_scatter(z, usable)
    bright = usable & (peaks | (np.abs(smooth - middle) > _SOURCE * spread))
    return binary_dilation(bright, iterations=int(2 * _WINGS))


def _background(value: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]) -> sep.Background:
    ny, nx = value.shape
    filled = np.where(usable, value, 0.0)
    cell = min(_CELL, ny, nx)
    return sep.Background(np.ascontiguousarray(filled), mask=~usable, bw=cell, bh=cell)


def effective_gain(
    excess: Float[np.ndarray, "y x"], variance: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]
) -> float:
    """Electrons per unit that a noise map implies: 1 / the slope of the variance with the light.

    If the map does not include the noise of sources, the slope is zero. The gain is then so high that the
    noise of sources is negligible.

    Args:
        excess: pixels without the sky [unit].
        variance: of each pixel [unit^2].
        usable: pixels that may be used.
    """
    empty = float(np.median(variance[usable]))
    highest = float(np.sqrt(_MOST_ELECTRONS / empty))
    slope = _slope(excess, variance, usable)
    return highest if slope is None or slope <= 1 / highest else 1 / slope


def _slope(
    excess: Float[np.ndarray, "y x"], variance: Float[np.ndarray, "y x"], usable: Bool[np.ndarray, "y x"]
) -> float | None:
    """Slope of the variance with the light of bright pixels; None if there are too few of them."""
    empty = float(np.median(variance[usable & (np.abs(excess) < np.sqrt(variance))]))
    bright = usable & (excess > _BRIGHT * np.sqrt(empty))
    if bright.sum() < _ENOUGH:
        return None
    return float(np.median((variance[bright] - empty) / excess[bright]))


def without_sources(
    excess: Float[np.ndarray, "y x"],
    variance: Float[np.ndarray, "y x"],
    gain: float | np.ndarray,
    usable: Bool[np.ndarray, "y x"],
) -> Float[np.ndarray, "y x"]:
    """Variance of each pixel without its sources [electrons^2], from a noise map.

    If the map includes the noise of sources, that of the pixel's own light is subtracted where the light is
    significant.
    """
    electrons = np.square(gain) * variance
    slope = _slope(excess, variance, usable)
    if slope is not None and slope * float(np.median(gain)) > 0.5:
        light = np.where(excess > 3 * np.sqrt(variance), excess, 0.0)
        floor = 0.5 * np.median(electrons[usable & (light == 0)])
        electrons = np.maximum(electrons - gain * light, np.minimum(floor, electrons))
    return electrons
