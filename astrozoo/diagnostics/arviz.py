"""ArviZ's statistics on plain arrays, the same for both of its generations (0.x and 1.x).

References:
    Vehtari et al. 2021, Bayesian Analysis 16, 667 (rank-normalised R-hat, bulk and tail ESS).
    Vehtari et al. 2024, JMLR 25, 72 (Pareto-smoothed importance sampling).
    Betancourt 2016, arXiv 1604.00695 (E-BFMI).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0, once a day
    import arviz

__all__ = ["bfmi", "ess", "k_hat", "mcse", "r_hat"]


def _each(function: Callable[..., Any], draws: np.ndarray, **settings: Any) -> np.ndarray:
    """A statistic of every scalar of ``[chain, draw, ...]``."""
    flat = draws.reshape(*draws.shape[:2], -1).astype(float)
    data = xr.Dataset({"x": (("chain", "draw", "scalar"), flat)})
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # constants give 0 / 0, which is NaN, as it should be
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
    """Monte-Carlo standard error of the mean, of correlated draws."""
    return _each(arviz.mcse, draws, method="mean")


def bfmi(energy: Float[np.ndarray, "chain draw"]) -> Float[np.ndarray, "chain"]:
    """Estimated Bayesian fraction of missing information of each chain; below 0.3 is a warning."""
    steps = np.square(np.diff(energy, axis=1)).mean(1)
    return steps / np.var(energy, axis=1, ddof=1)


def psis(
    log_ratios: Float[np.ndarray, "*shape draw"],
) -> tuple[Float[np.ndarray, "*shape draw"], Float[np.ndarray, "*shape"]]:
    """Pareto-smoothed importance weights (normalised, logs) and k-hat of log ratios log p - log q.

    References:
        Vehtari et al. 2024, JMLR 25, 72.
    """
    if hasattr(arviz, "psislw"):
        smoothed, shape = arviz.psislw(log_ratios)
    else:
        from arviz_stats.base import array_stats

        smoothed, shape = array_stats.psislw(-log_ratios)  # 1.x is given log-likelihoods, and negates them
    return np.asarray(smoothed), np.asarray(shape)


def k_hat(log_ratios: Float[np.ndarray, "*shape draw"]) -> Float[np.ndarray, "*shape"]:
    """Pareto shape of importance ratios log p - log q: above 0.7 the approximation cannot be trusted."""
    return psis(log_ratios)[1]
