"""The No-U-Turn sampler of Pyro on the captured log density: slow, well tried, an oracle to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from astrozoo.infer._chains import Whitened, one_by_one
from astrozoo.types import Problem, Result

__all__ = ["nuts"]


class _Potential(torch.autograd.Function):
    """Minus the log density, with the gradient that the capture provides."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, density: Whitened) -> Tensor:
        value, gradient = density(u.detach().numpy())
        ctx.save_for_backward(-torch.from_numpy(gradient).to(u))
        return u.new_tensor(-value)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * ctx.saved_tensors[0], None


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
        InputError: for a start or precondition of the wrong shape, or a covariance that is not positive
            definite.

    References:
        Hoffman & Gelman 2014; Pyro's ``pyro.infer.NUTS``.
    """
    kernel = {
        "target_accept_prob": target_acceptance, "max_tree_depth": max_tree_depth, "full_mass": dense_mass,
    }  # fmt: skip

    def run(density: Whitened, dim: int, own: int, tell: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)
            mcmc = MCMC(
                NUTS(potential_fn=lambda params: _Potential.apply(params["u"], density), **kernel),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"u": torch.zeros(dim, dtype=torch.float64)},
                hook_fn=lambda kernel, params, stage, i: tell(stage.lower()),
                disable_progbar=True,
            )
            mcmc.run()
        diverging = np.zeros(draws, dtype=bool)
        diverging[list(mcmc.diagnostics()["divergences"]["chain 0"])] = True
        return mcmc.get_samples()["u"].numpy(), {"diverging": diverging}

    return one_by_one(
        problem, run, method="nuts", seed=seed, draws=draws, chains=chains, warmup=warmup, budget=budget,
        start=start, precondition=precondition, compile=compile, progress=progress, checkpoint=checkpoint,
        throw=throw, settings=kernel,
    )  # fmt: skip
