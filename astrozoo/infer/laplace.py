"""Laplace's approximation: the posterior mode and the curvature there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.infer._curvature import draws_by_products
from astrozoo.infer._metric import Structure
from astrozoo.infer._structure import structure_for
from astrozoo.infer.approximation import normal_draws, rows_at_once
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.maximise import TrustRegionState, maximise
from astrozoo.infer.options import LaplaceSettings, RunOptions
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import by_chain, constrained, finish, kept_sites
from astrozoo.infer.starts import density_starts
from astrozoo.objective import Density
from astrozoo.types import DENSE_COVARIANCE, Problem, Result, Status

__all__ = ["laplace", "normal_at"]


def laplace(problem: Problem, run: RunOptions, settings: LaplaceSettings) -> Result:
    """The normal ``N(mode, (-Hessian)^-1)`` in unconstrained space, the mode found by a trust region.

    Above ``DENSE_COVARIANCE`` latents no Hessian is made: draws come from products with it
    (:mod:`astrozoo.infer._curvature`), and variances from the draws, with a relative standard error that
    ``stats`` has. The constant of ``log_ratio`` is then an estimate too.

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
    structure = structure_for(problem, settings.metric, target.layout)
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
    common: dict[str, Any] = {"method": "laplace", "run": run, "began": began, "location": found.w}
    common["trace"] = {("log_density" if name == "value" else name): a for name, a in found.trace.items()}
    stats: dict[str, Any] = {"iterations": found.iterations, "log_density": found.value.tolist()}
    drawn, bad, more = normal_at(target, found.w, structure, run, found.hessian)
    statuses = _with_diverged(found.statuses, bad)
    return finish(problem, target, statuses=statuses, stats=stats | more, **common, **drawn)


def normal_at(
    target: Density,
    modes: Float[Tensor, "b d"],
    structure: Structure,
    run: RunOptions,
    hessian: Float[Tensor, "b d d"] | None = None,
) -> tuple[dict[str, Any], Bool[Tensor, "b"], dict[str, Any]]:
    """The normals ``N(mode, (-Hessian)^-1)`` as fields of a Result: draws, their ratios, second moments.

    Args:
        structure: of the preconditioner of products with the Hessian, above ``DENSE_COVARIANCE`` latents.
        hessian: at the modes, if it is known.

    Returns:
        the fields; for which problems the Hessian is not negative definite, so that their draws lie at the
        mode; and statistics.
    """
    if target.dim > DENSE_COVARIANCE:
        fields, stats = _by_products(target, modes, structure, run)
        return fields, ~fields["variance"].isfinite().all(1), stats
    if hessian is None:
        hessian = target.value_grad_hessian(modes)[2]
    root, failed = torch.linalg.cholesky_ex(torch.where(hessian.isfinite(), -hessian, torch.nan))
    bad = (failed > 0) | ~root.isfinite().flatten(1).all(1)
    eye = torch.eye(target.dim, dtype=target.dtype, device=target.device)
    half = torch.linalg.solve_triangular(torch.where(bad[:, None, None], eye, root).mT, eye, upper=True)
    half = torch.where(bad[:, None, None], torch.nan, half)
    drawn, _ = normal_draws(target, modes, half, generator_for(run.seed, 1), run)
    return {"covariance": half @ half.mT, **drawn}, bad, {}


def _with_diverged(statuses: Sequence[Status], bad: Tensor) -> list[Status]:
    """Problems that ended at a point whose curvature is not that of a maximum have diverged.

    Those that were interrupted keep their status.
    """
    pairs = zip(bad.tolist(), statuses, strict=True)
    kept = Status.INTERRUPTED
    return [Status.DIVERGED if failed and status is not kept else status for failed, status in pairs]


def _by_products(
    target: Density, modes: Float[Tensor, "b d"], structure: Structure, run: RunOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws and variances from products with the Hessian, as fields of a Result; and statistics."""
    total, batched = run.chains * run.draws, target.batch is not None
    parts = []
    for row, mode in enumerate(modes):
        # Problems have streams of their own, so that none depends on how many products another takes.
        generator = generator_for(run.seed, 1, row)

        def product(v: Float[Tensor, "k d"], row: int = row, mode: Tensor = mode) -> Tensor:
            rows = torch.full((len(v),), row, device=v.device)
            return -target.take(rows).hvp(mode.expand_as(v), None, v)

        parts.append(draws_by_products(product, mode, total, generator, structure))
    z = torch.stack([part.z for part in parts])
    columns: dict[str, Tensor] = {}
    log_p = torch.empty(z.shape[:2], dtype=z.dtype, device=z.device)
    at_once = rows_at_once(len(modes) * target.dim)
    for first in range(0, total, at_once):
        chosen = slice(first, min(first + at_once, total))
        few = z[:, chosen].nan_to_num()
        if batched:
            log_p[:, chosen] = torch.cat([target.values(few[:, i]) for i in range(few.shape[1])], 1)
        else:
            log_p[0, chosen] = target.values(few[0])[:, 0]
        sites = kept_sites(constrained(target, few, run.seed, *((first,) if first else ())), run)
        for name, x in sites.items():
            if name not in columns:
                columns[name] = x.new_empty(len(x), total, *x.shape[2:])
            columns[name][:, chosen] = x
    ratio = log_p - torch.stack([part.log_q for part in parts])
    drawn = {
        "draws": {name: by_chain(x, run.chains, batched) for name, x in columns.items()},
        "sample_stats": {"log_ratio": by_chain(ratio, run.chains, batched)},
        "variance": torch.stack([part.variance for part in parts]),
    }
    stats = {
        "products": sum(part.products for part in parts),
        "relative error of variances": math.sqrt(2 / total),
        "error of the constant of log ratios": [part.log_q_error for part in parts],
    }
    return drawn, stats
