"""Guides that refine a normal approximation of a posterior: by a full covariance, or by a flow."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.density import Layout, lower_triangle
from astrozoo.nets.flow import flow_distribution, inverted, make_flow, start_as_identity

__all__ = ["Refined", "RefinedIaf", "RefinedNormal"]

_HIDDEN: Any = {"is_auxiliary": True}
"""Mark of a guide's sites that the model does not have."""


class Refined(nn.Module):
    """``z = mean + root (shift + u)``, where ``N(mean, root root^T)`` is the approximation that it refines.

    :class:`RefinedNormal` and :class:`RefinedIaf` make ``u`` from standard normals. A subclass for a model
    names the approximation and the sites. At first, ``u`` are standard normals, so that the guide is the
    approximation.

    Args:
        mean: of the approximation, of each galaxy of a batch or of one.
        root: lower triangular root of its covariance.
    """

    def __init__(self, mean: Float[Tensor, "*b d"], root: Float[Tensor, "*b d d"]) -> None:
        super().__init__()
        self.mean, self.root = mean, root
        self.shift = nn.Parameter(mean.new_zeros(mean.shape[-1]))

    def approximation(self, *data: Any) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """Mean and root for the data of one galaxy."""
        raise NotImplementedError

    def sites(self, z: Float[Tensor, "d"]) -> dict[str, Tensor]:
        """The value of each site of the model."""
        raise NotImplementedError

    def whitened(self) -> tuple[Float[Tensor, "d"], Float[Tensor, ""]]:
        """A draw of ``u``, and the log density at it."""
        raise NotImplementedError

    def forward(self, *data: Any) -> None:
        mean, root = self.approximation(*data)
        u, log_density = self.whitened()
        z = mean + root @ (self.shift + u)
        log_density = log_density - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = dist.Delta(log_density.new_zeros(()), log_density)
        pyro.sample("_guide_density", density, infer=_HIDDEN)
        for name, value in self.sites(z).items():
            pyro.sample(name, dist.Delta(value, event_dim=1))

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        mean, root = (x if x.ndim > n else x[None] for x, n in ((self.mean, 1), (self.root, 2)))
        shift = torch.linalg.solve_triangular(root, (z0 - mean)[..., None], upper=False)
        return {"shift": shift[..., 0]}


class RefinedNormal(Refined):
    """``u = L noise``, with a lower triangular ``L`` of diagonal ``exp(log_scale)``."""

    def __init__(self, mean: Float[Tensor, "*b d"], root: Float[Tensor, "*b d d"]) -> None:
        super().__init__(mean, root)
        d = len(self.shift)
        self.log_scale = nn.Parameter(torch.zeros_like(self.shift))
        self.below = nn.Parameter(self.shift.new_zeros(d * (d - 1) // 2))

    def whitened(self) -> tuple[Tensor, Tensor]:
        d = len(self.shift)
        base = dist.Normal(torch.zeros_like(self.shift), 1.0).to_event(1)
        noise = pyro.sample("_guide_noise", base, infer=_HIDDEN)
        factor = lower_triangle(self.below, d) + torch.diag(self.log_scale.exp())
        return factor @ noise, -self.log_scale.sum()


class RefinedIaf(Refined):
    """``u`` is an inverse autoregressive flow of noise, which is the identity at first."""

    def __init__(self, mean: Float[Tensor, "*b d"], root: Float[Tensor, "*b d d"]) -> None:
        super().__init__(mean, root)
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
