"""Guides of mass maps."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints

from astrozoo.density import Layout
from astrozoo.types import Problem

__all__ = ["FourierGuide", "fourier"]


class _Hartley(dist.transforms.Transform):
    """The orthonormal Hartley transform of an image; it is its own inverse."""

    bijective = True
    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.independent(constraints.real, 2)

    def _call(self, x: Tensor) -> Tensor:
        return _hartley(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return _hartley(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-2])


def _hartley(x: Float[Tensor, "*b y x"]) -> Float[Tensor, "*b y x"]:
    waves = torch.fft.fft2(x, norm="ortho")
    return waves.real - waves.imag


class FourierGuide(nn.Module):
    """Independent normals of the Fourier modes of an image of white noise, the site ``white``.

    Of a log-normal prior and even noise the posterior is about that. A prior of white noise is where it
    starts: means of 0, or those of the problem's start, and SDs of 1.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.loc, self.log_scale = (nn.Parameter(torch.zeros(shape, dtype=dtype)) for _ in range(2))

    def forward(self, *args: Any) -> None:
        modes = dist.Normal(self.loc, self.log_scale.exp()).to_event(2)
        pyro.sample("white", dist.TransformedDistribution(modes, [_Hartley()]))

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": _hartley(z0.unflatten(-1, self.loc.shape))}


def fourier(problem: Problem) -> FourierGuide:
    """A mean field over Fourier modes in place of pixels."""
    shape = problem.args[0].mask.shape[-2:]
    return FourierGuide((int(shape[0]), int(shape[1])), problem.dtype)
