"""The moves of the sampler, on one tile of one chain. Compiled.

A move takes zero, one or two sources out of the model ("side 0") and puts zero, one or two in ("side 1"). The
fluxes of side 1 are drawn by :func:`_fluxes.draw_fluxes` given its positions and shapes, and the reverse move
would draw those of side 0. The acceptance is therefore

    like(1) prior(1) / draw(1)  geometry(1 -> 0)
    --------------------------  ----------------
    like(0) prior(0) / draw(0)  geometry(0 -> 1)

where ``geometry`` is the density with which positions and shapes (and the sources that the move acts on) are
chosen. Every move proposes complete parameters of the sources that it puts in, so that no Jacobian arises.

References:
    Green 1995, Biometrika 82, 711 (reversible jumps).
    Brewer, Foreman-Mackey & Hogg 2013, AJ 146, 7; Portillo et al. 2017, AJ 154, 132; Feder et al. 2020, AJ
    159, 163 (catalogues as samples).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from astrozoo.survey.crowded._fluxes import draw_fluxes, fit_fluxes, log_prior, log_proposal
from astrozoo.survey.crowded._pixels import add, overlap, render, sums

__all__ = ["Tile", "Work", "birth", "death", "exchange", "merge", "move_source", "rescale", "retype", "split"]

REACH = 3.0
"""[px] Largest distance of two sources that are merged, made by a split, or that exchange flux: somewhat less
than the FWHM of a survey's PSF. Farther pairs hardly affect one another."""
LEAST_STEP = 0.005
"""[px] Least SD of a step in position; the model has no detail below."""
LARGEST_STEP = 0.5
"""[px] Largest SD of a step in position: a third of a PSF's width, beyond which a source is another one."""


class Tile(NamedTuple):
    """The sources whose positions lie in a tile, in the first ``number[0]`` rows.

    Args:
        x, y: [px of the reference image].
        shape: number of each source's shape; 0 is a star.
        flux: [nMgy].
        number: of sources.
        box: (x0, x1, y0, y1) [px].
    """

    x: Float[np.ndarray, "cap"]
    y: Float[np.ndarray, "cap"]
    shape: Int[np.ndarray, "cap"]
    flux: Float[np.ndarray, "cap band"]
    number: Int[np.ndarray, "1"]
    box: Float[np.ndarray, "4"]


class Work(NamedTuple):
    """Scratch of one thread; the first axis is the side, the second the source of a side."""

    stamps: Float[np.ndarray, "2 2 k pixel"]
    corner: Int[np.ndarray, "2 2 k 2"]
    xy: Float[np.ndarray, "2 2 2"]
    shape: Int[np.ndarray, "2 2"]
    flux: Float[np.ndarray, "2 2 band"]
    precision: Float[np.ndarray, "2 2 band"]
    score: Float[np.ndarray, "2 2 band"]
    cross: Float[np.ndarray, "2 band"]
    factor: Float[np.ndarray, "2 v v"]
    mean: Float[np.ndarray, "2 v"]


# What all moves share


@njit(nogil=True)
def _lift(canvas, residual, tile, work, i, m):  # type: ignore[no-untyped-def]
    """Take source i of the tile out of the model, as source m of side 0."""
    work.xy[0, m, 0], work.xy[0, m, 1] = tile.x[i], tile.y[i]
    work.shape[0, m] = tile.shape[i]
    work.flux[0, m] = tile.flux[i]
    render(canvas, tile.shape[i], tile.x[i], tile.y[i], work.stamps[0, m], work.corner[0, m])
    add(canvas, residual, work.stamps[0, m], work.corner[0, m], work.flux[0, m], 1.0)


@njit(nogil=True)
def _measure(canvas, prior, residual, work, side, n):  # type: ignore[no-untyped-def]
    """Sums over the pixels of a side's sources, and the proposal of their fluxes.

    Both sides must be out of the model.
    """
    for m in range(n):
        sums(
            canvas,
            residual,
            work.stamps[side, m],
            work.corner[side, m],
            work.precision[side, m],
            work.score[side, m],
        )
    if n == 2:
        overlap(
            canvas,
            work.stamps[side, 0],
            work.corner[side, 0],
            work.stamps[side, 1],
            work.corner[side, 1],
            work.cross[side],
        )
    fit_fluxes(
        prior,
        n,
        work.shape[side],
        work.precision[side],
        work.cross[side],
        work.score[side],
        work.factor[side],
        work.mean[side],
    )


@njit(nogil=True)
def _propose(rng, canvas, prior, residual, work, n):  # type: ignore[no-untyped-def]
    """Render the n sources of side 1 at their positions, and draw their fluxes."""
    for m in range(n):
        x, y = work.xy[1, m]
        render(canvas, work.shape[1, m], x, y, work.stamps[1, m], work.corner[1, m])
    _measure(canvas, prior, residual, work, 1, n)
    draw_fluxes(rng, prior, n, work.shape[1], work.factor[1], work.mean[1], work.flux[1])


@njit(nogil=True)
def _log_like(work, side, n):  # type: ignore[no-untyped-def]
    """Ln likelihood with the sources of a side in the model, minus that without."""
    result = 0.0
    for b in range(work.flux.shape[2]):
        for m in range(n):
            f = work.flux[side, m, b]
            result += f * (work.score[side, m, b] - 0.5 * f * work.precision[side, m, b])
        if n == 2:
            result -= work.flux[side, 0, b] * work.flux[side, 1, b] * work.cross[side, b]
    return result


@njit(nogil=True)
def _log_weight(prior, work, side, n):  # type: ignore[no-untyped-def]
    """Ln(likelihood x prior / density of the proposed fluxes) of a side."""
    result = _log_like(work, side, n)
    for m in range(n):
        result += log_prior(prior, work.shape[side, m], work.flux[side, m])
    if result == -np.inf:
        return result
    return result - log_proposal(
        prior, n, work.shape[side], work.factor[side], work.mean[side], work.flux[side]
    )


@njit(nogil=True)
def _restore(canvas, residual, work, n):  # type: ignore[no-untyped-def]
    """Put the n sources of side 0 back into the model."""
    for m in range(n):
        add(canvas, residual, work.stamps[0, m], work.corner[0, m], work.flux[0, m], -1.0)


@njit(nogil=True)
def _put(canvas, residual, tile, work, m, i):  # type: ignore[no-untyped-def]
    """Source m of side 1 becomes source i of the tile, and part of the model."""
    add(canvas, residual, work.stamps[1, m], work.corner[1, m], work.flux[1, m], -1.0)
    tile.x[i], tile.y[i] = work.xy[1, m]
    tile.shape[i] = work.shape[1, m]
    tile.flux[i] = work.flux[1, m]


@njit(nogil=True)
def _remove(tile, i):  # type: ignore[no-untyped-def]
    """Forget source i; the last one gets its number."""
    last = tile.number[0] - 1
    tile.x[i], tile.y[i] = tile.x[last], tile.y[last]
    tile.shape[i] = tile.shape[last]
    tile.flux[i] = tile.flux[last]
    tile.number[0] = last


@njit(nogil=True)
def _inside(tile, x, y):  # type: ignore[no-untyped-def]
    x0, x1, y0, y1 = tile.box
    return x0 <= x < x1 and y0 <= y < y1


@njit(nogil=True)
def _accepted(rng, log_ratio):  # type: ignore[no-untyped-def]
    return log_ratio >= 0.0 or math.log(1.0 - rng.random()) < log_ratio


@njit(nogil=True)
def _new_shape(rng, prior):  # type: ignore[no-untyped-def]
    """Random shape of a source that a move makes."""
    if rng.random() >= prior.galaxy_share:
        return 0
    galaxy = np.searchsorted(prior.shape_cumulative, rng.random())
    return min(galaxy, len(prior.shape_cumulative) - 1) + 1


@njit(nogil=True)
def _log_shape(prior, shape):  # type: ignore[no-untyped-def]
    """Ln of the probability of :func:`_new_shape`."""
    if shape == 0:
        return math.log1p(-prior.galaxy_share)
    if prior.galaxy_share == 0.0:
        return -np.inf
    return math.log(prior.galaxy_share) + prior.log_mass[shape]


@njit(nogil=True)
def _step_size(width, work, side, n):  # type: ignore[no-untyped-def]
    """[px] About the error of the position of a source with the fluxes of a side together."""
    information = 0.0
    for b in range(work.flux.shape[2]):
        f = work.flux[side, 0, b]
        if n == 2:
            f += work.flux[side, 1, b]
        information += f * f * work.precision[side, 0, b]
    sd = math.sqrt(2.0) * width / math.sqrt(information + 1e-12)
    return min(max(sd, LEAST_STEP), LARGEST_STEP)


@njit(nogil=True)
def _log_round(distance2, sd):  # type: ignore[no-untyped-def]
    """Ln density of a round Gaussian in two dimensions."""
    return -0.5 * distance2 / (sd * sd) - 2.0 * math.log(sd) - math.log(2 * math.pi)


@njit(nogil=True)
def _neighbours(tile, x, y, skip, other):  # type: ignore[no-untyped-def]
    """Number of sources within reach of (x, y), without two of the tile's (-1: none)."""
    count = 0
    for i in range(tile.number[0]):
        if i != skip and i != other and (tile.x[i] - x) ** 2 + (tile.y[i] - y) ** 2 < REACH * REACH:
            count += 1
    return count


@njit(nogil=True)
def _partner(rng, tile, i):  # type: ignore[no-untyped-def]
    """A random source within reach of source i, and the number of these; -1 if there is none."""
    count = _neighbours(tile, tile.x[i], tile.y[i], i, -1)
    if count == 0:
        return -1, 0
    chosen = int(rng.random() * count)
    for j in range(tile.number[0]):
        if j != i and (tile.x[j] - tile.x[i]) ** 2 + (tile.y[j] - tile.y[i]) ** 2 < REACH * REACH:
            if chosen == 0:
                return j, count
            chosen -= 1
    return -1, 0


# Moves that keep the number of sources. Each returns 1 if it was accepted, else 0.


@njit(nogil=True)
def move_source(rng, canvas, prior, residual, tile, work, width):  # type: ignore[no-untyped-def]
    """A step of one source, and fluxes drawn anew at the new place."""
    if tile.number[0] == 0:
        return 0
    i = int(rng.random() * tile.number[0])
    _lift(canvas, residual, tile, work, i, 0)
    _measure(canvas, prior, residual, work, 0, 1)
    scale = math.exp(2.0 * rng.random() - 1.0)
    sd = scale * _step_size(width, work, 0, 1)
    dx, dy = sd * rng.standard_normal(), sd * rng.standard_normal()
    x, y = tile.x[i] + dx, tile.y[i] + dy
    if not _inside(tile, x, y):
        _restore(canvas, residual, work, 1)
        return 0
    work.xy[1, 0, 0], work.xy[1, 0, 1] = x, y
    work.shape[1, 0] = tile.shape[i]
    _propose(rng, canvas, prior, residual, work, 1)
    back = scale * _step_size(width, work, 1, 1)
    distance2 = dx * dx + dy * dy
    log_ratio = _log_weight(prior, work, 1, 1) - _log_weight(prior, work, 0, 1)
    log_ratio += _log_round(distance2, back) - _log_round(distance2, sd)
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 1)
        return 0
    _put(canvas, residual, tile, work, 0, i)
    return 1


@njit(nogil=True)
def rescale(rng, canvas, prior, residual, tile, work):  # type: ignore[no-untyped-def]
    """A random step of the ln fluxes of one source, all together and each alone."""
    if tile.number[0] == 0:
        return 0
    i = int(rng.random() * tile.number[0])
    _lift(canvas, residual, tile, work, i, 0)
    sums(canvas, residual, work.stamps[0, 0], work.corner[0, 0], work.precision[0, 0], work.score[0, 0])
    before = _log_like(work, 0, 1) + log_prior(prior, tile.shape[i], work.flux[0, 0])
    together = 0.5 * math.exp(-3.0 * rng.random())
    alone = 0.3 * math.exp(-3.0 * rng.random())
    common = together * rng.standard_normal()
    log_ratio = 0.0
    for b in range(work.flux.shape[2]):
        step = common + alone * rng.standard_normal()
        log_ratio += step  # the proposal is symmetric in ln flux, the densities are per nMgy
        work.flux[1, 0, b] = work.flux[0, 0, b] * math.exp(step)
    work.flux[0, 0] = work.flux[1, 0]
    log_ratio += _log_like(work, 0, 1) + log_prior(prior, tile.shape[i], work.flux[0, 0]) - before
    accepted = _accepted(rng, log_ratio)
    if accepted:
        tile.flux[i] = work.flux[0, 0]
    else:
        work.flux[0, 0] = tile.flux[i]
    _restore(canvas, residual, work, 1)
    return 1 if accepted else 0


@njit(nogil=True)
def exchange(rng, canvas, prior, residual, tile, work):  # type: ignore[no-untyped-def]
    """A step of a close pair, whose fluxes are drawn anew jointly."""
    if tile.number[0] < 2:
        return 0
    i = int(rng.random() * tile.number[0])
    j, count = _partner(rng, tile, i)
    if j < 0:
        return 0
    sd = 0.3 * math.exp(-4.0 * rng.random())
    for m in range(2):
        source = i if m == 0 else j
        work.xy[1, m, 0] = tile.x[source] + sd * rng.standard_normal()
        work.xy[1, m, 1] = tile.y[source] + sd * rng.standard_normal()
        work.shape[1, m] = tile.shape[source]
        if not _inside(tile, work.xy[1, m, 0], work.xy[1, m, 1]):
            return 0
    dx, dy = work.xy[1, 1, 0] - work.xy[1, 0, 0], work.xy[1, 1, 1] - work.xy[1, 0, 1]
    if dx * dx + dy * dy >= REACH * REACH:
        return 0
    count_after = 1 + _neighbours(tile, work.xy[1, 0, 0], work.xy[1, 0, 1], i, j)
    _lift(canvas, residual, tile, work, i, 0)
    _lift(canvas, residual, tile, work, j, 1)
    _measure(canvas, prior, residual, work, 0, 2)
    _propose(rng, canvas, prior, residual, work, 2)
    log_ratio = _log_weight(prior, work, 1, 2) - _log_weight(prior, work, 0, 2)
    log_ratio += math.log(count / count_after)
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 2)
        return 0
    _put(canvas, residual, tile, work, 0, i)
    _put(canvas, residual, tile, work, 1, j)
    return 1


@njit(nogil=True)
def retype(rng, canvas, prior, residual, tile, work):  # type: ignore[no-untyped-def]
    """A star becomes a galaxy of a random shape, a galaxy becomes a star, or changes its shape a little."""
    if tile.number[0] == 0:
        return 0
    i = int(rng.random() * tile.number[0])
    before = tile.shape[i]
    if before == 0:
        galaxy = np.searchsorted(prior.shape_cumulative, rng.random())
        after = min(galaxy, len(prior.shape_cumulative) - 1) + 1
        log_ratio = math.log(0.5) - prior.log_mass[after]
    elif rng.random() < 0.5:
        after = 0
        log_ratio = prior.log_mass[before] - math.log(0.5)
    else:
        after = prior.neighbour[before, int(rng.random() * prior.neighbour.shape[1])]
        log_ratio = 0.0
    _lift(canvas, residual, tile, work, i, 0)
    _measure(canvas, prior, residual, work, 0, 1)
    work.xy[1, 0] = work.xy[0, 0]
    work.shape[1, 0] = after
    _propose(rng, canvas, prior, residual, work, 1)
    log_ratio += _log_weight(prior, work, 1, 1) - _log_weight(prior, work, 0, 1)
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 1)
        return 0
    _put(canvas, residual, tile, work, 0, i)
    return 1


# Moves that change the number of sources.


@njit(nogil=True)
def birth(rng, canvas, prior, residual, tile, work):  # type: ignore[no-untyped-def]
    """A new source anywhere in the tile."""
    n = tile.number[0]
    if n == len(tile.x):
        return 0
    x0, x1, y0, y1 = tile.box
    work.xy[1, 0, 0] = x0 + (x1 - x0) * rng.random()
    work.xy[1, 0, 1] = y0 + (y1 - y0) * rng.random()
    work.shape[1, 0] = _new_shape(rng, prior)
    _propose(rng, canvas, prior, residual, work, 1)
    log_ratio = _log_weight(prior, work, 1, 1) - _log_shape(prior, work.shape[1, 0])
    log_ratio += math.log((x1 - x0) * (y1 - y0) / (n + 1))
    if not _accepted(rng, log_ratio):
        return 0
    tile.number[0] = n + 1
    _put(canvas, residual, tile, work, 0, n)
    return 1


@njit(nogil=True)
def death(rng, canvas, prior, residual, tile, work):  # type: ignore[no-untyped-def]
    """The reverse of :func:`birth`."""
    n = tile.number[0]
    if n == 0:
        return 0
    x0, x1, y0, y1 = tile.box
    i = int(rng.random() * n)
    _lift(canvas, residual, tile, work, i, 0)
    _measure(canvas, prior, residual, work, 0, 1)
    log_ratio = _log_shape(prior, tile.shape[i]) - _log_weight(prior, work, 0, 1)
    log_ratio -= math.log((x1 - x0) * (y1 - y0) / n)
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 1)
        return 0
    _remove(tile, i)
    return 1


@njit(nogil=True)
def _log_pair(work, merged, pair, sd):  # type: ignore[no-untyped-def]
    """Ln density of the positions of a pair that a split of the merged source makes.

    The second is at a place uniform in a disc about the first. Their centre, with a random fraction of the
    way from the first to the second, is the merged source's position but for Gaussian noise. The fraction is
    uniform on (0, w), and w is one of 1, .3, .1 and .03, so that the first of a very unequal pair stays.
    """
    dx = work.xy[pair, 1, 0] - work.xy[pair, 0, 0]
    dy = work.xy[pair, 1, 1] - work.xy[pair, 0, 1]
    distance = math.sqrt(dx * dx + dy * dy) + 1e-12
    x = work.xy[merged, 0, 0] - work.xy[pair, 0, 0]
    y = work.xy[merged, 0, 1] - work.xy[pair, 0, 1]
    along, across = (x * dx + y * dy) / distance, (x * dy - y * dx) / distance
    density = 0.0
    for w in (1.0, 0.3, 0.1, 0.03):
        low, high = (along - w * distance) / (sd * math.sqrt(2.0)), along / (sd * math.sqrt(2.0))
        density += 0.5 * (math.erf(high) - math.erf(low)) / (4.0 * w * distance)
    if density <= 0.0:
        return -np.inf
    result = math.log(density) - 0.5 * (across / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)
    return result - math.log(math.pi * REACH * REACH)


@njit(nogil=True)
def _centre(prior, work, pair):  # type: ignore[no-untyped-def]
    """Centre of light of a pair in the reference band."""
    first, second = work.flux[pair, 0, prior.reference], work.flux[pair, 1, prior.reference]
    share = second / (first + second)
    x = (1 - share) * work.xy[pair, 0, 0] + share * work.xy[pair, 1, 0]
    y = (1 - share) * work.xy[pair, 0, 1] + share * work.xy[pair, 1, 1]
    return x, y


@njit(nogil=True)
def _log_centre(prior, work, merged, pair, sd):  # type: ignore[no-untyped-def]
    """Ln density of the position of a source that a merger makes: noise about the pair's centre of light."""
    x, y = _centre(prior, work, pair)
    return _log_round((work.xy[merged, 0, 0] - x) ** 2 + (work.xy[merged, 0, 1] - y) ** 2, sd)


@njit(nogil=True)
def split(rng, canvas, prior, residual, tile, work, width):  # type: ignore[no-untyped-def]
    """One source becomes two."""
    n = tile.number[0]
    if n == 0 or n == len(tile.x):
        return 0
    i = int(rng.random() * n)
    _lift(canvas, residual, tile, work, i, 0)
    _measure(canvas, prior, residual, work, 0, 1)
    sd = _step_size(width, work, 0, 1)
    radius, angle = REACH * math.sqrt(rng.random()), 2 * math.pi * rng.random()
    dx, dy = radius * math.cos(angle), radius * math.sin(angle)
    fraction = (1.0, 0.3, 0.1, 0.03)[int(4.0 * rng.random())] * rng.random()
    x = tile.x[i] - fraction * dx + sd * rng.standard_normal()
    y = tile.y[i] - fraction * dy + sd * rng.standard_normal()
    if not (_inside(tile, x, y) and _inside(tile, x + dx, y + dy)):
        _restore(canvas, residual, work, 1)
        return 0
    work.xy[1, 0, 0], work.xy[1, 0, 1] = x, y
    work.xy[1, 1, 0], work.xy[1, 1, 1] = x + dx, y + dy
    work.shape[1, 0], work.shape[1, 1] = _new_shape(rng, prior), _new_shape(rng, prior)
    _propose(rng, canvas, prior, residual, work, 2)
    back = _step_size(width, work, 1, 2)
    log_ratio = _log_weight(prior, work, 1, 2) - _log_weight(prior, work, 0, 1)
    log_ratio -= _log_pair(work, 0, 1, sd) - math.log(n)
    log_ratio -= _log_shape(prior, work.shape[1, 0]) + _log_shape(prior, work.shape[1, 1])
    log_ratio += _log_centre(prior, work, 0, 1, back) + _log_shape(prior, tile.shape[i]) - math.log(n + 1)
    log_ratio -= math.log(1 + _neighbours(tile, x, y, i, -1))
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 1)
        return 0
    _put(canvas, residual, tile, work, 0, i)
    tile.number[0] = n + 1
    _put(canvas, residual, tile, work, 1, n)
    return 1


@njit(nogil=True)
def merge(rng, canvas, prior, residual, tile, work, width):  # type: ignore[no-untyped-def]
    """The reverse of :func:`split`."""
    n = tile.number[0]
    if n < 2:
        return 0
    i = int(rng.random() * n)
    j, count = _partner(rng, tile, i)
    if j < 0:
        return 0
    _lift(canvas, residual, tile, work, i, 0)
    _lift(canvas, residual, tile, work, j, 1)
    _measure(canvas, prior, residual, work, 0, 2)
    sd = _step_size(width, work, 0, 2)
    x, y = _centre(prior, work, 0)
    x, y = x + sd * rng.standard_normal(), y + sd * rng.standard_normal()
    if not _inside(tile, x, y):
        _restore(canvas, residual, work, 2)
        return 0
    work.xy[1, 0, 0], work.xy[1, 0, 1] = x, y
    work.shape[1, 0] = _new_shape(rng, prior)
    _propose(rng, canvas, prior, residual, work, 1)
    back = _step_size(width, work, 1, 1)
    log_ratio = _log_weight(prior, work, 1, 1) - _log_weight(prior, work, 0, 2)
    log_ratio += _log_pair(work, 1, 0, back) - math.log(n - 1)
    log_ratio += _log_shape(prior, work.shape[0, 0]) + _log_shape(prior, work.shape[0, 1])
    log_ratio -= _log_centre(prior, work, 1, 0, sd) + _log_shape(prior, work.shape[1, 0]) - math.log(n)
    log_ratio += math.log(count)
    if not _accepted(rng, log_ratio):
        _restore(canvas, residual, work, 2)
        return 0
    _put(canvas, residual, tile, work, 0, i)
    _remove(tile, j)
    return 1
