"""The distribution of a stamp with noise that may be correlated between pixels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from astrozoo.physics.correlated_noise import Whitening, log_density

__all__ = ["StampNoise"]


class StampNoise(TorchDistribution):
    """A stamp with noise. Each pixel has its own log density, given the pixels before it; their sum is exact.

    Args:
        loc: image without noise.
        sd: standard deviation of each pixel.
        white: whitening of correlated noise. None: independent pixels.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Float[Tensor, "*b y x"], sd: Tensor, white: Whitening | None = None) -> None:
        self.loc, self.sd, self.white = loc, sd, white
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StampNoise:
        """The same distribution with a larger batch shape."""
        return StampNoise(self.loc.expand(batch_shape), self.sd.expand(batch_shape), self.white)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.sd.square()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Images with noise."""
        white = dist.Normal(torch.zeros_like(self.loc), 1.0).rsample(torch.Size(sample_shape))
        return self.loc + self.sd * (white if self.white is None else self.white.inverse(white))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each pixel."""
        return log_density(value - self.loc, self.sd, self.white)
