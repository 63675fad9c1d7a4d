"""ArviZ's statistics for plain arrays, with one interface to ArviZ 0.x and 1.x.

References:
    Vehtari et al. 2021, Bayesian Analysis 16, 667 (rank-normalised R-hat, bulk and tail ESS).
    Vehtari et al. 2024, JMLR 25, 72 (Pareto-smoothed importance sampling).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 warns once a day that 1.0 is coming
    import arviz

__all__ = ["ess", "k_hat", "loo", "mcse", "prior_sensitivity", "psis", "r_hat"]


def _each(function: Callable[..., Any], draws: np.ndarray, **settings: Any) -> np.ndarray:
    """A statistic of every scalar of ``[chain, draw, ...]``."""
    flat = draws.reshape(*draws.shape[:2], -1).astype(float)
    data = xr.Dataset({"x": (("chain", "draw", "scalar"), flat)})
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # constants give 0 / 0, which is rightly NaN
        return np.asarray(function(data, **settings)["x"], dtype=float).reshape(draws.shape[2:])


def ess(
    draws: Float[np.ndarray, "chain draw *shape"], method: Literal["bulk", "tail"]
) -> Float[np.ndarray, "*shape"]:
    """Effective sample size; NaN with fewer than four draws per chain."""
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    return _each(arviz.ess, draws, method=method)


def r_hat(draws: Float[np.ndarray, "chain draw *shape"]) -> Float[np.ndarray, "*shape"]:
    """Rank-normalised split R-hat; NaN with one chain."""
    if len(draws) < 2:
        return np.full(draws.shape[2:], np.nan)
    return _each(arviz.rhat, draws)


def mcse(draws: Float[np.ndarray, "chain draw *shape"]) -> Float[np.ndarray, "*shape"]:
    """Monte-Carlo standard error of the mean of correlated draws."""
    return _each(arviz.mcse, draws, method="mean")


def psis(
    log_ratios: Float[np.ndarray, "*shape draw"],
) -> tuple[Float[np.ndarray, "*shape draw"], Float[np.ndarray, "*shape"]]:
    """Pareto-smoothed importance weights (normalised, logs) and k-hat of log ratios log p - log q.

    References:
        Vehtari et al. 2024, JMLR 25, 72.
    """
    with np.errstate(over="ignore"):  # quantiles of very heavy tails are infinite, which k-hat shows
        if hasattr(arviz, "psislw"):
            smoothed, shape = arviz.psislw(log_ratios)
        else:
            from arviz_stats.base import array_stats

            smoothed, shape = array_stats.psislw(-log_ratios)  # it expects log likelihoods, and negates them
    return np.asarray(smoothed), np.asarray(shape)


def k_hat(log_ratios: Float[np.ndarray, "*shape draw"]) -> Float[np.ndarray, "*shape"]:
    """Pareto shape of importance ratios log p - log q: above 0.7 the approximation cannot be trusted.

    It is NaN where a ratio is not finite. It is 0 where all ratios are equal up to rounding: then there is no
    tail to fit, and the approximation is exact.
    """
    known = np.isfinite(log_ratios).all(-1)
    usable = np.where(known[..., None], log_ratios, 0.0)
    alike = np.ptp(usable, axis=-1) < 1e-6
    return np.where(known, np.where(alike, 0.0, psis(usable)[1]), np.nan)


def loo(log_likelihood: Float[np.ndarray, "chain draw *shape"]) -> dict[str, Any]:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Args:
        log_likelihood: of each observation under each draw.

    Returns:
        ``elpd`` and its standard error ``se``; ``p``, the effective number of parameters; ``pointwise`` elpd
        and ``k_hat`` of each observation (above 0.7 its elpd cannot be trusted), flattened.

    References:
        Vehtari, Gelman & Gabry 2017, Statistics and Computing 27, 1413.
    """
    draws = log_likelihood.reshape(-1, int(np.prod(log_likelihood.shape[2:]))).T  # [observation, draw]
    weights, shapes = psis(-draws)
    pointwise = np.logaddexp.reduce(weights + draws, axis=1)
    whole = np.logaddexp.reduce(draws, axis=1) - np.log(draws.shape[1])
    se = float(np.sqrt(len(pointwise) * pointwise.var(ddof=1))) if len(pointwise) > 1 else float("nan")
    return {
        "elpd": float(pointwise.sum()),
        "se": se,
        "p": float((whole - pointwise).sum()),
        "pointwise": pointwise,
        "k_hat": np.atleast_1d(shapes),
    }


def prior_sensitivity(
    draws: Float[np.ndarray, "chain draw scalar"],
    log_part: Float[np.ndarray, "chain draw"],
    step: float = 0.01,
) -> Float[np.ndarray, "scalar"]:
    """Change of the marginals when the prior or the likelihood is raised to a power; above 0.05 is a warning.

    It is the cumulative Jensen-Shannon distance between a marginal and the marginal of draws reweighted by
    ``part**+-step``, per doubling of the power.

    Args:
        draws: of the scalars.
        log_part: log prior (or log likelihood) of each draw, summed over sites.
        step: change of the power.

    References:
        Kallioinen et al. 2024, Statistics and Computing 34, 57.
    """
    x = draws.reshape(-1, draws.shape[-1])
    log_part = log_part.reshape(-1)
    sensitivity = np.zeros(x.shape[1])
    for power in (1 / (1 + step), 1 + step):
        smoothed, _ = psis((power - 1) * log_part)
        weights = np.exp(smoothed - np.logaddexp.reduce(smoothed))
        for i, column in enumerate(x.T):
            sensitivity[i] += _cumulative_js(column, weights) / (2 * np.log2(1 + step))
    return sensitivity


def _cumulative_js(x: np.ndarray, weights: np.ndarray) -> float:
    """Distance between an empirical distribution and its weighted version (Nguyen & Vreeken 2015)."""

    def divergence(x: np.ndarray, weights: np.ndarray) -> float:
        order = np.argsort(x)
        width = np.diff(x[order])
        p = np.arange(1, len(x)) / len(x)
        q = np.cumsum(weights[order])[:-1]
        middle = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            to_p = np.where(p > 0, p * np.log2(p / middle), 0.0) + (middle - p) / np.log(2)
            to_q = np.where(q > 0, q * np.log2(q / middle), 0.0) + (middle - q) / np.log(2)
        bound = float(width @ (p + q))
        return float(width @ (to_p + to_q)) / bound if bound > 0 else 0.0

    return float(np.sqrt(max(0.0, max(divergence(x, weights), divergence(-x, weights)))))
