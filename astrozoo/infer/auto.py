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
from jaxtyping import Float
from torch import Tensor

from astrozoo._prior import prior_draws
from astrozoo.density import LogDensity, log_density
from astrozoo.infer._common import Checkpoint, chain_starts, generator_for, progress_bar, start_points
from astrozoo.infer.hmc import hmc
from astrozoo.infer.laplace import laplace
from astrozoo.types import Problem, Result, Status

__all__ = ["auto"]

RATES = (0.15, 0.005)
"""First and last step of Adam, in SDs of the prior; it falls geometrically."""
COMPILING = 60.0
"""Seconds of uncompiled gradients to come from which they are compiled at once (which takes as long)."""
GRADIENTS = 4
"""Of one trajectory, in a guess of the sampling's length."""
_START = 50
_PACED = 3  # gradients whose pace tells how long all will take


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
    starts: int = 48,
    steps: int = 300,
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
        start, told["modes"] = _search(sampled, density, seed, starts, steps, later, progress, checkpoint)
        seconds["search"] = running() - began
    began = running()
    mode = laplace(
        problem, seed=seed, draws=1, start=start, progress=progress,
        compile="never" if compile == "auto" else compile, checkpoint=_beside(checkpoint, "laplace"),
    )  # fmt: skip
    seconds["laplace"] = running() - began - mode.stats["compile_seconds"]
    began = running()
    usable = Status.DIVERGED not in (mode.statuses or (mode.status,))
    result = hmc(
        sampled, seed=seed, draws=draws, chains=chains, budget=budget, warmup=warmup, compile=compile,
        precondition=mode if usable else None, start=None if usable else mode.location,
        progress=progress, checkpoint=_beside(checkpoint, "hmc"), throw=throw, density=density,
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


def _search(
    problem: Problem,
    target: LogDensity,
    seed: int,
    starts: int,
    steps: int,
    later: int,
    progress: bool,
    checkpoint: str | Path | None,
) -> tuple[Float[Tensor, "b d"], dict[str, Any]]:
    """The highest point of each problem, and what the starts came to.

    Args:
        later: gradients of all starts that will be taken after the search.
    """
    saved = Checkpoint(_beside(checkpoint, "search"), problem, "auto", seed, starts=starts, steps=steps)
    held = saved.load()
    if held is not None:
        ended, value = torch.as_tensor(held["z"]), torch.as_tensor(held["value"])
    else:
        z = prior_draws(problem, target.layout, starts, generator_for(seed, _START))
        z = chain_starts(target, starts, seed) if z is None else z.to(target.device)
        with progress_bar("search", steps, progress) as report:
            ended, value = _climb(target, z, steps, later, report)
        arrays = {"z": ended.cpu().numpy(), "value": value.cpu().numpy()}
        saved.save(lambda: arrays, now=True)
    top, at = value.max(1)
    best = ended[torch.arange(len(ended)), at]
    agreed = (value > top[:, None] - 1).sum(1)
    modes = {"starts": starts, "at_best": agreed.tolist(), "log_density": top.tolist()}
    return start_points(best, target, len(best), seed, target.layout.dim), modes


def _climb(
    target: LogDensity, z: Float[Tensor, "b s d"], steps: int, later: int, report: Any
) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s"]]:
    """Adam from every start; the highest point of each path, and its value."""
    scale = z.std(1, keepdim=True).clamp_min(1e-6)
    problems, starts = z.shape[:2]
    rows = torch.arange(problems, device=z.device).repeat_interleave(starts)
    density = target.take(rows)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    best, top = z.clone(), torch.full(z.shape[:2], -torch.inf, dtype=z.dtype, device=z.device)
    began = time.monotonic()
    for i in range(steps):
        value, gradient = (
            x.view(problems, starts, *x.shape[1:]) for x in density.value_and_grad(z.flatten(0, 1))
        )
        good = value.isfinite() & gradient.isfinite().all(-1)
        higher = good & (value > top)
        best, top = torch.where(higher[..., None], z, best), torch.where(higher, value, top)
        gradient = torch.where(good[..., None], gradient, 0.0) * scale
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        rate = RATES[0] * (RATES[1] / RATES[0]) ** (i / max(steps - 1, 1))
        step = first / (1 - 0.9 ** (i + 1)) / ((second / (1 - 0.95 ** (i + 1))).sqrt() + 1e-12)
        z = torch.where(good[..., None], z + rate * scale * step, best)
        report(i + 1, f"highest {float(top.max()):.6g}")
        if i == 0:
            began = time.monotonic()  # the first call captures
        elif i == _PACED and (time.monotonic() - began) / _PACED * (steps + later) > COMPILING:
            density.compile_soon()
    return best, top


def _beside(checkpoint: str | Path | None, stage: str) -> Path | None:
    return None if checkpoint is None else Path(f"{Path(checkpoint).with_suffix('')}.{stage}.npz")
