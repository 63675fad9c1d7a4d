"""Correction of a field's PSF from its stars: a plane of relative area over each image, and the scatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Planes", "fit_planes"]

_MAX_ERROR = 0.1
"""Largest error of the PSF's relative area, as measured by one star, at which the star is used."""
_PRIOR_SCATTER = 0.02
"""Standard deviation between stars of the PSF's relative area, expected before they are measured."""
_PRIOR_STARS = 4.0
"""Weight of the expected scatter in the estimate, as a number of stars."""
_PRIOR_SLOPE = 0.1
"""Prior standard deviation of each coefficient of a plane: PSF models are off by a few per cent at most."""
_ROUNDS = 4
"""Number of rounds, each of which updates the planes, the scatter and the outliers in turn."""


class Planes(NamedTuple):
    """A correction of every image's PSF.

    Attributes:
        slopes: ``area / stated area - 1 = slopes @ (1, x, y)``, x and y from -1 to 1 over the image.
        scatter: standard deviation of stars about the planes in all images, without their measurement errors.
        error: standard deviation of each source's measurement from all images together, if it is a star.
    """

    slopes: Float[np.ndarray, "image 3"]
    scatter: float
    error: Float[np.ndarray, "s"]


def fit_planes(
    places: Sequence[Float[np.ndarray, "s 3"]],
    delta: Float[np.ndarray, "image s"],
    error: Float[np.ndarray, "image s"],
    stars: Bool[np.ndarray, "s"],
) -> Planes:
    """Fit a plane to each image's stars by ridge regression.

    Planes, scatter and the set of stars that are not outliers are updated in turn.

    Args:
        places: (1, x, y) of every source in each image.
        delta: relative excess of the PSF's area seen by each source.
        error: standard deviation of ``delta``.
        stars: True for sources that are stars and may be used.
    """
    candidates = (error < _MAX_ERROR) & stars
    used, scatter = candidates, _PRIOR_SCATTER
    slopes = np.zeros((len(delta), 3))
    for _ in range(_ROUNDS):
        weight = np.where(used, 1 / (error**2 + scatter**2), 0.0)
        for k, place in enumerate(places):
            precision = (place.T * weight[k]) @ place + np.eye(3) / _PRIOR_SLOPE**2
            slopes[k] = np.linalg.solve(precision, (place.T * weight[k]) @ delta[k])
        residual = delta - np.stack([place @ slope for place, slope in zip(places, slopes, strict=True)])
        scatter_share = np.where(
            used, scatter**2 / (scatter**2 + error**2), 0.0
        )  # of the residual's variance
        excess = scatter_share * np.where(used, residual**2 - error**2, 0.0)
        total = max(float(excess.sum()), 0.0)
        scatter = float(
            np.sqrt((total + _PRIOR_STARS * _PRIOR_SCATTER**2) / (scatter_share.sum() + _PRIOR_STARS))
        )
        used = candidates & (np.abs(residual) < 4 * np.sqrt(error**2 + scatter**2))
    precision = (error**-2.0).sum(0)
    source_error = np.divide(
        1.0, np.sqrt(precision), out=np.full(len(precision), np.inf), where=precision > 0
    )
    return Planes(slopes, scatter, source_error)
