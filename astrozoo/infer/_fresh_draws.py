"""How far an optimum on fixed draws is from the optimum on other draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.infer._sampled import antithetic_parts, mean_of_parts
from astrozoo.infer.randomness import noise_for
from astrozoo.infer.subproblem import subproblem_krylov
from astrozoo.objective import VariationalObjective

__all__ = ["FreshDraws", "error_of_site", "on_fresh_draws"]

SETS = 3
"""Number of sets of fresh draws. An SD that is estimated from three independent values has an error of 40
%."""
LEAST = 128
"""Fewest draws of a fresh set. A set that is matched to the moments of a normal has a bias of about one over
its size. A fresh set that is much larger than the fixed one shows the bias of the fixed one."""
LONGEST = 1e3
"""[parameter units] Longest Newton step: the largest radius of the trust region."""
MOMENT_ELEMENTS = 10_000_000
"""Draws times latents from which the guide's moments are computed, at most: 80 MB in float64."""
QUANTILE = 0.99
"""Fraction of the elements of a site whose errors are at most the error of that site. Each error is estimated
from ``SETS`` values, and the largest of many such estimates grows with their number by chance: of 1e5
elements with the same true error it is 2.9 times that error. This quantile is 1.9 times it for any number.
Of a site of up to 100 elements it is the largest.
"""
_STREAM = 8
"""Stream of the random numbers of fresh draws."""


@dataclass(frozen=True)
class FreshDraws:
    """What draws that were not used by the fit say of it.

    Args:
        elbo: mean of the objective over the fresh draws [nat].
        mean_error: SD, over choices of the fixed draws, of a latent's mean, in posterior SDs.
            As ``width_error``, that of the worst site (:data:`QUANTILE`).
        width_error: SD, over choices of the fixed draws, of the logarithm of a latent's SD.
        settled: True for a row whose fit is over, so that no later round evaluates it.
    """

    elbo: Float[Tensor, "b"]
    mean_error: Float[Tensor, "b"]
    width_error: Float[Tensor, "b"]
    settled: Bool[Tensor, "b"]

    @classmethod
    def unknown(cls, w: Float[Tensor, "b p"]) -> FreshDraws:
        """NaN for every row."""
        nan = torch.full_like(w[:, 0], torch.nan)
        return cls(nan, nan.clone(), nan.clone(), torch.zeros_like(nan, dtype=torch.bool))

    def update(self, rows: Int[Tensor, "n"], latest: FreshDraws, settled: Bool[Tensor, "n"]) -> None:
        """Take over the latest values of some rows."""
        for name in ("elbo", "mean_error", "width_error"):
            getattr(self, name)[rows] = getattr(latest, name)
        self.settled[rows] = settled

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return {f"fresh_{field.name}": getattr(self, field.name).cpu().numpy() for field in fields(self)}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> FreshDraws:
        """From a checkpoint."""
        return cls(*(torch.as_tensor(arrays[f"fresh_{field.name}"], device=device) for field in fields(cls)))


def on_fresh_draws(
    target: VariationalObjective,
    w: Float[Tensor, "b p"],
    fixed: Float[Tensor, "m e"],
    *,
    seed: int,
    part: int,
    inverse: Float[Tensor, "b p p"] | None,
    posterior_sd: Float[Tensor, "b d"] | None,
) -> FreshDraws:
    """Estimate how much an optimum on fixed draws depends on their choice, from other draws.

    The gradient on a fresh set of draws, multiplied by the inverse Hessian, is the distance from this optimum
    to that of the fresh set, to first order. The variance of an optimum is inversely proportional to the
    number of its draws, so the mean square of the distances is the variance of this optimum times
    ``1 + n / m``, for ``n`` fixed draws and fresh sets of ``m``.

    Args:
        w: maximises the mean of the objective over ``fixed``.
        fixed: the fixed draws, in antithetic pairs.
        part: draws that are evaluated at once.
        inverse: of the negative Hessian at ``w``; None: Newton's steps are found from products with it.
        posterior_sd: SDs in units of which the means are compared; None: those of the guide.

    References:
        Giordano, Ingram & Broderick 2023, section 3 (errors that come from the choice of fixed draws).
    """
    fixed_parts = antithetic_parts(fixed, part)

    def product(v: Tensor, rows: Tensor) -> Tensor:
        objective = target.take(rows)
        return mean_of_parts([(objective.hvp(w[rows], e, v),) for e in fixed_parts])[0]

    n = len(fixed)
    m = n * math.ceil(LEAST / n)
    values, mean_shifts, log_ratios = [], [], []
    mean, sd = _moments(target, w, seed)
    for k in range(SETS):
        noise = noise_for(seed, _STREAM, m, k, draws=m, like=target, matched=True)
        assert noise is not None
        value, g = mean_of_parts([target.value_and_grad(w, e) for e in antithetic_parts(noise, part)])
        if inverse is not None:
            step = (inverse @ g[..., None])[..., 0]
        else:
            finite = g.isfinite().all(1, keepdim=True)
            step, _ = subproblem_krylov(product, g.where(finite, 0.0), torch.full_like(g[:, 0], LONGEST))
            step = step.where(finite, torch.nan)
        there = _moments(target, w + step, seed)
        values.append(value)
        mean_shifts.append((there[0] - mean) / (sd if posterior_sd is None else posterior_sd))
        log_ratios.append((there[1] / sd).log())

    def worst_site(shifts: list[Float[Tensor, "b d"]]) -> Float[Tensor, "b"]:
        errors = (torch.stack(shifts).square().mean(0) / (1 + n / m)).sqrt()
        sites = [site for site in target.layout.sites if site.stop > site.start]
        return torch.stack([error_of_site(errors[:, site.start : site.stop]) for site in sites]).amax(0)

    elbo = torch.stack(values).mean(0)
    settled = torch.zeros_like(elbo, dtype=torch.bool)
    return FreshDraws(elbo, worst_site(mean_shifts), worst_site(log_ratios), settled)


def error_of_site(errors: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """The error that all but a few elements of a site stay below (:data:`QUANTILE`); NaN if any is NaN."""
    size = errors.shape[1]
    may_exceed = int((1 - QUANTILE) * (size - 1) + 1e-9)  # the elements that may have larger errors
    quantile = errors.kthvalue(size - may_exceed, 1).values
    return quantile.where(~errors.isnan().any(1), torch.nan)


def _moments(target: VariationalObjective, w: Float[Tensor, "b p"], seed: int) -> tuple[Tensor, Tensor]:
    """Mean and SD of each latent under the guide, ``[b, d]``, on draws that are the same for all ``w``."""
    draws = max(16, min(1000, MOMENT_ELEMENTS // max(1, w.shape[0] * target.layout.dim)))
    z = target.unconstrained(w, noise_for(seed, _STREAM, draws=draws, like=target, matched=True))
    return z.mean(1), z.std(1)
