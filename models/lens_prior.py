"""What is believed of a strong lens before it is seen."""

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
    """What is believed of a lens before it is seen; the defaults are GIGA-Lens's.

    Args:
        position: where the lens is expected [arcsec]; centres scatter about it.
        einstein_radius: median [arcsec] and SD of its ln.
        slope: mean, SD, least and greatest of the three-dimensional density slope.
        ellipticity, centre, shear: SDs of each component of the mass's (centre in arcsec).
        lens_radius, source_radius: median [arcsec] and SD of ln.
        lens_index, source_index: least and greatest Sersic index.
        lens_ellipticity, source_ellipticity: SD and greatest size of each component.
        lens_centre, source_centre: SD of each coordinate [arcsec].
        lens_amplitude, source_amplitude: median [unit / arcsec^2] and SD of ln.
        subhalo_log_mass: least and greatest log10 M200 [solar masses].
        subhalo_reach: half the side of the square about ``position`` that they are in [arcsec].
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
    """A normal between two bounds, on every element of ``like``'s shape."""

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
        mean, sd, least, most = self.numbers
        low, high = self.ends
        shape = (*sample_shape, *self.like.shape)
        u = torch.rand(shape, dtype=self.like.dtype, device=self.like.device)
        return (mean + sd * torch.special.ndtri(low + (high - low) * u)).clamp(least, most)


def log_normal(one: Tensor, median_and_sd: tuple[float, float]) -> dist.LogNormal:
    """One per element of ``one``."""
    median, sd = median_and_sd
    return dist.LogNormal(math.log(median) * one, sd, validate_args=False)
