"""Laplace's approximation: the posterior mode and the curvature there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch

from astrozoo.density import log_density
from astrozoo.infer._common import (
    Checkpoint,
    finish,
    generator_for,
    normal_draws,
    progress_bar,
    start_points,
)
from astrozoo.infer._maximise import TrustRegionState, maximise
from astrozoo.types import Problem, Result, Status

__all__ = ["laplace"]


def laplace(
    problem: Problem,
    guide: None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
    chains: int = 1,
    budget: int = 200,
    start: Any = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    radius: float = 1.0,
    tolerance: float = 1e-4,
) -> Result:
    """The normal ``N(mode, (-Hessian)^-1)`` in unconstrained space, the mode found by a trust region.

    Args:
        guide: none; here so that all backends are called alike.
        draws: from the normal, per chain; they are independent, and chains only a shape.
        budget: the most iterations, each of one Hessian per problem.
        start: unconstrained ``[dim]`` or ``[problem, dim]``, or a Result (its location).

    Returns:
        a Result; a problem whose Hessian at the end is not negative definite has diverged: its draws all
        lie at the point reached, and its covariance is NaN.

    Raises:
        InputError: for a start of the wrong shape, or a checkpoint of another run.

    References:
        Tierney & Kadane 1986.
    """
    began = time.monotonic()
    target = log_density(problem, compile=compile)
    rows = problem.batch or 1
    saved = Checkpoint(checkpoint, problem, "laplace", seed, radius=radius, tolerance=tolerance)
    held = saved.load()
    with progress_bar("laplace", budget, progress) as report:

        def after_each(state: TrustRegionState) -> None:
            report(state.iteration, f"{len(state.active)} running, log density {state.value.mean():.6g}")
            saved.save(state.arrays)

        found = maximise(
            target,
            start_points(start, target, rows, seed),
            seed=seed,
            max_iterations=budget,
            radius=radius,
            tolerance=tolerance,
            callback=after_each,
            state=None if held is None else TrustRegionState.restored(held, target.device),
        )
    saved.save(found.state.arrays, now=True)
    hessian = found.hessian if found.hessian is not None else target.value_grad_hessian(found.w)[2]
    root, bad = torch.linalg.cholesky_ex(torch.where(hessian.isfinite(), -hessian, torch.nan))
    bad = (bad > 0) | ~root.isfinite().flatten(1).all(1)
    statuses = [
        Status.DIVERGED if b and s.ok else s for b, s in zip(bad.tolist(), found.statuses, strict=True)
    ]
    eye = torch.eye(target.dim, dtype=target.dtype, device=target.device)
    half = torch.linalg.solve_triangular(torch.where(bad[:, None, None], eye, root).mT, eye, upper=True)
    half = torch.where(bad[:, None, None], torch.nan, half)
    drawn, _ = normal_draws(target, found.w, half, generator_for(seed, 1), seed, chains, draws)
    return finish(
        problem,
        target,
        method="laplace",
        seed=seed,
        statuses=statuses,
        began=began,
        throw=throw,
        trace={("log_density" if name == "value" else name): a for name, a in found.trace.items()},
        stats={"iterations": found.iterations, "log_density": found.value.tolist()},
        location=found.w,
        covariance=half @ half.mT,
        **drawn,
    )
