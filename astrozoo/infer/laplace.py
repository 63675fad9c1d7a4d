"""Laplace's approximation: the posterior mode and the curvature there."""

from __future__ import annotations

import time

import torch

from astrozoo.density import log_density
from astrozoo.infer.approximation import normal_draws
from astrozoo.infer.maximise import TrustRegionState, maximise
from astrozoo.infer.options import LaplaceSettings, RunOptions
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import finish, run_checkpoint
from astrozoo.infer.starts import density_starts
from astrozoo.types import Problem, Result, Status

__all__ = ["laplace"]


def laplace(problem: Problem, run: RunOptions, settings: LaplaceSettings) -> Result:
    """The normal ``N(mode, (-Hessian)^-1)`` in unconstrained space, the mode found by a trust region.

    Returns:
        a Result; a problem whose Hessian at the end is not negative definite has diverged: its draws all
        lie at the point reached, and its covariance is NaN.

    Raises:
        InputError: for a start of the wrong shape, or a checkpoint of another run.

    References:
        Tierney & Kadane 1986.
    """
    began = time.monotonic()
    target = log_density(problem, compile=run.compile)
    radius, tolerance = settings.radius, settings.tolerance
    checkpoint = run_checkpoint(run, problem, "laplace", radius=radius, tolerance=tolerance)
    saved = checkpoint.load()
    with progress_bar("laplace", run.iterations, run.progress) as report:

        def after_each(state: TrustRegionState) -> None:
            report(state.iteration, f"{len(state.active)} running, log density {state.value.mean():.6g}")
            if checkpoint.due:
                checkpoint.save(state.arrays())

        found = maximise(
            target,
            density_starts(run.start, target, problem.batch or 1, run.seed),
            seed=run.seed,
            max_iterations=run.iterations,
            radius=radius,
            tolerance=tolerance,
            callback=after_each,
            state=None if saved is None else TrustRegionState.restored(saved, target.device),
        )
    checkpoint.save(found.state.arrays())
    hessian = found.hessian if found.hessian is not None else target.value_grad_hessian(found.w)[2]
    root, bad = torch.linalg.cholesky_ex(torch.where(hessian.isfinite(), -hessian, torch.nan))
    bad = (bad > 0) | ~root.isfinite().flatten(1).all(1)
    statuses = [
        Status.DIVERGED if b and s.ok else s for b, s in zip(bad.tolist(), found.statuses, strict=True)
    ]
    eye = torch.eye(target.dim, dtype=target.dtype, device=target.device)
    half = torch.linalg.solve_triangular(torch.where(bad[:, None, None], eye, root).mT, eye, upper=True)
    half = torch.where(bad[:, None, None], torch.nan, half)
    drawn, _ = normal_draws(target, found.w, half, generator_for(run.seed, 1), run)
    return finish(
        problem,
        target,
        method="laplace",
        run=run,
        statuses=statuses,
        began=began,
        trace={("log_density" if name == "value" else name): a for name, a in found.trace.items()},
        stats={"iterations": found.iterations, "log_density": found.value.tolist()},
        location=found.w,
        covariance=half @ half.mT,
        **drawn,
    )
