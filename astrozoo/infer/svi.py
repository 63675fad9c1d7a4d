"""First-order stochastic variational inference: Adam on the captured ELBO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo._minibatch import Minibatches
from astrozoo.density import elbo
from astrozoo.errors import InputError
from astrozoo.infer.approximation import elbo_of_draws, guide_draws, rows_at_once
from astrozoo.infer.guide_factory import checkpoint_header, guide_name
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.options import RunOptions, SVISettings
from astrozoo.infer.progress import Clock, progress_bar
from astrozoo.infer.randomness import generator_for, noise_for
from astrozoo.infer.results import finish
from astrozoo.infer.starts import variational_start
from astrozoo.objective import Objective
from astrozoo.types import DENSE_COVARIANCE, Problem, Result, Status

__all__ = ["AdamState", "ascend", "svi"]

BLOCK = 50
"""Iterations between two looks; windows are whole numbers of blocks."""
PATIENCE = 2
"""Windows in a row without a gain, after which the learning rate falls to a quarter."""
REDUCTIONS = 3
"""Falls of the learning rate in a row without a gain, after which a row has converged."""
GROWTH = 4
"""A window is this part of the run so far, so that an approach however slow shows within it."""
TESTED, TESTS = 256, 8
"""Draws of a part of a test of gain, and parts."""
LATENT_TOLERANCE = 1e-4
"""[nat] The tolerance for each latent where there are more than ``DENSE_COVARIANCE``. An SD that is wrong by
1 % costs 1e-4 nat. With a fixed tolerance a guide of 1e5 latents would gain more than that in every window.
"""
TEST_SHARE = 0.15
"""Cost of a test of gain with minibatches, as a fraction of the cost of the gradients of its window."""
VALUE_COST = 1 / 3
"""Cost of a value, as a fraction of the cost of a gradient."""
MIN_PASSES = 4
"""Passes over the data in a test of gain from which their spread gives its standard error."""
MIN_TESTED = 8
"""Minibatches in a test of gain, at least: their spread gives its standard error."""
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_STATUSES = {1: Status.CONVERGED, 2: Status.DIVERGED, 3: Status.BUDGET_SPENT, 4: Status.INTERRUPTED}
_VECTORS = ("w", "m", "v", "block", "tail", "average", "reference")
_SCALARS = ("rate", "value", "total")
_WHOLE = ("window", "age", "stale", "skipped", "end")
_ROWS = (*_VECTORS, *_SCALARS, *_WHOLE)


@dataclass
class AdamState:
    """Where every row stands.

    Args:
        block, total: sums of the iterates and of the objective in this block.
        tail: sum of the blocks' means in the second half of this window.
        average: of the iterates in the second half of the last window: what is returned.
        reference: the average at the last gain; later ones are compared with it.
        value: estimate of the objective at ``average`` (of ``w`` before there is one).
        window, age: length of this window, and how much of it is done [blocks].
        stale: windows in a row without a gain.
        skipped: steps of this block not taken because the gradient was not finite.
    """

    w: Float[Tensor, "b p"]
    m: Float[Tensor, "b p"]
    v: Float[Tensor, "b p"]
    block: Float[Tensor, "b p"]
    tail: Float[Tensor, "b p"]
    average: Float[Tensor, "b p"]
    reference: Float[Tensor, "b p"]
    rate: Float[Tensor, "b"]
    value: Float[Tensor, "b"]
    total: Float[Tensor, "b"]
    window: Int[Tensor, "b"]
    age: Int[Tensor, "b"]
    stale: Int[Tensor, "b"]
    skipped: Int[Tensor, "b"]
    end: Int[Tensor, "b"]
    iteration: int = 0
    trace: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"value": [], "rate": [], "seconds": []}
    )

    @classmethod
    def at(cls, w: Float[Tensor, "b p"], rate: float) -> AdamState:
        """A fresh start."""
        row = torch.zeros_like(w[:, 0])
        whole = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        rows: dict[str, Any] = {name: torch.zeros_like(w) for name in _VECTORS}
        rows |= {name: row.clone() for name in _SCALARS} | {name: whole.clone() for name in _WHOLE}
        undefined = torch.full_like(w, torch.nan)
        given = {"w": w.clone(), "rate": row + rate, "window": whole + 2}
        return cls(**rows | given | {"average": undefined, "reference": undefined.clone()})

    @property
    def answer(self) -> Float[Tensor, "b p"]:
        """The average over the tail of the last window; before there was one, the latest iterate."""
        return torch.where(self.average.isnan(), self.w, self.average)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """One per row."""
        return tuple(_STATUSES[int(end)] for end in self.end)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        rows = {name: getattr(self, name).cpu().numpy() for name in _ROWS}
        trace = {f"{name}_trace": np.asarray(told) for name, told in self.trace.items()}
        return rows | trace | {"iteration": np.asarray(self.iteration)}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> AdamState:
        """From a checkpoint."""
        rows = {name: torch.as_tensor(arrays[name], device=device) for name in _ROWS}
        trace = {name: list(arrays[f"{name}_trace"]) for name in ("value", "rate", "seconds")}
        return cls(**rows, iteration=int(arrays["iteration"]), trace=trace)


def ascend(
    objective: Objective,
    state: AdamState,
    *,
    seed: int,
    particles: int,
    budget: int,
    tolerance: float = 1e-3,
    minibatches: Minibatches | None = None,
    callback: Callable[[AdamState], None] | None = None,
) -> AdamState:
    """Adam with tail averaging, the learning rate falling on plateaus, until every row has converged.

    The run goes in windows; the answer is the average of the iterates in the second half of the last one. At
    the end of a window the objective at its average is compared with that at the last average that was a
    gain, on common draws that Adam did not see. A rise by more than ``tolerance`` and two standard errors is
    a gain. ``PATIENCE`` windows in a row without one quarter the row's learning rate; ``REDUCTIONS`` of these
    in a row, still without one, mean that it has converged. Progress however slow is seen: windows grow with
    the run, and as the average compared with stays until a gain, small rises add up until they are one.
    Noise depends on seed and iteration alone, so rows do not influence one another. With minibatches, a
    test of gain compares both averages on fresh minibatches, as many as cost ``TEST_SHARE`` of the window's
    gradients.

    Args:
        tolerance: of the objective [nat].
        minibatches: gradients and tests of gain are of these parts of the data.

    References:
        Kingma & Ba 2015; Dhaka et al. 2020 and Welandawe et al. 2022 (averages at falling rates).
    """
    clock = Clock(objective, state.trace["seconds"])
    if state.iteration < budget:
        state.end[state.end >= 3] = 0
    try:
        rows = torch.nonzero(state.end == 0)[:, 0]
        running = objective.take(rows)
        while len(rows) and state.iteration < budget:
            target = running
            if minibatches is not None:
                target = minibatches.draw(rows, generator_for(seed, state.iteration, 2))
            _step(target, state, rows, noise_for(seed, state.iteration, draws=particles, like=target))
            if state.iteration % BLOCK == 0:
                _look(objective, state, rows, seed, tolerance, clock, minibatches, particles)
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
    at = slice(None) if len(rows) == len(state.w) else rows  # views cost less than copies
    w = state.w[at]
    value, g = objective.value_and_grad(w, noise)
    good = value.isfinite() & g.isfinite().all(1)
    if not good.all():
        value, g = torch.where(good, value, 0.0), torch.where(good[:, None], g, 0.0)
        state.skipped[at] += ~good
    t = state.iteration + 1
    m = torch.lerp(state.m[at], g, 1 - _BETA1)
    v = state.v[at].mul(_BETA2).addcmul_(g, g, value=1 - _BETA2)
    step = m / v.div(1 - _BETA2**t).sqrt_().add_(_EPS)
    w = w + step.mul_((state.rate[at] * good / (1 - _BETA1**t))[:, None])
    state.m[at], state.v[at], state.w[at] = m, v, w
    state.total[at] += value
    state.block[at] += w
    state.iteration = t


def _look(
    objective: Objective,
    state: AdamState,
    rows: Tensor,
    seed: int,
    tolerance: float,
    clock: Clock,
    minibatches: Minibatches | None = None,
    particles: int = 0,
) -> None:
    """At the end of a block; for some rows it is the end of a window too."""
    told = {name: torch.full_like(state.value, torch.nan) for name in state.trace}
    told["value"][rows], told["rate"][rows] = state.total[rows] / BLOCK, state.rate[rows]
    told["seconds"][rows] = clock()
    for name, column in told.items():
        state.trace[name].append(column.cpu().numpy())
    state.age[rows] += 1
    late = rows[state.age[rows] > state.window[rows] // 2]
    state.tail[late] += state.block[late] / BLOCK
    ended = rows[state.age[rows] >= state.window[rows]]
    if len(ended):
        _window(objective, state, ended, seed, tolerance, minibatches, particles)
    unmeasured = rows[state.average[rows].isnan().any(1)]
    state.value[unmeasured] = state.total[unmeasured] / BLOCK
    state.end[rows[state.skipped[rows] > BLOCK // 2]] = 2
    state.block[rows], state.total[rows], state.skipped[rows] = 0.0, 0.0, 0


def _window(
    objective: Objective,
    state: AdamState,
    rows: Tensor,
    seed: int,
    tolerance: float,
    minibatches: Minibatches | None,
    particles: int,
) -> None:
    length = state.window[rows]
    average = state.tail[rows] / (length - length // 2)[:, None]
    first = state.reference[rows].isnan().any(1)
    before = torch.where(first[:, None], average, state.reference[rows])
    if minibatches is None:
        value, rises, error = _compared(objective.take(rows), average, before, seed, state.iteration)
    else:
        gradients = int(length.min()) * BLOCK
        count = max(MIN_TESTED, int(TEST_SHARE * gradients / (2 * VALUE_COST)))
        value, rises, error = _compared_on_minibatches(
            minibatches, rows, average, before, seed, state.iteration, particles, count
        )
    gain = first | ~(rises <= torch.clamp(2 * error, min=tolerance))
    stale = torch.where(gain, 0, state.stale[rows] + 1)
    fall = (stale > 0) & (stale % PATIENCE == 0)
    state.rate[rows] = torch.where(fall, state.rate[rows] / 4, state.rate[rows])
    state.reference[rows] = torch.where(gain[:, None], average, before)
    state.average[rows], state.value[rows], state.stale[rows] = average, value, stale
    state.window[rows] = max(2, state.iteration // (GROWTH * BLOCK))
    state.age[rows], state.tail[rows] = 0, 0.0
    state.end[rows] = torch.where(stale >= PATIENCE * REDUCTIONS, 1, 0)


def _tolerance(settings: SVISettings, latents: int) -> float:
    if latents <= DENSE_COVARIANCE:
        return settings.tolerance
    return max(settings.tolerance, LATENT_TOLERANCE * latents)


def _compared(
    target: Objective, new: Tensor, old: Tensor, seed: int, iteration: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective at ``new``, its rise from ``old`` on common draws, and the rise's standard error."""
    after, before = [], []
    tested = min(TESTED, 2 * rows_at_once(2 * len(new) * target.noise_dim))
    for part in range(TESTS if target.noise_dim else 1):
        noise = noise_for(seed, iteration, 1, part, draws=tested, like=target)
        after.append(target.values(new, noise))
        before.append(target.values(old, noise))
    value, rises = torch.cat(after, 1), torch.cat(after, 1) - torch.cat(before, 1)
    error = torch.zeros_like(value[:, 0])
    if target.noise_dim:
        pairs = rises.unflatten(1, (TESTS, 2, -1)).mean(2).flatten(1)  # antithetic: the pairs are independent
        error = pairs.std(1) / pairs.shape[1] ** 0.5
    return value.mean(1), rises.mean(1), error


def _compared_on_minibatches(
    minibatches: Minibatches,
    rows: Tensor,
    new: Tensor,
    old: Tensor,
    seed: int,
    iteration: int,
    particles: int,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_compared`, on about ``count`` minibatches; the error includes that of the choice of data.

    Minibatches are taken from random orders of the data. The error comes from the spread of whole passes
    where there are at least ``MIN_PASSES``, because the choice of data then cancels.
    """
    disjoint = minibatches.disjoint
    whole = count >= MIN_PASSES * disjoint
    values, rises = [], []
    for k in range(count // disjoint * disjoint if whole else count):
        order = generator_for(seed, iteration, 3, k // disjoint)
        target = minibatches.draw(rows, order, k % disjoint)
        noise = noise_for(seed, iteration, 4, k, draws=particles, like=target)
        after, before = target.values(new, noise).mean(1), target.values(old, noise).mean(1)
        values.append(after)
        rises.append(after - before)
    spread = torch.stack(rises)
    if whole:
        spread = spread.unflatten(0, (-1, disjoint)).mean(1)
    return torch.stack(values).mean(0), spread.mean(0), spread.std(0) / len(spread) ** 0.5


def svi(problem: Problem, guide: Callable[[Problem], Any], run: RunOptions, settings: SVISettings) -> Result:
    """Fit ``guide`` to the posterior by stochastic gradients; see :func:`ascend`.

    An iteration takes ``particles`` gradients per problem.

    With more than ``DENSE_COVARIANCE`` latents the tolerance is at least ``LATENT_TOLERANCE`` for each.

    Returns:
        a Result. ``stats["elbo"]`` and ``stats["elbo_se"]`` are the ELBO of the fitted guide and its standard
        error on draws that the fit did not use; ``trace["elbo_fresh_draws"]`` is the mean over each block of
        iterations, every one of which had new draws.

    Raises:
        InputError: for a start of the wrong shape, a checkpoint of another run, or a minibatch of a problem
            without one data plate.
        CaptureError: if the data plate cannot be cut into minibatches.
    """
    began = time.monotonic()
    objective, minibatch = settings.objective, settings.minibatch
    if minibatch is not None and objective != "monte_carlo":
        raise InputError("minibatch", f"one with objective={objective!r}", "the Monte-Carlo objective")
    parts = None if minibatch is None else Minibatches(problem, guide, minibatch, compile=run.compile)
    if problem.datasets and parts is not None:
        if parts.local:
            expected = "a model with global latents only; `train` fits an amortised guide to a Dataset"
            raise InputError("args", f"a Dataset and latents {list(parts.local)} of its items", expected)
        target = parts.target
    else:
        target = elbo(problem, guide, objective=objective, compile=run.compile)
    header = checkpoint_header(run, problem, guide, objective) | {"minibatch": minibatch}
    header |= {"particles": settings.particles, "rate": settings.learning_rate}
    checkpoint = run_checkpoint(run, problem, "svi", **header, tolerance=settings.tolerance)
    saved = checkpoint.load()
    if saved is None:
        state = AdamState.at(variational_start(run.start, target), settings.learning_rate)
    else:
        state = AdamState.restored(saved, target.device)
    with progress_bar("svi", run.iterations, run.progress) as report:

        def after_each(state: AdamState) -> None:
            if state.iteration % 10 == 0:
                report(
                    state.iteration, f"{int((state.end == 0).sum())} running, elbo {state.value.mean():.6g}"
                )
            if checkpoint.due:
                checkpoint.save(state.arrays())

        ascend(
            target,
            state,
            seed=run.seed,
            particles=settings.particles,
            budget=run.iterations,
            tolerance=_tolerance(settings, target.layout.dim),
            minibatches=parts,
            callback=after_each,
        )
    checkpoint.save(state.arrays())
    fitted = guide_draws(target, state.answer, run)
    if problem.datasets:  # density ratios would be those of one minibatch
        fitted["sample_stats"].pop("log_ratio", None)
        stats = {"iterations": state.iteration, "elbo": state.value.tolist()}
    else:
        stats = {"iterations": state.iteration} | elbo_of_draws(fitted)
    maximised = "elbo_fresh_draws" if target.noise_dim else "objective"
    if not target.noise_dim:
        stats["objective"] = state.value.tolist()
    if parts is not None:
        stats["minibatch_counts"] = dict(parts.counts)
    return finish(
        problem,
        target,
        method="svi",
        guide=guide_name(guide),
        run=run,
        statuses=state.statuses,
        began=began,
        trace={(maximised if name == "value" else name): np.asarray(x) for name, x in state.trace.items()},
        stats=stats,
        **fitted,
    )
