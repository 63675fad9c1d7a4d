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
    """The solution that :func:`maximise` returns.

    Args:
        value: the last estimate of the objective.
        hessian: the Hessian at ``w``, its mean over the draws of fixed mode or over fresh draws in stochastic
            mode. In a run from a ``curvature`` it is the model of the Hessian. It is None above
            ``dense_limit`` dimensions and for an interrupted run.
        trace: values of each iteration and row: value, radius, step length, predicted and observed gain,
            draws of the gradient, of the Hessian and of the test, and seconds since the start, without those
            of compiling. They are NaN after the row has ended.
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

    Each row has a radius and numbers of draws of its own, and ends by itself. Rows that have ended are not
    evaluated any more. A step ``s`` maximises the quadratic model within the radius. The model predicts a
    gain ``m'``. The observed gain ``l'`` is the mean of paired differences ``f(w + s; e') - f(w; e')``. The
    step is accepted if ``l' >= max(ETA m', THETA radius^2)`` (the second term in stochastic mode only).

    * ``stochastic``: each gradient and each Hessian uses fresh draws, and each test uses independent ones.
      The three numbers of draws begin at ``draws`` and are doubled at most ``doublings`` times. They fall
      again when the error allows it. The gradient's number is doubled if the squared error of ``g`` exceeds
      ``GRADIENT |g|^2``. The Hessian's number is doubled if the error of the curvature along the step exceeds
      ``CURVATURE m'``. The test's number is doubled within the iteration until the test is *resolved*: ``l'``
      is two standard errors from zero, or one below the least gain that is accepted. A row converges at its
      noise floor, after ``PATIENCE`` unresolved tests in a row with the most draws. It also converges if its
      radius falls below ``min_radius``.
    * ``fixed``: the draws are made once and matched to the moments of a normal. Their average is maximised
      exactly, at first on ``coarse`` draws. A row converges if its Newton step lies inside the radius and is
      at most ``tolerance`` long. The length is ``sqrt(2 m')``; if ``f`` is an ELBO, its unit is one posterior
      SD.
    * ``fixed`` from a ``curvature``: the gradients of successive points update this model. Hessians or their
      products are evaluated only near the maximum (:class:`Secant`). This suits up to a few hundred
      parameters.

    Objectives without noise use the fixed mode. Random numbers depend on the seed and the iteration alone and
    are the same in every row, so that a row does not depend on which other rows run.

    Args:
        w0: starts.
        draws: the number of Monte-Carlo draws, in antithetic pairs: of all iterations in fixed mode, of the
            first ones in stochastic mode.
        coarse: the number of draws of fixed mode far from the maximum; None: ``draws``.
        dense_limit: above this number of dimensions Hessian-vector products replace Hessians.
        curvature: the first model of each row's Hessian. If it is NaN for a row, the Hessian is evaluated.
            The other rows are assumed to be near their maximum and begin with all draws.
        callback: called after every iteration. A KeyboardInterrupt ends the run, and the solution so far is
            returned.
        state: a state from a checkpoint, from which the run continues. ``w0`` is then not used.

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
    """One step of every row that has not ended."""
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
    """Add an iteration to the trace. It has no columns if all active rows ended before their step."""
    told: dict[str, Any] = {name: torch.full_like(state.value, torch.nan) for name in TRACED}
    for name, column in zip(TRACED, columns, strict=False):
        told[name][rows] = column.to(state.value)
    for name, column in told.items():
        state.trace[name].append(column.cpu().numpy())
    state.iteration += 1


def _retire(
    state: TrustRegionState, rows: Tensor, s: Tensor, predicted: Tensor, value: Tensor, tolerance: float
) -> Bool[Tensor, "b"]:
    """Fixed mode: end the rows whose Newton step is below the tolerance, and return which rows continue."""
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
