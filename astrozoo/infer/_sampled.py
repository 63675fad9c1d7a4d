"""An objective's sampled gradients, Hessians and gains, each with its own number of draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.infer._trust_region_state import TrustRegionState
from astrozoo.infer.randomness import noise_for
from astrozoo.infer.subproblem import subproblem_dense, subproblem_krylov
from astrozoo.objective import Objective

__all__ = ["Sampled", "antithetic_parts", "mean_of_parts", "part_size"]

GRADIENT = 0.5
"""Largest noise of the gradient: its squared standard error, as a fraction of its squared norm. Beyond it the
number of draws doubles; below 1/16 of it the number is halved (TrustVI, section 4)."""
CURVATURE = 0.25
"""Largest noise of the curvature along a step: its standard error, as a fraction of the predicted gain.
Beyond it the number of draws of the Hessian doubles; below 1/16 of it the number is halved."""

PART = 32
"""Most draws of one problem that are evaluated at once, unless the coarse set is larger."""
PART_ELEMENTS = 2**20
"""Most numbers of noise in these draws: 8 MiB in double precision. The intermediate results of a
Hessian-vector product take about thirty times as much."""


class Sampled:
    """Gradients, Hessians and gains of an objective, sampled with its noise.

    In fixed mode the derivatives of rows that have not moved are cached.
    """

    def __init__(
        self,
        objective: Objective,
        seed: int,
        draws: int,
        coarse: int,
        fixed: bool,
        doublings: int,
        dense_limit: int,
    ) -> None:
        self.objective, self.seed, self.fixed = objective, seed, fixed
        self.draws = draws if not fixed else -(-draws // coarse) * coarse  # whole parts
        self.coarse, self.doublings = min(coarse, draws), doublings
        self.dense = objective.dim <= dense_limit
        self.known: dict[int, tuple[Tensor, ...]] = {}
        self._proposed: tuple[Tensor, ...] = ()
        self._noise: tuple[Any, dict[Any, list[Tensor | None]]] = (None, {})

    def pieces(self, level: int, iteration: int, *stream: int) -> list[Tensor | None]:
        """The noise of a level and a stream, in parts of equal size, so that one graph evaluates all of them.

        In fixed mode it depends on the level alone.
        """
        if self.objective.noise_dim == 0:
            return [None]
        if self.fixed:
            iteration, stream = 0, ()  # always the same
        if self._noise[0] != iteration:
            self._noise = (iteration, {})
        held = self._noise[1]
        if (level, stream) not in held:
            held[level, stream] = self._draw(level, iteration, *stream)
        return held[level, stream]

    def _draw(self, level: int, *stream: int) -> list[Tensor | None]:
        if self.fixed:
            n, size, streams = (self.draws if level else self.coarse), self._part(level), [stream[:1]]
        else:
            size = self.draws // 2
            n, streams = size * 2**level, [(*stream, 0), (*stream, 1)]  # halves independent of each other
        found: list[Tensor | None] = []
        for one in streams:
            e = noise_for(self.seed, *one, draws=n, like=self.objective, matched=True)
            assert e is not None
            found += antithetic_parts(e, size)
        return found

    def _part(self, level: int) -> int:
        """Fixed mode: the number of draws that are evaluated at once (see :func:`part_size`)."""
        return self.coarse if level == 0 else part_size(self.draws, self.coarse, self.objective)

    def grouped(self, levels: Tensor, of: Callable[[Tensor, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Evaluate ``of(indices, level)`` for the rows of each level, and return the values in row order."""
        out: tuple[Tensor, ...] = ()
        for level in levels.unique().tolist():
            index = torch.nonzero(levels == level)[:, 0]
            found = of(index, level)
            out = out or tuple(x.new_zeros(len(levels), *x.shape[1:]) for x in found)
            for whole, part in zip(out, found, strict=True):
                whole[index] = part
        return out

    def model(self, state: TrustRegionState, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step, its predicted gain and the objective, ``[b, p], [b], [b]``; NaN where derivatives are NaN.

        In stochastic mode it also sets the levels of the gradient and of the Hessian for the next iteration.
        """
        radius, levels = state.radius[rows], state.levels[rows]
        if self.fixed and self.dense:
            value, g, H = self._remembered(state, rows)
            return (*self._solve(g, H, radius), value)
        if self.fixed:
            value, g, error = self._remembered(state, rows)
        else:
            value, g, error = self.grouped(
                levels[:, 0],
                lambda i, level: self._gradient(state.w[rows[i]], rows[i], level, state.iteration),
            )
        good = g.isfinite().all(1) & value.isfinite()
        g = g.where(good[:, None], 0.0)
        if self.dense:
            first, second = self.grouped(levels[:, 1], lambda i, level: self._hessian(state, rows[i], level))
            s, gain = self._solve(g, (first + second) / 2, radius)
            bend = torch.stack([((H @ s[..., None])[..., 0] * s).sum(1) for H in (first, second)])
        else:

            def halves(v: Tensor, some: Tensor) -> tuple[Tensor, ...]:
                return self.grouped(
                    levels[some, 1], lambda i, level: self._products(state, rows[some[i]], v[i], level)
                )

            s, gain = subproblem_krylov(lambda v, some: torch.stack(halves(v, some)).mean(0), g, radius)
            if not self.fixed:
                bend = torch.stack(
                    [(x * s).sum(1) for x in halves(s, torch.arange(len(rows), device=s.device))]
                )
        if not self.fixed:
            wrong = (bend[0] - bend[1]).abs() / 4  # the standard error of s'Hs / 2
            noise = torch.stack((error / (GRADIENT * g.square().sum(1)), wrong / (CURVATURE * gain)), 1)
            change = (noise > 1).long() - (noise < 1 / 16).long()
            state.levels[rows, :2] = (levels[:, :2] + change).clamp(0, self.doublings)
        return s, gain.where(good, torch.nan), value

    def _remembered(self, state: TrustRegionState, rows: Tensor) -> tuple[Tensor, ...]:
        """Fixed mode: value, gradient, and the Hessian or the gradient's error, cached until a row moves."""
        fresh = torch.tensor(
            [r for r in rows.tolist() if r not in self.known], dtype=torch.int64, device=rows.device
        )
        if len(fresh):
            derived = self.grouped(
                state.levels[fresh, 0],
                lambda i, level: self._derivatives(state.w[fresh[i]], fresh[i], level),
            )
            self.known |= dict(zip(fresh.tolist(), zip(*derived, strict=True), strict=True))
        columns = zip(*(self.known[r] for r in rows.tolist()), strict=True)
        return tuple(torch.stack(column) for column in columns)

    def _derivatives(self, w: Tensor, rows: Tensor, level: int) -> tuple[Tensor, ...]:
        return self._exact(w, rows, level) if self.dense else self._gradient(w, rows, level, 0)

    def _exact(self, w: Tensor, rows: Tensor, level: int) -> tuple[Tensor, ...]:
        objective, noise = self.objective.take(rows), self.pieces(level, 0)
        return mean_of_parts([objective.value_grad_hessian(w, e) for e in noise])

    def _gradient(self, w: Tensor, rows: Tensor, level: int, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and the squared error of the gradient, from the difference of its halves."""
        objective = self.objective.take(rows)
        found = [objective.value_and_grad(w, e) for e in self.pieces(level, iteration, 0)]
        value, g = mean_of_parts(found)
        half = (len(found) + 1) // 2
        error = (mean_of_parts(found[:half])[1] - mean_of_parts(found[-half:])[1]).square().sum(1) / 4
        return value, g, error

    def _hessian(self, state: TrustRegionState, rows: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The Hessian on each half of the draws."""
        objective, w = self.objective.take(rows), state.w[rows]
        halves = torch.zeros(2, len(rows), objective.dim, objective.dim, dtype=w.dtype, device=w.device)
        pieces = self.pieces(level, state.iteration, 1)
        for i, e in enumerate(pieces):
            halves[2 * i // len(pieces)] += objective.value_grad_hessian(w, e)[2] / (len(pieces) / 2)
        return halves[0], halves[1]

    def _products(self, state: TrustRegionState, rows: Tensor, v: Tensor, level: int) -> tuple[Tensor, ...]:
        """Hessians times ``v`` on each half of the draws. In fixed mode both are the mean over all draws."""
        objective, w = self.objective.take(rows), state.w[rows]
        found = [(objective.hvp(w, e, v),) for e in self.pieces(level, state.iteration, 1)]
        if self.fixed:
            return mean_of_parts(found) * 2
        half = len(found) // 2
        return mean_of_parts(found[:half]) + mean_of_parts(found[half:])

    @staticmethod
    def _solve(g: Tensor, H: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        good: Bool[Tensor, "b"] = g.isfinite().all(1) & H.isfinite().all(2).all(1)
        s, gain = subproblem_dense(g.where(good[:, None], 0.0), H.where(good[:, None, None], 0.0), radius)
        return s, gain.where(good, torch.nan)

    def change(
        self, state: TrustRegionState, rows: Tensor, s: Tensor, value: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the paired differences, its standard error (0 in fixed mode), and objective at ``w + s``.

        In stochastic mode the number of draws is doubled until the test is resolved.
        """
        if self.fixed:
            there = state.w[rows] + s
            self._proposed = self.grouped(
                state.levels[rows, 0], lambda i, level: self._ahead(there[i], rows[i], level)
            )
            after = self._proposed[0]
            return after - value, torch.zeros_like(value), after
        gain, error, after = (torch.full_like(value, torch.nan) for _ in range(3))
        open = torch.arange(len(rows), device=rows.device)
        while len(open):
            tested, steps = rows[open], s[open]
            found = self.grouped(
                state.levels[tested, 2],
                lambda i, level, r=tested, d=steps: self._test(state, r[i], d[i], level),  # type: ignore[misc]
            )
            gain[open], error[open], after[open] = found
            level = state.levels[rows[open], 2]
            resolved = (gain[open].abs() > 2 * error[open]) | (gain[open] + error[open] < least[open])
            resolved |= ~gain[open].isfinite() | (level >= self.doublings)
            open = open[~resolved]
            state.levels[rows[open], 2] += 1
        return gain, error, after

    def _ahead(self, w: Tensor, rows: Tensor, level: int) -> tuple[Tensor, ...]:
        """Fixed mode: the objective. The gradient is added if the next iteration needs only that."""
        if self.objective.noise_dim and not self.dense:
            return self._gradient(w, rows, level, 0)
        objective, noise = self.objective.take(rows), self.pieces(level, 0)
        return mean_of_parts([(objective.values(w, e).mean(1),) for e in noise])

    def accept(self, state: TrustRegionState, rows: Tensor, accepted: Tensor, changed: Tensor) -> None:
        """Update the cache after the steps.

        The cached derivatives of rows that moved are removed. If the test computed gradients, they replace
        them, except for rows whose draws have changed.
        """
        for k, r in enumerate(rows.tolist()):
            if accepted[k]:
                self.known.pop(r, None)
                if len(self._proposed) > 1 and not changed[k]:
                    self.known[r] = tuple(column[k] for column in self._proposed)

    def _test(
        self, state: TrustRegionState, rows: Tensor, s: Tensor, level: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        objective, w = self.objective.take(rows), state.w[rows]
        pairs, after = [], []
        for e in self.pieces(level, state.iteration, 2, level):
            new = objective.values(w + s, e)
            # Antithetic draws are not independent, their pairs are.
            pairs.append((new - objective.values(w, e)).unflatten(1, (2, -1)).mean(1))
            after.append(new.mean(1))
        paired = torch.cat(pairs, 1)
        error = paired.std(1) / paired.shape[1] ** 0.5
        return paired.mean(1), error, torch.stack(after).mean(0)

    def hessian(self, state: TrustRegionState) -> Tensor:
        """The Hessian at the end of the run."""
        rows = torch.arange(len(state.w), device=state.w.device)
        if self.fixed and self.dense:
            return self._remembered(state, rows)[2]
        first, second = self._hessian(state, rows, self.doublings // 2)
        return (first + second) / 2


def part_size(draws: int, coarse: int, objective: Objective) -> int:
    """The number of fixed draws that are evaluated at once, which divides the number of all draws.

    It is at most :data:`PART`, or ``coarse`` if that is larger. For a batch it is ``coarse``, because the
    rows of a batch fill the processor's cache already.
    """
    if objective.batch is not None:
        return coarse
    pairs = (draws + 1) // 2
    most = max(min(PART // 2, PART_ELEMENTS // (2 * max(1, objective.noise_dim))), (coarse + 1) // 2)
    return 2 * max(n for n in range(1, most + 1) if pairs % n == 0)


def antithetic_parts(noise: Float[Tensor, "m e"], size: int) -> list[Tensor]:
    """Split antithetic draws into antithetic parts of ``size``: the second half is the first half negated."""
    return [part.flatten(0, 1) for part in noise.unflatten(0, (2, -1)).split((size + 1) // 2, 1)]


def mean_of_parts(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The mean of each column over parts of equal size."""
    return tuple(sum(column) / len(parts) for column in zip(*parts, strict=True))
