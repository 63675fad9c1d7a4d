"""Guides of N-body initial conditions."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints

from astrozoo.density import Layout, layout_of
from astrozoo.types import Problem

__all__ = ["fourier"]


class _Hartley(dist.transforms.Transform):
    """The orthonormal Hartley transform of a volume; it is its own inverse."""

    bijective = True
    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)

    def _call(self, x: Tensor) -> Tensor:
        return _hartley(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return _hartley(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-3])


def _hartley(x: Float[Tensor, "*b x y z"]) -> Float[Tensor, "*b x y z"]:
    waves = torch.fft.fftn(x, dim=(-3, -2, -1), norm="ortho")
    return waves.real - waves.imag


class _Fourier(nn.Module):
    """Independent normals of the Fourier modes of the white noise, and of each other latent.

    It starts at the problem's start, with SDs of 1 for the modes, as in the prior.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        layout = layout_of(problem)
        sites = {site.name: site for site in layout.sites}
        self.others = {name: site for name, site in sites.items() if name != "white"}
        self.place = {name: (site.start, site.stop) for name, site in sites.items()}
        self.shape = tuple(sites["white"].unconstrained_shape)
        self.loc, self.log_scale = (
            nn.Parameter(torch.zeros(self.shape, dtype=problem.dtype)) for _ in range(2)
        )
        count = len(self.others)
        self.other_loc = nn.Parameter(torch.zeros(count, dtype=problem.dtype))
        self.other_log_scale = nn.Parameter(torch.full((count,), -1.0, dtype=problem.dtype))

    def forward(self, *args: Any) -> None:
        modes = dist.Normal(self.loc, self.log_scale.exp()).to_event(3)
        pyro.sample("white", dist.TransformedDistribution(modes, [_Hartley()]))
        for i, (name, site) in enumerate(self.others.items()):
            base = dist.Normal(self.other_loc[i], self.other_log_scale[i].exp())
            pyro.sample(name, dist.TransformedDistribution(base, [site.transform]))

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        low, high = self.place["white"]
        start = {"loc": _hartley(z0[:, low:high].unflatten(-1, self.shape))}
        if self.others:
            start["other_loc"] = torch.stack([z0[:, self.place[name][0]] for name in self.others], -1)
        return start


def fourier(problem: Problem) -> _Fourier:
    """A mean field over Fourier modes in place of cells."""
    return _Fourier(problem)
