"""Standard deviations of fluxes and positions in a joint mode, given which sources exist."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from astrozoo.survey.crowded.joint import Linearised, Prior, Stars
from astrozoo.survey.crowded.scene import Scene
from astrozoo.survey.crowded.stamps import close_pairs

__all__ = ["standard_deviations"]

_NEAR = 4.5
"""[px] Neighbours whose parameters are marginalised."""
_WIDEST = (1.0, 1.0)
"""SD of a log flux and of a position [px] before the data, which keeps the information invertible."""


def standard_deviations(
    scene: Scene, stars: Stars, model: Linearised, prior: Prior
) -> tuple[Float[np.ndarray, "s band"], Float[np.ndarray, "s 2"]]:
    """SDs of log fluxes and of positions [px], with near neighbours marginalised."""
    count, bands = stars.log_flux.shape
    if not count:
        return np.zeros((0, bands)), np.zeros((0, 2))
    size, flux = bands + 2, stars.flux
    pairs = close_pairs(stars.xy, 2 * _NEAR)
    blocks = np.zeros((len(pairs), size, size))
    for k, column in enumerate(scene.column):
        product = flux[pairs[:, 0], column] * flux[pairs[:, 1], column]
        where = np.array([column, bands, bands + 1])
        square = model.stamps.products(k, model.weight[k], pairs)
        blocks[:, where[:, None], where] += product[:, None, None] * square
    place = {(int(i), int(j)): p for p, (i, j) in enumerate(pairs)}
    own = np.zeros((count, size, size))
    own[:, :bands, :bands] = prior.locus.precision
    spread = np.append(np.full(bands, _WIDEST[0] ** -2), np.full(2, _WIDEST[1] ** -2))
    own[:, np.arange(size), np.arange(size)] += spread
    own[:, [bands, bands + 1], [bands, bands + 1]] += prior.position_precision
    result = np.zeros((count, size))
    for s, near in enumerate(cKDTree(stars.xy).query_ball_point(stars.xy, _NEAR)):
        others = [s, *(t for t in near if t != s)]
        joint = np.zeros((len(others), size, len(others), size))
        for a, i in enumerate(others):
            for b, j in enumerate(others):
                if (p := place.get((min(i, j), max(i, j)))) is not None:
                    joint[a, :, b] = blocks[p] if i <= j else blocks[p].T
            joint[a, :, a] += own[i]
        side = len(others) * size
        result[s] = np.sqrt(np.diag(np.linalg.inv(joint.reshape(side, side)))[:size])
    return result[:, :bands], result[:, bands:]
