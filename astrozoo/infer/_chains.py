"""Chains sampled one after another: what the No-U-Turn samplers of other packages share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.checkpoint import Checkpoint
from astrozoo.density import log_density
from astrozoo.infer._metric import of_result
from astrozoo.infer._moments import Moments
from astrozoo.infer._operators import Metric
from astrozoo.infer._spread import Spread
from astrozoo.infer.convergence import ensemble_status
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.options import RunOptions
from astrozoo.infer.progress import Report, progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import constrained, finish
from astrozoo.infer.starts import chain_starts, start_points
from astrozoo.objective import Density, Objective
from astrozoo.types import Problem, Result, Status

__all__ = ["BudgetSpent", "Chain", "one_by_one"]

Whitened = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Log density and gradient in the sampler's coordinates ``u``, for ``z = z0 + root u``."""
Chain = Callable[[Whitened, int, int, Callable[[str], None]], tuple[np.ndarray, dict[str, np.ndarray]]]
"""``(density, dim, seed, step_done) -> draws of u [n, dim], {name: per draw}``; it starts at ``u = 0`` and
calls ``step_done(phase)`` after each iteration."""


class BudgetSpent(Exception):
    """Raised inside a chain when no gradients are left."""


def one_by_one(
    problem: Problem,
    sample: Chain,
    method: str,
    run: RunOptions,
    warmup: int,
    precondition: Result | None,
    sampler: Mapping[str, Any],
) -> Result:
    """Sample chain after chain and problem after problem; see :func:`astrozoo.infer.nuts.nuts`.

    Args:
        sampler: settings of the sampler, which a checkpoint must share.
    """
    began = time.monotonic()
    target = log_density(problem, compile=run.compile)
    problems, chains = problem.batch or 1, run.chains
    metric = None
    if precondition is not None:
        like = {"dtype": target.dtype, "device": target.device}
        metric = of_result(precondition, problems, target.dim, like)
    if run.start is None and precondition is None:
        z0 = chain_starts(target, chains, run.seed)
    else:
        start = precondition if run.start is None else run.start
        z0 = start_points(start, target, problems * chains, target.dim).view(problems, chains, -1)
    content = {"precondition": precondition}

    def checkpoint(run: RunOptions) -> Checkpoint:
        return run_checkpoint(
            run, problem, method, content=content, warmup=warmup, draws=run.draws, **sampler
        )

    spread = Spread(run, checkpoint)
    pairs = spread.mine([(chain, row) for chain in range(chains) for row in range(problems)])
    early_end: Status | None = None
    iterations = warmup + run.draws
    with progress_bar(method, len(pairs) * iterations, run.progress) as report:
        try:
            for number, (chain, row) in enumerate(pairs):
                if f"z_{chain}_{row}" in spread.done:
                    continue
                density = target.take(torch.tensor([row], device=target.device))
                begin = z0[row, chain]
                whitened = _Whitened(density, begin, metric and metric.take([row]), spread.budget, target)
                seed = int(generator_for(run.seed, 2, chain).initial_seed() % 2**31)
                u, stats = sample(whitened, target.dim, seed, _step_counter(report, number * iterations))
                z = begin + whitened.velocity(torch.as_tensor(u).to(z0))
                columns = {**stats, "z": z.cpu().numpy()}
                spread.add({f"{name}_{chain}_{row}": column for name, column in columns.items()})
        except KeyboardInterrupt:
            early_end = Status.INTERRUPTED
        except BudgetSpent:
            early_end = Status.BUDGET_SPENT
    early_end = spread.gather(early_end)
    if early_end is Status.INTERRUPTED and not spread.done:
        raise KeyboardInterrupt  # no chain is finished
    return _result(problem, target, spread.done, z0, method, run, early_end, began)


class _Whitened:
    def __init__(
        self,
        density: Objective,
        z0: Float[Tensor, "d"],
        metric: Metric | None,
        budget: int | None,
        target: Objective,
    ) -> None:
        self.density, self.z0, self.metric, self.budget, self.target = density, z0, metric, budget, target

    def velocity(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Displacements in the model's coordinates."""
        return u if self.metric is None else self.metric.velocity(u[None])[0]

    def __call__(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        if self.budget is not None and self.target.counts["gradient"] >= self.budget:
            raise BudgetSpent
        z = self.z0 + self.velocity(torch.as_tensor(u).to(self.z0)[None])
        value, gradient = self.density.value_and_grad(z)
        force = gradient if self.metric is None else self.metric.force(gradient[None])[0]
        return float(value), force[0].double().cpu().numpy()  # the samplers compute in double precision


def _step_counter(report: Report, before: int) -> Callable[[str], None]:
    """A function that advances the progress bar by one step, from ``before``."""
    done = before

    def step_done(phase: str) -> None:
        nonlocal done
        done += 1
        report(done, phase)

    return step_done


def _result(
    problem: Problem,
    target: Density,
    done: dict[str, Any],
    z0: Tensor,
    method: str,
    run: RunOptions,
    early_end: Status | None,
    began: float,
) -> Result:
    problems, chains = z0.shape[:2]
    whole = [c for c in range(chains) if all(f"z_{c}_{row}" in done for row in range(problems))]
    names = {key.rsplit("_", 2)[0] for key in done} | {"z", "diverging"}

    def gathered(name: str) -> Tensor:
        rows = [[torch.as_tensor(done[f"{name}_{c}_{b}"]) for c in whole] for b in range(problems)]
        return torch.stack([torch.stack(row) for row in rows])

    if whole:
        columns = {name: gathered(name) for name in names}  # [B, C, n, ...]
    else:
        columns = {"z": z0.new_zeros(problems, 0, 0, target.dim).cpu()}
        columns["diverging"] = torch.zeros(problems, 0, 0, dtype=torch.bool)
    z = columns.pop("z")
    moments = Moments(problems, target.dim, dtype=target.dtype)
    moments.add(z.flatten(1, 2) if whole else z0.cpu())
    shape = z.shape[:3]

    def by_problem(x: Tensor) -> np.ndarray:
        x = x.reshape(*shape, *x.shape[2:])
        return (x[0] if problem.batch is None else x.movedim(0, 2)).cpu().numpy()

    sites = constrained(target, z.flatten(1, 2), run.seed)
    draws = {name: by_problem(x) for name, x in sites.items()}
    if early_end is not None:
        statuses = [early_end] * problems
    else:
        statuses = ensemble_status(draws, problem.batch is not None, columns["diverging"])
    return finish(
        problem,
        target,
        method=method,
        run=run,
        statuses=statuses,
        began=began,
        draws=draws,
        sample_stats={name: by_problem(x.flatten(1, 2)) for name, x in columns.items()},
        **moments.fields(),
    )
