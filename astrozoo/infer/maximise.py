"""Second-order stochastic maximisation of any :class:`~astrozoo.types.Objective`, in batches of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.infer._sampled import Sampled
from astrozoo.infer._secant import Secant
from astrozoo.infer._trust_region_state import (
    CONVERGED,
    DIVERGED,
    INTERRUPTED,
    SPENT,
    TRACED,
    TrustRegionState,
    stacked,
)
from astrozoo.infer.progress import Clock
from astrozoo.objective import Objective
from astrozoo.types import Status

__all__ = ["Solution", "TrustRegionState", "maximise"]

ETA = 0.1
"""Least ratio of the observed to the predicted gain of an accepted step (TrustVI, algorithm 1)."""
THETA = 1e-8
"""Least gain of an accepted step, in units of the squared radius (stochastic mode; TrustVI, algorithm 1)."""
COARSE = 1.0
"""[nat] The fixed mode begins with a few coarse draws. It takes all draws once the predicted gain of a step
is less than this."""
GROW = 2.0
"""Factor by which the radius grows after a long accepted step, and shrinks after a rejected one."""
NEAR = 0.7
"""Least length of a long step, as a fraction of the radius."""
NEAR_MAXIMUM = 5e-3
"""[nat] Steps use a model of the curvature from earlier iterations while their predicted gain is at least
this. Below it the Hessian is computed anew, because Newton steps converge quadratically there."""
PATIENCE = 3
"""A row has converged after this many steps in a row whose gain is not resolved by the largest number of
draws."""


@dataclass(frozen=True)
class Solution:
    """What :func:`maximise` returns.

    Args:
        value: the last estimate of the objective.
        hessian: at ``w`` (mean over the draws of fixed mode; over fresh ones in stochastic mode), or None
            above ``dense_limit`` dimensions and for an interrupted run; the model kept from a ``curvature``.
        trace: per iteration and row: value, radius, step length, predicted and observed gain, draws of the
            gradient, of the Hessian and of the test, seconds since the start without those of compiling; NaN
            once the row has ended.
    """

    w: Float[Tensor, "b p"]
    value: Float[Tensor, "b"]
    statuses: tuple[Status, ...]
    radius: Float[Tensor, "b"]
    hessian: Float[Tensor, "b p p"] | None
    iterations: int
    trace: dict[str, np.ndarray]
    state: TrustRegionState


def maximise(
    objective: Objective,
    w0: Float[Tensor, "b p"],
    *,
    seed: int = 0,
    draws: int = 16,
    coarse: int | None = None,
    mode: Literal["stochastic", "fixed"] = "stochastic",
    max_iterations: int = 200,
    radius: float = 1.0,
    min_radius: float = 1e-6,
    max_radius: float = 1e3,
    tolerance: float = 1e-4,
    doublings: int = 6,
    dense_limit: int = 200,
    curvature: Float[Tensor, "b p p"] | None = None,
    callback: Callable[[TrustRegionState], None] | None = None,
    state: TrustRegionState | None = None,
) -> Solution:
    """Maximise ``E_e[f(w; e)]`` by a trust region on sampled gradients and Hessians.

    Each row has its own radius, its own numbers of draws and its own end; rows that have ended take no more
    work. A step ``s`` maximises the quadratic model within the radius, where it promises a gain ``m'``; the
    observed gain ``l'`` is the mean of paired differences ``f(w + s; e') - f(w; e')``; it is accepted iff
    ``l' >= max(ETA m', THETA radius^2)``.

    * ``stochastic``: fresh draws for each gradient and Hessian, and others, independent, for each test. The
      numbers of all three begin at ``draws``, double, at most ``doublings`` times, and fall again, each by
      its own standard error: the gradient's where the squared error of ``g`` exceeds ``GRADIENT |g|^2``; the
      Hessian's where that of the curvature along the step exceeds ``CURVATURE m'``; the test's, at once,
      until it is *resolved*, ``l'`` two errors from zero (or one below what is accepted). ``PATIENCE``
      unresolved tests in a row with the most draws mean convergence: the row has come to its noise floor. So
      does a radius below ``min_radius``.
    * ``fixed``: the draws are made once, matched to the moments of a normal, and their average is maximised
      exactly, after a beginning on ``coarse`` draws. Converged where the Newton step, measured by the
      curvature itself (``sqrt(2 m')``, in units of posterior SDs where ``f`` is an ELBO), is at most
      ``tolerance`` and lies inside the radius.
    * ``fixed`` from a ``curvature``: the gradients of successive points keep this model up to date, and
      Hessians or their products are only taken near the maximum (:class:`Secant`). For up to some hundred
      parameters.

    Objectives without noise take the fixed mode. Randomness depends on the seed and the iteration alone
    and is the same in every row: a row's course does not depend on which others run beside it.

    Args:
        w0: starts.
        draws: Monte-Carlo draws (in antithetic pairs), at first or for good.
        coarse: draws of the fixed mode while far from the maximum; None: all from the start.
        dense_limit: above so many dimensions, Hessian-vector products take the place of Hessians.
        curvature: first model of each row's Hessian. Of a row where it is NaN the Hessian is evaluated; the
            others are taken to be near their maximum and leave out the coarse draws.
        callback: called after every iteration; KeyboardInterrupt anywhere ends the run with what there is.
        state: continue from here (a checkpoint) instead of from ``w0``.

    Raises:
        InputError: for starts of the wrong shape or a setting out of its range.

    References:
        Regier, Jordan & McAuliffe, NIPS 2017 (TrustVI); Byrd, Chin, Nocedal & Wu 2012, Math. Prog. 134, 127
        (sample sizes); Giordano, Ingram & Broderick 2023 (fixed draws).
    """
    _check(
        objective,
        w0,
        draws=draws,
        coarse=draws if coarse is None else coarse,
        max_iterations=max_iterations,
        radius=radius,
        tolerance=tolerance,
        mode=mode,
    )
    fixed = objective.noise_dim == 0 or mode == "fixed"
    options = (objective, seed, draws, coarse or draws, fixed, doublings, dense_limit)
    if state is None:
        state = _first(w0, radius, curvature, whole=fixed and (coarse or draws) >= draws)
    if state.curvature.shape[1]:
        if not fixed:
            raise InputError("curvature", "one in stochastic mode", "it with mode='fixed'")
        run: Sampled = Secant(*options, near=max(tolerance**2 / 2, NEAR_MAXIMUM))
    else:
        run = Sampled(*options)
    clock = Clock(objective, state.trace["seconds"])
    if state.iteration < max_iterations:
        state.end[state.end >= SPENT] = 0
    hessian = None
    try:
        while len(state.active) and state.iteration < max_iterations:
            _iterate(run, state, clock, tolerance, min_radius, max_radius)
            if callback is not None:
                callback(state)
        state.end[state.active] = SPENT
        if objective.dim <= dense_limit:
            hessian = run.hessian(state)
    except KeyboardInterrupt:
        state.end[state.active] = INTERRUPTED
    trace = {name.removesuffix("_trace"): a for name, a in stacked(state.trace).items()}
    return Solution(
        state.w, state.value, state.statuses, state.radius, hessian, state.iteration, trace, state
    )


def _first(w0: Tensor, radius: float, curvature: Tensor | None, whole: bool) -> TrustRegionState:
    like: dict[str, Any] = {"dtype": w0.dtype, "device": w0.device}
    n = len(w0)
    zeros = torch.zeros(n, dtype=torch.int64, device=w0.device)
    held = torch.zeros(n, 0, 0, **like) if curvature is None else curvature.clone()
    near = torch.full((n,), whole, device=w0.device) | (held.isfinite().all(2).all(1) & (held.shape[1] > 0))
    return TrustRegionState(
        w=w0.clone(),
        value=torch.full((n,), torch.nan, **like),
        radius=torch.full((n,), radius, **like),
        levels=zeros[:, None] + near[:, None].long().expand(n, 3),
        unresolved=zeros,
        end=zeros.clone(),
        curvature=held,
        moved=torch.full((n,), torch.inf, **like),
    )


def _iterate(
    run: Sampled,
    state: TrustRegionState,
    clock: Clock,
    tolerance: float,
    min_radius: float,
    max_radius: float,
) -> None:
    """One step of every row that still runs."""
    rows = state.active
    used = state.levels[rows]
    s, predicted, value = run.model(state, rows)
    if run.fixed:
        keep = _retire(state, rows, s, predicted, value, tolerance)
        rows, used, s, predicted, value = (x[keep] for x in (rows, used, s, predicted, value))
    if not len(rows):
        _record(state, rows, ())
        return
    broken = ~(predicted.isfinite() & value.isfinite())
    length = torch.linalg.vector_norm(s, dim=1)
    radius = state.radius[rows]
    rounding = 16 * torch.finfo(value.dtype).eps * value.abs()
    least = ETA * predicted - rounding
    if not run.fixed:
        least = torch.maximum(least, THETA * radius.square())
    gain, error, after = run.change(state, rows, s, value, least)
    tested = state.levels[rows, 2]
    accept = (gain >= least) & after.isfinite() & ~broken
    shrunk, grown = radius / GROW, (radius * GROW).clamp_max(max_radius)
    state.radius[rows] = torch.where(accept, torch.where(length > NEAR * radius, grown, radius), shrunk)
    state.w[rows] = torch.where(accept[:, None], state.w[rows] + s, state.w[rows])
    state.value[rows] = torch.where(accept, after, value)
    end = torch.where(state.radius[rows] < min_radius, DIVERGED if run.fixed else CONVERGED, 0)
    near = torch.zeros_like(accept)
    if run.fixed:
        near = accept & (used[:, 0] == 0) & (predicted < COARSE) & (length < 0.9 * radius)
        state.levels[rows[near]] = 1
    else:
        unresolved = (gain.abs() <= 2 * error) & after.isfinite() & (tested >= run.doublings)
        state.unresolved[rows] = torch.where(unresolved, state.unresolved[rows] + 1, 0)
        end[(state.unresolved[rows] >= PATIENCE) | (predicted <= rounding)] = CONVERGED
        state.levels[rows, 2] = (tested - 1).clamp_min(0)
    state.end[rows] = torch.where(broken, DIVERGED, end)
    run.accept(state, rows, accept, near)
    if run.fixed:
        numbers = [torch.where(used[:, 0] > 0, run.draws, run.coarse)] * 3
    else:
        numbers = [run.draws * 2**level for level in (used[:, 0], used[:, 1], tested)]
    new = (state.value[rows], state.radius[rows], length, predicted, gain, *numbers)
    _record(state, rows, (*new, torch.full_like(gain, clock())))


def _record(state: TrustRegionState, rows: Tensor, columns: tuple[Tensor, ...]) -> None:
    """An iteration of the trace; without columns, one in which all rows that still ran have ended."""
    told: dict[str, Any] = {name: torch.full_like(state.value, torch.nan) for name in TRACED}
    for name, column in zip(TRACED, columns, strict=False):
        told[name][rows] = column.to(state.value)
    for name, column in told.items():
        state.trace[name].append(column.cpu().numpy())
    state.iteration += 1


def _retire(
    state: TrustRegionState, rows: Tensor, s: Tensor, predicted: Tensor, value: Tensor, tolerance: float
) -> Bool[Tensor, "b"]:
    """Fixed mode: end the rows whose Newton step promises too little to be worth taking; tell which go on."""
    floor = torch.clamp(16 * torch.finfo(value.dtype).eps * value.abs(), min=tolerance**2 / 2)
    small = (predicted <= floor) & (torch.linalg.vector_norm(s, dim=1) < 0.9 * state.radius[rows])
    small &= state.levels[rows, 0] > 0
    state.value[rows[small]], state.end[rows[small]] = value[small], CONVERGED
    return ~small


def _check(objective: Objective, w0: Tensor, *, mode: str, **positive: float) -> None:
    expected = f"[{objective.batch or 'rows'}, {objective.dim}]"
    if w0.ndim != 2 or w0.shape[1] != objective.dim or objective.batch not in (None, len(w0)):
        raise InputError("w0", f"shape {tuple(w0.shape)}", expected)
    if mode not in ("stochastic", "fixed"):
        raise InputError("mode", repr(mode), "'stochastic' or 'fixed'")
    for name, value in positive.items():
        if not value > 0:
            raise InputError(name, value, "a positive number")
