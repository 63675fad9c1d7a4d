"""The highest point that many climbs from the prior's draws reach: where posteriors have many modes.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens begins so).
"""

from __future__ import annotations

import inspect
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo import registry
from astrozoo._prior import prior_draws
from astrozoo.density import log_density
from astrozoo.infer.adam import AdamDirection
from astrozoo.infer.guide_factory import AroundMode
from astrozoo.infer.identity import StagedRun, run_checkpoint
from astrozoo.infer.laplace import laplace
from astrozoo.infer.options import AutoSettings, LaplaceSettings, RunOptions, Settings
from astrozoo.infer.progress import Report, progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.starts import chain_starts, start_points
from astrozoo.objective import Density
from astrozoo.types import Problem, Result, Status

__all__ = ["beside", "infer_from_search", "search"]

RATES = (0.15, 0.005)
"""[prior SD] First and last step of Adam. Steps fall geometrically from one to the other."""
COMPILING = 60.0
"""[s] Gradients are compiled at the start if they would take longer than this uncompiled. Compiling takes
about as long."""
_START = 50
"""Stream of the random numbers of starts from the prior."""
_PROPOSALS = 51
"""Stream of those of the problem's proposals."""
_PACED = 3
"""Gradients that are timed, to predict how long all will take."""


def infer_from_search(
    problem: Problem, method: str, guide: Any, run: RunOptions, settings: Settings
) -> Result:
    """The result of a method that starts at the search's best point; the costs of the search are added.

    A guide factory with an unset parameter ``around`` is given the Laplace result at that point.
    """
    began = time.monotonic()
    target = log_density(problem, compile=run.compile)
    best, modes = search(problem, target, run, AutoSettings(), 0)
    start: Any = best
    counts = dict(target.counts)
    if problem.batch is None and _can_work_around(guide):
        laplace_run = RunOptions(
            seed=run.seed,
            draws=1,
            chains=1,
            budget=registry.METHODS["laplace"].defaults["budget"],
            start=best,
            compile="never",
            progress=False,
        )
        normal = laplace(problem, laplace_run, LaplaceSettings())
        if normal.status is Status.INTERRUPTED:
            raise KeyboardInterrupt  # there is nothing to keep yet
        counts = {name: n + normal.stats["counts"][name] for name, n in counts.items()}
        modes["laplace"] = normal.status.value
        if normal.status.ok:
            guide, start = AroundMode(guide, normal), normal
    search_seconds = {"run_seconds": time.monotonic() - began - target.compile_seconds}
    search_seconds["compile_seconds"] = target.compile_seconds
    arguments = (problem, guide) if registry.METHODS[method].takes_guide else (problem,)
    result = registry.METHODS[method].backend(*arguments, StagedRun.of(run, start=start), settings)
    stats = {name: result.stats[name] + seconds for name, seconds in search_seconds.items()}
    stats["counts"] = {name: n + counts[name] for name, n in result.stats["counts"].items()}
    return replace(result, stats={**result.stats, **stats, "modes": modes})


def _can_work_around(guide: Any) -> bool:
    parameter = None if guide is None else inspect.signature(guide).parameters.get("around")
    return parameter is not None and parameter.default is None


def search(
    problem: Problem, target: Density, run: RunOptions, settings: AutoSettings, later: int
) -> tuple[Float[Tensor, "b d"], dict[str, Any]]:
    """The highest point of each problem, and where the climbs ended.

    Args:
        later: gradients of all starts that will be taken after the search.
    """
    starts, steps, seed = settings.starts, settings.steps, run.seed
    search_run = replace(run, checkpoint=beside(run.checkpoint, "search"))
    checkpoint = run_checkpoint(search_run, problem, "auto", starts=starts, steps=steps)
    saved = checkpoint.load()
    if saved is not None:
        ends, value = torch.as_tensor(saved["z"]), torch.as_tensor(saved["value"])
    else:
        z = prior_draws(problem, target.layout, starts, generator_for(seed, _START))
        z = chain_starts(target, starts, seed) if z is None else z.to(target.device)
        scale = z.std(1, keepdim=True).clamp_min(1e-6)
        z = _with_proposals(problem, target, z, generator_for(seed, _PROPOSALS))
        with progress_bar("search", steps, run.progress) as report:
            ends, value = _climb(target, z, scale, steps, later, report)
        checkpoint.save({"z": ends.cpu().numpy(), "value": value.cpu().numpy()})
    top, at = value.max(1)
    best = ends[torch.arange(len(ends)), at]
    near_top = (value > top[:, None] - 1).sum(1)
    modes = {"starts": starts, "at_best": near_top.tolist(), "log_density": top.tolist()}
    return start_points(best, target, len(best), target.layout.dim), modes


def _with_proposals(
    problem: Problem, target: Density, z: Float[Tensor, "b s d"], generator: torch.Generator
) -> Float[Tensor, "b s d"]:
    """Starts of which three quarters are the problem's proposals, if it makes any."""
    count = 3 * z.shape[1] // 4
    if problem.proposals is None or count == 0:
        return z
    values = problem.proposals(count, generator)
    flat = {n: v if problem.batch is None else v.flatten(0, 1) for n, v in values.items()}
    proposed = target.layout.unconstrain(flat).view(len(z), count, -1).to(z)
    proposed = torch.where(proposed.isfinite(), proposed, z[:, :count])
    return torch.cat((proposed, z[:, count:]), 1)


def _climb(
    target: Density,
    z: Float[Tensor, "b s d"],
    scale: Float[Tensor, "b 1 d"],
    steps: int,
    later: int,
    report: Report,
) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s"]]:
    """Adam from every start, in units of ``scale``; the highest point of each path, and its value."""
    problems, starts = z.shape[:2]
    rows = torch.arange(problems, device=z.device).repeat_interleave(starts)
    density = target.take(rows)
    direction = AdamDirection(beta2=0.95)
    best, top = z.clone(), torch.full(z.shape[:2], -torch.inf, dtype=z.dtype, device=z.device)
    began = time.monotonic()
    for i in range(steps):
        value, gradient = (
            x.view(problems, starts, *x.shape[1:]) for x in density.value_and_grad(z.flatten(0, 1))
        )
        good = value.isfinite() & gradient.isfinite().all(-1)
        higher = good & (value > top)
        best, top = torch.where(higher[..., None], z, best), torch.where(higher, value, top)
        step = direction(torch.where(good[..., None], gradient, 0.0) * scale)
        rate = RATES[0] * (RATES[1] / RATES[0]) ** (i / max(steps - 1, 1))
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
