"""Second-order stochastic maximisation of any :class:`~astrozoo.types.Objective`, in batches of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.infer._common import noise_for
from astrozoo.infer._subproblem import subproblem_dense, subproblem_krylov
from astrozoo.types import Objective, Status

__all__ = ["Solution", "TrustRegionState", "maximise"]

ETA = 0.1
"""Least ratio of observed to predicted gain of an accepted step."""
THETA = 1e-8
"""Least gain of an accepted step in units of the squared radius (stochastic mode)."""
HESSIANS = 4
"""A Hessian is of at most this many times the first number of draws; gradients and tests are of all."""
GROW, NEAR = 2.0, 0.7
"""The radius is doubled after an accepted step longer than ``NEAR`` of it, and halved after a rejection."""
PATIENCE = 3
"""Unresolved steps in a row, at the greatest number of draws, after which a row has converged."""

_STATUSES = {1: Status.CONVERGED, 2: Status.DIVERGED, 3: Status.BUDGET_SPENT, 4: Status.INTERRUPTED}
_CONVERGED, _DIVERGED, _SPENT, _INTERRUPTED = _STATUSES
_TRACED = ("value", "radius", "step", "predicted", "gain", "draws")


@dataclass
class TrustRegionState:
    """Where every row stands: what a checkpoint holds.

    Args:
        end: 0 while a row runs, otherwise why it ended.
        level: ``draws * 2**level`` draws are used next.
        unresolved: steps in a row whose observed gain was lost in its own noise.
    """

    w: Float[Tensor, "b p"]
    value: Float[Tensor, "b"]
    radius: Float[Tensor, "b"]
    level: Int[Tensor, "b"]
    unresolved: Int[Tensor, "b"]
    end: Int[Tensor, "b"]
    iteration: int = 0
    trace: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in _TRACED})

    @property
    def active(self) -> Int[Tensor, "a"]:
        """Indices of the rows still running."""
        return torch.nonzero(self.end == 0)[:, 0]

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        held = {
            name: getattr(self, name).cpu().numpy() for name in self.__dataclass_fields__ if name in _ROWS
        }
        return held | {"iteration": np.asarray(self.iteration)} | _stack(self.trace)

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> TrustRegionState:
        """From a checkpoint."""
        rows = {name: torch.as_tensor(arrays[name], device=device) for name in _ROWS}
        trace = {name: list(arrays[name + "_trace"]) for name in _TRACED}
        return cls(**rows, iteration=int(arrays["iteration"]), trace=trace)


_ROWS = ("w", "value", "radius", "level", "unresolved", "end")


@dataclass(frozen=True)
class Solution:
    """What :func:`maximise` returns.

    Args:
        value: the last estimate of the objective.
        hessian: at ``w`` (mean over the draws of fixed mode; over fresh ones in stochastic mode), or None
            above ``dense_limit`` dimensions and for an interrupted run.
        trace: per iteration and row: value, radius, step length, predicted and observed gain, draws;
            NaN once the row has ended.
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
    draws: int = 64,
    mode: Literal["stochastic", "fixed"] = "stochastic",
    max_iterations: int = 200,
    radius: float = 1.0,
    min_radius: float = 1e-6,
    max_radius: float = 1e3,
    tolerance: float = 1e-4,
    doublings: int = 4,
    dense_limit: int = 200,
    callback: Callable[[TrustRegionState], None] | None = None,
    state: TrustRegionState | None = None,
) -> Solution:
    """Maximise ``E_e[f(w; e)]`` by a trust region on sampled gradients and Hessians.

    Each row has its own radius and its own end; rows that have ended take no more work. A step ``s``
    maximises the quadratic model within the radius, where it promises a gain ``m'``; the observed gain
    ``l'`` is the mean of paired differences ``f(w + s; e') - f(w; e')``; it is accepted iff
    ``l' >= max(ETA m', THETA radius^2)``.

    * ``stochastic``: fresh draws for each gradient and Hessian, and others, independent, for each test. A
      step is *resolved* where ``|l'|`` exceeds two standard errors; an unresolved one doubles that row's
      draws, at most ``doublings`` times, and then, ``PATIENCE`` times in a row, means convergence: the row
      has come to its noise floor. So does a radius below ``min_radius``.
    * ``fixed``: the draws are made once, scaled to unit mean square, and their average is maximised
      exactly. Converged where the Newton step, measured by the curvature itself (``sqrt(2 m')``, in units
      of posterior SDs where ``f`` is an ELBO), is at most ``tolerance`` and lies inside the radius.

    Objectives without noise take the fixed mode. Randomness depends on the seed and the iteration alone
    and is the same in every row: a row's course does not depend on which others run beside it.

    Args:
        w0: starts.
        draws: Monte-Carlo draws (in antithetic pairs) at first; Hessians use at most ``HESSIANS`` times
            as many, gradients and tests all.
        callback: called after every iteration; KeyboardInterrupt anywhere ends the run with what there is.
        state: continue from here (a checkpoint) instead of from ``w0``.

    Raises:
        InputError: for starts of the wrong shape or a setting out of its range.

    References:
        Regier, Jordan & McAuliffe, NIPS 2017 (TrustVI); Giordano, Ingram & Broderick 2023 (fixed draws).
    """
    _check(
        objective,
        w0,
        draws=draws,
        max_iterations=max_iterations,
        radius=radius,
        tolerance=tolerance,
        mode=mode,
    )
    run = _Run(objective, seed, draws, objective.noise_dim == 0 or mode == "fixed", dense_limit)
    if state is None:
        like: dict[str, Any] = {"dtype": w0.dtype, "device": w0.device}
        n = len(w0)
        zeros = torch.zeros(n, dtype=torch.int64, device=w0.device)
        state = TrustRegionState(
            w0.clone(), torch.full((n,), torch.nan, **like), torch.full((n,), radius, **like),
            zeros, zeros.clone(), zeros.clone(),
        )  # fmt: skip
    if state.iteration < max_iterations:
        state.end[state.end >= _SPENT] = 0
    hessian = None
    try:
        while len(state.active) and state.iteration < max_iterations:
            _iterate(run, state, tolerance, min_radius, max_radius, doublings)
            if callback is not None:
                callback(state)
        state.end[state.active] = _SPENT
        if objective.dim <= dense_limit:
            hessian = run.hessian(state)
    except KeyboardInterrupt:
        state.end[state.active] = _INTERRUPTED
    statuses = tuple(_STATUSES[int(end)] for end in state.end)
    trace = {name.removesuffix("_trace"): a for name, a in _stack(state.trace).items()}
    return Solution(state.w, state.value, statuses, state.radius, hessian, state.iteration, trace, state)


class _Run:
    """The objective with its noise, and the derivatives of rows that have not moved (fixed mode only)."""

    def __init__(self, objective: Objective, seed: int, draws: int, fixed: bool, dense_limit: int) -> None:
        self.objective, self.seed, self.draws, self.fixed = objective, seed, draws, fixed
        self.dense = objective.dim <= dense_limit
        self.known: dict[int, tuple[Tensor, ...]] = {}

    def noise(self, *stream: int) -> Tensor | None:
        """Of a stream of the seed; always the same one in fixed mode."""
        stream = (0,) if self.fixed else stream
        return noise_for(self.seed, *stream, draws=self.draws, like=self.objective, matched=self.fixed)

    def model(self, state: TrustRegionState, rows: Tensor, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
        """Step, its promised gain and the objective: ``[b, p], [b], [b]``; NaN where derivatives are."""
        if self.fixed and self.dense:
            fresh = torch.tensor(
                [r for r in rows.tolist() if r not in self.known], dtype=torch.int64, device=rows.device
            )
            if len(fresh):
                derived = self.objective.take(fresh).value_grad_hessian(state.w[fresh], self.noise(0))
                self.known |= dict(zip(fresh.tolist(), zip(*derived, strict=True), strict=True))
            columns = zip(*(self.known[r] for r in rows.tolist()), strict=True)
            value, g, curvature = (torch.stack(column) for column in columns)
            return (*self._solve(g, curvature, state.radius[rows]), value)
        w, objective = state.w[rows], self.objective.take(rows)
        first = self.noise(state.iteration, 0, 0)
        H: Tensor | None = None
        if self.dense:
            value, g, H = objective.value_grad_hessian(w, first)
        else:
            value, g = objective.value_and_grad(w, first)
        for i in range(1, repeats):
            noise = self.noise(state.iteration, 0, i)
            if H is not None and i < HESSIANS:
                v, more, curvature = objective.value_grad_hessian(w, noise)
                H = H + curvature
            else:
                v, more = objective.value_and_grad(w, noise)
            value, g = value + v, g + more
        value, g = value / repeats, g / repeats
        if H is not None:
            return (*self._solve(g, H / min(repeats, HESSIANS), state.radius[rows]), value)
        good = g.isfinite().all(1) & value.isfinite()
        s, gain = subproblem_krylov(
            lambda v: objective.hvp(w, first, v), g.where(good[:, None], 0.0), state.radius[rows]
        )
        return s, gain.where(good, torch.nan), value

    @staticmethod
    def _solve(g: Tensor, H: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        good: Bool[Tensor, "b"] = g.isfinite().all(1) & H.isfinite().all(2).all(1)
        s, gain = subproblem_dense(g.where(good[:, None], 0.0), H.where(good[:, None, None], 0.0), radius)
        return s, gain.where(good, torch.nan)

    def change(
        self, state: TrustRegionState, rows: Tensor, s: Tensor, value: Tensor, repeats: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the paired differences, its standard error (0 in fixed mode), objective at ``w + s``."""
        objective, w = self.objective.take(rows), state.w[rows]
        new, old = [], []
        for i in range(repeats):
            noise = self.noise(state.iteration, 1, i)
            old.append(value[:, None] if self.fixed else objective.values(w, noise))
            new.append(objective.values(w + s, noise))
        after = torch.cat(new, 1)
        difference = after - torch.cat(old, 1)
        error = torch.zeros_like(difference[:, 0])
        if not self.fixed and difference.shape[1] > 1:
            # Antithetic draws are not independent, their pairs are.
            pairs = difference.unflatten(1, (repeats, 2, -1)).mean(2).flatten(1)
            error = pairs.std(1) / pairs.shape[1] ** 0.5
        return difference.mean(1), error, after.mean(1)

    def hessian(self, state: TrustRegionState) -> Tensor:
        """At the end of the run."""
        rows = torch.arange(len(state.w), device=state.w.device)
        if self.fixed and all(r in self.known for r in rows.tolist()):
            return torch.stack([self.known[r][2] for r in rows.tolist()])
        return self.objective.value_grad_hessian(state.w, self.noise(state.iteration, 2, 0))[2]


def _iterate(
    run: _Run, state: TrustRegionState, tolerance: float, min_radius: float, max_radius: float, doublings: int
) -> None:
    """One step of every row that still runs, in groups of rows with the same number of draws."""
    active = state.active
    levels = state.level[active]
    told: dict[str, Any] = {name: torch.full_like(state.value, torch.nan) for name in _TRACED}
    for level in levels.unique().tolist():
        rows = active[levels == level]
        s, predicted, value = run.model(state, rows, 2**level)
        if run.fixed:
            rows, s, predicted, value = _retire(state, rows, s, predicted, value, tolerance)
            if not len(rows):
                continue
        broken = ~(predicted.isfinite() & value.isfinite())
        length = torch.linalg.vector_norm(s, dim=1)
        radius = state.radius[rows]
        rounding = 16 * torch.finfo(value.dtype).eps * value.abs()
        finished = torch.zeros_like(broken) if run.fixed else (predicted <= rounding)
        gain, error, after = run.change(state, rows, s, value, 2**level)
        least = ETA * predicted - rounding
        if not run.fixed:
            least = torch.maximum(least, THETA * radius.square())
        accept = (gain >= least) & after.isfinite() & ~broken
        unresolved = (error > 0) & (gain.abs() <= 2 * error) & after.isfinite()
        shrunk, grown = radius / GROW, (radius * GROW).clamp_max(max_radius)
        state.radius[rows] = torch.where(accept, torch.where(length > NEAR * radius, grown, radius), shrunk)
        state.w[rows] = torch.where(accept[:, None], state.w[rows] + s, state.w[rows])
        state.value[rows] = torch.where(accept, after, value)
        at_top = unresolved & (level >= doublings)
        state.unresolved[rows] = torch.where(at_top, state.unresolved[rows] + 1, 0)
        state.level[rows] = torch.where(unresolved, min(level + 1, doublings), level)

        stalled = state.radius[rows] < min_radius
        end = torch.where(finished | (state.unresolved[rows] >= PATIENCE), _CONVERGED, 0)
        end = torch.where(stalled & (end == 0), _DIVERGED if run.fixed else _CONVERGED, end)
        state.end[rows] = torch.where(broken, _DIVERGED, end)
        for r in rows[accept].tolist():
            run.known.pop(r, None)
        new = (
            state.value[rows],
            state.radius[rows],
            length,
            predicted,
            gain,
            torch.full_like(gain, run.draws * 2**level),
        )
        for name, column in zip(_TRACED, new, strict=True):
            told[name][rows] = column
    for name, column in told.items():
        state.trace[name].append(column.cpu().numpy())
    state.iteration += 1


def _retire(
    state: TrustRegionState, rows: Tensor, s: Tensor, predicted: Tensor, value: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fixed mode: end the rows whose Newton step promises too little to be worth taking; keep the rest."""
    floor = torch.clamp(16 * torch.finfo(value.dtype).eps * value.abs(), min=tolerance**2 / 2)
    small = (predicted <= floor) & (torch.linalg.vector_norm(s, dim=1) < 0.9 * state.radius[rows])
    state.value[rows[small]], state.end[rows[small]] = value[small], _CONVERGED
    return rows[~small], s[~small], predicted[~small], value[~small]


def _stack(trace: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name + "_trace": np.stack(rows) if rows else np.zeros((0, 0)) for name, rows in trace.items()}


def _check(objective: Objective, w0: Tensor, *, mode: str, **positive: float) -> None:
    expected = f"[{objective.batch or 'rows'}, {objective.dim}]"
    if w0.ndim != 2 or w0.shape[1] != objective.dim or objective.batch not in (None, len(w0)):
        raise InputError("w0", f"shape {tuple(w0.shape)}", expected)
    if mode not in ("stochastic", "fixed"):
        raise InputError("mode", repr(mode), "'stochastic' or 'fixed'")
    for name, value in positive.items():
        if not value > 0:
            raise InputError(name, value, "a positive number")
