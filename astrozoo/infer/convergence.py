"""What "converged" means for an ensemble of Markov chains: one rule for status, report and summary.

The rule, of every element of every site: the bulk and the tail effective sample size (ESS) are at least
``LEAST_ESS``, and the rank-normalised split R-hat is at most a limit that depends on the number and the
length of the chains. :func:`mixing_of` computes it from the draws of a result, so that whoever has the draws
gets the same numbers.

With ``M`` half-chains, each worth ``s`` independent draws, chance alone gives means whose variance is
``X / s`` times that of the posterior, where ``(M - 1) X`` has a chi-square distribution of ``M - 1`` degrees
of freedom. R-hat squared is then ``1 + X / s``. Vehtari et al. choose 1.01 for few long chains, whose ``s``
is large. For many short chains, whose ``s`` may be 20, no ensemble however good stays below 1.01. The limit
is therefore ``sqrt(R_HAT^2 + X_q / s)``: a variance between chains of 2 % of the posterior's is tolerated
beyond what chance explains. ``X_q`` is the quantile of ``X`` that no element exceeds by chance in 99 % of
runs. ``s`` comes from the autocorrelation within half-chains alone: chains that disagree do not raise the
limit.

One chain of many that stays at a typical place is not detected by R-hat; it changes no estimate much.

References:
    Vehtari et al. 2021, Bayesian Analysis 16, 667 (rank-normalised split R-hat, bulk and tail ESS).
    Margossian et al. 2024, Bayesian Analysis (R-hat of many short chains is above 1.01 by chance).
    Geyer 1992, Statistical Science 7, 473 (initial monotone sequence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.types import Status

__all__ = ["LEAST_ESS", "R_HAT", "Mixing", "e_bfmi", "ensemble_status", "mixing", "mixing_of"]

R_HAT = 1.01
"""Largest R-hat of infinitely long chains (Vehtari et al. 2021, section 4): a variance between chains of 2 %
of the posterior's."""
LEAST_ESS = 400
"""Least bulk and tail effective sample size: the estimates of R-hat and ESS themselves are unreliable below
(Vehtari et al. 2021, section 4). It leaves errors of the means of 5 % of the posterior SDs."""
FALSE_ALARMS = 0.01
"""Share of perfect runs in which the R-hat of any element is above its limit by chance."""
MAX_DIVERGENT = 0.01
"""Share of divergent trajectories below which a run can have converged."""
BROKEN_DIVERGENT = 0.1
"""Share of divergent trajectories above which a run has diverged: it does not sample the posterior."""
UNSEEN_R_HAT = 1.05
"""Largest split R-hat of latents of which no draws are kept. Only moments of the halves of their chains are
known, so that there is no ESS and no limit by the rule."""
MOST_NUMBERS = 2**24
"""Numbers in the draws up to which every element is looked at: it takes 0.6 microseconds a number, 10 s in
all, on one core. A chain of 1,000 draws in 1e5 dimensions has six times as many."""
ELEMENTS_AT_ONCE = 2**20
"""Numbers in the draws that are transformed at once: 8 MiB in double precision. The padded spectra of the
autocorrelations take four times as much."""


@dataclass(frozen=True)
class Mixing:
    """Convergence diagnostics of each problem and element; NaN where draws do not vary, or are not finite.

    Args:
        r_hat: rank-normalised split R-hat; the larger of that of the draws and of their distances from the
            median.
        r_hat_limit: the largest R-hat of a converged run.
    """

    r_hat: Float[Tensor, "b d"]
    r_hat_limit: Float[Tensor, "b d"]
    bulk_ess: Float[Tensor, "b d"]
    tail_ess: Float[Tensor, "b d"]

    @property
    def converged(self) -> Bool[Tensor, "b"]:
        """Whether all elements that vary fulfil the rule, and at least one of them varies."""
        enough = (self.bulk_ess >= LEAST_ESS) & (self.tail_ess >= LEAST_ESS)
        constant = self.r_hat_limit.isnan()
        return (constant | (enough & (self.r_hat <= self.r_hat_limit))).all(1) & ~constant.all(1)

    @property
    def constant(self) -> Bool[Tensor, "b"]:
        """Whether no draw of a problem differs from another."""
        return self.r_hat_limit.isnan().all(1)

    def worst(self) -> dict[str, float]:
        """R-hat and its limit where R-hat exceeds it most, and the smallest ESS; NaN where nothing varies."""
        if self.constant.all():
            return dict.fromkeys(
                ("largest r-hat", "r-hat limit", "smallest bulk ess", "smallest tail ess"), math.nan
            )
        worst = (self.r_hat - self.r_hat_limit).flatten().nan_to_num(-torch.inf).argmax()
        return {
            "largest r-hat": float(self.r_hat.flatten()[worst]),
            "r-hat limit": float(self.r_hat_limit.flatten()[worst]),
            "smallest bulk ess": float(self.bulk_ess.nan_to_num(torch.inf).min()),
            "smallest tail ess": float(self.tail_ess.nan_to_num(torch.inf).min()),
        }


def mixing_of(draws: Mapping[str, np.ndarray], batched: bool) -> Mixing:
    """Convergence diagnostics of the draws of a result, ``{site: [chain, draw, (problem), ...]}``.

    Where the draws are more than ``MOST_NUMBERS`` numbers, only evenly chosen elements are looked at.
    """
    sites = []
    for x in draws.values():
        z = np.moveaxis(x, 2, 0) if batched else x[None]
        sites.append(z.reshape(*z.shape[:3], -1))
    numbers = sum(z.size for z in sites)
    every = max(1, math.ceil(numbers / MOST_NUMBERS))
    chosen = [z[..., ::every] for z in sites]
    elements = sum(z.shape[3] for z in chosen)
    parts = [mixing(torch.as_tensor(np.asarray(z, float)), elements) for z in chosen]
    if not parts:
        return mixing(torch.zeros(1, 0, 0, 0))
    columns = zip(*((m.r_hat, m.r_hat_limit, m.bulk_ess, m.tail_ess) for m in parts), strict=True)
    return Mixing(*(torch.cat(column, 1) for column in columns))


def mixing(z: Float[Tensor, "b c n d"], tests: int | None = None) -> Mixing:
    """Convergence diagnostics of chains; all NaN with fewer than four draws of a chain.

    Args:
        tests: number of elements among which none shall exceed its limit by chance; None: ``d``.
    """
    b, c, n, d = z.shape
    if n < 4 or d == 0 or c == 0:
        nothing = torch.full((b, d), torch.nan, dtype=torch.float64)
        return Mixing(nothing, nothing, nothing, nothing)
    size = max(1, ELEMENTS_AT_ONCE // (c * n))
    problems = []
    for rows in z:
        parts = [_mixing(rows[..., first : first + size].double(), tests or d) for first in range(0, d, size)]
        problems.append([torch.cat(column) for column in zip(*parts, strict=True)])
    return Mixing(*(torch.stack(column) for column in zip(*problems, strict=True)))


def _mixing(z: Float[Tensor, "c n d"], elements: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R-hat, its limit, bulk and tail ESS of every column."""
    x = _split(z.movedim(2, 0))  # [d, m, n]
    flat = x.flatten(1)
    moving = (flat != flat[:, :1]).any(1) & flat.isfinite().all(1)
    middle = _quantile(flat, 0.5)
    normal, folded = _rank_normal(x), _rank_normal((x - middle).abs())
    r_hat = torch.maximum(_r_hat(normal), _r_hat(folded))
    within = _ess_within(normal)
    low, high = (x <= _quantile(flat, q) for q in (0.05, 0.95))
    bulk = _ess(normal)
    tail = torch.minimum(_ess(low.double()), _ess(high.double()))
    limit = (R_HAT**2 + _chance(x.shape[1], 2 * elements) / within).sqrt()
    return tuple(torch.where(moving, value, torch.nan) for value in (r_hat, limit, bulk, tail))  # type: ignore[return-value]


def _quantile(flat: Float[Tensor, "d k"], q: float) -> Float[Tensor, "d 1 1"]:
    """A quantile by linear interpolation. (``torch.quantile`` takes at most 16 million numbers.)"""
    place = q * (flat.shape[1] - 1)
    low = int(place)
    ordered = flat.sort(1).values
    high = min(low + 1, flat.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], place - low)[:, None, None]


def _split(x: Float[Tensor, "d c n"]) -> Float[Tensor, "d m n"]:
    half = x.shape[2] // 2
    return torch.cat((x[..., :half], x[..., -half:]), 1)


def _rank_normal(x: Float[Tensor, "d m n"]) -> Float[Tensor, "d m n"]:
    """Normal scores of the ranks among all draws; equal draws have the mean of their ranks."""
    flat = x.flatten(1).contiguous()
    ordered = flat.sort(1).values
    rank = torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True) + 1
    share = (rank.double() / 2 - 0.375) / (flat.shape[1] + 0.25)
    return torch.special.ndtri(share).view(x.shape)


def _r_hat(x: Float[Tensor, "d m n"]) -> Float[Tensor, "d"]:
    n = x.shape[2]
    return (1 - 1 / n + x.mean(2).var(1) / x.var(2).mean(1)).sqrt()


def _autocovariance(x: Float[Tensor, "d m n"]) -> Float[Tensor, "d n"]:
    """Autocorrelation by lag, about the mean of each chain, averaged over chains."""
    n = x.shape[2]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(x - x.mean(2, keepdim=True), size)
    power = (spectrum.real.square() + spectrum.imag.square()).mean(1)
    return torch.fft.irfft(power, size)[:, :n] / n


def _time(rho: Float[Tensor, "d n"]) -> Float[Tensor, "d"]:
    """Integrated autocorrelation time, by Geyer's initial monotone sequence."""
    pairs = rho[:, : rho.shape[1] // 2 * 2].unflatten(1, (-1, 2)).sum(2)
    pairs = torch.where((pairs > 0).cumprod(1).bool(), pairs, 0.0)
    return 2 * pairs.cummin(1).values.sum(1) - 1


def _ess(x: Float[Tensor, "d m n"]) -> Float[Tensor, "d"]:
    """Effective number of draws of all chains together. It is smaller if the chains disagree."""
    _, m, n = x.shape
    covariance = _autocovariance(x)
    within = covariance[:, 0] * n / (n - 1)
    between = x.mean(2).var(1) if m > 1 else torch.zeros_like(within)
    total = within * (n - 1) / n + between
    rho = 1 - (within[:, None] - covariance * n / (n - 1)) / total[:, None]
    rho[:, 0] = 1.0
    time = _time(rho).clamp_min(1 / math.log10(m * n))
    return m * n / time


def _ess_within(x: Float[Tensor, "d m n"]) -> Float[Tensor, "d"]:
    """Effective number of draws of each chain by its autocorrelation, at most its length.

    Autocovariances about the mean of each chain are too small by the variance of that mean, which is added in
    a second pass.
    """
    n = x.shape[2]
    covariance = _autocovariance(x)
    draws = n / _time(covariance / covariance[:, :1]).clamp_min(1.0)
    covariance = covariance + (covariance[:, 0] / (draws - 1).clamp_min(1.0))[:, None]
    return n / _time(covariance / covariance[:, :1]).clamp_min(1.0)


def _chance(chains: int, tests: int) -> float:
    """Quantile of a chi-square variable over its degrees of freedom that none of the tests exceeds by chance.

    References:
        Wilson & Hilferty 1931, PNAS 17, 684 (the cube root of a chi-square variable is nearly normal).
    """
    freedom = max(1, chains - 1)
    quantile = -NormalDist().inv_cdf(FALSE_ALARMS / tests)
    return (1 - 2 / (9 * freedom) + quantile * math.sqrt(2 / (9 * freedom))) ** 3


def ensemble_status(
    draws: Mapping[str, np.ndarray],
    batched: bool,
    diverging: Bool[Tensor, "b c n"],
    unseen_r_hat: Float[Tensor, "b d"] | None = None,
) -> list[Status]:
    """The status of each problem, by the rule and by its share of divergent trajectories.

    Args:
        draws: of the result, ``{site: [chain, draw, (problem), ...]}``.
        unseen_r_hat: split R-hat of all latents, where ``draws`` does not have all of them.
    """
    if diverging.shape[2] < 4:
        return [Status.BUDGET_SPENT] * len(diverging)
    measured = mixing_of(draws, batched)
    converged, constant = measured.converged, measured.constant
    if unseen_r_hat is not None:
        agree = (unseen_r_hat <= UNSEEN_R_HAT).all(1)
        stuck = unseen_r_hat.isnan().any(1)
        if measured.r_hat.shape[1]:
            converged, constant = converged & agree, constant | stuck
        else:
            converged, constant = agree, stuck
    share = diverging.double().mean((1, 2))
    rows = zip(converged.tolist(), constant.tolist(), share.tolist(), strict=True)
    return [_status(*row) for row in rows]


def _status(converged: bool, constant: bool, divergent: float) -> Status:
    if constant or divergent > BROKEN_DIVERGENT:
        return Status.DIVERGED
    return Status.CONVERGED if converged and divergent < MAX_DIVERGENT else Status.BUDGET_SPENT


def e_bfmi(energy: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b c"]:
    """Estimated Bayesian fraction of missing information of each chain; below 0.3 is a warning.

    NaN with fewer than two draws.

    References:
        Betancourt 2016, arXiv 1604.00695.
    """
    if energy.shape[-1] < 2:
        return energy.new_full(energy.shape[:-1], torch.nan)
    return energy.diff(dim=-1).square().mean(-1) / energy.var(-1)
