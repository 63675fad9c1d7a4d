"""Guides of galaxy images: an amortised encoder for training, and one normal per galaxy that starts from
it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.data.stamps import Pixels
from astrozoo.density import Layout, lower_triangle
from astrozoo.guides.refined import RefinedIaf
from astrozoo.nets.galaxy_vae import Encoder
from astrozoo.types import Problem

__all__ = ["amortised", "per_image", "per_image_iaf"]


class _Amortised(nn.Module):
    """q(z | x): independent normals whose means and SDs are the encoder's."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, stamp: Pixels) -> None:
        mean, sd = self.encoder(stamp.image, stamp.noise)
        with pyro.plate("galaxy", len(mean)):
            pyro.sample("z", dist.Normal(mean, sd).to_event(1))


class _PerImage(nn.Module):
    """A normal with a dense covariance. Its parameters are corrections to what the encoder says of the
    galaxy.

    With ``m`` and ``s`` of the encoder, ``z = m + s (shift + L noise)``, where ``L`` is lower triangular
    with the diagonal ``exp(log_scale)``. All corrections start at 0.
    """

    def __init__(self, encoder: Encoder, problem: Problem) -> None:
        super().__init__()
        self.encoder = encoder
        (stamp,) = problem.args
        one = problem.batch is None
        with torch.no_grad():
            moments = encoder(*(x[None] if one else x for x in (stamp.image, stamp.noise)))
        self.mean, self.sd = moments
        like = self.mean[0]
        self.shift, self.log_scale = (nn.Parameter(torch.zeros_like(like)) for _ in range(2))
        self.below = nn.Parameter(like.new_zeros(len(like) * (len(like) - 1) // 2))

    def forward(self, stamp: Pixels) -> None:
        (mean,), (sd,) = self.encoder(stamp.image[None], stamp.noise[None])
        factor = lower_triangle(self.below, len(mean)) + torch.diag(self.log_scale.exp())
        normal = dist.MultivariateNormal(mean + sd * self.shift, scale_tril=sd[:, None] * factor)
        pyro.sample("z", normal)

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"shift": (z0 - self.mean) / self.sd}


class _PerImageIaf(RefinedIaf):
    """An inverse autoregressive flow in coordinates in which the encoder's posterior is N(0, I)."""

    def __init__(self, encoder: Encoder, problem: Problem) -> None:
        (stamp,) = problem.args
        one = problem.batch is None
        with torch.no_grad():
            mean, sd = encoder(*(x[None] if one else x for x in (stamp.image, stamp.noise)))
        super().__init__(mean, torch.diag_embed(sd))
        self.encoder = encoder

    def approximation(self, stamp: Pixels) -> tuple[Tensor, Tensor]:
        (mean,), (sd,) = self.encoder(stamp.image[None], stamp.noise[None])
        return mean, torch.diag(sd)

    def sites(self, z: Tensor) -> dict[str, Tensor]:
        return {"z": z}


def amortised(problem: Problem) -> _Amortised:
    """The guide for :func:`astrozoo.models.galaxy_vae.training_problem`: the encoder of its model."""
    model: Any = problem.model
    return _Amortised(model.nets.encoder)


def per_image(problem: Problem) -> _PerImage:
    """A full-rank normal of each galaxy, which starts as the encoder's."""
    model: Any = problem.model
    return _PerImage(model.nets.encoder, problem)


def per_image_iaf(problem: Problem) -> _PerImageIaf:
    """An inverse autoregressive flow of each galaxy, for curved posteriors. It starts as the encoder's
    normal."""
    model: Any = problem.model
    return _PerImageIaf(model.nets.encoder, problem)
