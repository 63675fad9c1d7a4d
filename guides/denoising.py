"""The guide with which learned energies are fitted, by denoising score matching."""

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

    def __init__(self, plate: str, levels: tuple[float, float]) -> None:
        super().__init__()
        self.plate, self.levels = plate, levels

    def forward(self, data: Float[Tensor, "n *event"], *_: Tensor) -> None:
        least, most = map(math.log, self.levels)
        with pyro.plate(self.plate, len(data)):
            pyro.sample("log_sigma", dist.Uniform(data.new_tensor(least), most))
            pyro.sample("noise", dist.Normal(torch.zeros_like(data), 1.0).to_event(data.dim() - 1))


def prior(problem: Any) -> _Prior:
    """The guide for a problem whose model has ``levels`` of noise and one plate over its first argument."""
    (plate,) = problem.data_plates
    return _Prior(plate, problem.model.levels)
