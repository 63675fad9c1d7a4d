"""Every feature of Pyro under every method: the right answer, or a refusal by name before any work.

Samplers: mean and SD of every site against the exact ones. Approximations (their draws are independent):
the same of their draws weighted by p / q, which is exact for any normal that covers the posterior, so that
density, Jacobian, draws and discrete sites are all tested without a tolerance of the method's own.
"""

from __future__ import annotations

import arviz
import features_latents
import features_refused
import features_structure
import numpy as np
import pytest

import astrozoo
from astrozoo import Problem
from astrozoo.errors import CaptureError

FEATURES = [*features_latents.FEATURES, *features_structure.FEATURES, *features_refused.FEATURES]
OPTIONS = {
    "svi": {"budget": 120, "particles": 4, "draws": 2000, "learning_rate": 0.05},
    "trust_region": {"budget": 40, "draws": 2000},
    "laplace": {"draws": 4000},
    "wiener": {"draws": 4000},
    "el2o": {"draws": 4000},
    "hmc": {"chains": 32, "draws": 40, "warmup": 40},
    "mclmc": {"chains": 32, "draws": 40, "warmup": 40},
    "annealed": {"chains": 32, "draws": 40, "warmup": 40, "levels": 3, "trajectories": 4},
    "nuts": {"chains": 1, "draws": 250, "warmup": 100},
    "nutpie": {"chains": 1, "draws": 250, "warmup": 150},
    "auto": {"chains": 32, "draws": 40, "warmup": 30, "starts": 32, "steps": 40},
}
"""Settings that keep the table quick. The tolerance of a test follows from the effective number of draws."""
SIGMAS = 5.0
"""Standard errors that a mean or SD may be off: of the table's 3,000 numbers, one in 1,000 tables is."""


def run(feature, method):
    problem = Problem(feature.model, feature.args)
    return astrozoo.infer(problem, method, seed=1, compile="never", progress=False, **OPTIONS[method])


def table(*methods):
    """Parametrise a test by feature and method: every feature under each of these methods."""

    def decorate(test):
        by_method = pytest.mark.parametrize("method", methods)
        return by_method(pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)(test))

    return decorate


def right_or_refused(feature, method):
    """Assert what one method owes for one feature."""
    if (reason := feature.reason(method)) is not None:
        with pytest.raises(CaptureError, match=f"(?s){reason}"):
            run(feature, method)
        return
    result = run(feature, method)
    for site, (mean, sd) in feature.expected.items():
        draws = result.draws[site].reshape(*result.draws[site].shape[:2], -1).astype(float)
        assert np.isfinite(draws).all()
        ratio = result.sample_stats.get("log_ratio")
        mean, sd = (np.broadcast_to(x, result.draws[site].shape[2:]).ravel() for x in (mean, sd))
        for i in range(draws.shape[2]):
            x = draws[..., i]
            checks = (
                ("mean", x, mean[i], sd[i]),
                ("variance", (x - mean[i]) ** 2, sd[i] ** 2, 2**0.5 * sd[i] ** 2),
            )
            for name, got, expected, spread in checks:
                if ratio is not None and feature.heavy:
                    continue
                found, error = _weighted(got, ratio) if ratio is not None else _averaged(got, spread)
                off = abs(found - expected)
                assert off <= SIGMAS * error + _rounding(x, expected), (
                    f"{name} of {site}[{i}]: got {found:.4g} +- {error:.2g}, exact {expected:.4g}"
                )


def _averaged(x, spread):
    """Mean and standard error of chains.

    Few draws of a skewed posterior understate their own spread, together with what they miss of its tail. The
    exact spread of the posterior is used where it is larger than the draws'. For squares it is that of a
    normal of the same SD, which is too large for a light-tailed posterior: by 1.6 for the uniform.
    """
    if np.ptp(x) == 0:
        return x.mean(), 0.0
    effective = float(arviz.ess(x)) if x.shape[1] > 3 else x.size
    return x.mean(), max(x.std(), spread) / min(effective, x.size) ** 0.5


def _weighted(x, log_ratio):
    """Mean and standard error of independent draws with importance weights."""
    weight = np.exp(log_ratio - log_ratio.max())
    weight /= weight.sum()
    mean = (weight * x).sum()
    return mean, np.sqrt((weight**2 * (x - mean) ** 2).sum())


def _rounding(x, expected):
    eps = 1e-9 if x.dtype == np.float64 else 1e-4
    return eps * (1 + abs(expected))
