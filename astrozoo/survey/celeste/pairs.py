"""Sources that may be two stars: a third hypothesis beside one star and one galaxy.

Two stars closer than the PSF's width are detected as one source, and fitted better by a galaxy than by one
star. Their evidence as two stars is compared with that of one source, on the same pixels. Where two stars
are clearly better, and far enough apart, the source becomes two sources. Where they may be better, or are
closer than errors of the PSF allow to tell, the source is marked as ``maybe_double``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from astrozoo.data.images import reference_image
from astrozoo.infer.maximise import maximise
from astrozoo.models.celeste import band_matrix
from astrozoo.models.celeste_pair import TwoStars
from astrozoo.physics.profiles import axis_ratio_and_angle
from astrozoo.survey.celeste.modes import BATCH, LEAD_OF_STARS, Modes, inverse_curvature
from astrozoo.survey.partition import HALF_SIZES

__all__ = ["PAIR_REACH", "examine_pairs", "may_be_pairs", "split_pairs"]

_STARTS = ((0.5, 2.0), (0.75, 2.4), (0.25, 2.4))
"""Starts of a pair: the flux fraction of the first star, and the separation in units of the galaxy's
half-light semi-major axis. The pair then has the second moments of an exponential disc."""
_MIN_SEPARATION = 0.8
"""Smallest separation of the stars of a pair at the start [px]: a quarter of the width of SDSS's PSF."""
_MAX_SEPARATION = 4.5
"""Largest separation of the stars of a pair at the start [px]. Detection separates wider pairs."""
PAIR_REACH = 6.0
"""Distance from a source within which a residual or another source may be a part of its pair [px].

The residuals that a galaxy leaves of a pair at 4 px are 5.2 px from the middle."""
_MAX_SEMI_MAJOR = 3.0
"""Largest half-light semi-major axis of a galaxy that may be a pair [px]: pairs of 4 px are about 2."""
_MAX_FLUX_ERROR = 0.05
"""Largest standard deviation of ln flux of a source that is examined: fainter pairs look like any galaxy."""
_MIN_ODDS = 5.0
"""Log of the odds of two stars against one source above which a source is split [nat]."""
_MIN_FLAG_ODDS = -6.0
"""Log of the odds of two stars against one source above which a source is marked [nat].

A second star costs some 10 nat of prior. The odds of 48 single stars of r = 17 to 19.5 were -11.3 to -7.6."""
_MAX_SECOND_ERROR = 0.2
"""Largest standard deviation of ln flux of the fainter star of a pair that is split."""
_TOLERANCE = 0.05
"""Distance to the mode at which a fit stops [standard deviations]."""
_ITERATIONS = 30
"""Largest number of iterations. Pairs that need more are degenerate: they are no better than one source."""
_DISC_VARIANCE = 1.07
"""Variance of an exponential disc along an axis, in squared half-light radii."""
_FLAG_MARGIN = 0.25
"""Second moment of a pair that is marked, relative to that of a pair that is split.

Errors of the PSF then explain it at 5 standard deviations, as against 20."""


def may_be_pairs(job: Modes) -> Bool[np.ndarray, "s"]:
    """Compact and bright sources that have settled, are not saturated and have not been examined.

    Sources with another one within the range of separations are what detection or an earlier split made of a
    blend. Their fits may not have settled, and a third star would fit what is left.
    """
    state = job.state
    star = (state.evidence["star"] > state.evidence["galaxy"]).numpy()
    error = [state.covariance[name][:, at, at].sqrt().numpy() for name, at in (("galaxy", 6), ("star", 2))]
    semi_major, _ = _shape(job)
    compact = star | (semi_major.numpy() * _scale(job) < _MAX_SEMI_MAJOR)
    bright = np.where(star, error[1], error[0]) < _MAX_FLUX_ERROR
    usable = (
        state.converged.numpy() & ~state.examined & ~state.unsettled & (job.sources.half <= HALF_SIZES[-1])
    )
    if "saturated" in job.table.colnames:
        usable &= ~np.asarray(job.table["saturated"], bool)
    if len(usable) > 1:
        usable &= cKDTree(job.sources.xy[0]).query(job.sources.xy[0], k=2)[0][:, 1] > PAIR_REACH
    return compact & bright & usable


def examine_pairs(job: Modes) -> tuple[Int[np.ndarray, "n"], Float[Tensor, "n d"], Float[Tensor, "n d d"]]:
    """Fit two stars to sources that have not been examined, and mark those that may be double.

    Returns:
        the sources that are two stars, the two modes, and the inverse of the curvature.
    """
    rows = np.flatnonzero(may_be_pairs(job))
    job.state.examined[rows] = True
    none = torch.zeros(0, 2 * job.state.mode["star"].shape[1], dtype=torch.float64)
    parts = [(rows[:0], none, none[..., None] @ none[:, None])]
    for members in job.sources.batches(rows, BATCH // len(_STARTS)):
        parts.append(_examine(job, members))
    split, modes, covariances = zip(*parts, strict=True)
    return np.concatenate(split), torch.cat(modes), torch.cat(covariances)


def split_pairs(job: Modes) -> Table:
    """Make two stars of each source that two stars explain clearly better.

    The source becomes the first star.

    Returns:
        rows for the second stars, like those of the fit's table.
    """
    rows, modes, covariances = examine_pairs(job)
    d = modes.shape[1] // 2
    state = job.state
    first, second = modes.split(d, 1)
    typical = first.new_tensor((job.prior.log_radius_mean, 0.0, 0.0, 0.0)).expand(len(rows), 4)
    state.mode["star"][rows], state.covariance["star"][rows] = first, covariances[:, :d, :d]
    state.mode["galaxy"][rows] = torch.cat((first[:, :2], typical, first[:, 2:]), 1)
    state.evidence["star"][rows], state.evidence["galaxy"][rows] = 0.0, -LEAD_OF_STARS
    state.waiting[rows] = state.unsettled[rows] = True  # the second stars are not painted yet
    job.repaint(rows)
    table = job.table[rows].copy()
    offset = second[:, :2].numpy() / 3600
    table["ra"] = table["ra"] + offset[:, 0] / np.cos(np.deg2rad(table["dec"]))
    table["dec"] = table["dec"] + offset[:, 1]
    matrix = band_matrix(len(job.prior.bands), job.prior.reference, second)
    flux = (second[:, 2:] @ matrix.mT).exp().numpy()
    for b, band in enumerate(job.prior.bands):
        if f"flux_{band}" in table.colnames:
            table[f"flux_{band}"] = flux[:, b]
    for name, value in (("half_light_radius", 0.0), ("blended", True), ("is_star", True)):
        if name in table.colnames:
            table[name] = value
    return table


def _scale(job: Modes) -> Float[np.ndarray, "s"]:
    """Pixels per arcsec, in the coarsest image."""
    return np.sqrt(np.abs(np.linalg.det(job.sources.jacobian))).min(0)


def _shape(job: Modes) -> tuple[Float[Tensor, "s"], Float[Tensor, "s 2"]]:
    """Half-light semi-major axis [arcsec] of every galaxy, and its direction (east, north)."""
    mode = job.state.mode["galaxy"]
    axis_ratio, angle = axis_ratio_and_angle(mode[:, 3:5])
    return mode[:, 2].exp() / axis_ratio.sqrt(), torch.stack((angle.sin(), angle.cos()), -1)


def _starts(job: Modes, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "n d"]:
    """Starts of the pairs: for each of ``_STARTS``, all sources."""
    state = job.state
    semi_major, along = (part[rows] for part in _shape(job))
    scale = torch.from_numpy(_scale(job)[rows])
    galaxy = state.mode["galaxy"][rows]
    starts = []
    for fraction, factor in _STARTS:
        apart = (factor * semi_major * scale).clamp(_MIN_SEPARATION, _MAX_SEPARATION) / scale
        step = apart[:, None] * along
        stars = []
        for share, shift in ((fraction, 1 - fraction), (1 - fraction, -fraction)):
            flux = galaxy[:, 6:7] + math.log(share)
            stars += [galaxy[:, :2] + shift * step, flux, galaxy[:, 7:]]
        starts.append(torch.cat(stars, 1))
    return torch.cat(starts)


def _examine(
    job: Modes, rows: Int[np.ndarray, "b"]
) -> tuple[Int[np.ndarray, "n"], Float[Tensor, "n d"], Float[Tensor, "n d d"]]:
    n, state = len(_STARTS), job.state
    patch, _ = job.patch(rows)
    density = TwoStars(patch, job.prior).take(torch.arange(len(rows)).repeat(n))
    fit = maximise(density, _starts(job, rows), max_iterations=_ITERATIONS, tolerance=_TOLERANCE)
    assert fit.hessian is not None  # 14 dimensions are far below the dense limit
    for key, value in density.counts.items():
        state.counts[key] += value
    covariance, log_det = inverse_curvature(-fit.hessian)
    evidence = fit.value + 0.5 * (density.dim * math.log(2 * math.pi) + log_det)
    evidence, best = evidence.reshape(n, len(rows)).max(0)
    chosen = best * len(rows) + torch.arange(len(rows))
    u, covariance = fit.w[chosen], covariance[chosen]
    odds = (
        evidence
        + _log_companions(job)
        - torch.logaddexp(state.evidence["star"], state.evidence["galaxy"])[rows]
    )
    d = density.star.dim
    swap = (u[:, 2] < u[:, d + 2]).numpy()
    first, second = u.split(d, 1)
    share = torch.sigmoid(second[:, 2] - first[:, 2])
    moment = share * (1 - share) * (second[:, :2] - first[:, :2]).square().sum(1)
    least = _DISC_VARIANCE * (2 * job.log_least_radius[rows]).exp()
    error = torch.maximum(covariance[:, 2, 2], covariance[:, d + 2, d + 2]).sqrt()
    double = (odds > _MIN_FLAG_ODDS) & (moment > _FLAG_MARGIN * least)
    two = (odds > _MIN_ODDS) & (moment > least) & (error < _MAX_SECOND_ERROR)
    state.double[rows] = (double & ~two).numpy()
    order = torch.arange(2 * d).repeat(len(rows), 1)
    order[swap] = order[swap].roll(d, 1)  # the brighter star first
    u = torch.gather(u, 1, order)
    covariance = torch.stack([c[o][:, o] for c, o in zip(covariance, order, strict=True)])
    at = two.numpy()
    return rows[at], u[two], covariance[two]


def _log_companions(job: Modes) -> float:
    """Log of the expected number of other sources within the prior of a position."""
    reference = reference_image(job.images)
    scale = np.sqrt(abs(np.linalg.det(reference.wcs.pixel_scale_matrix))) * 3600
    density = len(job.sources) / (reference.counts.size * scale**2)
    return math.log(density * 2 * math.pi * job.prior.position_sd**2)
