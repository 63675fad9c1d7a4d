"""Exact value, gradient and Hessian of Celeste's delta-method ELBO in one pass, by the chain rule.

The pixels depend on the parameters only through few numbers, the *light* ``tau`` of each source, type,
cubature node and image. It consists of the position, ring covariance and profile mixture of its Gaussians
(for a star, the position alone) and of the logarithms of its first and second flux moments. Derivatives of
pixels by the light are written by hand; those of the light by the parameters of a source are automatic. With
``R`` and ``V`` the mean and variance of the light of one source and type in a pixel, the Hessian is

    sum over pixels of  dR' f_RR dR + dR' f_RV dV + dV' f_RV dR  (f_VV = 0)      all pairs of sources
    + tau' (d2 of f_R R + f_V V in the light) tau + f_tau d2 tau + d2 KL         each source alone

plus the terms of the types' logits, on which the weights of the sum over types depend.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, section 5 (second-order optimisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.functional import logsigmoid

from astrozoo.guides.celeste import CelesteGuide, every_choice, nodes, scale_tril, without_pixels
from astrozoo.models.celeste import Patch, Prior
from astrozoo.physics.gaussians import curvature, jet
from astrozoo.physics.profiles import galaxy_rings, ring_covariance
from astrozoo.types import Problem

__all__ = ["derivatives"]

_NAMES = ("galaxy", "star")
"""Types of a source, in the order of ``is_star``: 0 and 1."""


def derivatives(
    problem: Problem, guide: CelesteGuide
) -> Callable[[Tensor, Patch], tuple[Float[Tensor, ""], Float[Tensor, "p"], Float[Tensor, "p p"]]]:
    """The delta-method ELBO of (flat guide parameters, patch), with its gradient and its exact Hessian.

    The value is that of :func:`astrozoo.guides.celeste.delta_elbo`, for all families and up to six sources.
    """
    shapes = {name: p.shape for name, p in guide.named_parameters()}
    sources = guide.star_logit.shape[0]
    stops, stop = {}, 0
    for name, shape in shapes.items():  # within the parameters of one source
        start, stop = stop, stop + shape.numel() // sources
        stops[name] = slice(start, stop)
    spans = [slice(stops[f"{n}_loc"].start, stops[f"{n}_scale"].stop) for n in _NAMES]
    dims = [shapes[f"{n}_loc"][-1] for n in _NAMES]
    column = stops["star_logit"].start

    def of(w: Tensor, patch: Patch) -> tuple[Tensor, Tensor, Tensor]:
        prior = guide.prior.to(w)
        parts = torch.arange(len(w), device=w.device).split([s.numel() for s in shapes.values()])
        index = torch.cat([part.reshape(sources, -1) for part in parts], 1)  # [s, q]: their positions in w
        x = w[index]

        def light(y: Tensor, kind: int) -> Tensor:
            return _light(y, dims[kind], prior, guide.family, kind, patch)

        images = []
        for kind in (0, 1):
            y = x[:, spans[kind]]
            slope = vmap(jacrev(lambda y, kind=kind: light(y, kind)))(y)
            images.append(_Images.of(vmap(lambda y, kind=kind: light(y, kind))(y), slope, kind, patch))
        pixels = _Pixels.of(images, w[index[:, column]], patch)
        pulls = [image.pull(*pixels.weights(image, kind)) for kind, image in enumerate(images)]

        def alone(x: Tensor, anchor: Tensor, *pulls: Tensor) -> tuple[Tensor, Tensor]:
            p = {name: x[at].reshape(1, *shapes[name][1:]) for name, at in stops.items()}
            cost = without_pixels(p, prior, anchor[None], guide.family)
            pulled = sum((light(x[spans[kind]], kind) * pull).sum() for kind, pull in enumerate(pulls))
            return cost + pulled, cost

        inputs = (x, patch.anchor, *pulls)
        g, cost = vmap(grad(alone, has_aux=True))(*inputs)
        block = vmap(jacrev(grad(lambda *a: alone(*a)[0])))(*inputs)
        for kind, image in enumerate(images):
            block[:, spans[kind], spans[kind]] += image.bend(*pixels.weights(image, kind))
        gradient, hessian = w.new_zeros(len(w)), w.new_zeros(len(w), len(w))
        gradient[index] = g
        hessian[index[:, :, None], index[:, None, :]] = block
        logits = index[:, column]
        gradient[logits] += pixels.logit_slope
        hessian[logits[:, None], logits] += pixels.logit_bend
        _couple(hessian, images, pixels, [index[:, span] for span in spans], logits)
        return pixels.value + cost.sum(), gradient, hessian

    return of


def _light(y: Tensor, dim: int, prior: Prior, family: str, kind: int, patch: Patch) -> Tensor:
    """The light of one source and type from its Gaussian: ``[node, image, t]``."""
    loc, scale = y[None, :dim], y[None, dim:]
    u, first, second = (t[:, 0] for t in nodes(loc, scale_tril(scale, dim, family), prior, kind, patch))
    parts = [(patch.jacobian @ u[:, None, :2, None]).squeeze(-1)]
    if not kind:
        parts.append(ring_covariance(u[:, 2, None], u[:, None, 3:5], patch.jacobian))
        parts.append(torch.sigmoid(u[:, 5])[:, None, None].expand(*first.shape, 1))
    return torch.cat((*parts, first[..., None], second[..., None]), -1)


@dataclass(frozen=True)
class _Images:
    """Light in pixels of one type; leading axes are source, node, image.

    Args:
        image, slope: image of unit flux, and its derivatives by the light's entries except the last two,
            ``[..., p]`` and ``[..., t - 2, p]``.
        first, second: flux moments times the node's weight, ``[...]``.
        lights: derivatives of the light by the parameters, ``[..., t, q]``.
        mean, variance: moments over flux and nodes, ``[source, image, p]``.
        mean_slope, variance_slope: their derivatives by the parameters, ``[source, q, image * p]``.
        curve: function of ``weights [..., p]``: the Hessian of the weighted sum of ``image``,
            ``[..., t - 2, t - 2]``.
    """

    image: Tensor
    slope: Tensor
    first: Tensor
    second: Tensor
    lights: Tensor
    mean: Tensor
    variance: Tensor
    mean_slope: Tensor
    variance_slope: Tensor
    curve: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, tau: Tensor, lights: Tensor, kind: int, patch: Patch) -> _Images:
        """Render the light ``tau [source, node, image, t]``."""
        groups, variances = galaxy_rings(tau.dtype, tau.device)
        if kind:
            groups, variances = tau.new_ones(1, 1), tau.new_zeros(1)
        q = tau.new_zeros(*tau.shape[:-1], 3) if kind else tau[..., 2:5]
        mix = torch.ones_like(tau[..., :1]) if kind else torch.stack((tau[..., 5], 1 - tau[..., 5]), -1)
        j, rings = jet(patch.pixels, tau[..., :2], q, groups, mix, variances, patch.psf)
        image = (mix[..., None, :] @ j.images).squeeze(-2)
        if kind:
            slope = j.slopes[..., :2, :]
        else:
            slope = torch.cat((j.slopes, (j.images[..., 0, :] - j.images[..., 1, :])[..., None, :]), -2)

        def curve(weights: Tensor) -> Tensor:
            first, block = curvature(rings, groups, mix, variances, weights)
            if kind:
                return block[..., :2, :2]
            edge = (first[..., 0, :] - first[..., 1, :])[..., None]
            corner = edge.new_zeros(*edge.shape[:-2], 1, 1)
            return torch.cat((torch.cat((block, edge), -1), torch.cat((edge.mT, corner), -1)), -2)

        scale = patch.calibration / tau.shape[1]
        first, second = scale * tau[..., -2].exp(), scale * patch.calibration * tau[..., -1].exp()
        f, s = first[..., None, None], second[..., None, None]
        one, none = image[..., None, :], torch.zeros_like(image[..., None, :])
        mean = torch.einsum("ski,skip->sip", first, image)
        square = torch.einsum("ski,skip->sip", second, image**2)
        back = lights.permute(0, 2, 4, 1, 3).flatten(-2)  # [s, image, q, node * t]
        mean_slope, square_slope = (
            back @ rows.permute(0, 2, 1, 3, 4).flatten(2, 3)  # [s, image, q, p]
            for rows in (torch.cat((f * slope, f * one, none), -2),
                         torch.cat((2 * s * one * slope, none, s * one**2), -2))
        )  # fmt: skip
        variance_slope = square_slope - 2 * mean[..., None, :] * mean_slope
        mean_slope, variance_slope = (t.transpose(1, 2).flatten(-2) for t in (mean_slope, variance_slope))
        variance = square - mean**2
        return cls(image, slope, first, second, lights, mean, variance, mean_slope, variance_slope, curve)

    def pull(self, a: Tensor, b: Tensor) -> Tensor:
        """Gradient by the light of ``sum (a E + b S)``: ``[..., t]``. E is the mean, S the mean square."""
        ea, sb = self.first[..., None] * a[:, None], self.second[..., None] * b[:, None]
        weights = ea + 2 * sb * self.image
        ends = torch.stack(((ea * self.image).sum(-1), (sb * self.image**2).sum(-1)), -1)
        return torch.cat(((self.slope @ weights[..., None]).squeeze(-1), ends), -1)

    def bend(self, a: Tensor, b: Tensor) -> Tensor:
        """Hessian of that sum by the parameters, without the curvature of the light: ``[source, q, q]``."""
        ea, sb = self.first[..., None] * a[:, None], self.second[..., None] * b[:, None]
        block = self.curve(ea + 2 * sb * self.image) + (self.slope * (2 * sb)[..., None, :]) @ self.slope.mT
        edge = self.slope @ torch.stack((ea, 2 * sb * self.image), -1)
        ends = torch.stack(((ea * self.image).sum(-1), (sb * self.image**2).sum(-1)), -1)
        rows = torch.cat((block, edge), -1), torch.cat((edge.mT, torch.diag_embed(ends)), -1)
        bent = torch.cat(rows, -2) @ self.lights
        return self.lights.flatten(1, 3).mT @ bent.flatten(1, 3)


@dataclass(frozen=True)
class _Pixels:
    """The sum over types and pixels, with its derivatives. The axis ``a`` is that of pairs (type, source).

    Args:
        value: the sum.
        by_rate, by_spread: f_R and f_V, ``[a, image, p]``.
        rate_rate, rate_spread: f_RR and f_RV, ``[a, a, image * p]``.
        logit_rate, logit_spread: derivatives of f_R and f_V by the logits: ``[a, source, image * p]``.
        logit_slope, logit_bend: gradient ``[source]`` and Hessian of the sum by the logits.
    """

    value: Tensor
    by_rate: Tensor
    by_spread: Tensor
    rate_rate: Tensor
    rate_spread: Tensor
    logit_rate: Tensor
    logit_spread: Tensor
    logit_slope: Tensor
    logit_bend: Tensor

    @classmethod
    def of(cls, images: list[_Images], logit: Tensor, patch: Patch) -> _Pixels:
        """The sum for the images of galaxies and stars."""
        sources = len(logit)
        kinds = every_choice(sources, logit.device)  # [2^s, s]
        is_kind = torch.cat((1 - kinds, kinds), 1).to(logit)  # [2^s, a]
        weight = torch.where(kinds > 0, logsigmoid(logit), logsigmoid(-logit)).sum(-1).exp()
        r = patch.background.flatten() + is_kind @ torch.cat([i.mean for i in images]).flatten(1)
        v = is_kind @ torch.cat([i.variance for i in images]).flatten(1)
        counts = patch.counts.flatten()
        m = weight[:, None] * patch.mask.flatten()
        f = m * (counts * (r.log() - 0.5 * v / r**2) - r - torch.lgamma(counts + 1))
        f_r, f_v = m * (counts * (1 / r + v / r**3) - 1), -0.5 * m * counts / r**2
        f_rr, f_rv = -m * counts * (1 / r**2 + 3 * v / r**4), m * counts / r**3
        pairs = (is_kind[:, :, None] * is_kind[:, None, :]).flatten(1).T
        q = logit.sigmoid()
        turn = kinds - q  # [2^s, s] d ln weight / d logit
        turned = (is_kind[:, :, None] * turn[:, None, :]).flatten(1).T
        each = f.sum(1)
        shape = patch.counts.shape
        return cls(
            value=f.sum(),
            by_rate=(is_kind.T @ f_r).unflatten(1, shape),
            by_spread=(is_kind.T @ f_v).unflatten(1, shape),
            rate_rate=(pairs @ f_rr).unflatten(0, (2 * sources, 2 * sources)),
            rate_spread=(pairs @ f_rv).unflatten(0, (2 * sources, 2 * sources)),
            logit_rate=(turned @ f_r).unflatten(0, (2 * sources, sources)),
            logit_spread=(turned @ f_v).unflatten(0, (2 * sources, sources)),
            logit_slope=each @ turn,
            logit_bend=turn.T @ (each[:, None] * turn) - torch.diag(f.sum() * q * (1 - q)),
        )

    def weights(self, images: _Images, kind: int) -> tuple[Tensor, Tensor]:
        """Derivatives by the mean and the mean square of a type's light, ``[source, image, p]``."""
        sources = len(images.mean)
        at = slice(kind * sources, (kind + 1) * sources)
        return self.by_rate[at] - 2 * images.mean * self.by_spread[at], self.by_spread[at]


def _couple(
    hessian: Tensor, images: list[_Images], pixels: _Pixels, index: list[Tensor], logits: Tensor
) -> None:
    """Add the blocks of pairs of (type, source), and of these and the logits, which pixels couple."""
    sources = len(logits)
    means = [slope for image in images for slope in image.mean_slope]
    variances = [slope for image in images for slope in image.variance_slope]
    at = [rows for kind in index for rows in kind]
    for a, (mean, variance, rows) in enumerate(zip(means, variances, at, strict=True)):
        cross = mean @ pixels.logit_rate[a].T + variance @ pixels.logit_spread[a].T
        hessian[rows[:, None], logits] += cross
        hessian[logits[:, None], rows] += cross.T
        left = torch.cat((mean, variance), 1)
        for b in range(a, 2 * sources):
            if b == a + sources:
                continue  # no source has both types
            rr, rv = pixels.rate_rate[a, b], pixels.rate_spread[a, b]
            if b == a:
                rr = rr - 2 * pixels.by_spread[a].flatten()  # V is the mean square minus R^2
            block = left @ torch.cat((rr * means[b] + rv * variances[b], rv * means[b]), 1).T
            hessian[rows[:, None], at[b]] += block
            if b != a:
                hessian[at[b][:, None], rows] += block.T
