"""Draws of a source's posterior by importance sampling, from the modes of its two types.

For each type, the first proposals are the Gaussian that the trust region fits, its mode and inverse
curvature, and what it becomes under the most probable components of the prior of the colours: the mode may be
in one of them, and most of the posterior in another. Shapes of small galaxies and log fluxes of faint bands
are skewed. The next proposal therefore has the moments of the weighted draws, and all draws are weighted by
the mixture of all proposals (adaptive multiple importance sampling). Fluxes and colours only scale an image,
so each rendering is used for many of their draws. The mean weight of each type is its evidence, and the ratio
of the two evidences gives the probability of a star. Pareto-smoothed weights show where the proposals were
not good enough: k-hat above 0.7.

References:
    Cornuet et al. 2012, Scand. J. Stat. 39, 798 (adaptive multiple importance sampling);
    Vehtari et al. 2024, JMLR 25, 72 (k-hat).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from torch.quasirandom import SobolEngine

from astrozoo.diagnostics.arviz import psis
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.response import Response

__all__ = ["TypedDraws", "draw_type", "mix_types", "weighted_moments"]

_WIDENING = 1.15
"""Factor by which the standard deviations of proposals exceed those of the draws, to cover the tails."""
_DEGREES_OF_FREEDOM = 5.0
"""Degrees of freedom of the t proposal of position and shape. Its heavy tails keep the weights bounded."""
_COMPONENTS = 2
"""Number of components of the prior of the colours that have a proposal, the most probable ones.

In SDSS, no more than two are probable for one source."""
_ROWS_AT_ONCE = 8
"""Number of sources that are drawn at once. With ``_COORDINATES_AT_ONCE`` it keeps the work in the cache."""
_COORDINATES_AT_ONCE = 100_000
"""Number of pixel coordinates that are rendered at once, so that the work stays in the cache."""


class TypedDraws(NamedTuple):
    """Weighted draws of one type: parameters ``[b, n, d]``, normalised log weights, evidence, k-hat."""

    u: Float[Tensor, "b n d"]
    log_weight: Float[Tensor, "b n"]
    log_evidence: Float[Tensor, "b"]
    k_hat: Float[Tensor, "b"]


def draw_type(
    density: TypedDensity,
    mode: Float[Tensor, "b d"],
    covariance: Float[Tensor, "b d d"],
    possible: Bool[Tensor, "b"],
    *,
    seed: int,
    response: Response | None = None,
    renderings: tuple[int, ...] = (32, 48, 64),
    fluxes: int = 8,
) -> TypedDraws:
    """Importance-weighted draws of sources of one type.

    Args:
        density: of a batch of patches.
        mode: of the guide.
        covariance: of the guide.
        possible: False where the type is already excluded. No draws are then made, and the log evidence is
            -inf. If no draw has any weight, the log evidence is the smallest finite number instead, so that
            the other type is chosen unless it is excluded.
        seed: of the quasi-random draws.
        response: of the neighbours, which are integrated out; without it, their light is fixed.
        renderings: numbers of draws of position and shape from each proposal in turn, each rendered once.
            Those of a component of the colours have half as many as the first.
        fluxes: number of draws of flux and colours for each draw of position and shape.
    """
    n = (sum(renderings) + _components(density) * _of_each(renderings)) * fluxes
    out = TypedDraws(
        mode[:, None].repeat(1, n, 1),
        mode.new_full((len(mode), n), -math.log(n)),
        mode.new_full((len(mode),), -torch.inf),
        mode.new_zeros(len(mode)),
    )
    if not possible.any():
        return out
    for rows in torch.nonzero(possible)[:, 0].split(_ROWS_AT_ONCE):
        part, part_response = density.take(rows), None if response is None else response.take(rows)
        u, log_ratio = _draw(part, part_response, mode[rows], covariance[rows], seed, renderings, fluxes)
        none = (log_ratio == -torch.inf).all(-1)
        log_weight, k_hat = psis(log_ratio.masked_fill(none[:, None], 0.0).numpy())
        out.u[rows] = u
        out.log_weight[rows] = torch.from_numpy(log_weight)
        out.k_hat[rows] = torch.from_numpy(k_hat).masked_fill(none, torch.inf)
        evidence = torch.logsumexp(log_ratio, -1) - math.log(n)
        out.log_evidence[rows] = evidence.clamp(min=torch.finfo(u.dtype).min)
    return out


class _Proposal(NamedTuple):
    """Position and shape follow a multivariate t; flux and colours are normal given these."""

    mean: Float[Tensor, "b d"]
    tril: Float[Tensor, "b d d"]
    bending: int

    @classmethod
    def of(cls, density: TypedDensity, mean: Float[Tensor, "b d"], cov: Float[Tensor, "b d d"]) -> _Proposal:
        """About a mean, somewhat wider than a covariance."""
        return cls(mean, _WIDENING * torch.linalg.cholesky(cov), density.n_bending)

    def draw(self, renderings: int, fluxes: int, seed: int) -> tuple[Float[Tensor, "b m nb"], Tensor]:
        """Quasi-random draws of position and shape, and of all parameters ``[b, m, n, d]``."""
        nb, d = self.bending, self.mean.shape[-1]
        e = _student(renderings, nb, seed).to(self.mean)
        z = _normals(renderings * fluxes, d - nb, seed + 1).to(self.mean).reshape(renderings, fluxes, d - nb)
        moved = self.mean[:, None] + torch.einsum("bij,mj->bmi", self.tril[:, :, :nb], e)
        linear = moved[:, :, None, nb:] + torch.einsum("bij,mnj->bmni", self.tril[:, nb:, nb:], z)
        bend = moved[:, :, :nb]
        return bend, torch.cat((bend[:, :, None].expand(-1, -1, fluxes, -1), linear), -1)

    def log_prob(self, u: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        nb = self.bending
        white = torch.linalg.solve_triangular(self.tril, (u - self.mean[:, None]).mT, upper=False).mT
        log_det = torch.diagonal(self.tril, dim1=-2, dim2=-1).log().sum(-1)
        z = white[..., nb:]
        normal = -0.5 * (z * z + math.log(2 * math.pi)).sum(-1)
        return _log_student(white[..., :nb]) + normal - log_det[:, None]


def _draw(
    density: TypedDensity,
    response: Response | None,
    mode: Tensor,
    covariance: Tensor,
    seed: int,
    renderings: tuple[int, ...],
    fluxes: int,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
    """Draws from all proposals, and their log importance ratios against the mixture of them."""
    mean, cov = mode, covariance
    if response is not None:
        response, cov = response.widened(density, mode, covariance)
    pending = [
        (_Proposal.of(density, mean, cov), renderings[0]),
        *_of_components(density, mean, cov, renderings),
    ]
    proposals: list[_Proposal] = []
    drawn: list[Tensor] = []
    joint: list[Tensor] = []
    number: list[int] = []
    for turn in range(len(renderings)):
        for proposal, m in pending:
            bend, u = proposal.draw(m, fluxes, seed + 10 * len(proposals))
            proposals.append(proposal)
            number.append(m)
            joint.append(_log_joint(density, response, bend, u))
            drawn.append(u.flatten(1, 2))
        every, share = torch.cat(drawn, 1), mode.new_tensor(number) / sum(number)
        log_q = torch.stack([p.log_prob(every) for p in proposals]) + share.log()[:, None, None]
        log_ratio = torch.cat(joint, 1) - torch.logsumexp(log_q, 0)
        mean, cov = weighted_moments(every, log_ratio, mean, cov)
        if turn + 1 < len(renderings):
            pending = [(_Proposal.of(density, mean, cov), renderings[turn + 1])]
    return every, log_ratio


def _of_components(
    density: TypedDensity, mean: Tensor, cov: Tensor, renderings: tuple[int, ...]
) -> list[tuple[_Proposal, int]]:
    """Proposals of the most probable components of the prior of the colours."""
    log_weight, means, covariances = density.by_component(mean, cov)
    count = _components(density)
    best = log_weight.topk(count, 1).indices
    rows = torch.arange(len(mean))
    return [
        (_Proposal.of(density, means[rows, k], covariances[rows, k]), _of_each(renderings))
        for k in best.unbind(1)
    ]


def _components(density: TypedDensity) -> int:
    return min(_COMPONENTS, len(density.prior.colour[int(density.star)].weights))


def _of_each(renderings: tuple[int, ...]) -> int:
    """Renderings of each component's proposal."""
    return max(1, renderings[0] // 2)


def _log_joint(
    density: TypedDensity,
    response: Response | None,
    bend: Float[Tensor, "b m nb"],
    u: Float[Tensor, "b m n d"],
) -> Float[Tensor, "b mn"]:
    """The log density of draws, of which ``n`` each share an image; -inf where the image overflows."""
    at_once = max(1, _COORDINATES_AT_ONCE // density.patch.pixels.numel())
    images = torch.cat([density.images(rows) for rows in bend.split(at_once, 1)], 1)
    value = density.log_joint_of_images(images, u)
    if response is not None:
        loss = density.log_likelihood(response.light)[:, None, None] - (value - density.log_prior(u))
        value = value + response.gain(images, density.electrons(u), loss)
    # extremely thin or large shapes, whose image overflows, have no weight
    return torch.where(value.isfinite(), value, -torch.inf).flatten(1)


def weighted_moments(u: Tensor, log_ratio: Tensor, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of weighted draws, shrunk to the given ones if few draws are effective."""
    none = (log_ratio == -torch.inf).all(-1, keepdim=True)
    weight = torch.softmax(log_ratio.masked_fill(none, 0.0), -1)
    weight = weight.clamp(max=u.shape[1] ** -0.5)  # truncated weights (Ionides 2008)
    weight = weight / weight.sum(-1, keepdim=True)
    effective = 1 / weight.square().sum(-1)
    trust = (effective / (effective + 2 * u.shape[-1]))[:, None].masked_fill(none, 0.0)
    centre = torch.einsum("bn,bni->bi", weight, u)
    off = u - centre[:, None]
    spread = torch.einsum("bn,bni,bnj->bij", weight, off, off)
    return mean + trust * (centre - mean), trust[..., None] * spread + (1 - trust[..., None]) * cov


def _normals(n: int, d: int, seed: int) -> Float[Tensor, "n d"]:
    """Quasi-random standard normals (scrambled Sobol)."""
    uniform = SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))


def _student(n: int, d: int, seed: int) -> Float[Tensor, "n d"]:
    """Quasi-random draws of a multivariate t of unit covariance."""
    uniform = SobolEngine(d + 1, scramble=True, seed=seed).draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    mixing = torch.from_numpy(stats.chi2(_DEGREES_OF_FREEDOM).ppf(uniform[:, d].numpy())) / (
        _DEGREES_OF_FREEDOM - 2
    )
    return torch.special.ndtri(uniform[:, :d]) / mixing.sqrt()[:, None]


def _log_student(t: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    d = t.shape[-1]
    norm = (
        math.lgamma((_DEGREES_OF_FREEDOM + d) / 2)
        - math.lgamma(_DEGREES_OF_FREEDOM / 2)
        - 0.5 * d * math.log((_DEGREES_OF_FREEDOM - 2) * math.pi)
    )
    return norm - 0.5 * (_DEGREES_OF_FREEDOM + d) * torch.log1p(
        t.square().sum(-1) / (_DEGREES_OF_FREEDOM - 2)
    )


def mix_types(
    star: TypedDraws, galaxy: TypedDraws, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b n"], Float[Tensor, "b n d"]]:
    """Draws of equal weight from the mixture of both types.

    Returns:
        p(star); the type of each draw (1 a star); its parameters in the order of a galaxy's, with NaN for the
        shape of a star.
    """
    p_star = torch.sigmoid(star.log_evidence - galaxy.log_evidence)
    b = len(p_star)
    start = torch.rand(b, generator=generator, dtype=torch.float64)
    grid = (torch.arange(n) + start[:, None]) / n
    is_star = grid < p_star[:, None]
    chosen = {}
    for name, typed in (("star", star), ("galaxy", galaxy)):
        cumulative = torch.cumsum(torch.exp(typed.log_weight), -1)
        offset = torch.rand(b, 1, generator=generator, dtype=torch.float64)
        place = (torch.arange(n) + offset) / n * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, place.contiguous()).clamp(max=cumulative.shape[1] - 1)
        # systematic resampling is ordered; after a shuffle, any subset of draws represents the posterior
        index = torch.gather(index, 1, _shuffles(b, n, generator))
        chosen[name] = torch.gather(typed.u, 1, index[..., None].expand(-1, -1, typed.u.shape[-1]))
    missing = chosen["star"].new_full((b, n, 4), torch.nan)
    as_galaxy = torch.cat((chosen["star"][..., :2], missing, chosen["star"][..., 2:]), -1)
    u = torch.where(is_star[..., None], as_galaxy, chosen["galaxy"])
    order = _shuffles(b, n, generator)
    u = torch.gather(u, 1, order[..., None].expand(-1, -1, u.shape[-1]))
    return p_star, torch.gather(is_star, 1, order).to(u), u


def _shuffles(b: int, n: int, generator: torch.Generator) -> Int[Tensor, "b n"]:
    """A permutation for each source. A common one would correlate the draws of different sources."""
    return torch.rand(b, n, generator=generator, dtype=torch.float64).argsort(-1)
