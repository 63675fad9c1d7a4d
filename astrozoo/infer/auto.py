"""The chain of methods for hard posteriors: many starts, the best mode's curvature, many chains.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens: many starts, a Gaussian, preconditioned HMC).
"""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo import registry
from astrozoo.density import log_density
from astrozoo.infer._search import beside, search
from astrozoo.infer.hmc import hmc
from astrozoo.infer.identity import StagedRun
from astrozoo.infer.laplace import laplace
from astrozoo.infer.options import AutoSettings, HMCSettings, LaplaceSettings, RecordSettings, RunOptions
from astrozoo.objective import Density
from astrozoo.types import DENSE_COVARIANCE, Problem, Result, Status

__all__ = ["auto"]

GRADIENTS_PER_TRAJECTORY = 4
"""Gradients that one trajectory of HMC is assumed to take, where the length of sampling is estimated: typical
of a posterior that its mass matrix whitens well."""


_UNUSABLE = (
    "the Laplace approximation ({}) has no covariance, because the point that it reached is no maximum. The "
    "chains start there, and estimate their mass matrix from nothing"
)
"""Note of a run whose chains have no normal to start from."""


def auto(problem: Problem, run: RunOptions, settings: AutoSettings) -> Result:
    """Search from many draws of the prior, then Laplace at the best mode, then HMC from there.

    1. ``starts`` draws of the prior climb the log density by Adam, all at once, in units of the prior's SDs.
    2. The highest point continues by a trust region on exact Hessians to its mode
       (:func:`~astrozoo.infer.laplace`).
    3. Chains start from the Gaussian there, which is their first mass matrix (:func:`~astrozoo.infer.hmc`);
       above ``DENSE_COVARIANCE`` latents they start from its draws, and estimate their mass matrix. Where the
       second stage ends at no maximum, they start at the point that it reached, and a note says so.

    Chains see only the best mode: others are counted in ``stats["modes"]``, not sampled.

    Args:
        run: ``draws``, ``chains``, ``budget`` and ``keep`` are those of HMC. A ``start`` replaces the search.
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
        run = StagedRun.of(run, start=start)
        seconds["search"] = running() - began
    began = running()
    large = density.layout.dim > DENSE_COVARIANCE
    mode_run = _laplace_options(run, draws=run.chains if large else 1)
    mode = laplace(problem, mode_run, LaplaceSettings(metric=settings.metric))
    if Status.INTERRUPTED in (mode.statuses or (mode.status,)):
        raise KeyboardInterrupt  # there are no draws yet; checkpoints have the work so far
    seconds["laplace"] = running() - began - mode.stats["compile_seconds"]
    began = running()
    usable = mode.variance is not None and bool(np.isfinite(mode.variance).all())
    notes = [] if usable else [_UNUSABLE.format(mode.status.value)]
    hmc_start: Any = None if usable else mode.location
    if usable and large:
        hmc_start = _unconstrained(density, mode)
    determined = ("start", "precondition")
    hmc_run = StagedRun.of(run, determined, start=hmc_start, checkpoint=beside(run.checkpoint, "hmc"))
    precondition = mode if usable and not large else None
    record = {option.name: getattr(settings, option.name) for option in fields(RecordSettings)}
    hmc_settings = HMCSettings(
        warmup=settings.warmup, precondition=precondition, metric=settings.metric, **record
    )
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
        "compiled": {k: v + mode.stats["compiled"][k] for k, v in result.stats["compiled"].items()},
        "notes": [
            *notes,
            *mode.stats["notes"],
            *(n for n in result.stats["notes"] if n not in mode.stats["notes"]),
        ],
        "run_seconds": sum(seconds.values()),
    }
    return replace(result, method="auto", digest=problem.digest, stats={**result.stats, **stats})


def _unconstrained(density: Density, result: Result) -> Float[Tensor, "rows d"]:
    """All draws of a result as starts of chains, problem by problem."""
    like: dict[str, Any] = {"dtype": density.dtype, "device": density.device}
    values = {}
    for site in density.layout.sites:
        x = torch.as_tensor(result.draws[site.name], **like).flatten(0, 1)  # [draw, (problem), ...]
        values[site.name] = x.movedim(1, 0).flatten(0, 1) if result.statuses else x
    return density.layout.unconstrain(values)


def _laplace_options(run: RunOptions, draws: int) -> RunOptions:
    return replace(
        run,
        draws=draws,
        chains=1,
        budget=registry.METHODS["laplace"].defaults["budget"],
        compile="never" if run.compile == "auto" else run.compile,
        checkpoint=beside(run.checkpoint, "laplace"),
        throw=False,
        keep=None,  # chains may start from its draws
    )
