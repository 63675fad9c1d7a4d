"""Power spectra of images: a power law with a knee, fitted to an image with noise.

    P(k) = amplitude (1 + (k / knee)^2)^(-slope / 2)

k is in cycles per pixel. P is relative to white noise of unit variance, whose power is 1 at every k.

References:
    Whittle 1953, Ark. Mat. 2, 423 (the likelihood of a periodogram).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.fourier import frequencies

__all__ = ["MAX_SLOPE", "PowerLaw", "checked_slope", "fit_power_law", "fit_rings", "windowed_power"]

MAX_SLOPE = 8.0
"""Steepest slope. The power that a Hann window leaks to other modes falls with a slope of 6."""

_LEAST_RING = 2
"""Lowest ring that is used: the window mixes the modes of the first with the mean."""


class PowerLaw(NamedTuple):
    """A power spectrum.

    Args:
        amplitude: power at k = 0, in units of the image squared.
        slope: minus the exponent at high k.
        knee: k below which the power is flat [cycles / pixel].
    """

    amplitude: float
    slope: float
    knee: float

    def at(self, k: Any) -> Any:
        """Power at frequencies k [cycles / pixel], a tensor or an array."""
        return self.amplitude * (1 + (k / self.knee) ** 2) ** (-self.slope / 2)

    def modes(self, shape: tuple[int, int], like: Tensor) -> Float[Tensor, "y h"]:
        """Power of the modes of ``rfft2``."""
        ky, kx = frequencies(shape, like)
        return self.at((ky**2 + kx**2).sqrt())


def windowed_power(
    image: Float[np.ndarray, "y x"], noise: Float[np.ndarray, "y x"], mask: Bool[np.ndarray, "y x"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"], float]:
    """Power of an image in rings as wide as the lowest frequency.

    The image is multiplied by a Hann window that is 0 where there are no data. Without it, the jump between
    opposite edges would add power of slope 2.

    Returns:
        k of each ring [cycles / pixel], mean power, number of independent modes, and the power of the noise.
    """
    ny, nx = image.shape
    window = np.hanning(ny + 2)[1:-1, None] * np.hanning(nx + 2)[1:-1] * mask
    norm = float((window**2).sum())
    centred = (image - np.average(image, weights=window)) * window
    power = np.abs(np.fft.rfft2(centred)) ** 2 / norm
    k = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx))
    count = np.full(k.shape, 2.0)
    count[:, 0] = 1
    if nx % 2 == 0:
        count[:, -1] = 1
    # A window that covers a part of the image makes neighbouring modes dependent.
    independent = norm**2 / float((window**4).sum()) / image.size
    ring = np.rint(k * max(ny, nx)).astype(int)
    chosen = (ring >= _LEAST_RING) & (k <= 0.5)
    total, weighted, places = (
        np.bincount(ring[chosen], weights=(count * x)[chosen]) for x in (np.ones_like(k), power, k)
    )
    kept = total > 0
    level = float((window**2 * noise**2).sum()) / norm
    return places[kept] / total[kept], weighted[kept] / total[kept], total[kept] / 2 * independent, level


def fit_rings(
    k: Float[np.ndarray, "n"],
    power: Float[np.ndarray, "n"],
    modes: Float[np.ndarray, "n"],
    noise: float,
    slope: float | None = None,
) -> PowerLaw:
    """The power law that, with the power of the noise, makes the power in rings most likely.

    Args:
        modes: number of independent (complex) modes of each ring.
        noise: power of the noise.
        slope: a fixed slope. It is fitted if not given.
    """
    least = float(k.min())

    def law(values: np.ndarray) -> PowerLaw:
        return PowerLaw(
            math.exp(values[0]), float(slope if slope is not None else values[2]), math.exp(values[1])
        )

    def cost(values: np.ndarray) -> float:
        model = law(values).at(k) + noise
        return float((modes * (np.log(model) + power / model)).sum() / modes.sum())

    top = math.log(max(float(power.max()), noise))
    bounds = [(math.log(1e-6 * noise), top + 12), (math.log(least / 10), math.log(0.5)), (0.5, MAX_SLOPE)]
    used = bounds if slope is None else bounds[:2]
    starts = ((least, 2.0), (5 * least, 4.0)) if slope is None else ((least, slope), (5 * least, slope))
    fits = [
        minimize(cost, [top, math.log(knee), steep][: len(used)], bounds=used, method="L-BFGS-B")
        for knee, steep in starts
    ]
    return law(min(fits, key=lambda fit: float(fit.fun)).x)


def fit_power_law(
    image: Float[np.ndarray, "y x"],
    noise: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    slope: float | None = None,
) -> PowerLaw:
    """The power law of an image without its noise, from the image with noise.

    Args:
        noise: SD of each pixel.
        mask: pixels with data.
        slope: a fixed slope.

    Raises:
        InputError: a slope that is not between 0 and :data:`MAX_SLOPE`.
    """
    return fit_rings(*windowed_power(np.where(mask, image, 0.0), noise, mask), checked_slope(slope))


def checked_slope(slope: float | None) -> float | None:
    """The slope.

    Raises:
        InputError: it is not between 0 and :data:`MAX_SLOPE`.
    """
    if slope is not None and not 0 < slope <= MAX_SLOPE:
        raise InputError("slope", slope, f"a number above 0, up to {MAX_SLOPE:g}")
    return slope
