"""The correction of a field's PSF from its stars: a plane of relative area over each image, and scatter."""

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
"""Number of stars that the expected scatter counts for."""
_PRIOR_SLOPE = 0.1
"""Prior standard deviation of each coefficient of a plane: PSF models are off by a few per cent at most."""
_ROUNDS = 4
"""Number of times that planes, scatter and outliers are determined in turn."""


class Planes(NamedTuple):
    """A correction of every image's PSF.

    Attributes:
        slopes: ``area / stated area - 1 = slopes @ (1, x, y)``, x and y from -1 to 1 over the image.
        scatter: standard deviation of stars about the planes, their own errors taken off, over all images.
        error: of each source's own measurement, were it a star, all images together.
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
    """Ridge regression of each image's stars, outliers dropped, scatter and planes in turn.

    Args:
        places: (1, x, y) of every source in each image.
        delta: relative excess of the PSF's area seen by each source.
        error: its standard deviation.
        stars: which sources are stars that may be used.
    """
    sure = (error < _MAX_ERROR) & stars
    used, scatter = sure, _PRIOR_SCATTER
    slopes = np.zeros((len(delta), 3))
    for _ in range(_ROUNDS):
        weight = np.where(used, 1 / (error**2 + scatter**2), 0.0)
        for k, place in enumerate(places):
            precision = (place.T * weight[k]) @ place + np.eye(3) / _PRIOR_SLOPE**2
            slopes[k] = np.linalg.solve(precision, (place.T * weight[k]) @ delta[k])
        left = delta - np.stack([place @ slope for place, slope in zip(places, slopes, strict=True)])
        scatter_share = np.where(
            used, scatter**2 / (scatter**2 + error**2), 0.0
        )  # of the residual's variance
        excess = scatter_share * np.where(used, left**2 - error**2, 0.0)
        total = max(float(excess.sum()), 0.0)
        scatter = float(
            np.sqrt((total + _PRIOR_STARS * _PRIOR_SCATTER**2) / (scatter_share.sum() + _PRIOR_STARS))
        )
        used = sure & (np.abs(left) < 4 * np.sqrt(error**2 + scatter**2))
    precision = (error**-2.0).sum(0)
    source_error = np.divide(
        1.0, np.sqrt(precision), out=np.full(len(precision), np.inf), where=precision > 0
    )
    return Planes(slopes, scatter, source_error)
