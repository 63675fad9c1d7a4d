"""First-order stochastic maximisation: Adam with averages, and learning rates that fall on plateaus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo._minibatch import Minibatches
from astrozoo.infer.approximation import rows_at_once
from astrozoo.infer.progress import Clock
from astrozoo.infer.randomness import generator_for, noise_for
from astrozoo.objective import Objective
from astrozoo.types import Status

__all__ = ["AdamDirection", "AdamState", "adam_step", "ascend"]

BLOCK = 50
"""[iterations] Length of a block, after which the trace gets a point. Windows are whole numbers of blocks."""
PATIENCE = 2
"""Windows in a row without a gain, after which the learning rate falls to a quarter."""
REDUCTIONS = 3
"""How many times ``PATIENCE`` windows in a row are without a gain before a row can have converged."""
GROWTH = 4
"""A window is this part of the run so far, so that an approach however slow shows within it."""
TESTED = 256
"""Draws that are evaluated at once in a test."""
TESTS = 8
"""Times ``TESTED`` draws in a test of gain: 2,048 draws resolve a rise of about a hundredth of a nat."""
TEST_SHARE = 0.15
"""Cost of a test of gain with minibatches, as a fraction of the cost of the gradients of its window."""
VALUE_COST = 1 / 3
"""Cost of a value, as a fraction of the cost of a gradient."""
MIN_PASSES = 4
"""Passes over the data in a test of gain from which their spread gives its standard error."""
MIN_TESTED = 8
"""Minibatches in a test, at least: their spread gives its standard error."""
_BETA1 = 0.9
"""Decay of the mean of the gradients (Kingma & Ba 2015)."""
_BETA2 = 0.999
"""Decay of the mean of their squares (Kingma & Ba 2015)."""
_EPS = 1e-8
"""Added to the root of that mean, against division by zero (Kingma & Ba 2015)."""
_TINY = 1e-12
"""The same in :class:`AdamDirection`, whose gradients may be small."""
_STATUSES = {1: Status.CONVERGED, 2: Status.DIVERGED, 3: Status.BUDGET_SPENT, 4: Status.INTERRUPTED}
"""Meaning of the values of ``AdamState.end``, besides 0."""
_VECTORS = ("w", "m", "v", "block", "whole", "tail", "average", "reference", "early", "late")
"""Fields of :class:`AdamState` with a vector of parameters for each row."""
_SCALARS = ("rate", "value", "total", "early_weight", "late_weight")
"""Fields with a real number for each row."""
_WHOLE = ("window", "age", "stale", "skipped", "end")
"""Fields with a whole number for each row."""
_ROWS = (*_VECTORS, *_SCALARS, *_WHOLE)
"""All fields that a checkpoint has, besides the trace."""


class AdamDirection:
    """Adam's direction from a sequence of gradients, for a few hundred steps with a schedule of their own.

    Args:
        beta2: decay of the mean of the squared gradients. In short runs less than the .999 of long ones.

    References:
        Kingma & Ba 2015.
    """

    def __init__(self, beta2: float) -> None:
        self.beta2 = beta2
        self.steps = 0
        self._first = self._second = torch.zeros(())

    def __call__(self, gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The next direction, whose elements are about 1 where the gradients agree."""
        self.steps += 1
        self._first = _BETA1 * self._first + (1 - _BETA1) * gradient
        self._second = self.beta2 * self._second + (1 - self.beta2) * gradient.square()
        mean, square = self._first / (1 - _BETA1**self.steps), self._second / (1 - self.beta2**self.steps)
        return mean / (square.sqrt() + _TINY)


@dataclass
class AdamState:
    """Where every row stands.

    Args:
        block, total: sums of the iterates and of the objective in this block.
        whole, tail: sums of the blocks' means in this window, and in its second half.
        average: of the iterates in the second half of the last window; of a row that has converged, the
            average over all windows since the last gain. It is what is returned.
        reference: the average at the last gain; later ones are compared with it.
        early, late: sums of the blocks' means in the earlier and the later windows since the last gain;
            ``early_weight`` and ``late_weight`` are the numbers of these blocks.
        value: estimate of the objective at ``average`` (of ``w`` before there is one).
        window, age: length of this window, and how much of it is done [blocks].
        stale: windows in a row without a gain.
        skipped: steps of this block not taken because the gradient was not finite.
    """

    w: Float[Tensor, "b p"]
    m: Float[Tensor, "b p"]
    v: Float[Tensor, "b p"]
    block: Float[Tensor, "b p"]
    whole: Float[Tensor, "b p"]
    tail: Float[Tensor, "b p"]
    average: Float[Tensor, "b p"]
    reference: Float[Tensor, "b p"]
    early: Float[Tensor, "b p"]
    late: Float[Tensor, "b p"]
    rate: Float[Tensor, "b"]
    value: Float[Tensor, "b"]
    total: Float[Tensor, "b"]
    early_weight: Float[Tensor, "b"]
    late_weight: Float[Tensor, "b"]
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
        """``average``; before the end of the first window, the latest iterate."""
        return torch.where(self.average.isnan(), self.w, self.average)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """One per row."""
        return tuple(_STATUSES[int(end)] for end in self.end)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        rows = {name: getattr(self, name).cpu().numpy() for name in _ROWS}
        trace = {f"{name}_trace": np.asarray(column) for name, column in self.trace.items()}
        return rows | trace | {"iteration": np.asarray(self.iteration)}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> AdamState:
        """From a checkpoint."""
        rows = {name: torch.as_tensor(arrays[name], device=device) for name in _ROWS}
        trace = {name: list(arrays[f"{name}_trace"]) for name in ("value", "rate", "seconds")}
        return cls(**rows, iteration=int(arrays["iteration"]), trace=trace)


@dataclass(frozen=True)
class _Tests:
    """How the averages of windows are compared; see :func:`ascend`."""

    objective: Objective
    seed: int
    particles: int
    tolerance: float
    noise_tolerance: float
    minibatches: Minibatches | None


def ascend(
    objective: Objective,
    state: AdamState,
    *,
    seed: int,
    particles: int,
    budget: int,
    tolerance: float = 1e-3,
    noise_tolerance: float | None = None,
    minibatches: Minibatches | None = None,
    callback: Callable[[AdamState], None] | None = None,
) -> AdamState:
    """Adam with averages, the learning rate falling on plateaus, until every row has converged.

    The run goes in windows. At the end of a window the objective at the average of the iterates in its second
    half is compared with that at the average of the last gain, on common draws that Adam did not use. A rise
    by more than ``tolerance`` and two standard errors is a gain. After ``PATIENCE`` windows in a row without
    one the learning rate of the row falls to a quarter. Progress however slow is noticed: windows grow with
    the run, and as the average compared with stays until a gain, small rises add up until they are one.

    A row can converge when ``REDUCTIONS`` times ``PATIENCE`` windows in a row are without a gain. Its answer
    is the average over all of them, whose noise costs a part of the objective. Twice as many gradients halve
    this cost. It is estimated by the difference between the objective at the average and the mean of the
    objectives at the averages of the earlier and of the later windows: if these two are independent and their
    errors small, the difference is the expected cost. The row has converged if the cost is at most
    ``noise_tolerance``. Otherwise it continues at the last learning rate until it has averaged 1.5 times as
    long.

    Noise depends on seed and iteration alone, so rows do not influence one another. With minibatches, tests
    compare averages on fresh minibatches, those of gain on as many as cost ``TEST_SHARE`` of the window's
    gradients.

    Args:
        tolerance: of the objective [nat].
        noise_tolerance: the most that the noise of the answer may cost, in expectation [nat]. None: a quarter
            of ``tolerance``, because the cost of a single parameter exceeds four times its expectation in
            5 % of runs (chi-square distribution of one degree of freedom).
        minibatches: gradients and tests are of these parts of the data.

    References:
        Kingma & Ba 2015; Dhaka et al. 2020 and Welandawe et al. 2022 (averages at falling rates).
    """
    allowed = tolerance / 4 if noise_tolerance is None else noise_tolerance
    tests = _Tests(objective, seed, particles, tolerance, allowed, minibatches)
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
            adam_step(target, state, rows, noise_for(seed, state.iteration, draws=particles, like=target))
            if state.iteration % BLOCK == 0:
                _end_block(tests, state, rows, clock)
                left = torch.nonzero(state.end == 0)[:, 0]
                if len(left) < len(rows):
                    rows, running = left, objective.take(left)
            if callback is not None:
                callback(state)
        state.end[state.end == 0] = 3
    except KeyboardInterrupt:
        state.end[state.end == 0] = 4
    return state


def adam_step(objective: Objective, state: AdamState, rows: Tensor, noise: Tensor | None) -> None:
    """One step of Adam of some rows, on the mean over the draws ``noise``.

    torch.optim.Adam is not used: rows have steps of their own, some of which are left out, and a step of a
    compiled objective takes less time than the bookkeeping of an Optimizer does.
    """
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


def _end_block(tests: _Tests, state: AdamState, rows: Tensor, clock: Clock) -> None:
    """At the end of a block; for some rows it is the end of a window too."""
    point = {name: torch.full_like(state.value, torch.nan) for name in state.trace}
    point["value"][rows], point["rate"][rows] = state.total[rows] / BLOCK, state.rate[rows]
    point["seconds"][rows] = clock()
    for name, column in point.items():
        state.trace[name].append(column.cpu().numpy())
    state.age[rows] += 1
    state.whole[rows] += state.block[rows] / BLOCK
    late = rows[state.age[rows] > state.window[rows] // 2]
    state.tail[late] += state.block[late] / BLOCK
    ended = rows[state.age[rows] >= state.window[rows]]
    if len(ended):
        _end_window(tests, state, ended)
    unmeasured = rows[state.average[rows].isnan().any(1)]
    state.value[unmeasured] = state.total[unmeasured] / BLOCK
    state.end[rows[state.skipped[rows] > BLOCK // 2]] = 2
    state.block[rows], state.total[rows], state.skipped[rows] = 0.0, 0.0, 0


def _end_window(tests: _Tests, state: AdamState, rows: Tensor) -> None:
    length = state.window[rows]
    average = state.tail[rows] / (length - length // 2)[:, None]
    first = state.reference[rows].isnan().any(1)
    before = torch.where(first[:, None], average, state.reference[rows])
    value, rises, error = _compared(tests, state, rows, average, before, int(length.min()))
    gain = first | ~(rises <= torch.clamp(2 * error, min=tests.tolerance))
    stale = torch.where(gain, 0, state.stale[rows] + 1)
    last = PATIENCE * REDUCTIONS
    fall = (stale > 0) & (stale % PATIENCE == 0) & (stale < last)
    state.rate[rows] = torch.where(fall, state.rate[rows] / 4, state.rate[rows])
    state.reference[rows] = torch.where(gain[:, None], average, before)
    state.average[rows], state.value[rows], state.stale[rows] = average, value, stale
    for name, part in (("early", stale <= last // 2), ("late", stale > last // 2)):
        here = (part & ~gain).to(average)
        sums, weights = getattr(state, name), getattr(state, f"{name}_weight")
        sums[rows] = torch.where(gain[:, None], 0.0, sums[rows]) + here[:, None] * state.whole[rows]
        weights[rows] = torch.where(gain, 0.0, weights[rows]) + here * length
    due = rows[(stale >= last) & (state.late_weight[rows] >= state.early_weight[rows] / 2)]
    if len(due):
        _end_row(tests, state, due)
    state.window[rows] = max(2, state.iteration // (GROWTH * BLOCK))
    state.age[rows], state.tail[rows], state.whole[rows] = 0, 0.0, 0.0


def _end_row(tests: _Tests, state: AdamState, rows: Tensor) -> None:
    """End the rows whose answer is precise enough; the others average over half as many blocks again."""
    early, late = state.early[rows], state.late[rows]
    share = state.early_weight[rows] / (state.early_weight[rows] + state.late_weight[rows])
    whole = (early + late) / (state.early_weight[rows] + state.late_weight[rows])[:, None]
    points = (whole, early / state.early_weight[rows, None], late / state.late_weight[rows, None])
    value, of_early, of_late = _values(tests, state, rows, points)
    cost = value - share * of_early - (1 - share) * of_late
    precise = cost.abs() <= tests.noise_tolerance  # a negative cost means that the two are not of one maximum
    state.average[rows] = torch.where(precise[:, None], whole, state.average[rows])
    state.value[rows] = torch.where(precise, value, state.value[rows])
    state.end[rows] = torch.where(precise, 1, 0)
    state.early[rows], state.late[rows] = early + late, 0.0
    state.early_weight[rows] += state.late_weight[rows]
    state.late_weight[rows] = 0.0


def _values(tests: _Tests, state: AdamState, rows: Tensor, points: Sequence[Tensor]) -> list[Tensor]:
    """The objective at several points, on common draws (and minibatches)."""
    if tests.minibatches is None:
        target = tests.objective.take(rows)
        tested = min(TESTED, 2 * rows_at_once(len(points) * len(rows) * target.noise_dim))
        noise = noise_for(tests.seed, state.iteration, 5, draws=tested, like=target)
        return [target.values(w, noise).mean(1) for w in points]
    columns = []
    for k in range(MIN_TESTED):
        target = tests.minibatches.draw(rows, generator_for(tests.seed, state.iteration, 6, k))
        noise = noise_for(tests.seed, state.iteration, 7, k, draws=tests.particles, like=target)
        columns.append([target.values(w, noise).mean(1) for w in points])
    return [torch.stack(column).mean(0) for column in zip(*columns, strict=True)]


def _compared(
    tests: _Tests, state: AdamState, rows: Tensor, new: Tensor, old: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective at ``new``, its rise from ``old`` on common draws, and the rise's standard error.

    Args:
        window: length of the shortest window [blocks].
    """
    if tests.minibatches is not None:
        count = max(MIN_TESTED, int(TEST_SHARE * window * BLOCK / (2 * VALUE_COST)))
        return _compared_on_minibatches(tests, tests.minibatches, state.iteration, rows, new, old, count)
    target = tests.objective.take(rows)
    after, before = [], []
    tested = min(TESTED, 2 * rows_at_once(2 * len(new) * target.noise_dim))
    for part in range(TESTS if target.noise_dim else 1):
        noise = noise_for(tests.seed, state.iteration, 1, part, draws=tested, like=target)
        after.append(target.values(new, noise))
        before.append(target.values(old, noise))
    value, rises = torch.cat(after, 1), torch.cat(after, 1) - torch.cat(before, 1)
    error = torch.zeros_like(value[:, 0])
    if target.noise_dim:
        pairs = rises.unflatten(1, (TESTS, 2, -1)).mean(2).flatten(1)  # antithetic: the pairs are independent
        error = pairs.std(1) / pairs.shape[1] ** 0.5
    return value.mean(1), rises.mean(1), error


def _compared_on_minibatches(
    tests: _Tests,
    minibatches: Minibatches,
    iteration: int,
    rows: Tensor,
    new: Tensor,
    old: Tensor,
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
        order = generator_for(tests.seed, iteration, 3, k // disjoint)
        target = minibatches.draw(rows, order, k % disjoint)
        noise = noise_for(tests.seed, iteration, 4, k, draws=tests.particles, like=target)
        after, before = target.values(new, noise).mean(1), target.values(old, noise).mean(1)
        values.append(after)
        rises.append(after - before)
    spread = torch.stack(rises)
    if whole:
        spread = spread.unflatten(0, (-1, disjoint)).mean(1)
    return torch.stack(values).mean(0), spread.mean(0), spread.std(0) / len(spread) ** 0.5
