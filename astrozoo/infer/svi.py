"""First-order stochastic variational inference: Adam on the captured ELBO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.density import elbo
from astrozoo.infer._common import (
    Checkpoint,
    finish,
    guide_draws,
    guide_name,
    noise_for,
    progress_bar,
    variational_start,
)
from astrozoo.types import Objective, Problem, Result, Status

__all__ = ["AdamState", "ascend", "svi"]

WINDOW = 100
"""Iterations between two looks at the objective."""
PATIENCE = 2
"""Windows in a row without a rise, after which the learning rate falls to a quarter."""
REDUCTIONS = 4
"""Falls of the learning rate after which a row has converged."""
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_STATUSES = {1: Status.CONVERGED, 2: Status.DIVERGED, 3: Status.BUDGET_SPENT, 4: Status.INTERRUPTED}
_VECTORS, _SCALARS = ("w", "m", "v", "mean", "average"), ("rate", "best", "total", "squares")
_ROWS = (*_VECTORS, *_SCALARS, "stale", "reductions", "skipped", "end")


@dataclass
class AdamState:
    """Where every row stands.

    Args:
        total, squares: of the objective, in this window.
        mean: of the iterates in this window.
        average: of the iterates in the last whole window: what is returned.
        skipped: steps not taken because the gradient was not finite.
    """

    w: Float[Tensor, "b p"]
    m: Float[Tensor, "b p"]
    v: Float[Tensor, "b p"]
    rate: Float[Tensor, "b"]
    best: Float[Tensor, "b"]
    stale: Int[Tensor, "b"]
    reductions: Int[Tensor, "b"]
    total: Float[Tensor, "b"]
    squares: Float[Tensor, "b"]
    mean: Float[Tensor, "b p"]
    average: Float[Tensor, "b p"]
    skipped: Int[Tensor, "b"]
    end: Int[Tensor, "b"]
    iteration: int = 0
    trace: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"elbo": [], "rate": []})

    @classmethod
    def at(cls, w: Float[Tensor, "b p"], rate: float) -> AdamState:
        """A fresh start."""
        row = torch.zeros_like(w[:, 0])
        whole = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        rows: dict[str, Any] = {name: row.clone() for name in ("total", "squares")}
        whole_rows: dict[str, Any] = {
            name: whole.clone() for name in ("stale", "reductions", "skipped", "end")
        }
        vectors: dict[str, Any] = {name: torch.zeros_like(w) for name in ("m", "v", "mean")}
        return cls(
            w.clone(), **vectors, rate=row + rate, best=row - torch.inf, average=w, **rows, **whole_rows
        )

    @property
    def answer(self) -> Float[Tensor, "b p"]:
        """The average over the last whole window; before there was one, the latest iterate."""
        return torch.where(self.best.isfinite()[:, None], self.average, self.w)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """One per row."""
        return tuple(_STATUSES[int(end)] for end in self.end)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        trace = {f"{name}_trace": np.asarray(rows) for name, rows in self.trace.items()}
        return (
            {name: getattr(self, name).cpu().numpy() for name in _ROWS}
            | trace
            | {"iteration": np.asarray(self.iteration)}
        )

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> AdamState:
        """From a checkpoint."""
        rows = {name: torch.as_tensor(arrays[name], device=device) for name in _ROWS}
        trace = {name: list(arrays[f"{name}_trace"]) for name in ("elbo", "rate")}
        return cls(**rows, iteration=int(arrays["iteration"]), trace=trace)


def ascend(
    objective: Objective,
    state: AdamState,
    *,
    seed: int,
    particles: int,
    budget: int,
    callback: Callable[[AdamState], None] | None = None,
) -> AdamState:
    """Adam with the learning rate falling on plateaus, until every row has converged.

    Every ``WINDOW`` iterations the mean objective of the window is compared with the best so far: a rise of
    less than its standard error is a plateau. ``PATIENCE`` plateaus in a row quarter the row's learning
    rate; after ``REDUCTIONS`` of these the row has converged, and its answer is the mean of its iterates
    over the last window. Noise depends on seed and iteration alone, so rows do not influence one another.

    References:
        Kingma & Ba 2015; Dhaka et al. 2020 (averaging of iterates in VI).
    """
    if state.iteration < budget:
        state.end[state.end >= 3] = 0
    try:
        rows = torch.nonzero(state.end == 0)[:, 0]
        running = objective.take(rows)
        while len(rows) and state.iteration < budget:
            _step(
                running,
                state,
                rows,
                noise_for(seed, state.iteration, draws=particles, like=objective),
            )
            if state.iteration % WINDOW == 0:
                _look(state, rows)
                left = torch.nonzero(state.end == 0)[:, 0]
                if len(left) < len(rows):
                    rows, running = left, objective.take(left)
            if callback is not None:
                callback(state)
        state.end[state.end == 0] = 3
    except KeyboardInterrupt:
        state.end[state.end == 0] = 4
    return state


def _step(objective: Objective, state: AdamState, rows: Tensor, noise: Tensor | None) -> None:
    w = state.w[rows]
    value, g = objective.value_and_grad(w, noise)
    good = value.isfinite() & g.isfinite().all(1)
    value, g = torch.where(good, value, 0.0), torch.where(good[:, None], g, 0.0)
    t = state.iteration + 1
    m = _BETA1 * state.m[rows] + (1 - _BETA1) * g
    v = _BETA2 * state.v[rows] + (1 - _BETA2) * g.square()
    step = m / (1 - _BETA1**t) / ((v / (1 - _BETA2**t)).sqrt() + _EPS)
    w = torch.where(good[:, None], w + state.rate[rows, None] * step, w)
    state.m[rows], state.v[rows], state.w[rows] = m, v, w
    state.total[rows] += value
    state.squares[rows] += value.square()
    state.mean[rows] += w / WINDOW
    state.skipped[rows] += ~good
    state.iteration = t


def _look(state: AdamState, rows: Tensor) -> None:
    """At the end of a window."""
    mean = state.total / WINDOW
    error = ((state.squares / WINDOW - mean.square()).clamp_min(0.0) / WINDOW).sqrt()
    plateau = mean <= state.best + error
    state.stale = torch.where(plateau, state.stale + 1, 0)
    fall = state.stale >= PATIENCE
    running = torch.zeros_like(fall)
    running[rows] = True
    state.rate = torch.where(fall & running, state.rate / 4, state.rate)
    state.reductions += fall & running
    state.stale = torch.where(fall, 0, state.stale)
    state.best = torch.where(running, torch.maximum(state.best, mean), state.best)
    state.average = torch.where(running[:, None], state.mean, state.average)
    state.end = torch.where(running & (state.reductions >= REDUCTIONS), 1, state.end)
    state.end = torch.where(running & (state.skipped > WINDOW // 2), 2, state.end)
    state.trace["elbo"].append(torch.where(running, mean, torch.nan).cpu().numpy())
    state.trace["rate"].append(torch.where(running, state.rate, torch.nan).cpu().numpy())
    state.total, state.squares = torch.zeros_like(state.total), torch.zeros_like(state.squares)
    state.mean, state.skipped = torch.zeros_like(state.mean), torch.zeros_like(state.skipped)


def svi(
    problem: Problem,
    guide: Callable[[Problem], Any],
    *,
    seed: int = 0,
    draws: int = 1000,
    chains: int = 1,
    budget: int = 20_000,
    objective: str = "monte_carlo",
    start: Any = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    particles: int = 8,
    learning_rate: float = 0.02,
) -> Result:
    """Fit ``guide`` to the posterior by stochastic gradients; see :func:`ascend`.

    Args:
        draws: from the fitted guide, per chain; they are independent, and chains only a shape.
        budget: the most iterations, each of ``particles`` gradients per problem.
        objective: "monte_carlo", or a name from ``problem.objectives``.
        start: unconstrained latents or flat guide parameters, ``[dim]`` or ``[problem, dim]``, or a Result.
        particles: Monte-Carlo draws of the ELBO, in antithetic pairs.
        learning_rate: of Adam, at first.

    Raises:
        InputError: for a start of the wrong shape or a checkpoint of another run.
    """
    began = time.monotonic()
    target = elbo(problem, guide, objective=objective, compile=compile)
    settings = {
        "guide": guide_name(guide),
        "objective": objective,
        "particles": particles,
        "rate": learning_rate,
    }
    saved = Checkpoint(checkpoint, problem, "svi", seed, **settings)
    held = saved.load()
    if held is None:
        state = AdamState.at(variational_start(start, target, seed), learning_rate)
    else:
        state = AdamState.restored(held, target.device)
    with progress_bar("svi", budget, progress) as report:

        def after_each(state: AdamState) -> None:
            if state.iteration % 10 == 0:
                report(
                    state.iteration, f"{int((state.end == 0).sum())} running, elbo {state.best.mean():.6g}"
                )
            saved.save(state.arrays)

        ascend(target, state, seed=seed, particles=particles, budget=budget, callback=after_each)
    saved.save(state.arrays, now=True)
    sites, location, covariance = guide_draws(target, state.answer, seed, chains, draws)
    return finish(
        problem,
        target,
        method="svi",
        guide=guide_name(guide),
        seed=seed,
        statuses=state.statuses,
        began=began,
        throw=throw,
        draws=sites,
        trace={name: np.asarray(rows) for name, rows in state.trace.items()},
        stats={
            "iterations": state.iteration,
            "elbo": state.best.tolist(),
            "parameters": state.answer.tolist(),
        },
        location=location,
        covariance=covariance,
    )
