"""Guides of one galaxy, or of each galaxy of a batch, that start from the encoder's posterior."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.density import Layout, lower_triangle
from astrozoo.models.psf_vae import Start
from astrozoo.nets.flow import flow_distribution, inverted, make_flow, start_as_identity
from astrozoo.nets.galaxy import LATENT
from astrozoo.types import Problem

__all__ = ["encoder", "encoder_iaf"]

_HIDDEN: Any = {"is_auxiliary": True}
"""Mark of a guide's sites that the model does not have."""


class _FromStart(nn.Module):
    """``mean + root (shift + u)``, with the mean and the root of the problem's :class:`Start`.

    A subclass makes ``u`` from standard normals. At first, ``u`` are standard normals, so that the guide is
    the normal at the mode near the encoder's mean.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        start: Start = problem.args[1]
        self.mean, self.root = start.mean, start.root
        one = self.mean if problem.batch is None else self.mean[0]
        self.shift = nn.Parameter(torch.zeros_like(one))

    def whitened(self) -> tuple[Tensor, Tensor]:
        """A draw of ``u``, and the log density at it."""
        raise NotImplementedError

    def forward(self, exposures: Any, start: Start) -> None:
        u, log_density = self.whitened()
        z = start.mean + start.root @ (self.shift + u)
        log_density = log_density - start.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        sites = {"latent": z[:LATENT]} | ({"log_flux_ratio": z[LATENT:]} if len(z) > LATENT else {})
        density = dist.Delta(log_density.new_zeros(()), log_density)
        pyro.sample("_guide_density", density, infer=_HIDDEN)
        for name, value in sites.items():
            pyro.sample(name, dist.Delta(value, event_dim=1))

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        mean, root = (x if x.ndim > n else x[None] for x, n in ((self.mean, 1), (self.root, 2)))
        shift = torch.linalg.solve_triangular(root, (z0 - mean)[..., None], upper=False)
        return {"shift": shift[..., 0]}


class _Normal(_FromStart):
    """``u = L noise``, with a lower triangular ``L`` of diagonal ``exp(log_scale)``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        d = len(self.shift)
        self.log_scale = nn.Parameter(torch.zeros_like(self.shift))
        self.below = nn.Parameter(self.shift.new_zeros(d * (d - 1) // 2))

    def whitened(self) -> tuple[Tensor, Tensor]:
        d = len(self.shift)
        base = dist.Normal(torch.zeros_like(self.shift), 1.0).to_event(1)
        noise = pyro.sample("_guide_noise", base, infer=_HIDDEN)
        factor = lower_triangle(self.below, d) + torch.diag(self.log_scale.exp())
        return factor @ noise, -self.log_scale.sum()


class _Iaf(_FromStart):
    """``u`` is an inverse autoregressive flow of noise, which is the identity at first."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        d = len(self.shift)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.flow = inverted(make_flow("maf", d, transforms=2, hidden=(2 * d, 2 * d))).to(self.shift)
        start_as_identity(self.flow)

    def whitened(self) -> tuple[Tensor, Tensor]:
        flow = flow_distribution(self.flow)
        noise = pyro.sample("_guide_noise", flow.noise, infer=_HIDDEN)
        u, log_jacobian = flow.push_with_jacobian(noise)
        return u, -log_jacobian


def encoder(problem: Problem) -> _Normal:
    """A full-rank normal in coordinates that are whitened by the start. It begins as the start."""
    return _Normal(problem)


def encoder_iaf(problem: Problem) -> _Iaf:
    """An inverse autoregressive flow in the same coordinates, for curved posteriors. It begins as the
    start."""
    return _Iaf(problem)
