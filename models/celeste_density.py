"""The Celeste log density of one source of known type, with a hand-written exact gradient and Hessian.

Five of a galaxy's eleven parameters, and five of a star's seven, only scale its image. The image is
differentiated by the others alone (:mod:`astrozoo.physics.gaussians`), and the chain rule gives the rest. A
value, gradient and dense Hessian together therefore cost about two renderings. Tests compare them with the
Pyro model.

Images and their slopes have the precision of ``patch.pixels``, and everything else has that of
``patch.counts``. Single precision for the former halves the cost. Its errors enter the log density only times
the residuals.

The flat vector is ``[east, north, log_flux, colour...]`` for a star, and for a galaxy ``[east, north,
log_radius, eta_1, eta_2, dev_logit, log_flux, colour...]``. The parameters that move or bend the image come
first, those that only scale it last.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models.celeste import ColourPrior, Patch, Prior, band_matrix, galaxy_images, star_images
from astrozoo.physics.gaussians import curvature, jet, render
from astrozoo.physics.profiles import galaxy_rings, sky_covariance_jet, sky_to_pixel

__all__ = ["TypedDensity"]

_EDGE = 0.05
"""[ln arcsec] SD of the normal by which the prior falls below the least radius of a galaxy."""
_LEAST_CURVATURE = 1e-2
"""[1] Curvature below which a direction of :meth:`TypedDensity.by_component` gets a unit variance."""
_PSF_STEP = 1e-3
"""[1] Relative step of the PSF's covariances in the finite difference of :meth:`TypedDensity.psf_width`."""
_ROWS = 32
"""Greatest number of patches that are evaluated at once: their Gaussians then fit the processor's cache."""
_PIXELS = 60_000
"""Greatest number of pixels, of all images, that are evaluated at once; for the same reason."""


class _Light(NamedTuple):
    """The light of one source in every image, with the terms of its derivatives.

    Attributes:
        scale: electrons of the source.
        rate: expected counts of the source and the background.
        slope: derivatives of the rate by tau, ``[b, image, 7, p]``.
        chain: d tau / d u, ``[b, image, 7, d]``.
        rings: intermediate results of :func:`~astrozoo.physics.gaussians.jet`.
        mix: fractions of the profiles.
        sky2px: map of covariances from the sky to pixels.
        sky: covariance on the sky with its derivatives; None for a star.
    """

    scale: Tensor
    rate: Tensor
    slope: Tensor
    chain: Tensor
    rings: Any
    mix: Tensor
    sky2px: Tensor
    sky: Any


class TypedDensity:
    """log p(counts, u, type) of a batch of single-source patches: an :class:`astrozoo.objective.Objective`.

    Args:
        patch: patches of one source each, with a leading axis of ``b`` patches on every tensor.
        prior: the prior of the model.
        star: True for stars, False for galaxies.
        log_least_radius: least ln radius of galaxies, one value per patch. Below it, the prior falls off as a
            normal of SD ``_EDGE``. Only errors of the PSF could distinguish a smaller galaxy from a star.
    """

    noise_dim = 0
    compile_seconds = 0.0

    def __init__(
        self, patch: Patch, prior: Prior, *, star: bool, log_least_radius: Float[Tensor, "b"] | None = None
    ) -> None:
        self.patch, self.star, self.log_least_radius = patch, star, log_least_radius
        self.prior = prior.to(patch.counts)
        self.batch: int | None = patch.counts.shape[0]
        self.dtype, self.device = patch.counts.dtype, patch.counts.device
        self.n_colours = len(prior.bands) - 1
        self.n_bending = 2 if star else 6
        self.dim = self.n_bending + 1 + self.n_colours
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
        groups, variances = galaxy_rings(self.dtype, self.device)
        self._groups = groups.new_ones(1, 1) if star else groups
        self._variances = variances.new_zeros(1) if star else variances
        self._bands = band_matrix(len(prior.bands), prior.reference, patch.counts)
        self._constant = (patch.mask * (-torch.lgamma(patch.counts + 1))).sum((-2, -1))

    def take(self, rows: Tensor) -> TypedDensity:
        """The density of the patches ``rows``."""
        least = None if self.log_least_radius is None else self.log_least_radius[rows]
        patch = Patch(*(t[rows] for t in self.patch))
        subset = copy(self)
        subset.patch, subset.log_least_radius, subset.batch = patch, least, len(rows)
        subset._constant = self._constant[rows]
        return subset

    def without_pixels(self) -> TypedDensity:
        """The density of the prior alone, which takes little memory."""
        prior = copy(self)
        pixels = ("counts", "background", "mask", "pixels")
        prior.patch = self.patch._replace(
            **{name: getattr(self.patch, name)[..., :0].clone() for name in pixels}
        )
        return prior

    def values(self, w: Float[Tensor, "b d"], noise: Tensor | None = None) -> Float[Tensor, "b 1"]:
        """The log density."""
        self.counts["value"] += len(w)
        return self._evaluate(w, 0)[0][:, None]

    def value_and_grad(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The log density and its gradient."""
        self.counts["gradient"] += len(w)
        value, grad = self._evaluate(w, 1)
        return value, grad

    def value_grad_hessian(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The log density, its gradient and its exact Hessian."""
        self.counts["hessian"] += len(w)
        value, grad, hessian = self._evaluate(w, 2)
        return value, grad, hessian

    def hvp(self, w: Tensor, noise: Tensor | None, v: Tensor) -> Tensor:
        """Hessian times vector (through the dense Hessian, which is cheap)."""
        self.counts["hvp"] += len(w)
        return (self._evaluate(w, 2)[2] @ v[..., None]).squeeze(-1)

    def electrons(self, u: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n image"]:
        """Expected electrons of each source in each image."""
        return self._scale(u, self.patch)

    def light(self, u: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Expected electrons of the source in each pixel, and their derivatives.

        Returns:
            The light ``[b, image, p]``; its derivatives by the seven numbers tau that an image depends on,
            ``[b, image, 7, p]``, in the precision of the pixels' coordinates; and the derivatives of tau by
            ``u``, ``[b, image, 7, d]``.
        """
        light = self._light(u, self.patch)
        return light.rate - self.patch.background, light.slope, light.chain

    def log_likelihood(self, light: Float[Tensor, "b image p"]) -> Float[Tensor, "b"]:
        """Log probability of the counts, given the light of the source."""
        return _log_likelihood(self.patch, self.patch.background + light) + self._constant

    def images(self, bend: Float[Tensor, "b *m n_bending"]) -> Float[Tensor, "b *m image p"]:
        """Unit-flux images, in the precision of the pixels' coordinates."""
        inner = (1,) * (bend.ndim - 2)
        patch = Patch(*(t.reshape(len(t), *inner, *t.shape[1:]) for t in self.patch))
        if self.star:
            return star_images(patch, bend)
        return galaxy_images(patch, bend[..., :2], bend[..., 2], bend[..., 3:5], bend[..., 5])

    def log_joint_of_images(
        self, images: Float[Tensor, "b m image pixel"], u: Float[Tensor, "b m n d"]
    ) -> Float[Tensor, "b m n"]:
        """The log density at ``n`` fluxes and colours for each of ``m`` unit-flux images already rendered."""
        patch = self.patch
        scale = self.electrons(u)  # [b, m, n, image]
        # Logarithms are relative to a typical rate of this source, so that single precision suffices.
        typical = patch.background + (scale.mean(2)[..., None] * images).mean(1)  # [b, image, p]
        counted = patch.mask * patch.counts
        value = (counted * typical.log() - patch.mask * patch.background).sum((-2, -1))[:, None, None]
        value = value - torch.einsum("bmni,bmi->bmn", scale, (patch.mask[:, None] * images).sum(-1))
        relative, start = images / typical[:, None].to(images), (patch.background / typical - 1).to(images)
        by, weight = scale.to(images), counted.to(images)
        terms = []
        for k in range(u.shape[2]):
            logs = (by[:, :, k, :, None] * relative).add_(start[:, None]).log1p_()
            terms.append(logs.mul_(weight[:, None]).sum((-2, -1), dtype=u.dtype))
        value = value + torch.stack(terms, -1)
        return value + self.log_prior(u) + self._constant[:, None, None]

    def linearised(
        self, u: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b image 7 p"], Float[Tensor, "b image 7 d"]]:
        """The gradient of the log density, and the source's light to first order.

        Returns:
            The gradient; the derivatives of each image by the seven numbers tau that it depends on, in single
            precision to save memory; and the derivatives of tau by ``u``.
        """
        self.counts["gradient"] += len(u)
        grads, slopes, chains = [], [], []
        for rows in self._parts():
            patch = Patch(*(t[rows] for t in self.patch))
            light = self._light(u[rows], patch)
            grads.append(_gradient(patch, light)[1])
            slopes.append(light.slope.float())
            chains.append(light.chain)
        return torch.cat(grads) + self.prior_slopes(u)[0], torch.cat(slopes), torch.cat(chains)

    def psf_width(
        self, u: Float[Tensor, "b d"], covariance: Float[Tensor, "b d d"]
    ) -> tuple[Float[Tensor, "b image"], Float[Tensor, "b image"]]:
        """The error of the width of each image's PSF, estimated from one source per patch.

        Every covariance of an image's PSF is multiplied by 1 + delta. The estimate is one Gauss-Newton step
        in delta and the parameters jointly, from the mode at delta = 0.

        Args:
            u: the mode.
            covariance: the inverse of the curvature at the mode.

        Returns:
            delta, and its standard deviation, which is infinite if the image does not constrain delta.
        """
        parts = [self._psf_width_terms(u, rows) for rows in self._parts()]
        score, information, cross = (torch.cat(t) for t in zip(*parts, strict=True))
        within = torch.diag_embed(information) - cross.mT @ covariance @ cross
        free = within.diagonal(dim1=-2, dim2=-1) <= 1e-6 * information.amax(-1, keepdim=True)
        inverse = torch.linalg.inv(within + torch.diag_embed(free.to(within)))
        delta = (inverse @ score[..., None]).squeeze(-1)
        variance = inverse.diagonal(dim1=-2, dim2=-1)
        usable = ~free & (variance > 0)
        return torch.where(usable, delta, 0.0), torch.where(usable, variance, torch.inf).sqrt()

    def _psf_width_terms(self, u: Float[Tensor, "b d"], rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient in delta ``[b, image]``, information ``[b, image]``, cross terms ``[b, d, image]``."""
        patch = Patch(*(t[rows] for t in self.patch))
        light = self._light(u[rows], patch)
        low, high = (
            self._unit(u[rows], patch._replace(psf_covariances=(1 + step) * patch.psf_covariances))
            for step in (-_PSF_STEP, _PSF_STEP)
        )
        slope = light.scale[..., None] * (high - low) / (2 * _PSF_STEP)
        score = (patch.mask * (patch.counts / light.rate - 1) * slope).sum(-1)
        weighted = slope * patch.mask * patch.counts / light.rate**2
        onto = (light.slope @ weighted.to(light.slope)[..., None]).squeeze(-1).to(u)
        cross = torch.einsum("bit,bitd->bdi", onto, light.chain)
        return score, (weighted * slope).sum(-1), cross

    def _evaluate(self, u: Tensor, order: int) -> list[Tensor]:
        """Value and derivatives up to ``order``."""
        parts = [self._likelihood(u[rows], rows, order) for rows in self._parts()]
        prior = (self.log_prior(u), *(self.prior_slopes(u) if order else ()))
        return [torch.cat(p) + q for p, q in zip(zip(*parts, strict=True), prior, strict=False)]

    def _parts(self) -> list[slice]:
        """Slices of the patches, each small enough to be evaluated at once."""
        n, *shape = self.patch.counts.shape
        step = max(1, min(_ROWS, _PIXELS // max(1, math.prod(shape))))
        return [slice(i, i + step) for i in range(0, n, step)]

    def _light(self, u: Float[Tensor, "b d"], patch: Patch) -> _Light:
        """The source's image and expected counts, with their slopes."""
        mu, scale = self._place(u, patch), self._scale(u, patch)
        q, sky2px, sky, mix = self._shape(u, patch)
        images, rings = jet(patch.pixels, mu, q, self._groups, mix[:, None], self._variances, patch.psf)
        unit = (mix[:, None, None].to(images.images) @ images.images).squeeze(-2)
        # tau, on which each image depends: mu (2), Q (3), de Vaucouleurs fraction, ln flux in its band
        spread = torch.zeros_like(unit) if self.star else images.images[:, :, 0] - images.images[:, :, 1]
        slope = torch.cat((images.slopes, spread[:, :, None], unit[:, :, None]), 2)
        slope = slope * scale.to(slope)[..., None, None]
        chain = self._chain(patch, sky2px, sky, mix)  # [b, image, 7, d]
        rate = patch.background + scale[..., None] * unit
        return _Light(scale, rate, slope, chain, rings, mix, sky2px, sky)

    def _shape(self, u: Float[Tensor, "b d"], patch: Patch) -> tuple[Tensor, Tensor, Any, Tensor]:
        """Covariance of a unit ring in pixels, its two factors, and fractions of the profiles."""
        sky2px = sky_to_pixel(patch.jacobian)  # [b, image, 3, 3]
        if self.star:
            return torch.zeros_like(sky2px[..., 0]), sky2px, None, u.new_ones(len(u), 1)
        sky = sky_covariance_jet(u[:, 2], u[:, 3:5])
        theta = torch.sigmoid(u[:, 5])
        q = (sky2px @ sky[0][:, None, :, None]).squeeze(-1)
        return q, sky2px, sky, torch.stack((theta, 1 - theta), -1)

    def _unit(self, u: Float[Tensor, "b d"], patch: Patch) -> Float[Tensor, "b image p"]:
        """The source's image of unit flux, without slopes."""
        q, _, _, mix = self._shape(u, patch)
        amplitudes = (mix @ self._groups)[:, None]
        return render(patch.pixels, self._place(u, patch), q, amplitudes, self._variances, patch.psf)

    def _place(self, u: Float[Tensor, "b d"], patch: Patch) -> Float[Tensor, "b image 2"]:
        return (patch.jacobian @ u[:, None, :2, None]).squeeze(-1)

    def _scale(self, u: Float[Tensor, "b *n d"], patch: Patch) -> Float[Tensor, "b *n image"]:
        log_flux = torch.einsum("bic,b...c->b...i", self._bands[patch.band], u[..., self.n_bending :])
        return patch.calibration.reshape(len(u), *(1,) * (u.ndim - 2), -1) * log_flux.exp()

    def _likelihood(self, u: Tensor, rows: slice, order: int) -> tuple[Tensor, ...]:
        patch, constant = Patch(*(t[rows] for t in self.patch)), self._constant[rows]
        if order == 0:
            rate = patch.background + self._scale(u, patch)[..., None] * self._unit(u, patch)
            return (_log_likelihood(patch, rate) + constant,)
        light = self._light(u, patch)
        scale, rate, slope, chain = light.scale, light.rate, light.slope, light.chain
        value = _log_likelihood(patch, rate) + constant
        excess, grad, d_tau = _gradient(patch, light)
        if order == 1:
            return value, grad
        bend = (-patch.mask * patch.counts / rate**2).to(slope)
        h = ((slope * bend[:, :, None]) @ slope.mT).to(u)  # [b, image, 7, 7]
        first, second = curvature(light.rings, self._groups, light.mix[:, None], self._variances, excess)
        h[:, :, :5, :5] += scale[..., None, None] * second
        if not self.star:
            cross = scale[..., None] * (first[:, :, 0] - first[:, :, 1])
            h[:, :, :5, 5] += cross
            h[:, :, 5, :5] += cross
        h[:, :, 6, :6] += d_tau[:, :, :6]
        h[:, :, :, 6] += d_tau
        hessian = torch.einsum("bitd,bitv,bive->bde", chain, h, chain)
        if not self.star:
            d_sky = torch.einsum("bit,bits->bs", d_tau[:, :, 2:5], light.sky2px)
            hessian[:, 2:5, 2:5] += torch.einsum("bs,bsde->bde", d_sky, light.sky[2])
            theta = light.mix[:, 0]
            hessian[:, 5, 5] += d_tau[:, :, 5].sum(-1) * theta * (1 - theta) * (1 - 2 * theta)
        return value, grad, hessian

    def _chain(self, patch: Patch, sky2px: Tensor, sky: Any, mix: Tensor) -> Tensor:
        """d tau / d u, [b, image, 7, d]."""
        per_band = self._bands[patch.band]  # [b, image, 1 + colour]
        chain = per_band.new_zeros(*per_band.shape[:2], 7, self.dim)
        chain[:, :, :2, :2] = patch.jacobian
        chain[:, :, 6, self.n_bending :] = per_band
        if sky is not None:
            chain[:, :, 2:5, 2:5] = sky2px @ sky[1][:, None]
            chain[:, :, 5, 5] = (mix[:, 0] * mix[:, 1])[:, None]
        return chain

    def _normal_prior(self, u: Float[Tensor, "b *n d"]) -> tuple[Tensor, Tensor]:
        """(z, 1 / sd) of all parameters except the colours, whose entries are zero."""
        prior, kind, nb = self.prior, int(self.star), self.n_bending
        mean, inverse = u.new_zeros(len(u), self.dim), u.new_zeros(self.dim)
        mean[:, :2], inverse[:2] = self.patch.anchor[:, 0], 1 / prior.position_sd
        if not self.star:
            mean[:, 2], inverse[2] = prior.log_radius_mean, 1 / prior.log_radius_sd
            inverse[3:5], inverse[5] = 1 / prior.ellipticity_sd, 1 / prior.dev_logit_sd
        mean[:, nb], inverse[nb] = prior.log_flux_mean[kind], 1 / prior.log_flux_sd[kind]
        mean = mean.reshape(len(u), *(1,) * (u.ndim - 2), self.dim)
        return (u - mean) * inverse, inverse

    def log_prior(self, u: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n"]:
        """The log density of the prior."""
        z, inverse = self._normal_prior(u)
        used = inverse[inverse > 0]
        norm = used.log().sum() - 0.5 * math.log(2 * math.pi) * len(used)
        p = self.prior.prob_star if self.star else 1 - self.prior.prob_star
        colour = _mixture_terms(u[..., self.n_bending + 1 :], self.prior.colour[int(self.star)])[0]
        value = -0.5 * (z * z).sum(-1) + norm + math.log(p) + torch.logsumexp(colour, -1)
        return value - 0.5 * self._below_least(u) ** 2

    def by_component(
        self, u: Float[Tensor, "b d"], covariance: Float[Tensor, "b d d"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m d"], Float[Tensor, "b m d d"]]:
        """A normal of the posterior for each component of the prior of the colours.

        A noisy colour may have modes in several components, of which ``u`` is one. The likelihood is taken
        for a normal: its gradient and curvature are those of the posterior at ``u``, without the prior's.

        Args:
            u: a mode.
            covariance: the inverse of the curvature there.

        Returns:
            Log weights, normalised; means; covariances.
        """
        colours = slice(self.n_bending + 1, None)
        gradient, hessian = self.prior_slopes(u)
        log_p, pull, precision = _mixture_terms(u[:, colours], self.prior.colour[int(self.star)])
        m = pull.shape[1]
        slope, curvature = (x[:, None].repeat(1, m, *(1,) * (x.ndim - 1)) for x in (
            torch.zeros_like(gradient), torch.linalg.inv(covariance)
        ))  # fmt: skip
        slope[..., colours] = pull - gradient[:, None, colours]
        curvature[..., colours, colours] += precision + hessian[:, None, colours, colours]
        values, vectors = torch.linalg.eigh(curvature)
        values = torch.where(values > _LEAST_CURVATURE, values, 1.0)
        turned = (vectors.mT @ slope[..., None]).squeeze(-1)
        log_weight = log_p + 0.5 * (turned.square() / values - values.log()).sum(-1)
        mean = u[:, None] + (vectors @ (turned / values)[..., None]).squeeze(-1)
        return torch.log_softmax(log_weight, -1), mean, (vectors / values[..., None, :]) @ vectors.mT

    def _below_least(self, u: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n"]:
        """How much smaller a galaxy is than the least radius, in units of ``_EDGE``; 0 if it is larger."""
        if self.star or self.log_least_radius is None:
            return u.new_zeros(u.shape[:-1])
        least = self.log_least_radius.to(u).reshape(-1, *(1,) * (u.ndim - 2))
        return (least - u[..., 2]).clamp(min=0) / _EDGE

    def prior_slopes(self, u: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d d"]]:
        """Gradient and Hessian of :meth:`log_prior`."""
        z, inverse = self._normal_prior(u)
        grad, hessian = -z * inverse, torch.diag(-(inverse**2)).expand(len(u), -1, -1).clone()
        if not self.star:
            below = self._below_least(u)
            grad[:, 2] += below / _EDGE
            hessian[:, 2, 2] -= (below > 0) / _EDGE**2
        colours = slice(self.n_bending + 1, None)
        log_p, pull, precision = _mixture_terms(u[:, colours], self.prior.colour[int(self.star)])
        share = torch.softmax(log_p, -1)
        mean = torch.einsum("bm,bmi->bi", share, pull)
        grad[:, colours] = mean
        hessian[:, colours, colours] = (
            torch.einsum("bm,bmi,bmj->bij", share, pull, pull)
            - mean[:, :, None] * mean[:, None, :]
            - torch.einsum("bm,mij->bij", share, precision)
        )
        return grad, hessian


def _log_likelihood(patch: Patch, rate: Float[Tensor, "b image p"]) -> Float[Tensor, "b"]:
    """Log probability of the counts, without the terms that depend on the counts alone."""
    return (patch.mask * (patch.counts * rate.log() - rate)).sum((-2, -1))


def _gradient(patch: Patch, light: _Light) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of log p by the rate, by u, ``[b, d]``, and by tau, ``[b, image, 7]``."""
    excess = patch.mask * (patch.counts / light.rate - 1)
    d_tau = (light.slope @ excess.to(light.slope)[..., None]).squeeze(-1).to(excess)
    return excess, torch.einsum("bit,bitd->bd", d_tau, light.chain), d_tau


def _mixture_terms(c: Float[Tensor, "*b n"], mixture: ColourPrior) -> tuple[Tensor, Tensor, Tensor]:
    """Log weighted density of each component, its gradient, and the precisions."""
    precision = torch.linalg.inv(mixture.covariances)
    delta = c[..., None, :] - mixture.means  # [*b, m, n]
    pull = -torch.einsum("mij,...mj->...mi", precision, delta)
    log_norm = -0.5 * torch.logdet(2 * torch.pi * mixture.covariances)
    return mixture.weights.log() + log_norm + 0.5 * (pull * delta).sum(-1), pull, precision
