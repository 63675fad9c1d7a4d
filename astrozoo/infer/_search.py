"""The highest point that many climbs from the prior's draws reach: where posteriors have many modes.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens begins so).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._prior import prior_draws
from astrozoo.density import LogDensity, log_density
from astrozoo.infer._common import Checkpoint, chain_starts, generator_for, progress_bar, start_points
from astrozoo.infer.laplace import laplace
from astrozoo.types import Problem, Result

__all__ = ["STARTS", "STEPS", "beside", "from_search", "search"]

STARTS, STEPS = 48, 300
"""Climbs, and the steps of each."""
RATES = (0.15, 0.005)
"""First and last step of Adam, in SDs of the prior; it falls geometrically."""
COMPILING = 60.0
"""Seconds of uncompiled gradients to come from which they are compiled at once (which takes as long)."""
_START = 50
_PACED = 3  # gradients whose pace tells how long all will take


def from_search(
    backend: Callable[..., Result], problem: Problem, guide: Any, options: dict[str, Any]
) -> Result:
    """What a backend makes of a problem from the search's best point; what the search costs is added.

    A guide that can work around an earlier result, and has none, does so around Laplace's of that mode.
    """
    began = time.monotonic()
    target = log_density(problem, compile=options.get("compile", "auto"))
    seed, progress = options.get("seed", 0), options.get("progress", True)
    best, modes = search(problem, target, seed, STARTS, STEPS, 0, progress, options.get("checkpoint"))
    start: Any = best
    counts = dict(target.counts)
    if problem.batch is None and _can_work_around(guide):
        normal = laplace(problem, seed=seed, draws=1, start=best, compile="never", progress=False)
        counts = {name: n + normal.stats["counts"][name] for name, n in counts.items()}
        modes["laplace"] = normal.status.value
        if normal.status.ok:
            guide, start = update_wrapper(partial(guide, around=normal), guide), normal
    spent = {"run_seconds": time.monotonic() - began - target.compile_seconds}
    spent["compile_seconds"] = target.compile_seconds
    result = backend(problem, guide, **options | {"start": start})
    told = {name: result.stats[name] + seconds for name, seconds in spent.items()}
    told["counts"] = {name: n + counts[name] for name, n in result.stats["counts"].items()}
    return replace(result, stats={**result.stats, **told, "modes": modes})


def _can_work_around(guide: Any) -> bool:
    parameter = None if guide is None else inspect.signature(guide).parameters.get("around")
    return parameter is not None and parameter.default is None


def search(
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
    saved = Checkpoint(beside(checkpoint, "search"), problem, "auto", seed, starts=starts, steps=steps)
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


def beside(checkpoint: str | Path | None, stage: str) -> Path | None:
    """A stage's own checkpoint."""
    return None if checkpoint is None else Path(f"{Path(checkpoint).with_suffix('')}.{stage}.npz")
