"""The prior of a strong lens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Prior", "TruncatedNormal", "log_normal"]


@dataclass(frozen=True)
class Prior:
    """Parameters of the prior of a strong lens. The defaults are those of GIGA-Lens.

    Args:
        position: expected position of the lens [arcsec], the mean of the centres.
        einstein_radius: median [arcsec] and SD of its ln.
        slope: mean, SD, minimum and maximum of the slope of the three-dimensional density.
        ellipticity, centre, shear: SD of each component, for the mass (centre in arcsec).
        lens_radius, source_radius: median [arcsec] and SD of its ln.
        lens_index, source_index: minimum and maximum of the Sersic index.
        lens_ellipticity, source_ellipticity: SD and greatest absolute value of each component.
        lens_centre, source_centre: SD of each coordinate [arcsec].
        lens_amplitude, source_amplitude: median [unit / arcsec^2] and SD of its ln.
        subhalo_log_mass: minimum and maximum of log10 M200 [solar masses].
        subhalo_reach: half the side of the square of subhalo positions, centred on ``position`` [arcsec].
    """

    position: tuple[float, float] = (0.0, 0.0)
    einstein_radius: tuple[float, float] = (1.25, 0.25)
    slope: tuple[float, float, float, float] = (2.0, 0.25, 1.0, 3.0)
    ellipticity: float = 0.1
    centre: float = 0.05
    shear: float = 0.05
    lens_radius: tuple[float, float] = (1.0, 0.15)
    lens_index: tuple[float, float] = (2.0, 6.0)
    lens_ellipticity: tuple[float, float] = (0.1, 0.3)
    lens_centre: float = 0.05
    lens_amplitude: tuple[float, float] = (500.0, 0.3)
    source_radius: tuple[float, float] = (0.25, 0.15)
    source_index: tuple[float, float] = (0.5, 4.0)
    source_ellipticity: tuple[float, float] = (0.15, 0.5)
    source_centre: float = 0.25
    source_amplitude: tuple[float, float] = (150.0, 0.5)
    subhalo_log_mass: tuple[float, float] = (7.0, 10.5)
    subhalo_reach: float = 2.0


class TruncatedNormal(dist.TorchDistribution):
    """A normal truncated to an interval, independently for each element of ``like``."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, like: Tensor, mean: float, sd: float, low: float, high: float) -> None:
        self.like, self.numbers = like, (mean, sd, low, high)
        self.ends = tuple(0.5 * (1 + math.erf((end - mean) / sd / math.sqrt(2))) for end in (low, high))
        super().__init__(like.shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.interval(*self.numbers[2:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedNormal:
        return TruncatedNormal(self.like.expand(batch_shape), *self.numbers)

    def log_prob(self, value: Tensor) -> Tensor:
        mean, sd, _, _ = self.numbers
        low, high = self.ends
        return -0.5 * ((value - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi) * (high - low))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        mean, sd, minimum, maximum = self.numbers
        low, high = self.ends
        shape = (*sample_shape, *self.like.shape)
        u = torch.rand(shape, dtype=self.like.dtype, device=self.like.device)
        return (mean + sd * torch.special.ndtri(low + (high - low) * u)).clamp(minimum, maximum)


def log_normal(ones: Tensor, median_and_sd: tuple[float, float]) -> dist.LogNormal:
    """A log-normal for each element of ``ones``, a tensor of ones, by its median and the SD of its ln."""
    median, sd = median_and_sd
    return dist.LogNormal(math.log(median) * ones, sd, validate_args=False)
