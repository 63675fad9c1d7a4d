"""The No-U-Turn sampler of Pyro on the captured log density: slow, well tried, an oracle to the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.errors import InputError
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
from astrozoo.types import Objective, Problem, Result, Status

__all__ = ["nuts"]


class _Potential(torch.autograd.Function):
    """Minus the log density, with the gradient that the capture provides."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Objective) -> Tensor:
        value, gradient = density.value_and_grad(z.detach()[None])
        ctx.save_for_backward(-gradient[0])
        return -value[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * ctx.saved_tensors[0], None


class _BudgetSpent(Exception):
    pass


def nuts(
    problem: Problem,
    guide: None = None,
    *,
    seed: int = 0,
    draws: int = 500,
    chains: int = 4,
    budget: int | None = None,
    start: Any = None,
    precondition: Result | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    warmup: int = 500,
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    dense_mass: bool = False,
) -> Result:
    """Sample the posterior, chain after chain and problem after problem.

    Args:
        guide: none; here so that all backends are called alike.
        draws: per chain, after the warm-up.
        budget: the most gradients in all, or None; the chains completed until then are returned.
        start: unconstrained ``[dim]`` or ``[problem, dim]``, or a Result (its location).
        precondition: a Result; the sampler moves in coordinates that its covariance makes uncorrelated,
            and starts at its location unless ``start`` is given.
        dense_mass: adapt a dense mass matrix rather than a diagonal one.

    Returns:
        a Result; converged where every split R-hat is below 1.05 and fewer than 1 % of trajectories diverge.
        An interrupted run keeps the chains that every problem has completed.

    Raises:
        InputError: for a start or precondition of the wrong shape.

    References:
        Hoffman & Gelman 2014; Pyro's ``pyro.infer.NUTS``.
    """
    began = time.monotonic()
    target = log_density(problem, compile=compile)
    problems = problem.batch or 1
    if start is None and precondition is None:
        z0 = chain_starts(target, chains, seed)
    else:
        given = precondition if start is None else start
        z0 = start_points(given, target, problems * chains, seed).view(problems, chains, -1)
    root = _root(precondition, problems, target)
    told: dict[str, Any] = {
        "warmup": warmup,
        "draws": draws,
        "target": target_acceptance,
        "depth": max_tree_depth,
    }
    saved = Checkpoint(checkpoint, problem, "nuts", seed, **told)
    done: dict[str, Any] = saved.load() or {}
    why: Status | None = None
    with progress_bar("nuts", problems * chains * (warmup + draws), progress) as report:
        try:
            for chain in range(chains):
                for row in range(problems):
                    if f"z_{chain}_{row}" in done:
                        continue
                    kernel = {"target_accept_prob": target_acceptance, "max_tree_depth": max_tree_depth}
                    density = target.take(torch.tensor([row], device=target.device))
                    limit = None if budget is None else budget - target.counts["gradient"]
                    z, bad = _chain(
                        density, z0[row, chain], root[row], kernel | {"full_mass": dense_mass}, warmup, draws,
                        int(generator_for(seed, 2, chain).initial_seed() % 2**31), limit, report,
                        (chain * problems + row) * (warmup + draws),
                    )  # fmt: skip
                    done.update({f"z_{chain}_{row}": z.cpu().numpy(), f"diverging_{chain}_{row}": bad})
                    saved.save(done.copy, now=True)
        except KeyboardInterrupt:
            why = Status.INTERRUPTED
        except _BudgetSpent:
            why = Status.BUDGET_SPENT
    return _result(problem, target, done, z0, seed, why, began, throw)


def _root(precondition: Result | None, problems: int, target: Any) -> Float[Tensor, "b d d"]:
    d = target.dim
    if precondition is None:
        return torch.eye(d, dtype=target.dtype, device=target.device).expand(problems, d, d)
    if precondition.covariance is None or precondition.covariance.shape != (problems, d, d):
        raise InputError(
            "precondition", "a result without a fitting covariance", f"one of shape {(problems, d, d)}"
        )
    return torch.linalg.cholesky(
        torch.as_tensor(precondition.covariance, dtype=target.dtype, device=target.device)
    )


def _chain(
    density: Objective,
    z0: Float[Tensor, "d"],
    root: Float[Tensor, "d d"],
    settings: dict[str, Any],
    warmup: int,
    draws: int,
    seed: int,
    limit: int | None,
    report: Report,
    before: int,
) -> tuple[Float[Tensor, "n d"], np.ndarray]:
    """One chain: its draws, and which of them came from divergent trajectories."""
    spent = density.counts["gradient"]
    told = 0

    def hook(kernel: Any, params: Any, stage: str, i: int) -> None:
        nonlocal told
        told += 1
        report(before + told, stage.lower())
        if limit is not None and density.counts["gradient"] - spent >= limit:
            raise _BudgetSpent

    def potential(params: dict[str, Tensor]) -> Tensor:
        return _Potential.apply(z0 + root @ params["u"], density)

    devices = [z0.device] if z0.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        kernel = NUTS(potential_fn=potential, **settings)
        mcmc = MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={"u": torch.zeros_like(z0)},
            hook_fn=hook,
            disable_progbar=True,
        )
        mcmc.run()
    u = mcmc.get_samples()["u"]
    diverging = np.zeros(draws, dtype=bool)
    diverging[list(mcmc.diagnostics()["divergences"]["chain 0"])] = True
    return z0 + u @ root.mT, diverging


def _result(
    problem: Problem,
    target: Any,
    done: dict[str, Any],
    z0: Tensor,
    seed: int,
    why: Status | None,
    began: float,
    throw: bool,
) -> Result:
    problems, chains = z0.shape[:2]
    whole = [c for c in range(chains) if all(f"z_{c}_{row}" in done for row in range(problems))]
    batched = problem.batch is not None

    def gathered(name: str) -> Tensor:
        return torch.stack(
            [torch.stack([torch.as_tensor(done[f"{name}_{c}_{b}"]) for c in whole]) for b in range(problems)]
        )

    if not whole:
        empty = z0.new_zeros(problems, 0, 0, target.dim).cpu()
        z, diverging = empty, torch.zeros(problems, 0, 0, dtype=torch.bool)
    else:
        z, diverging = gathered("z"), gathered("diverging")  # [B, C, n, d], [B, C, n]
    flat = z.flatten(1, 2) if whole else z0.cpu()
    centred = flat - flat.mean(1, keepdim=True)
    shape = z.shape[:3]

    def by_problem(x: Tensor) -> np.ndarray:
        x = x.reshape(*shape, *x.shape[2:])
        return (x.movedim(0, 2) if batched else x[0]).cpu().numpy()

    sites = typed(target, z.flatten(1, 2), seed)
    return finish(
        problem,
        target,
        method="nuts",
        seed=seed,
        statuses=[why] * problems if why else ensemble_status(z, diverging),
        began=began,
        throw=throw,
        draws={name: by_problem(x) for name, x in sites.items()},
        sample_stats={"diverging": by_problem(diverging.flatten(1, 2))},
        location=flat.mean(1),
        covariance=centred.mT @ centred / max(1, flat.shape[1] - 1),
    )
