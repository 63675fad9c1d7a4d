"""The No-U-Turn sampler of nutpie (an optional extra) on the captured log density."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from astrozoo.errors import InputError
from astrozoo.infer._chains import BudgetSpent, Whitened, one_by_one
from astrozoo.types import Problem, Result

__all__ = ["nutpie"]

_STATS = {
    "diverging": "diverging",
    "energy": "energy",
    "acceptance_rate": "mean_tree_accept",
    "n_steps": "n_steps",
    "tree_depth": "depth",
}
"""Our names of what is recorded per draw, and nutpie's."""


def nutpie(
    problem: Problem,
    guide: None = None,
    *,
    seed: int = 0,
    draws: int = 500,
    chains: int = 4,
    budget: int | None = None,
    start: Any = None,
    precondition: Result | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    warmup: int = 400,
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    low_rank: bool = False,
) -> Result:
    """Sample the posterior, chain after chain and problem after problem.

    Args:
        low_rank: adapt a mass matrix of a diagonal and a few directions rather than a diagonal one.

    The others, and what is returned and raised, are those of :func:`astrozoo.infer.nuts.nuts`.

    Raises:
        InputError: also, if nutpie is not installed.

    References:
        Seyboldt, Carlson & Carpenter 2026, arXiv 2603.18845.
    """
    if importlib.util.find_spec("nutpie") is None:
        raise InputError("method", "'nutpie', which is not installed", "pip install 'astrozoo[nutpie]'")
    settings = {
        "target_accept": target_acceptance, "maxdepth": max_tree_depth,
        "low_rank_modified_mass_matrix": low_rank,
    }  # fmt: skip

    def run(density: Whitened, dim: int, own: int, tell: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return _chain(density, dim, own, warmup, draws, settings)

    return one_by_one(
        problem, run, method="nutpie", seed=seed, draws=draws, chains=chains, warmup=warmup, budget=budget,
        start=start, precondition=precondition, compile=compile, progress=progress, checkpoint=checkpoint,
        throw=throw, settings=settings,
    )  # fmt: skip


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
    found = package.sample(
        model, draws=draws, tune=warmup, chains=1, cores=1, seed=seed, save_warmup=False,
        progress_bar=False, **settings,
    )  # fmt: skip
    if spent:
        raise BudgetSpent
    stats = {name: found.sample_stats[theirs].values[0] for name, theirs in _STATS.items()}
    return found.posterior["u"].values[0], stats
