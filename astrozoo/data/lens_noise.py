"""Noise of images that come without a noise map: from weight maps, or from an exposure time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter

from astrozoo.data.lens_units import is_rate
from astrozoo.errors import DataError

__all__ = ["background_rms", "noise_from_exposure", "noise_from_weight"]

_BOX = 15
"""[px] Side of the box over which the local background is averaged."""
_EXPOSED = (0.2, 1.1)
"""[exposure time of the header] Median weight of a map of exposure times: less than the whole time where
single exposures miss a pixel, and never much more."""
_RATIO = (0.4, 2.5)
"""Smallest and largest ratio of the measured background noise to that of a map of inverse variances.
Resampling lowers the measured noise by a factor of up to about two."""


def background_rms(image: Float[np.ndarray, "y x"], use: np.ndarray | None = None) -> float:
    """Standard deviation of the background: of pixels about their local mean, in the fainter half."""
    good = np.isfinite(image) if use is None else np.isfinite(image) & use
    filled = np.where(good, image, np.median(image[good]))
    mean = uniform_filter(filled, _BOX)
    faint = good & (mean <= np.median(mean[good]))
    residual = (filled - mean)[faint]
    return float(1.4826 * np.median(np.abs(residual - np.median(residual))))


def noise_from_exposure(image: Float[np.ndarray, "y x"], exposure: float) -> Float[np.ndarray, "y x"]:
    """Standard deviations: the measured background, and photons at ``exposure`` electrons per unit."""
    return np.sqrt(background_rms(image) ** 2 + np.maximum(np.nan_to_num(image), 0.0) / exposure)


def noise_from_weight(
    weight: Float[np.ndarray, "y x"],
    image: Float[np.ndarray, "y x"],
    unit: str,
    where: str,
    exposure: float | None = None,
) -> tuple[Float[np.ndarray, "y x"], str]:
    """Standard deviations from a weight map (NaN where it is not positive), and what it was taken as.

    Weights near the header's exposure time are exposure times. Otherwise, weights whose inverse square root
    is near the background's measured noise are inverse variances, and others are exposure times. Exposure
    times scale the variance of the background, and give that of the photons of an image in units per second.

    Args:
        exposure: that of the header [s], if it has one.

    Raises:
        DataError: the map is neither.
    """
    good = np.isfinite(weight) & (weight > 0)
    if not good.any():
        raise DataError(where, "no positive weight", "inverse variances or exposure times")
    safe = np.where(good, weight, np.nan)
    rms = background_rms(image, good)
    typical = float(np.median(weight[good]))
    timed = is_rate(unit) and exposure is not None and _EXPOSED[0] < typical / exposure < _EXPOSED[1]
    if not timed and _RATIO[0] < rms * np.sqrt(typical) < _RATIO[1]:
        return 1 / np.sqrt(safe), "inverse variances"
    if not is_rate(unit):
        got = f"weights of {typical:.3g}, a background noise of {rms:.3g} {unit or '(no unit)'}"
        expected = "inverse variances, or exposure times with an image per second; use --noise or --exposure"
        raise DataError(where, got, expected)
    variance = rms**2 * typical / safe + np.maximum(np.nan_to_num(image), 0.0) / safe
    return np.sqrt(variance), "exposure times, background measured"
