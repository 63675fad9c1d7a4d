"""The guide that a prior of latents is trained with: draws of the encoder's q(z | x), without parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from astrozoo.types import Problem

__all__ = ["posterior"]


class _Posterior(nn.Module):
    """Samples z from the table's normals. Their draws train the prior, never their means."""

    def forward(self, mean: Tensor, sd: Tensor, *conditions: Tensor) -> None:
        with pyro.plate("galaxy", len(mean)):
            pyro.sample("z", dist.Normal(mean, sd).to_event(1))


def posterior(problem: Problem) -> Any:
    """The guide for a problem of :func:`astrozoo.models.latent_flow.training_problem`."""
    return _Posterior()
