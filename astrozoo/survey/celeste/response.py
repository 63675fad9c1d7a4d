"""Response of neighbours: the posterior of a source with its neighbours' parameters integrated out.

If the light of the neighbours were fixed, a source in a blend would get errors as small as those of an
isolated source. To second order, the joint log density of a source and its neighbours has three terms: that
of the source alone, the product of the two changes of light in every pixel, and a quadratic form in the
neighbours' parameters. The integral over these parameters adds ``|F (light - light at the mode)|^2 / 2`` to
the log density, with ``F' F = W J A^-1 J' W``. ``W`` is the curvature of the log density in a pixel's light,
``J`` are the derivatives of the neighbours' light, and ``A`` is minus the Hessian of their log density.

The sky of each image is one more neighbour of a source with a large patch: over thousands of pixels, an error
of its level is as large as the noise.

The second order is not enough for light that is much brighter than at the mode: the log probability of a
count then falls in proportion to the light, and not to its square, so that the integral would exceed any
bound. The term is therefore multiplied by the ratio of the actual loss of log probability to the loss of
second order, where that ratio is below 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.models.celeste import Patch
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.modes import KINDS, Modes
from astrozoo.survey.partition import HALF_SIZES

__all__ = ["Response", "nearest", "respond"]

_MAX_NEIGHBOURS = 6
"""Largest number of neighbours, nearest first, that are integrated out. Each has six rendered parameters."""
_SKY_ERROR = 0.02
"""Standard deviation of the sky's level in a patch, before its pixels are seen [sigma of a pixel].

The mesh averages some 10^4 pixels, an error of .01, and interpolates below a large source."""
_MIN_CURVATURE = 0.05
"""Smallest curvature of the neighbours together, in units of that of each alone. It limits their response."""
_MIN_REMAINING = 0.05
"""Smallest fraction of a source's curvature that remains after its neighbours are integrated out.

In the closest blends, the second-order result would be zero or negative."""


class Response(NamedTuple):
    """Response of the neighbours of each source to changes of its light.

    Attributes:
        factor: ``F`` (zeros where a source has fewer neighbours than others).
        at: ``F`` times ``light``.
        light: of the source, at which the neighbours are at their modes.
        slope: derivative of the log density in the light of each pixel, at ``light``.
        weight: ``W``.
    """

    factor: Float[Tensor, "b q image p"]
    at: Float[Tensor, "b q"]
    light: Float[Tensor, "b image p"]
    slope: Float[Tensor, "b image p"]
    weight: Float[Tensor, "b image p"]

    def take(self, rows: Int[Tensor, "c"]) -> Response:
        """The response for a selection of the sources."""
        return Response(*(part[rows] for part in self))

    def gain(
        self,
        images: Float[Tensor, "b m image p"],
        electrons: Float[Tensor, "b m n image"],
        loss: Float[Tensor, "b m n"],
    ) -> Float[Tensor, "b m n"]:
        """The term that the neighbours' response adds to the log density of light ``electrons * images``.

        Args:
            images: of unit flux.
            electrons: of the source in each image.
            loss: log probability of the counts at ``light``, minus that at these images.
        """
        per_unit = torch.einsum("bqip,bmip->bmiq", self.factor, images.to(self.factor))
        change = electrons @ per_unit.to(electrons) - self.at[:, None, None]
        return 0.5 * change.square().sum(-1) * self._share(images, electrons, loss)

    def _share(self, images: Tensor, electrons: Tensor, loss: Tensor) -> Float[Tensor, "b m n"]:
        """The actual loss beyond first order, relative to that of second order; at most 1."""
        unit = images.to(electrons)
        first = torch.einsum("bip,bmip->bmi", self.slope, unit)
        cross = torch.einsum("bip,bmip->bmi", self.weight * self.light, unit)
        square = torch.einsum("bip,bmip->bmi", self.weight, unit.square())
        constants = ((x * self.light).sum((-2, -1)) for x in (self.slope, self.weight * self.light))
        level, norm = (x[:, None, None] for x in constants)
        linear = torch.einsum("bmni,bmi->bmn", electrons, first) - level
        product = torch.einsum("bmni,bmi->bmn", electrons, cross)
        quadratic = torch.einsum("bmni,bmi->bmn", electrons.square(), square) - 2 * product + norm
        second = (0.5 * quadratic).clamp_min(torch.finfo(loss.dtype).tiny)
        return ((loss + linear) / second).clamp(0.0, 1.0)

    def widened(
        self, density: TypedDensity, mode: Float[Tensor, "b d"], covariance: Float[Tensor, "b d d"]
    ) -> tuple[Response, Float[Tensor, "b d d"]]:
        """The covariance of sources of one type with their neighbours integrated out.

        The response is weakened where less than ``_MIN_REMAINING`` of a curvature would remain.

        Returns:
            the response, weakened where necessary, and the covariance.
        """
        _, slope, chain = density.linearised(mode)
        root = torch.linalg.cholesky(covariance)
        onto = torch.einsum("bqip,bitp->bqit", self.factor, slope).to(root)
        given = torch.einsum("bqit,bitd->bqd", onto, chain) @ root
        values, vectors = torch.linalg.eigh(given.mT @ given)
        weaker = ((1 - _MIN_REMAINING) / values[:, -1].clamp_min(1 - _MIN_REMAINING)).sqrt()
        response = self._replace(
            factor=self.factor * weaker[:, None, None, None].to(self.factor), at=self.at * weaker[:, None]
        )
        wide = root @ vectors / (1 - weaker[:, None] ** 2 * values).sqrt()[:, None]
        return response, wide @ wide.mT


def respond(
    job: Modes, rows: Int[np.ndarray, "b"], patch: Patch, own_light: Float[Tensor, "b image p"]
) -> Response | None:
    """The response of the nearest neighbours of sources of one patch size; None if none has any.

    Args:
        job: the fit of the field.
        rows: the sources.
        patch: their patches.
        own_light: their light in these patches.
    """
    rate = patch.background + own_light
    weight = patch.mask * patch.counts / rate**2
    factors = [_factor(job, int(row), weight[k]) for k, row in enumerate(rows)]
    most = max(len(factor) for factor in factors)
    if not most:
        return None
    factor = torch.stack([torch.nn.functional.pad(f, (0, 0, 0, 0, 0, most - len(f))) for f in factors])
    at = torch.einsum("bqip,bip->bq", factor, own_light.to(factor)).to(own_light)
    return Response(factor, at, own_light, patch.mask * (patch.counts / rate - 1), weight)


def nearest(job: Modes, row: int) -> Int[np.ndarray, "n"]:
    """The neighbours that are integrated out: those inside the patch of a source, the nearest first."""
    xy = job.sources.xy[0]
    distance = np.abs(xy[job.adjacent[row]] - xy[row]).max(1)
    near = job.adjacent[row][np.argsort(distance, kind="stable")]
    return near[np.sort(distance) <= job.sources.half[row]][:_MAX_NEIGHBOURS]


def _factor(job: Modes, row: int, weight: Float[Tensor, "image p"]) -> Float[Tensor, "q image p"]:
    state, near = job.state, nearest(job, row)
    star = (state.evidence["star"] > state.evidence["galaxy"])[near].numpy()
    changes = []
    for name, is_star, _ in KINDS:
        members = near[star == is_star]
        if len(members):
            patch = job.canvas.patches(members, at=np.full(len(members), row))
            _, slope, chain = job.density(patch, members, is_star).linearised(state.mode[name][members])
            chain = chain @ torch.linalg.cholesky(state.covariance[name][members])[:, None]
            changes += list(torch.einsum("jitp,jitd->jdip", slope, chain.to(slope)))
    if job.sources.half[row] > HALF_SIZES[-1]:
        changes.append(_sky_levels(job, row, weight))
    if not changes:
        return weight.new_zeros(0, *weight.shape, dtype=torch.float32)
    J = torch.cat(changes)
    weighted = J * weight.to(J)
    curvature = torch.einsum("qip,rip->qr", weighted, J).double()
    first = 0
    for change in changes:  # in these variables, the curvature of each neighbour alone is the unit matrix
        block = slice(first, first + len(change))
        curvature[block, block] = torch.eye(len(change), dtype=torch.float64)
        first += len(change)
    values, vectors = torch.linalg.eigh(curvature)
    inverse_root = vectors / values.clamp_min(_MIN_CURVATURE).sqrt()
    return torch.einsum("qr,qip->rip", inverse_root.to(J), weighted)


def _sky_levels(job: Modes, row: int, weight: Float[Tensor, "image p"]) -> Float[Tensor, "image image p"]:
    """Changes of the sky's level in each image by one standard deviation, given the source."""
    sky = job.canvas.gather(job.canvas.sky, np.array([row]))[0].mean(-1)  # [image]
    error = (1 / (_SKY_ERROR**2 * sky) + weight.sum(-1)).rsqrt()
    return (torch.diag(error)[:, :, None] * torch.ones_like(weight)).float()
