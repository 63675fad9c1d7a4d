"""What a field's stars say of its PSF: a plane of relative area over each image, and the scatter about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Planes", "fit_planes"]

_SURE = 0.1  # error of a PSF's relative area from one star, above which the star is not asked
_SCATTER = 0.02  # between stars, as far as is known before they are seen: worth _BELIEF stars
_BELIEF = 4.0
_PRIOR = 0.1  # standard deviation of each coefficient
_ROUNDS = 4


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
        stars: which sources are to be asked.
    """
    sure = (error < _SURE) & stars
    used, scatter = sure, _SCATTER
    slopes = np.zeros((len(delta), 3))
    for _ in range(_ROUNDS):
        weight = np.where(used, 1 / (error**2 + scatter**2), 0.0)
        for k, place in enumerate(places):
            precision = (place.T * weight[k]) @ place + np.eye(3) / _PRIOR**2
            slopes[k] = np.linalg.solve(precision, (place.T * weight[k]) @ delta[k])
        left = delta - np.stack([place @ slope for place, slope in zip(places, slopes, strict=True)])
        told = np.where(used, scatter**2 / (scatter**2 + error**2), 0.0)  # how much of a residual is scatter
        excess = told * np.where(used, left**2 - error**2, 0.0)
        total = max(float(excess.sum()), 0.0)
        scatter = float(np.sqrt((total + _BELIEF * _SCATTER**2) / (told.sum() + _BELIEF)))
        used = sure & (np.abs(left) < 4 * np.sqrt(error**2 + scatter**2))
    precision = (error**-2.0).sum(0)
    own = np.divide(1.0, np.sqrt(precision), out=np.full(len(precision), np.inf), where=precision > 0)
    return Planes(slopes, scatter, own)
