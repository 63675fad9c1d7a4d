"""Guides for Celeste, and the delta-method ELBO that they are usually fitted with.

Given its type, a source's parameters have a joint Gaussian: ``[east, north, log_flux, colour...]`` for a
star, ``[east, north, log_radius, eta_1, eta_2, dev_logit, log_flux, colour...]`` for a galaxy. Sources of a
patch are independent of each other.

* ``structured``: full covariance within a source and type.
* ``mean_field``: diagonal covariance.
* ``point``: Celeste's published family. Position and shape are points; flux and colours are independent
  normals.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, section 4 (family, delta method).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from astrozoo.errors import InputError
from astrozoo.models.celeste import Celeste, Patch, Prior, band_matrix, galaxy_images, star_images
from astrozoo.types import Problem

__all__ = ["CelesteGuide", "delta_elbo", "mean_field", "point", "structured"]

_FAMILIES = ("structured", "mean_field", "point")
"""Names of the guides of Celeste."""
_STAR = 2
"""Number of parameters that move or bend the image of a star; the others only scale it."""
_GALAXY = 6
"""Number of parameters that move or bend the image of a galaxy."""


class CelesteGuide(nn.Module):
    """A Gaussian for each source and type; see the module's docstring.

    Args:
        prior: the prior of the model.
        sources: number of sources of a patch.
        family: "structured", "mean_field" or "point".
        like: tensor with the dtype and device of the parameters.
    """

    star_logit: Tensor
    star_loc: Tensor
    star_scale: Tensor
    galaxy_loc: Tensor
    galaxy_scale: Tensor

    def __init__(self, prior: Prior, sources: int, family: str, like: Tensor) -> None:
        super().__init__()
        if family not in _FAMILIES:
            raise InputError("family", repr(family), f"one of {', '.join(_FAMILIES)}")
        self.prior, self.family = prior, family
        self.n_linear = len(prior.bands)
        self.star_logit = nn.Parameter(like.new_zeros(sources))
        for name, bending in (("star", _STAR), ("galaxy", _GALAXY)):
            dim = bending + self.n_linear
            free = self.n_linear if family == "point" else dim
            n_scale = free * (free + 1) // 2 if family == "structured" else free
            self.register_parameter(f"{name}_loc", nn.Parameter(like.new_zeros(sources, dim)))
            self.register_parameter(f"{name}_scale", nn.Parameter(like.new_zeros(sources, n_scale)))

    def forward(self, patch: Patch) -> None:
        with pyro.plate("source", patch.anchor.shape[-2]):
            is_star = pyro.sample("is_star", dist.Bernoulli(logits=self.star_logit))
            star, galaxy = self._padded_star(), (self.galaxy_loc, self.scale_tril("galaxy"))
            chosen = is_star > 0.5
            loc = torch.where(chosen[..., None], star[0], galaxy[0])
            tril = torch.where(chosen[..., None, None], star[1], galaxy[1])
            fixed = _GALAXY if self.family == "point" else 0
            free = dist.MultivariateNormal(loc[..., fixed:], scale_tril=tril[..., fixed:, fixed:])
            drawn = pyro.sample("celeste_free", free, infer={"is_auxiliary": True})
            u = torch.cat((loc[..., :fixed].expand(*drawn.shape[:-1], fixed), drawn), -1)
            cancel = chosen * self._shape_density(u[..., 2:6]) if fixed else u.new_zeros(())
            pyro.sample("offset", dist.Delta(u[..., :2], event_dim=1))
            pyro.sample("log_radius", dist.Delta(u[..., 2], log_density=cancel))
            pyro.sample("ellipticity", dist.Delta(u[..., 3:5], event_dim=1))
            pyro.sample("dev_logit", dist.Delta(u[..., 5]))
            pyro.sample("log_flux", dist.Delta(u[..., _GALAXY]))
            pyro.sample("colour", dist.Delta(u[..., _GALAXY + 1 :], event_dim=1))

    def scale_tril(self, kind: str) -> Float[Tensor, "source d d"]:
        """Cholesky factor of the covariance of a type ("star" or "galaxy"). Rows of points are zero."""
        return scale_tril(getattr(self, f"{kind}_scale"), getattr(self, f"{kind}_loc").shape[-1], self.family)

    def _shape_density(self, shape: Float[Tensor, "source 4"]) -> Float[Tensor, "source"]:
        """Log prior density of a shape. It cancels the term of a star's unused shape in the ELBO."""
        prior = self.prior
        sd = shape.new_tensor(
            [prior.log_radius_sd, prior.ellipticity_sd, prior.ellipticity_sd, prior.dev_logit_sd]
        )
        return (
            dist.Normal(shape.new_tensor([prior.log_radius_mean, 0.0, 0.0, 0.0]), sd).log_prob(shape).sum(-1)
        )

    def _padded_star(self) -> tuple[Tensor, Tensor]:
        """A star's Gaussian. Its shape, which is not used, has the prior, and so adds nothing to the ELBO."""
        loc, tril = self.star_loc, self.scale_tril("star")
        prior, s = self.prior, loc.shape[0]
        sd = loc.new_tensor(
            [prior.log_radius_sd, prior.ellipticity_sd, prior.ellipticity_sd, prior.dev_logit_sd]
        )
        shape_loc = loc.new_tensor([prior.log_radius_mean, 0.0, 0.0, 0.0]).expand(s, 4)
        padded_loc = torch.cat((loc[:, :2], shape_loc, loc[:, 2:]), -1)
        zero = tril.new_zeros
        nl = self.n_linear
        rows = (
            torch.cat((tril[:, :2, :2], zero(s, 2, 4 + nl)), -1),
            torch.cat((zero(s, 4, 2), torch.diag(sd).expand(s, 4, 4), zero(s, 4, nl)), -1),
            torch.cat((tril[:, 2:, :2], zero(s, nl, 4), tril[:, 2:, 2:]), -1),
        )
        return padded_loc, torch.cat(rows, -2)

    def initial(self, layout: Any, z0: Float[Tensor, "b latent"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0`` for both types, with standard deviations of 0.1."""
        sites = layout.constrain(z0)
        shape = (
            sites["offset"],
            sites["log_radius"][..., None],
            sites["ellipticity"],
            sites["dev_logit"][..., None],
        )
        linear = (sites["log_flux"][..., None], sites["colour"])
        b = z0.shape[0]
        parameters = {"star_logit": self.star_logit.detach().expand(b, -1)}
        parameters["star_loc"] = torch.cat((shape[0], *linear), -1)
        parameters["galaxy_loc"] = torch.cat((*shape, *linear), -1)
        for kind in ("star", "galaxy"):
            scale = getattr(self, f"{kind}_scale").detach()
            dim = parameters[f"{kind}_loc"].shape[-1]
            diagonal = _diagonal(scale.shape[-1], dim, self.family, scale.device)
            parameters[f"{kind}_scale"] = (math.log(0.1) * diagonal.to(scale)).expand(b, *scale.shape)
        return parameters


def _diagonal(n_scale: int, dim: int, family: str, device: torch.device) -> Tensor:
    """True at the entries of a scale vector that are logarithms of diagonal elements."""
    if family != "structured":
        return torch.ones(n_scale, dtype=torch.bool, device=device)
    row, column = torch.tril_indices(dim, dim, device=device)
    return row == column


def scale_tril(scale: Float[Tensor, "*b n"], dim: int, family: str) -> Float[Tensor, "*b d d"]:
    """The Cholesky factor of a scale vector, which holds the lower triangle row by row, with log diagonal."""
    if family == "structured":
        row, column = torch.tril_indices(dim, dim, device=scale.device)
        values = torch.where(row == column, scale.clamp(max=50).exp(), scale)
        place = torch.zeros(row.numel(), dim * dim, dtype=scale.dtype, device=scale.device)
        place[torch.arange(row.numel()), row * dim + column] = 1
        return (values @ place).unflatten(-1, (dim, dim))
    sd = scale.exp()
    points = sd.new_zeros(*sd.shape[:-1], dim - sd.shape[-1])
    return torch.diag_embed(torch.cat((points, sd), -1))


def scale_vector(tril: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b n"]:
    """The scale vector of a structured guide's Cholesky factor: the inverse of :func:`scale_tril`."""
    row, column = torch.tril_indices(tril.shape[-1], tril.shape[-1], device=tril.device)
    values = tril[..., row, column]
    return torch.where(row == column, values.clamp(min=1e-300).log(), values)


def _factory(family: str) -> Callable[[Problem], CelesteGuide]:
    def build(problem: Problem) -> CelesteGuide:
        model, patch = problem.model, problem.args[0]
        if not isinstance(model, Celeste):
            raise InputError("problem", type(model).__name__, "a Celeste model")
        return CelesteGuide(model.prior, patch.anchor.shape[-2], family, patch.counts)

    build.__doc__ = f"The {family} guide of a Celeste problem."
    return build


structured = _factory("structured")
mean_field = _factory("mean_field")
point = _factory("point")


def delta_elbo(problem: Problem, guide: CelesteGuide) -> Callable[[Tensor, Patch], Tensor]:
    """The delta-method ELBO as a pure function of (flat guide parameters, patch).

    The light of a pixel has closed-form moments over flux and colours, which are log-normal. Moments over
    position and shape are computed by third-degree spherical cubature: its nodes are at sqrt(n) along the n
    columns of the Cholesky factor, and at each node the flux has its conditional distribution. The sum over
    types is exact (``2**sources`` terms; at most six sources). E log(light) is approximated by the delta
    method, ``log E - Var / (2 E^2)``, which is not a bound, but is accurate if the sky is bright. The colour
    mixture is replaced by a lower bound, with its optimal auxiliary components.

    Raises:
        InputError: a patch has more than six sources.
    """
    sources = guide.star_logit.shape[0]
    if sources > 6:
        raise InputError("patch", f"{sources} sources", "at most 6 for an exact sum over types")
    shapes = {name: value.shape for name, value in guide.named_parameters()}
    prior, family = guide.prior, guide.family

    def elbo(w: Tensor, patch: Patch) -> Tensor:
        parts = w.split([s.numel() for s in shapes.values()])
        p = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        cast_prior = prior.to(w)
        moments = []
        for kind, name in enumerate(("galaxy", "star")):
            loc = p[f"{name}_loc"]
            moments.append(
                _moments(loc, scale_tril(p[f"{name}_scale"], loc.shape[-1], family), cast_prior, kind, patch)
            )
        expected = torch.stack([m[0] for m in moments])  # [type, source, image, pixel]
        variance = torch.stack([m[1] for m in moments])
        kinds = every_choice(sources, w.device)
        which = torch.arange(sources, device=w.device)
        rate = patch.background + expected[kinds, which].sum(1)  # [2^s, image, pixel]
        spread = variance[kinds, which].sum(1)
        pixel = patch.counts * (rate.log() - 0.5 * spread / rate**2) - rate - torch.lgamma(patch.counts + 1)
        weight = _log_types(p["star_logit"])[kinds, which].sum(-1).exp()
        cost = without_pixels(p, cast_prior, patch.anchor, family)
        return cost + (weight * (patch.mask * pixel).sum((-2, -1))).sum()

    from astrozoo.guides.celeste_hessian import derivatives  # here, because it imports this file

    elbo.derivatives = derivatives(problem, guide)  # type: ignore[attr-defined]
    return elbo


def every_choice(sources: int, device: torch.device) -> Int[Tensor, "choice source"]:
    """All joint types of a patch's sources: 0 a galaxy, 1 a star."""
    return torch.cartesian_prod(*[torch.arange(2, device=device)] * sources).reshape(-1, sources)


def _log_types(star_logit: Float[Tensor, "source"]) -> Float[Tensor, "2 source"]:
    return torch.stack((nn.functional.logsigmoid(-star_logit), nn.functional.logsigmoid(star_logit)))


def without_pixels(p: dict[str, Tensor], prior: Prior, anchor: Tensor, family: str) -> Float[Tensor, ""]:
    """The part of the ELBO that does not depend on the pixels, prior and entropy, summed over sources."""
    log_q = _log_types(p["star_logit"])
    log_p = torch.log(torch.stack((1 - log_q.new_tensor(prior.prob_star), log_q.new_tensor(prior.prob_star))))
    terms = []
    for kind, name in enumerate(("galaxy", "star")):
        loc = p[f"{name}_loc"]
        tril = scale_tril(p[f"{name}_scale"], loc.shape[-1], family)
        terms.append(_prior_and_entropy(loc, tril, prior, kind, anchor, family) + log_p[kind])
    return (log_q.exp() * (torch.stack(terms) - log_q)).sum()


def nodes(
    loc: Tensor, tril: Tensor, prior: Prior, kind: int, patch: Patch
) -> tuple[Float[Tensor, "k s d"], Float[Tensor, "k s image"], Float[Tensor, "k s image"]]:
    """Cubature nodes, with the conditional mean of flux and colours, ln E[flux] and ln E[flux^2]."""
    n = _STAR if kind else _GALAXY
    d = loc.shape[1]
    eye = torch.eye(n, dtype=loc.dtype, device=loc.device)
    signed = math.sqrt(n) * torch.cat((eye, -eye))  # [k, n]
    u = loc + torch.einsum("sdn,kn->ksd", tril[:, :, :n], signed)
    nb = d - n
    bands = band_matrix(nb, prior.reference, loc)[patch.band]  # [image, nb]
    mean = torch.einsum("ib,ksb->ksi", bands, u[..., n:])
    var = torch.einsum("ib,sbc->sic", bands, tril[:, n:, n:]).square().sum(-1)  # [s, image]
    return u, mean + 0.5 * var, 2 * mean + 2 * var


def _moments(loc: Tensor, tril: Tensor, prior: Prior, kind: int, patch: Patch) -> tuple[Tensor, Tensor]:
    """Mean and variance of each source's electrons in each pixel, [source, image, pixel]."""
    u, log_first, log_second = nodes(loc, tril, prior, kind, patch)
    if kind:
        image = star_images(patch, u[..., :2])  # [k, s, image, pixel]
    else:
        image = galaxy_images(patch, u[..., :2], u[..., 2], u[..., 3:5], u[..., 5])
    first = patch.calibration * torch.exp(log_first)
    second = patch.calibration**2 * torch.exp(log_second)
    expected = (first[..., None] * image).mean(0)
    return expected, (second[..., None] * image**2).mean(0) - expected**2


def _prior_and_entropy(
    loc: Tensor, tril: Tensor, prior: Prior, kind: int, anchor: Tensor, family: str
) -> Float[Tensor, "source"]:
    """E_q log p(u | type) - E_q log q(u | type) (the points of a point family have no entropy)."""
    n = _STAR if kind else _GALAXY
    s, d = loc.shape
    variance = tril.square().sum(-1)
    mean = [anchor, loc.new_tensor([prior.log_radius_mean, 0.0, 0.0, 0.0]).expand(s, 4)][: 1 if kind else 2]
    mean.append(loc.new_tensor(prior.log_flux_mean[kind]).expand(s, 1))
    sd = [prior.position_sd] * 2
    if not kind:
        sd += [prior.log_radius_sd, prior.ellipticity_sd, prior.ellipticity_sd, prior.dev_logit_sd]
    scale = loc.new_tensor([*sd, prior.log_flux_sd[kind]])
    z2 = ((loc[:, : n + 1] - torch.cat(mean, -1)) ** 2 + variance[:, : n + 1]) / scale**2
    value = (-0.5 * z2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    mixture = prior.colour[kind]
    delta = loc[:, None, n + 1 :] - mixture.means
    covariance = tril[:, n + 1 :] @ tril[:, n + 1 :].mT
    precision = torch.linalg.inv(mixture.covariances)
    fit = torch.einsum("smi,mij,smj->sm", delta, precision, delta)
    fit = fit + torch.einsum("mij,sij->sm", precision, covariance)
    log_norm = mixture.weights.log() - 0.5 * torch.logdet(2 * torch.pi * mixture.covariances)
    value = value + torch.logsumexp(log_norm - 0.5 * fit, -1)
    free = d - n if family == "point" else d
    diagonal = torch.diagonal(tril, dim1=-2, dim2=-1)[:, d - free :]
    return value + diagonal.log().sum(-1) + 0.5 * free * (1 + math.log(2 * math.pi))
