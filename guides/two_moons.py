"""The guide with which the energy of the two moons is fitted."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["prior"]


class _Prior(nn.Module):
    """Noise levels and noise as the model draws them: the ELBO is then that of denoising."""

    def __init__(self, levels: tuple[float, float]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, points: Float[Tensor, "point 2"]) -> None:
        least, most = map(math.log, self.levels)
        with pyro.plate("point", len(points)):
            pyro.sample("log_sigma", dist.Uniform(points.new_tensor(least), most))
            pyro.sample("noise", dist.Normal(torch.zeros_like(points), 1.0).to_event(1))


def prior(problem: Any) -> _Prior:
    """The guide for a problem of :func:`astrozoo.models.two_moons.problem`."""
    return _Prior(problem.model.levels)
