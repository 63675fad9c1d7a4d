"""Prior of a source's fluxes, and proposals of fluxes from the pixels. Compiled.

Given positions and shapes, the likelihood of the fluxes of one or two sources is exactly Gaussian. The
proposal multiplies it by a Gaussian approximation of the prior of colours, and mixes the product with the
prior itself, so that no place of the posterior is out of reach. The density of the proposal is exact; the
acceptance of a move corrects for the approximation.

Kinds: 0 is a star, 1 a galaxy. Shape 0 is a star; other shapes are galaxies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

__all__ = ["PRIOR_SHARE", "PriorTables", "draw_fluxes", "fit_fluxes", "log_prior", "log_proposal"]

PRIOR_SHARE = 0.1
"""Share of flux proposals that are drawn from the prior. It bounds the importance ratio where the Gaussian is
narrower than the posterior, and costs as many proposals where the data decide."""
_COLOUR_WIDENING = 1.5
"""Variance of the Gaussian that approximates the Student distribution of colours, over its squared scale:
between 1, which fits the peak, and 2, its variance with four degrees of freedom."""
_FAINT = 3.0
"""SD of the Gaussian prior of the reference flux in a proposal, over the flux that the pixels suggest. It
only keeps the proposal proper where there are no data."""
_LOG_2PI = math.log(2 * math.pi)


class PriorTables(NamedTuple):
    """A :class:`FieldPrior` as arrays; the first axis is the kind.

    Args:
        log_density: ln sources per px^2.
        knots: of ln reference flux.
        log_number: ln density of ln flux at the knots.
        cumulative: probability below the upper end of each interval of knots.
        log_ratio: ln(flux / reference flux) of the other bands at the knots.
        precision: inverse of the scale matrix of the ratios' Student distribution.
        factor: its Cholesky factor (of the scale matrix).
        constant: ln of the Student density at its centre.
        tail: degrees of freedom.
        reference: column of the reference band.
        others: columns of the other bands.
        log_mass: ln prior mass of every shape among those of its kind.
        shape_cumulative: of the galaxies' shapes, in order (the first item is shape 1).
        neighbour: shapes next to each; symmetric: i occurs in row j as often as j in row i.
        galaxy_share: probability that a new source is proposed as a galaxy.
    """

    log_density: Float[np.ndarray, "2"]
    knots: Float[np.ndarray, "2 knot"]
    log_number: Float[np.ndarray, "2 knot"]
    cumulative: Float[np.ndarray, "2 interval"]
    log_ratio: Float[np.ndarray, "2 knot other"]
    precision: Float[np.ndarray, "2 other other"]
    factor: Float[np.ndarray, "2 other other"]
    constant: Float[np.ndarray, "2"]
    tail: float
    reference: int
    others: Int[np.ndarray, "other"]
    log_mass: Float[np.ndarray, "shape"]
    shape_cumulative: Float[np.ndarray, "galaxy"]
    neighbour: Int[np.ndarray, "shape side"]
    galaxy_share: float


@njit(nogil=True)
def log_tail(z):  # type: ignore[no-untyped-def]
    """Ln of the probability that a standard normal variable exceeds z."""
    if z < 20.0:
        return math.log(0.5 * math.erfc(z / math.sqrt(2.0)))
    return -0.5 * z * z - math.log(z) - 0.5 * _LOG_2PI + math.log1p(-1.0 / (z * z))


@njit(nogil=True)
def draw_above(rng, low):  # type: ignore[no-untyped-def]
    """A standard normal variable given that it exceeds ``low``.

    References:
        Robert 1995, Statistics and Computing 5, 121.
    """
    if low < 0.4:
        while True:
            z = rng.standard_normal()
            if z > low:
                return z
    rate = 0.5 * (low + math.sqrt(low * low + 4.0))
    while True:
        z = low + rng.standard_exponential() / rate
        if rng.random() <= math.exp(-0.5 * (z - rate) ** 2):
            return z


@njit(nogil=True)
def _interval(prior, kind, log_flux):  # type: ignore[no-untyped-def]
    """The interval of knots in which a flux lies, and the fraction of it below."""
    knots = prior.knots[kind]
    i = min(max(np.searchsorted(knots, log_flux) - 1, 0), len(knots) - 2)
    return i, (log_flux - knots[i]) / (knots[i + 1] - knots[i])


@njit(nogil=True)
def log_flux_prior(prior, kind, flux):  # type: ignore[no-untyped-def]
    """Ln prior density of a source's fluxes [per nMgy in each band]."""
    for b in range(len(flux)):
        if not flux[b] > 0.0:
            return -np.inf
    log_flux = math.log(flux[prior.reference])
    if log_flux < prior.knots[kind, 0] or log_flux > prior.knots[kind, -1]:
        return -np.inf
    i, t = _interval(prior, kind, log_flux)
    result = (1 - t) * prior.log_number[kind, i] + t * prior.log_number[kind, i + 1] - log_flux
    size = len(prior.others)
    if size == 0:
        return result
    deviation = np.empty(size)
    for b in range(size):
        ln = math.log(flux[prior.others[b]])
        ratio = (1 - t) * prior.log_ratio[kind, i, b] + t * prior.log_ratio[kind, i + 1, b]
        deviation[b] = ln - log_flux - ratio
        result -= ln
    distance = 0.0
    for b in range(size):
        for c in range(size):
            distance += deviation[b] * prior.precision[kind, b, c] * deviation[c]
    exponent = 0.5 * (prior.tail + size)
    return result + prior.constant[kind] - exponent * math.log1p(distance / prior.tail)


@njit(nogil=True)
def log_prior(prior, shape, flux):  # type: ignore[no-untyped-def]
    """Ln prior intensity of a source [per px^2, shape, and nMgy in each band]."""
    kind = min(shape, 1)
    return prior.log_density[kind] + prior.log_mass[shape] + log_flux_prior(prior, kind, flux)


@njit(nogil=True)
def _draw_from_prior(rng, prior, kind, flux):  # type: ignore[no-untyped-def]
    last = len(prior.knots[kind]) - 2
    i = min(np.searchsorted(prior.cumulative[kind], rng.random()), last)
    width = prior.knots[kind, i + 1] - prior.knots[kind, i]
    rise = prior.log_number[kind, i + 1] - prior.log_number[kind, i]
    t = rng.random()
    if abs(rise) > 1e-9:
        t = math.log1p(t * math.expm1(rise)) / rise
    log_flux = prior.knots[kind, i] + t * width
    flux[prior.reference] = math.exp(log_flux)
    size = len(prior.others)
    if size == 0:
        return
    chi2 = 2.0 * rng.standard_gamma(0.5 * prior.tail)
    spread = math.sqrt(prior.tail / chi2)
    noise = np.empty(size)
    for b in range(size):
        noise[b] = spread * rng.standard_normal()
        ln = log_flux + (1 - t) * prior.log_ratio[kind, i, b] + t * prior.log_ratio[kind, i + 1, b]
        for c in range(b + 1):
            ln += prior.factor[kind, b, c] * noise[c]
        flux[prior.others[b]] = math.exp(ln)


@njit(nogil=True)
def _suggest(prior, n, shape, precision, cross, score, ratio, flux):  # type: ignore[no-untyped-def]
    """Reference fluxes by least squares at the colours of the locus; fills ``ratio`` at these fluxes."""
    reference = prior.reference
    size = len(prior.others)
    for m in range(n):
        kind = min(shape[m], 1)
        middle = len(prior.knots[kind]) // 2
        for b in range(size):
            ratio[m, b] = math.exp(prior.log_ratio[kind, middle, b])
    for _ in range(2):
        a11, a22, a12, h1, h2 = 0.0, 0.0, 0.0, 0.0, 0.0
        for b in range(size + 1):
            column = reference if b == size else prior.others[b]
            r1 = 1.0 if b == size else ratio[0, b]
            a11 += r1 * r1 * precision[0, column]
            h1 += r1 * score[0, column]
            if n == 2:
                r2 = 1.0 if b == size else ratio[1, b]
                a22 += r2 * r2 * precision[1, column]
                a12 += r1 * r2 * cross[column]
                h2 += r2 * score[1, column]
        if n == 2:
            a11, a22 = 1.001 * a11 + 1e-12, 1.001 * a22 + 1e-12
            determinant = a11 * a22 - a12 * a12
            flux[0] = (a22 * h1 - a12 * h2) / determinant
            flux[1] = (a11 * h2 - a12 * h1) / determinant
        else:
            flux[0] = h1 / (a11 + 1e-12)
        for m in range(n):
            kind = min(shape[m], 1)
            low, high = math.exp(prior.knots[kind, 0]), math.exp(prior.knots[kind, -1])
            flux[m] = min(max(flux[m], low), high)
            i, t = _interval(prior, kind, math.log(flux[m]))
            for b in range(size):
                ln = (1 - t) * prior.log_ratio[kind, i, b] + t * prior.log_ratio[kind, i + 1, b]
                ratio[m, b] = math.exp(ln)


@njit(nogil=True)
def fit_fluxes(prior, n, shape, precision, cross, score, factor, mean):  # type: ignore[no-untyped-def]
    """The Gaussian proposal of the fluxes of n = 1 or 2 sources.

    Variables are ordered by band, then source; the reference band is last. ``factor`` receives the lower
    Cholesky factor of the precision matrix, ``mean`` the mean. Both depend on the pixels, positions and
    shapes only, not on the present fluxes, so that the reverse move has the same proposal.
    """
    size = len(prior.others)
    total = n * (size + 1)
    ratio = np.empty((2, max(size, 1)))
    guess = np.empty(2)
    _suggest(prior, n, shape, precision, cross, score, ratio, guess)
    q = np.zeros((total, total))
    h = np.empty(total)
    for b in range(size + 1):
        column = prior.reference if b == size else prior.others[b]
        for m in range(n):
            q[b * n + m, b * n + m] = precision[m, column]
            h[b * n + m] = score[m, column]
        if n == 2:
            q[2 * b + 1, 2 * b] = cross[column]
            q[2 * b, 2 * b + 1] = cross[column]
    for m in range(n):
        kind = min(shape[m], 1)
        square = guess[m] ** 2
        reference = size * n + m
        for b in range(size):
            row = 0.0
            for c in range(size):
                p = prior.precision[kind, b, c] / (_COLOUR_WIDENING * square)
                row += p
                q[b * n + m, c * n + m] += p / (ratio[m, b] * ratio[m, c])
            q[b * n + m, reference] -= row / ratio[m, b]
            q[reference, b * n + m] -= row / ratio[m, b]
            q[reference, reference] += row
        q[reference, reference] += 1.0 / (_FAINT**2 * square)
        h[reference] += 1.0 / (_FAINT**2 * guess[m])
    _solve(q, h, total, factor, mean)


@njit(nogil=True)
def _solve(q, h, total, factor, mean):  # type: ignore[no-untyped-def]
    """The Cholesky factor of q, and the solution of ``q mean = h``. Pivots are at least 1e-9 diagonals."""
    for i in range(total):
        for j in range(i + 1):
            value = q[i, j]
            for c in range(j):
                value -= factor[i, c] * factor[j, c]
            if i == j:
                factor[i, i] = math.sqrt(max(value, 1e-9 * q[i, i]))
            else:
                factor[i, j] = value / factor[j, j]
    for i in range(total):
        value = h[i]
        for c in range(i):
            value -= factor[i, c] * mean[c]
        mean[i] = value / factor[i, i]
    for i in range(total - 1, -1, -1):
        value = mean[i]
        for c in range(i + 1, total):
            value -= factor[c, i] * mean[c]
        mean[i] = value / factor[i, i]


@njit(nogil=True)
def _place(prior, n, v):  # type: ignore[no-untyped-def]
    """Source and column of variable v of a proposal."""
    b = v // n
    return v - b * n, (prior.reference if b == len(prior.others) else prior.others[b])


@njit(nogil=True)
def _floor(prior, n, shape, v):  # type: ignore[no-untyped-def]
    """Least value of variable v: the prior's least flux in the reference band, else zero."""
    if v // n < len(prior.others):
        return 0.0
    return math.exp(prior.knots[min(shape[v % n], 1), 0])


@njit(nogil=True)
def draw_fluxes(rng, prior, n, shape, factor, mean, flux):  # type: ignore[no-untyped-def]
    """Draw the fluxes of n sources from the proposal."""
    if rng.random() < PRIOR_SHARE:
        for m in range(n):
            _draw_from_prior(rng, prior, min(shape[m], 1), flux[m])
        return
    total = n * (len(prior.others) + 1)
    deviation = np.empty(total)
    for v in range(total - 1, -1, -1):
        centre = mean[v]
        for c in range(v + 1, total):
            centre -= factor[c, v] * deviation[c] / factor[v, v]
        low = (_floor(prior, n, shape, v) - centre) * factor[v, v]
        value = centre + draw_above(rng, low) / factor[v, v]
        deviation[v] = value - mean[v]
        m, column = _place(prior, n, v)
        flux[m, column] = value


@njit(nogil=True)
def log_proposal(prior, n, shape, factor, mean, flux):  # type: ignore[no-untyped-def]
    """Ln density of the proposal [per nMgy of every source and band]."""
    total = n * (len(prior.others) + 1)
    deviation = np.empty(total)
    gauss = math.log1p(-PRIOR_SHARE)
    for v in range(total - 1, -1, -1):
        m, column = _place(prior, n, v)
        deviation[v] = flux[m, column] - mean[v]
        centre = mean[v]
        for c in range(v + 1, total):
            centre -= factor[c, v] * deviation[c] / factor[v, v]
        floor = _floor(prior, n, shape, v)
        if not flux[m, column] > floor:
            gauss = -np.inf
            break
        z = (flux[m, column] - centre) * factor[v, v]
        gauss += -0.5 * z * z - 0.5 * _LOG_2PI + math.log(factor[v, v])
        gauss -= log_tail((floor - centre) * factor[v, v])
    drawn = math.log(PRIOR_SHARE)
    for m in range(n):
        drawn += log_flux_prior(prior, min(shape[m], 1), flux[m])
    high = max(gauss, drawn)
    if high == -np.inf:
        return -np.inf
    return high + math.log(math.exp(gauss - high) + math.exp(drawn - high))
