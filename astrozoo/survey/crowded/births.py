"""Tests of single stars: would one more improve the fit, and can one be left out?

Both ask for the change of chi2 after all neighbours have adjusted. A star has three parameters here: the
logarithm of its amplitude, with the colours of the locus or of its fit, and its position. Neighbours within
some pixels are marginalised by the inverse of their joint information.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit
from scipy.ndimage import maximum_filter
from scipy.sparse import bsr_array, csr_array
from scipy.spatial import cKDTree

from astrozoo.survey.crowded.joint import Linearised, Stars
from astrozoo.survey.crowded.locus import Locus
from astrozoo.survey.crowded.scene import Scene, star_stamp
from astrozoo.survey.crowded.stamps import close_pairs, cross_products, make_stamps

__all__ = ["births", "information", "significances", "weakest"]

_REACH = 5
"""[px] Reach of a candidate's stamp, and of neighbours that are marginalised: beyond some four sigma of the
PSF, the light of a faint star does not matter."""
_OUTSIDE = 2
"""[px] Distance outside the reference image to which stars are looked for."""
_APART = 2.0
"""[px] Least distance of two births of one round. Closer ones would be births of the same residual."""
_RAW = 0.25
"""Candidates are tested if their change of chi2 with fixed neighbours is this fraction of the threshold:
marginalising the neighbours makes it larger."""
_KEPT = 0.05
"""Least fraction of a candidate's information that its neighbours leave. With less, it is one of them."""
_NEIGHBOUR_PRIOR = (0.1, 1.0)
"""Prior information of a neighbour's log amplitude and of its position [1/px^2], which keeps the joint
information of close stars invertible."""
_RIVALS = 2.5
"""[px] Of stars closer than this, only the weakest is removed at a time: its light goes to the others."""


def births(
    scene: Scene, stars: Stars, model: Linearised, locus: Locus, threshold: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Positions where one more star lowers chi2 by more than a threshold, after its neighbours adjust.

    The stars must be at their joint mode: the residuals are then orthogonal to their derivatives.

    Returns:
        Positions, fluxes in the reference band [nMgy], and the changes of chi2, from the largest.
    """
    rows, columns = scene.shape
    grid = [np.arange(-_OUTSIDE, side + _OUTSIDE) for side in (columns, rows)]
    x, y = (axis.ravel() for axis in np.meshgrid(*grid))
    colour = _faint_colour(scene, model, locus, threshold)
    score, inform = np.zeros(len(x)), np.zeros(len(x))
    for k, column in enumerate(scene.column):
        slope = model.weight[k] * model.residual[k] * scene.calibration[k]
        curve = model.weight[k] * scene.calibration[k] ** 2
        place = scene.image_xy(k, np.column_stack([x, y]).astype(float))
        sums = _scores(scene.psf[k], scene.oversampling, place, slope, curve, _REACH)
        score += colour[column] * sums[:, 0]
        inform += colour[column] ** 2 * sums[:, 1]
    raw = _gains(score, inform, (score > 0) & (inform > 0)).reshape(len(grid[1]), len(grid[0]))
    peak = (raw == maximum_filter(raw, 3)) & (raw > _RAW * threshold)
    where = np.flatnonzero(peak)
    if not len(where):
        return np.zeros((0, 2)), np.zeros(0), np.zeros(0)
    xy = np.column_stack([x[where], y[where]]) + _vertex(np.sqrt(raw), where)
    left = inform[where] - _absorbed(scene, stars, model, colour, xy)
    gain = _gains(score[where], left, left > _KEPT * inform[where])
    order = [i for i in np.argsort(-gain, kind="stable") if gain[i] > threshold]
    chosen: list[int] = []
    for i in order:
        if all(np.hypot(*(xy[i] - xy[j])) > _APART for j in chosen):
            chosen.append(i)
    return xy[chosen], score[where[chosen]] / left[chosen], gain[chosen]


def information(scene: Scene, stars: Stars, model: Linearised, distance: float = _REACH + 2.0) -> csr_array:
    """Joint information of (log amplitude, x, y) of all stars, of pairs closer than ``distance`` [px]."""
    pairs = close_pairs(stars.xy, distance)
    blocks = np.zeros((len(pairs), 3, 3))
    flux = stars.flux
    for k, column in enumerate(scene.column):
        product = flux[pairs[:, 0], column] * flux[pairs[:, 1], column]
        blocks += product[:, None, None] * model.stamps.products(k, model.weight[k], pairs)
    apart = pairs[:, 0] != pairs[:, 1]
    rows = np.concatenate([pairs[:, 0], pairs[apart, 1]])
    columns = np.concatenate([pairs[:, 1], pairs[apart, 0]])
    values = np.concatenate([blocks, blocks[apart].transpose(0, 2, 1)])
    order = np.lexsort((columns, rows))
    start = np.searchsorted(rows[order], np.arange(len(stars) + 1))
    size = 3 * len(stars)
    return bsr_array((values[order], columns[order], start), shape=(size, size)).tocsr()


def significances(scene: Scene, stars: Stars, model: Linearised) -> Float[np.ndarray, "s"]:
    """The rise of chi2 if a star is left out, to second order: 1 / var(log amplitude), neighbours free."""
    if not len(stars):
        return np.zeros(0)
    joint = information(scene, stars, model)
    tree = cKDTree(stars.xy)
    prior = np.array([_NEIGHBOUR_PRIOR[0], _NEIGHBOUR_PRIOR[1], _NEIGHBOUR_PRIOR[1]])
    result = np.zeros(len(stars))
    for s, near in enumerate(tree.query_ball_point(stars.xy, _REACH)):
        others = np.array([s, *(t for t in near if t != s)])
        where = (3 * others[:, None] + np.arange(3)).ravel()
        block = _block(joint, where)
        block[np.diag_indices(len(where))] += np.tile(prior, len(others))
        block[0, 0] -= prior[0]
        left = block[0, 0] - block[0, 1:] @ np.linalg.solve(block[1:, 1:], block[1:, 0])
        result[s] = max(float(left), 0.0)
    return result


def weakest(
    xy: Float[np.ndarray, "s 2"], significance: Float[np.ndarray, "s"], threshold: float
) -> Bool[np.ndarray, "s"]:
    """Stars under a threshold of significance, of which no weaker star is near."""
    dying = significance < threshold
    result = dying.copy()
    tree = cKDTree(xy)
    for s in np.flatnonzero(dying):
        near = [t for t in tree.query_ball_point(xy[s], _RIVALS) if t != s]
        result[s] = not any((significance[t], t) < (significance[s], s) for t in near)
    return result


def _gains(
    score: Float[np.ndarray, "n"], inform: Float[np.ndarray, "n"], tested: Bool[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Changes of chi2 of the candidates that are tested, 0 for others, whose information may be negative."""
    return np.divide(score**2, inform, out=np.zeros(len(score)), where=tested)


def _faint_colour(
    scene: Scene, model: Linearised, locus: Locus, threshold: float
) -> Float[np.ndarray, "band"]:
    """Fluxes relative to the reference band of a star that the threshold would just admit."""
    images = [k for k, column in enumerate(scene.column) if column == locus.reference]
    power = 0.0
    for k in images:
        stamp = (scene.psf[k] ** 2).sum() / scene.oversampling**2
        power += (
            float(np.median(model.weight[k][scene.valid[k]] * scene.calibration[k][scene.valid[k]] ** 2))
            * stamp
        )
    level = 0.5 * np.log(threshold / max(power, 1e-300))
    return np.exp(locus.ratio(np.array([level]))[0])


def _vertex(height: Float[np.ndarray, "y x"], where: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Offsets (x, y) of the top of a parabola through each peak and its neighbours, at most half a pixel."""
    padded = np.pad(height, 1, mode="edge")
    row, column = np.unravel_index(where, height.shape)
    row, column = row + 1, column + 1
    offsets = []
    for dy, dx in ((0, 1), (1, 0)):
        low, middle, high = (padded[row + s * dy, column + s * dx] for s in (-1, 0, 1))
        curve = np.minimum(low - 2 * middle + high, -1e-12)
        offsets.append(np.clip(0.5 * (low - high) / curve, -0.5, 0.5))
    return np.column_stack(offsets)


def _absorbed(
    scene: Scene,
    stars: Stars,
    model: Linearised,
    colour: Float[np.ndarray, "band"],
    xy: Float[np.ndarray, "n 2"],
) -> Float[np.ndarray, "n"]:
    """The part of each candidate's information that its neighbours' parameters absorb."""
    result = np.zeros(len(xy))
    if not len(stars):
        return result
    nearby = cKDTree(stars.xy).query_ball_point(xy, _REACH)
    pairs = np.array([(i, s) for i, near in enumerate(nearby) for s in near], dtype=np.int64).reshape(-1, 2)
    candidates = make_stamps(scene, xy, np.full(len(xy), _REACH))
    flux = stars.flux
    mixed = np.zeros((len(pairs), 3))
    for k, column in enumerate(scene.column):
        products = cross_products(candidates, model.stamps, k, model.weight[k], pairs)[:, 0]
        mixed += colour[column] * flux[pairs[:, 1], column, None] * products
    joint = information(scene, stars, model)
    prior = np.array([_NEIGHBOUR_PRIOR[0], _NEIGHBOUR_PRIOR[1], _NEIGHBOUR_PRIOR[1]])
    first = np.searchsorted(pairs[:, 0], np.arange(len(xy) + 1))
    for i in range(len(xy)):
        mine = slice(first[i], first[i + 1])
        near = pairs[mine, 1]
        if len(near):
            where = (3 * near[:, None] + np.arange(3)).ravel()
            block = _block(joint, where)
            block[np.diag_indices(len(where))] += np.tile(prior, len(near))
            vector = mixed[mine].ravel()
            result[i] = vector @ np.linalg.solve(block, vector)
    return result


def _block(matrix: csr_array, where: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n n"]:
    """Rows and columns of a sparse matrix, as a dense one."""
    return _gather(matrix.indptr, matrix.indices, matrix.data, where)


@njit(cache=True)
def _gather(start, columns, values, where):  # type: ignore[no-untyped-def]
    out = np.zeros((len(where), len(where)))
    for i in range(len(where)):
        low, high = start[where[i]], start[where[i] + 1]
        for j in range(len(where)):
            for at in range(low, high):
                if columns[at] == where[j]:
                    out[i, j] = values[at]
                    break
    return out


@njit(cache=True)
def _scores(table, oversampling, xy, slope, curve, reach):  # type: ignore[no-untyped-def]
    """For unit stars at positions: the sums over pixels of slope times star, and of curve times star^2."""
    scratch = np.empty((3, 2 * reach + 2, 2 * reach + 2))
    sums = np.zeros((len(xy), 2))
    for s in range(len(xy)):
        y0, y1, x0, x1 = star_stamp(table, oversampling, xy[s, 0], xy[s, 1], reach, slope.shape, scratch)
        for i in range(y1 - y0):
            for j in range(x1 - x0):
                value = scratch[0, i, j]
                sums[s, 0] += value * slope[y0 + i, x0 + j]
                sums[s, 1] += value * value * curve[y0 + i, x0 + j]
    return sums
