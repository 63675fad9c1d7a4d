"""Chains sampled one after another: what the No-U-Turn samplers of other packages share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.infer._common import (
    Checkpoint,
    Report,
    chain_starts,
    ensemble_status,
    finish,
    generator_for,
    progress_bar,
    start_points,
    typed,
)
from astrozoo.infer._metric import Metric, of_result
from astrozoo.infer._moments import Moments
from astrozoo.types import Objective, Problem, Result, Status

__all__ = ["BudgetSpent", "Chain", "one_by_one"]

Whitened = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Log density and gradient in the sampler's coordinates ``u``, for ``z = z0 + root u``."""
Chain = Callable[[Whitened, int, int, Callable[[str], None]], tuple[np.ndarray, dict[str, np.ndarray]]]
"""``(density, dim, seed, tell) -> draws of u [n, dim], {name: per draw}``; starts at ``u = 0``."""


class BudgetSpent(Exception):
    """Raised inside a chain when no gradients are left."""


def one_by_one(
    problem: Problem,
    run: Chain,
    *,
    method: str,
    seed: int,
    draws: int,
    chains: int,
    warmup: int,
    budget: int | None,
    start: Any,
    precondition: Result | None,
    compile: str,
    progress: bool,
    checkpoint: str | Path | None,
    throw: bool,
    settings: dict[str, Any],
) -> Result:
    """Sample chain after chain and problem after problem; see :func:`astrozoo.infer.nuts.nuts`.

    Args:
        settings: of the sampler, which a checkpoint must share.
    """
    began = time.monotonic()
    target = log_density(problem, compile=compile)
    problems = problem.batch or 1
    metric = None
    if precondition is not None:
        metric = of_result(
            precondition, problems, target.dim, {"dtype": target.dtype, "device": target.device}
        )
    if start is None and precondition is None:
        z0 = chain_starts(target, chains, seed)
    else:
        given = precondition if start is None else start
        z0 = start_points(given, target, problems * chains, seed).view(problems, chains, -1)
    saved = Checkpoint(checkpoint, problem, method, seed, warmup=warmup, draws=draws, **settings)
    done: dict[str, Any] = saved.load() or {}
    why: Status | None = None
    with progress_bar(method, problems * chains * (warmup + draws), progress) as report:
        try:
            for chain in range(chains):
                for row in range(problems):
                    if f"z_{chain}_{row}" in done:
                        continue
                    density = target.take(torch.tensor([row], device=target.device))
                    before = (chain * problems + row) * (warmup + draws)
                    whitened = _Whitened(
                        density, z0[row, chain], metric and metric.take([row]), budget, target
                    )
                    own = int(generator_for(seed, 2, chain).initial_seed() % 2**31)
                    u, stats = run(whitened, target.dim, own, _teller(report, before))
                    z = z0[row, chain] + whitened.velocity(torch.as_tensor(u).to(z0))
                    done |= {f"{name}_{chain}_{row}": column for name, column in stats.items()}
                    done[f"z_{chain}_{row}"] = z.cpu().numpy()
                    saved.save(done.copy, now=True)
        except KeyboardInterrupt:
            why = Status.INTERRUPTED
        except BudgetSpent:
            why = Status.BUDGET_SPENT
    return _result(problem, target, done, z0, method, seed, why, began, throw)


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
        return float(value), force[0].cpu().numpy()


def _teller(report: Report, before: int) -> Callable[[str], None]:
    told = 0

    def tell(stage: str) -> None:
        nonlocal told
        told += 1
        report(before + told, stage)

    return tell


def _result(
    problem: Problem,
    target: Any,
    done: dict[str, Any],
    z0: Tensor,
    method: str,
    seed: int,
    why: Status | None,
    began: float,
    throw: bool,
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

    sites = typed(target, z.flatten(1, 2), seed)
    return finish(
        problem,
        target,
        method=method,
        seed=seed,
        statuses=[why] * problems if why else ensemble_status(z, columns["diverging"]),
        began=began,
        throw=throw,
        draws={name: by_problem(x) for name, x in sites.items()},
        sample_stats={name: by_problem(x.flatten(1, 2)) for name, x in columns.items()},
        **moments.fields(),
    )
