"""Fitted guides and normals as results: their draws, their moments, and log p - log q of the draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer._moments import Moments
from astrozoo.infer.options import RunOptions
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import DISCRETE_STREAM, by_chain, constrained, kept_sites
from astrozoo.objective import Density, VariationalObjective
from astrozoo.types import DENSE_COVARIANCE

__all__ = [
    "elbo_of_draws",
    "exact_moments",
    "guide_draws",
    "noise_per_latent",
    "normal_draws",
    "rows_at_once",
    "second_moments",
]

PROBED = 1000
"""Noise coordinates of a guide up to which its shape is probed one by one: the probes of 1,000 take 8 MB."""
ELEMENTS_AT_ONCE = 2**20
"""Numbers of noise or of draws that one call evaluates: 8 MiB in double precision, of which the intermediate
results of a captured function take ten to thirty times as much."""
RATIOS_AT_ONCE = 100
"""Draws whose density ratios are computed in one batch; bounds memory for large data."""
_RATIO = "(log ratio)"
"""Key of the density ratios among the columns of :func:`guide_draws`; no site can have this name."""


def rows_at_once(elements: int) -> int:
    """How many rows of so many elements one call evaluates (:data:`ELEMENTS_AT_ONCE`)."""
    return max(1, ELEMENTS_AT_ONCE // max(1, elements))


def exact_moments(elbo: VariationalObjective, w: Float[Tensor, "b p"]) -> dict[str, Tensor] | None:
    """Moments of a guide that is an affine map of its normal noise, as fields of a Result; else None.

    They are location and covariance, or above ``PROBED`` noise coordinates, where only mean fields are
    recognised, location and variance.
    """
    e = elbo.draw_dim
    many = e > PROBED
    if many and noise_per_latent(elbo, w) > 1:
        return None
    like: dict[str, Any] = {"dtype": w.dtype, "device": w.device}
    check = torch.full((e,), -1.5, **like) if many else torch.linspace(-1.0, 1.5, e, **like)
    units = torch.ones(1, e, **like) if many else torch.eye(e, **like)
    z = elbo.unconstrained(w, torch.cat((torch.zeros(1, e, **like), units, check[None])))
    mean, A = z[:, 0], z[:, 1:-1] - z[:, :1]
    affine = mean + (-1.5 * A[:, 0] if many else torch.einsum("bed,e->bd", A, check))
    # The tolerance is loose because values pass through the sites' transforms and back.
    error = (z[:, -1] - affine).abs().max()
    if not error <= torch.finfo(w.dtype).eps ** 0.4 * (1 + z.abs().max()):
        return None
    if many:
        return {"location": mean, "variance": A[:, 0].square()}
    return {"location": mean} | second_moments(A.mT @ A)


def second_moments(covariance: Float[Tensor, "b d d"]) -> dict[str, Any]:
    """The covariance (up to ``DENSE_COVARIANCE`` dimensions) and its diagonal, as fields of a Result."""
    dense = covariance.shape[1] <= DENSE_COVARIANCE
    return {"covariance": covariance if dense else None, "variance": covariance.diagonal(dim1=1, dim2=2)}


def noise_per_latent(elbo: VariationalObjective, w: Float[Tensor, "b p"]) -> int:
    """The most noise coordinates that any one latent of a guide depends on: 1 mean field, dim full rank.

    Above ``PROBED`` coordinates it is exact for a mean field; any other guide is taken to depend on all of
    them.
    """
    shift = torch.randn(w.shape, generator=generator_for(0), dtype=w.dtype).to(w.device)
    like: dict[str, Any] = {"dtype": w.dtype, "device": w.device}
    e, w = elbo.draw_dim, w + 0.01 * shift
    origin = elbo.unconstrained(w, torch.zeros(1, e, **like))
    least = torch.finfo(w.dtype).eps ** 0.5
    if e <= PROBED:
        moved = (elbo.unconstrained(w, torch.eye(e, **like)) - origin).abs() > least
        return int(moved.sum(1).max())
    # Two coordinates differ in a bit of their index. A latent that depends on both therefore moves with the
    # coordinates that have that bit, and with those that have it not.
    index = torch.arange(e, device=w.device)
    for bit in range((e - 1).bit_length()):
        has_bit = (index >> bit & 1).to(w)
        there = elbo.unconstrained(w, torch.stack((has_bit, 1 - has_bit)))
        if ((there - origin).abs() > least).all(1).any():
            return e
    return 1


def guide_draws(elbo: VariationalObjective, w: Float[Tensor, "b p"], run: RunOptions) -> dict[str, Any]:
    """Draws of a fitted guide, as fields of a Result: draws, sample_stats, moments and guide parameters.

    ``sample_stats`` holds ``log_ratio``, log p - log q of each draw, for a guide that has a density. The
    moments (in unconstrained space) are exact where the guide is Gaussian.
    """
    total, batched = run.chains * run.draws, elbo.batch is not None
    generator, discrete = generator_for(run.seed, 1, 1), generator_for(run.seed, DISCRETE_STREAM)
    exact = exact_moments(elbo, w)
    sampled = Moments(len(w), elbo.layout.dim, dtype=w.dtype)
    at_once = total if exact and not elbo.draw_dim else rows_at_once(len(w) * max(elbo.draw_dim, w.shape[1]))
    columns: dict[str, Tensor] = {}
    for first in range(0, total, at_once):
        rows = slice(first, min(first + at_once, total))
        shape = (rows.stop - first, elbo.draw_dim)
        noise = torch.randn(shape, generator=generator, dtype=elbo.dtype).to(elbo.device)
        part = elbo.sample(w, noise)
        if elbo.recovers_discrete:
            part |= elbo.discrete(elbo.unconstrained(w, noise), discrete, w)
        part = kept_sites(part | elbo.derived(part, w), run)
        if elbo.draw_dim:
            part[_RATIO] = torch.cat(
                [elbo.log_ratio(w, part_noise) for part_noise in noise.split(RATIOS_AT_ONCE)], 1
            )
        if exact is None:
            sampled.add(elbo.unconstrained(w, noise))
        for name, x in part.items():
            if name not in columns:
                columns[name] = x.new_empty(len(x), total, *x.shape[2:])
            columns[name][:, rows] = x
    draws = {name: by_chain(x, run.chains, batched) for name, x in columns.items()}
    stats = {"log_ratio": draws.pop(_RATIO)} if _RATIO in draws else {}
    moments = sampled.fields() if exact is None else exact
    values = {name: x.detach().cpu().numpy() for name, x in elbo.model_parameters(w).items()}
    parameters = {name: np.asarray(x if batched else x[0]) for name, x in values.items()}
    flat = w.detach().cpu().numpy()
    fields = {"draws": draws, "sample_stats": stats, "parameters": parameters, "guide_parameters": flat}
    return fields | moments


def elbo_of_draws(fitted: Mapping[str, Any]) -> dict[str, Any]:
    """ELBO of each problem and its standard error, from the draws of :func:`guide_draws`.

    The draws are independent of each other and of those that the fit used. Empty for a guide without density.
    """
    ratio = fitted["sample_stats"].get("log_ratio")
    if ratio is None:
        return {}
    ratio = ratio.reshape(ratio.shape[0] * ratio.shape[1], -1)
    n = len(ratio)
    error = ratio.std(0, ddof=1) / n**0.5 if n > 1 else np.full(ratio.shape[1], np.nan)
    return {"elbo": ratio.mean(0).tolist(), "elbo_se": error.tolist()}


def normal_draws(
    density: Density,
    mean: Float[Tensor, "b d"],
    root: Float[Tensor, "b d d"],
    generator: torch.Generator,
    run: RunOptions,
) -> tuple[dict[str, Any], Float[Tensor, "b m"]]:
    """Draws of ``N(mean, root root')`` as fields of a Result (draws, sample_stats), and their ln p - ln q.

    Where a problem's root is undefined (NaN), its draws equal its mean, and have no ratio.
    """
    n = run.chains * run.draws
    e = torch.randn(n, mean.shape[1], generator=generator, dtype=mean.dtype).to(mean.device)
    z = mean[:, None] + e @ root.nan_to_num().mT
    ratio, batched = _log_ratio(density, z, e, root), density.batch is not None
    sites = constrained(density, z, run.seed)
    draws = {name: by_chain(x, run.chains, batched) for name, x in sites.items()}
    sample_stats = {"log_ratio": by_chain(ratio, run.chains, batched)}
    return {"draws": draws, "sample_stats": sample_stats}, ratio


def _log_ratio(
    density: Density, z: Float[Tensor, "b m d"], e: Float[Tensor, "m d"], root: Float[Tensor, "b d d"]
) -> Float[Tensor, "b m"]:
    """ln p - ln q of the draws ``z = mean + root e`` of a Gaussian with that (triangular) root."""
    if density.batch is None:
        log_p = torch.cat([density.values(part) for part in z[0].split(RATIOS_AT_ONCE)]).mT
    else:
        log_p = torch.cat([density.values(z[:, i]) for i in range(z.shape[1])], 1)
    log_q = -(e.square() + math.log(2 * math.pi)).sum(1) / 2
    return log_p - log_q + root.diagonal(dim1=1, dim2=2).abs().log().sum(1)[:, None]
