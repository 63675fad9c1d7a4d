"""From the modes of a source's two types to draws of its posterior, by importance sampling.

The guide found by the trust region (a Gaussian per type: mode and inverse curvature) is the first proposal;
the moments of its weighted draws make the second (population Monte Carlo, one generation), since shapes of
small galaxies and log fluxes of faint bands are skewed. Fluxes and colours only scale an image, so one
rendering serves many of their draws. The mean weight of each type is its evidence, and the two decide
between star and galaxy. Pareto-smoothed weights tell where the guide was too far off: k-hat above 0.7.

References:
    Cappe et al. 2004, JCGS 13, 907 (population Monte Carlo); Vehtari et al. 2024, JMLR 25, 72 (k-hat).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torch.quasirandom import SobolEngine

from astrozoo.diagnostics.arviz import psis
from astrozoo.models.celeste import Patch, galaxy_images, star_images
from astrozoo.models.celeste_density import TypedDensity

__all__ = ["TypedDraws", "draw_type", "mix_types"]

_WIDEN = 1.15  # proposals are this much wider than the moments they are made from
_TAIL = 8.0  # degrees of freedom of the proposal of position and shape
_CHUNK = 4  # rows at once: what they need fits the cache


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
    *,
    seed: int,
    renderings: int = 48,
    fluxes: int = 8,
) -> TypedDraws:
    """Importance-weighted draws of sources of one type.

    Args:
        density: of a batch of patches.
        mode, covariance: the guide.
        renderings: draws of position and shape; each is rendered once.
        fluxes: draws of flux and colours for each of them.
    """
    parts = []
    for start in range(0, len(mode), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(mode)))
        parts.append(_draw(density.take(rows), mode[rows], covariance[rows], seed, renderings, fluxes))
    u, log_ratio = (torch.cat(p) for p in zip(*parts, strict=True))
    log_weight, k_hat = psis(log_ratio.numpy())
    evidence = torch.logsumexp(log_ratio, -1) - math.log(log_ratio.shape[1])
    return TypedDraws(u, torch.from_numpy(log_weight), evidence, torch.from_numpy(k_hat))


def _draw(
    density: TypedDensity, mode: Tensor, covariance: Tensor, seed: int, renderings: int, fluxes: int
) -> tuple[Tensor, Tensor]:
    mean, cov = mode, covariance
    for turn in range(2):
        u, log_ratio = _propose(density, mean, cov, seed + turn, renderings, fluxes)
        if turn == 0:
            weight = torch.softmax(log_ratio, -1)
            effective = 1 / weight.square().sum(-1)
            shift = torch.einsum("bn,bni->bi", weight, u) - mean
            off = u - (mean + shift)[:, None]
            spread = torch.einsum("bn,bni,bnj->bij", weight, off, off)
            # with few effective draws, mostly the first proposal again
            trust = effective / (effective + 2 * density.dim)
            mean = mean + trust[:, None] * shift
            cov = trust[:, None, None] * spread + (1 - trust[:, None, None]) * cov
    return u, log_ratio


def _propose(
    density: TypedDensity, mean: Tensor, cov: Tensor, seed: int, renderings: int, fluxes: int
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
    """Draws from a proposal of given moments, and their log importance ratios.

    Position and shape come from a multivariate t, flux and colours from a normal given those.
    """
    nb, d = density.n_bending, density.dim
    tril = _WIDEN * torch.linalg.cholesky(cov)
    e, log_q_bend = _student(renderings, nb, seed)  # [m, nb], [m]
    bend = mean[:, None, :nb] + torch.einsum("bij,mj->bmi", tril[:, :nb, :nb], e)
    centre = mean[:, None, nb:] + torch.einsum("bij,mj->bmi", tril[:, nb:, :nb], e)  # [b, m, nl]
    z = _normals(renderings * fluxes, d - nb, seed + 100).reshape(renderings, fluxes, d - nb)
    linear = centre[:, :, None] + torch.einsum("bij,mnj->bmni", tril[:, nb:, nb:], z)
    log_q = (log_q_bend[:, None] + _log_normal(z)) - _log_det(tril)[:, None, None]
    u = torch.cat((bend[:, :, None].expand(-1, -1, fluxes, -1), linear), -1)
    log_ratio = density.log_joint_of_images(_images(density, bend), u) - log_q
    return u.flatten(1, 2), log_ratio.flatten(1)


def _images(density: TypedDensity, bend: Float[Tensor, "b m nb"]) -> Float[Tensor, "b m image pixel"]:
    patch: Patch = density.patch
    out = []
    for at in bend.unbind(1):
        offset = at[:, :2]
        out.append(
            star_images(patch, offset)
            if density.star
            else galaxy_images(patch, offset, at[:, 2], at[:, 3:5], at[:, 5])
        )
    return torch.stack(out, 1)


def _normals(n: int, d: int, seed: int) -> Float[Tensor, "n d"]:
    """Quasi-random standard normals (scrambled Sobol)."""
    uniform = SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))


def _student(n: int, d: int, seed: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Quasi-random multivariate t of unit covariance, and its log density."""
    uniform = SobolEngine(d + 1, scramble=True, seed=seed).draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    z = torch.special.ndtri(uniform[:, :d])
    nu = _TAIL
    mixing = torch.from_numpy(stats.chi2(nu).ppf(uniform[:, d].numpy())) / nu
    scale = math.sqrt((nu - 2) / nu)
    t = scale * z / mixing.sqrt()[:, None]
    norm = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - 0.5 * d * math.log(nu * math.pi * scale**2)
    return t, norm - 0.5 * (nu + d) * torch.log1p((t / scale).square().sum(-1) / nu)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z * z + math.log(2 * math.pi)).sum(-1)


def _log_det(tril: Float[Tensor, "b d d"]) -> Float[Tensor, "b"]:
    return torch.diagonal(tril, dim1=-2, dim2=-1).log().sum(-1)


def mix_types(
    star: TypedDraws, galaxy: TypedDraws, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b n"], Float[Tensor, "b n d"]]:
    """Equal-weight draws of both types together.

    Returns:
        p(star); the type of each draw (1 a star); its parameters in a galaxy's order, with NaN for the
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
        # systematic resampling goes in order: shuffle, so that any subset of draws is fair
        index = index[:, torch.randperm(n, generator=generator)]
        chosen[name] = torch.gather(typed.u, 1, index[..., None].expand(-1, -1, typed.u.shape[-1]))
    missing = chosen["star"].new_full((b, n, 4), torch.nan)
    as_galaxy = torch.cat((chosen["star"][..., :2], missing, chosen["star"][..., 2:]), -1)
    u = torch.where(is_star[..., None], as_galaxy, chosen["galaxy"])
    order = torch.randperm(n, generator=generator)
    return p_star, is_star[:, order].to(u), u[:, order]
