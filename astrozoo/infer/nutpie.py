"""The No-U-Turn sampler of nutpie (an optional extra) on the captured log density."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from astrozoo.errors import InputError
from astrozoo.infer._chains import BudgetSpent, Whitened, one_by_one
from astrozoo.infer.options import NutpieSettings, RunOptions
from astrozoo.types import Problem, Result

__all__ = ["nutpie"]

_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "acceptance_rate": "mean_tree_accept",
    "n_steps": "n_steps",
    "tree_depth": "depth",
}
"""What is recorded per draw: our name -> nutpie's name."""


def nutpie(problem: Problem, run: RunOptions, settings: NutpieSettings) -> Result:
    """Sample the posterior, chain after chain and problem after problem; see :mod:`astrozoo.infer.nuts`.

    Raises:
        InputError: also, if nutpie is not installed.

    References:
        Seyboldt, Carlson & Carpenter 2026, arXiv 2603.18845.
    """
    if importlib.util.find_spec("nutpie") is None:
        raise InputError("method", "'nutpie', which is not installed", "pip install 'astrozoo[nutpie]'")
    sampler = {
        "target_accept": settings.target_acceptance,
        "maxdepth": settings.max_tree_depth,
        "low_rank_modified_mass_matrix": settings.low_rank,
    }

    def sample(
        density: Whitened, dim: int, seed: int, step_done: Callable[[str], None]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return _chain(density, dim, seed, settings.warmup, run.draws, sampler)

    return one_by_one(problem, sample, "nutpie", run, settings.warmup, settings.precondition, sampler)


def _chain(
    density: Whitened, dim: int, seed: int, warmup: int, draws: int, settings: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    import nutpie as package
    from nutpie.compiled_pyfunc import from_pyfunc

    spent = False

    def log_density(u: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal spent
        if not spent:
            try:
                return density(u)
            except BudgetSpent:  # raised in nutpie's thread it would abort the process's sampler for good
                spent = True
        return -math.inf, np.zeros(dim)  # no density anywhere: the rest of the draws cost nothing

    model = from_pyfunc(
        dim,
        lambda: log_density,
        lambda *seeds: lambda u: {"u": u},
        [np.dtype(float)],
        [(dim,)],
        ["u"],
        make_initial_point_fn=lambda seed: np.zeros(dim),
    )
    samples = package.sample(
        model, draws=draws, tune=warmup, chains=1, cores=1, seed=seed, save_warmup=False,
        progress_bar=False, **settings,
    )  # fmt: skip
    if spent:
        raise BudgetSpent
    stats = {name: samples.sample_stats[theirs].values[0] for name, theirs in _STATS.items()}
    return samples.posterior["u"].values[0], stats
