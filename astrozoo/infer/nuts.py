"""The No-U-Turn sampler of Pyro on the captured log density: slow, well tried, an oracle to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from astrozoo._scope import computing
from astrozoo.infer._chains import Whitened, one_by_one
from astrozoo.infer.options import NutsSettings, RunOptions
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


def nuts(problem: Problem, run: RunOptions, settings: NutsSettings) -> Result:
    """Sample the posterior, chain after chain and problem after problem.

    Returns:
        a Result; converged by the rule of :mod:`astrozoo.infer.convergence`, with fewer than 1 % of
        trajectories divergent.
        An interrupted run keeps the chains that every problem has completed.

    Raises:
        InputError: for a start or precondition of the wrong shape, or a covariance that is not positive
            definite.

    References:
        Hoffman & Gelman 2014; Pyro's ``pyro.infer.NUTS``.
    """
    kernel = {
        "target_accept_prob": settings.target_acceptance,
        "max_tree_depth": settings.max_tree_depth,
        "full_mass": settings.dense_mass,
    }

    def sample(
        density: Whitened, dim: int, seed: int, step_done: Callable[[str], None]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        divergent: list[int] = []

        def hook(kernel: NUTS, params: Any, stage: str, i: int) -> None:
            if stage == "Sample":  # the diagnostics of MCMC itself need four draws
                divergent[:] = kernel.diagnostics()["divergences"]
            step_done(stage.lower())

        with computing(torch.float64, seed):  # Pyro's sampler draws from torch's global generator
            mcmc = MCMC(
                NUTS(potential_fn=lambda params: _Potential.apply(params["u"], density), **kernel),
                num_samples=run.draws,
                warmup_steps=settings.warmup,
                initial_params={"u": torch.zeros(dim, dtype=torch.float64)},
                hook_fn=hook,
                disable_progbar=True,
            )
            mcmc.run()
        diverging = np.zeros(run.draws, dtype=bool)
        diverging[divergent] = True
        return mcmc.get_samples()["u"].numpy(), {"diverging": diverging}

    return one_by_one(problem, sample, "nuts", run, settings.warmup, settings.precondition, kernel)
