"""The Celeste log density of two stars on one patch, with its exact gradient and Hessian.

Light is additive: given the light of the other star, each star has the density of a single one
(:mod:`astrozoo.models.celeste_density`), and the cross terms of the Hessian are products of the derivatives
of the two images.
"""

from __future__ import annotations

from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models.celeste import Patch, Prior
from astrozoo.models.celeste_density import TypedDensity

__all__ = ["TwoStars"]


class TwoStars:
    """log p(counts, u) of a batch of patches with two stars each: an :class:`astrozoo.objective.Objective`.

    The flat vector is that of the first star, ``[east, north, log_flux, colour...]``, then the second's. Both
    have the prior of a single star, position and type included.

    Args:
        patch: patches, with a leading axis of ``b`` patches on every tensor.
        prior: the prior of the model.
    """

    noise_dim = 0
    compile_seconds = 0.0

    def __init__(self, patch: Patch, prior: Prior) -> None:
        self.star = TypedDensity(patch, prior, star=True)
        self.batch: int | None = self.star.batch
        self.dtype, self.device, self.dim = self.star.dtype, self.star.device, 2 * self.star.dim
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}

    def take(self, rows: Tensor) -> TwoStars:
        """The density of the patches ``rows``."""
        subset = copy(self)
        subset.star, subset.batch = self.star.take(rows), len(rows)
        return subset

    def values(self, w: Float[Tensor, "b d"], noise: Tensor | None = None) -> Float[Tensor, "b 1"]:
        """The log density."""
        self.counts["value"] += len(w)
        first, second = w.chunk(2, 1)
        return self._beside(second).values(first) + self.star.log_prior(second)[:, None]

    def value_and_grad(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The log density and its gradient."""
        self.counts["gradient"] += len(w)
        first, second = w.chunk(2, 1)
        value, grad = self._beside(second).value_and_grad(first)
        _, other = self._beside(first).value_and_grad(second)
        return value + self.star.log_prior(second), torch.cat((grad, other), 1)

    def value_grad_hessian(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The log density, its gradient and its exact Hessian."""
        self.counts["hessian"] += len(w)
        first, second = w.chunk(2, 1)
        one, two = self._beside(second), self._beside(first)
        value, grad_1, hessian_1 = one.value_grad_hessian(first)
        _, grad_2, hessian_2 = two.value_grad_hessian(second)
        _, slope_1, chain_1 = one.linearised(first)
        _, slope_2, chain_2 = two.linearised(second)
        patch = self.star.patch
        rate = patch.background + self.light(first) + self.light(second)
        bend = (-patch.mask * patch.counts / rate**2).to(slope_1)
        between = ((slope_1 * bend[:, :, None]) @ slope_2.mT).to(w)
        cross = torch.einsum("bitd,bitv,bive->bde", chain_1, between, chain_2)
        rows = torch.cat((hessian_1, cross), 2), torch.cat((cross.mT, hessian_2), 2)
        return value + self.star.log_prior(second), torch.cat((grad_1, grad_2), 1), torch.cat(rows, 1)

    def hvp(self, w: Tensor, noise: Tensor | None, v: Tensor) -> Tensor:
        """Hessian times vector."""
        return (self.value_grad_hessian(w)[2] @ v[..., None]).squeeze(-1)

    def light(self, u: Float[Tensor, "b d"]) -> Float[Tensor, "b image p"]:
        """Expected electrons of one star."""
        return self.star.electrons(u)[..., None] * self.star.images(u[:, : self.star.n_bending])

    def _beside(self, other: Float[Tensor, "b d"]) -> TypedDensity:
        """The density of one star with the light of the other in the background."""
        patch = self.star.patch
        density = copy(self.star)
        density.patch = patch._replace(background=patch.background + self.light(other))
        return density
