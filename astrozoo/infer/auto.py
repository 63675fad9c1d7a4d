"""The chain of methods for hard posteriors: many starts, the best mode's curvature, many chains.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens: many starts, a Gaussian, preconditioned HMC).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from astrozoo.density import log_density
from astrozoo.infer._search import STARTS, STEPS, beside, search
from astrozoo.infer.hmc import hmc
from astrozoo.infer.laplace import laplace
from astrozoo.types import Problem, Result, Status

__all__ = ["auto"]

GRADIENTS = 4
"""Of one trajectory, in a guess of the sampling's length."""


def auto(
    problem: Problem,
    guide: None = None,
    *,
    seed: int = 0,
    draws: int = 500,
    chains: int = 48,
    budget: int | None = None,
    start: Any = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    warmup: int = 100,
    starts: int = STARTS,
    steps: int = STEPS,
    precision: Literal["data", "single"] = "data",
) -> Result:
    """Search from many draws of the prior, then Laplace at the best mode, then HMC from there.

    1. ``starts`` draws of the prior climb the log density by Adam, all at once, in units of the prior's SDs.
    2. The highest goes on by a trust region on exact Hessians to its mode (:func:`~astrozoo.infer.laplace`).
    3. Chains start from the Gaussian there, which is their first mass matrix (:func:`~astrozoo.infer.hmc`).

    Chains see the best mode alone: others are counted in ``stats["modes"]``, not sampled.

    Args:
        guide: none; here so that all backends are called alike.
        draws, chains, warmup, budget: of HMC.
        start: unconstrained ``[dim]`` or ``[problem, dim]``, or a Result; takes the place of the search.
        compile: "auto" leaves the mode uncompiled, and compiles search and HMC at once where that will pay;
            with as many starts as chains they share what is compiled.
        checkpoint: stages keep theirs beside it, as ``NAME.search.npz`` and so on.
        starts, steps: of the search.
        precision: "single" searches and samples in float32, at about half the price; the mode and its
            curvature are found in the data's. It suits log densities whose rounding error is well below 1.

    Returns:
        the Result of HMC; ``stats["stage_seconds"]`` has the seconds of every stage but for compiling,
        ``stats["modes"]`` how many starts ended within 1 of the best log density, and the best.

    Raises:
        InputError: as the stages do.
    """
    began = time.monotonic()
    seconds: dict[str, float] = {}
    told: dict[str, Any] = {}
    sampled = problem if precision == "data" else problem.to(dtype=torch.float32)
    density = log_density(sampled, compile=compile)

    def running() -> float:
        return time.monotonic() - density.compile_seconds

    if start is None:
        later = math.ceil(chains / starts * GRADIENTS * (warmup + draws))
        start, told["modes"] = search(sampled, density, seed, starts, steps, later, progress, checkpoint)
        seconds["search"] = running() - began
    began = running()
    mode = laplace(
        problem, seed=seed, draws=1, start=start, progress=progress,
        compile="never" if compile == "auto" else compile, checkpoint=beside(checkpoint, "laplace"),
    )  # fmt: skip
    seconds["laplace"] = running() - began - mode.stats["compile_seconds"]
    began = running()
    usable = Status.DIVERGED not in (mode.statuses or (mode.status,))
    result = hmc(
        sampled, seed=seed, draws=draws, chains=chains, budget=budget, warmup=warmup, compile=compile,
        precondition=mode if usable else None, start=None if usable else mode.location,
        progress=progress, checkpoint=beside(checkpoint, "hmc"), throw=throw, density=density,
    )  # fmt: skip
    seconds["hmc"] = running() - began
    counts = {k: v + mode.stats["counts"][k] for k, v in result.stats["counts"].items()}
    told |= {
        "stage_seconds": seconds,
        "laplace": mode.status.value,
        "log_density_at_mode": mode.stats["log_density"],
        "precision": precision,
        "counts": counts,
        "compile_seconds": density.compile_seconds + mode.stats["compile_seconds"],
        "run_seconds": sum(seconds.values()),
    }
    return replace(result, method="auto", digest=problem.digest, stats={**result.stats, **told})
