"""The chain of methods for hard posteriors: many starts, the best mode's curvature, many chains.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens: many starts, a Gaussian, preconditioned HMC).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from astrozoo import registry
from astrozoo.density import log_density
from astrozoo.infer._search import beside, search
from astrozoo.infer.hmc import hmc
from astrozoo.infer.laplace import laplace
from astrozoo.infer.options import AutoSettings, HMCSettings, LaplaceSettings, RunOptions
from astrozoo.types import Problem, Result, Status

__all__ = ["auto"]

GRADIENTS_PER_TRAJECTORY = 4
"""Gradients that one trajectory of HMC is assumed to take, where the length of sampling is estimated: typical
of a posterior that its mass matrix whitens well."""


def auto(problem: Problem, run: RunOptions, settings: AutoSettings) -> Result:
    """Search from many draws of the prior, then Laplace at the best mode, then HMC from there.

    1. ``starts`` draws of the prior climb the log density by Adam, all at once, in units of the prior's SDs.
    2. The highest point continues by a trust region on exact Hessians to its mode
       (:func:`~astrozoo.infer.laplace`).
    3. Chains start from the Gaussian there, which is their first mass matrix (:func:`~astrozoo.infer.hmc`).

    Chains see only the best mode: others are counted in ``stats["modes"]``, not sampled.

    Args:
        run: ``draws``, ``chains`` and ``budget`` are those of HMC. A ``start`` replaces the search.
            ``compile="auto"`` leaves the mode uncompiled, and compiles search and HMC at once where that will
            pay. Each stage keeps a checkpoint of its own beside ``checkpoint``: ``NAME.search.npz`` and so
            on.

    Returns:
        the Result of HMC. ``stats["stage_seconds"]`` has the seconds of every stage without compilation,
        ``stats["modes"]`` how many starts ended within 1 of the best log density, and the best.

    Raises:
        InputError: as the stages do.
    """
    began = time.monotonic()
    seconds: dict[str, float] = {}
    stats: dict[str, Any] = {}
    sampled = problem if settings.precision == "data" else problem.to(dtype=torch.float32)
    density = log_density(sampled, compile=run.compile)

    def running() -> float:
        return time.monotonic() - density.compile_seconds

    if run.start is None:
        iterations = settings.warmup + run.draws
        later = math.ceil(run.chains / settings.starts * GRADIENTS_PER_TRAJECTORY * iterations)
        start, stats["modes"] = search(sampled, density, run, settings, later)
        run = replace(run, start=start)
        seconds["search"] = running() - began
    began = running()
    mode = laplace(problem, _laplace_options(run), LaplaceSettings())
    seconds["laplace"] = running() - began - mode.stats["compile_seconds"]
    began = running()
    usable = Status.DIVERGED not in (mode.statuses or (mode.status,))
    hmc_run = replace(run, start=None if usable else mode.location, checkpoint=beside(run.checkpoint, "hmc"))
    hmc_settings = HMCSettings(warmup=settings.warmup, precondition=mode if usable else None)
    result = hmc(sampled, hmc_run, hmc_settings, density=density)
    seconds["hmc"] = running() - began
    counts = {k: v + mode.stats["counts"][k] for k, v in result.stats["counts"].items()}
    stats |= {
        "stage_seconds": seconds,
        "laplace": mode.status.value,
        "log_density_at_mode": mode.stats["log_density"],
        "precision": settings.precision,
        "counts": counts,
        "compile_seconds": density.compile_seconds + mode.stats["compile_seconds"],
        "run_seconds": sum(seconds.values()),
    }
    return replace(result, method="auto", digest=problem.digest, stats={**result.stats, **stats})


def _laplace_options(run: RunOptions) -> RunOptions:
    return replace(
        run,
        draws=1,
        chains=1,
        budget=registry.METHODS["laplace"].defaults["budget"],
        compile="never" if run.compile == "auto" else run.compile,
        checkpoint=beside(run.checkpoint, "laplace"),
        throw=False,
    )
