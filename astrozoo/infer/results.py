"""What every backend ends with: the making of the Result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InferenceError
from astrozoo.infer.options import RunOptions
from astrozoo.infer.randomness import generator_for
from astrozoo.objective import Captured
from astrozoo.types import Problem, Result, Status

__all__ = ["DISCRETE_STREAM", "by_chain", "constrained", "finish", "kept_sites", "worst"]

DISCRETE_STREAM = 101
"""The random stream from which discrete sites are drawn."""


def worst(statuses: Sequence[Status]) -> Status:
    """The status of a batched run."""
    order = (Status.INTERRUPTED, Status.DIVERGED, Status.BUDGET_SPENT, Status.CONVERGED)
    return next(status for status in order if status in statuses)


def constrained(target: Captured, z: Float[Tensor, "b m d"], seed: int, *stream: int) -> dict[str, Tensor]:
    """Constrained draws of all sites, the discrete and derived ones too: ``{site: [b, m, *shape]}``.

    Args:
        stream: of the random numbers for discrete sites, where draws come in parts.
    """
    z = z.to(target.device)
    continuous = target.layout.constrain(z[..., : target.layout.dim])
    latent = continuous | target.discrete(z, generator_for(seed, DISCRETE_STREAM, *stream))
    return latent | target.derived(latent)


def kept_sites(draws: Mapping[str, Any], run: RunOptions) -> dict[str, Any]:
    """The draws of the sites that ``run.keep`` names."""
    return {name: x for name, x in draws.items() if run.keep is None or name in run.keep}


def by_chain(x: Float[Tensor, "b m ..."], chains: int, batched: bool) -> np.ndarray:
    """``[problem, chain * draw, ...]`` to ``[chain, draw, (problem), ...]``."""
    x = x.unflatten(1, (chains, -1))
    x = x.movedim(0, 2) if batched else x[0]
    return x.detach().cpu().numpy()


def finish(
    problem: Problem,
    objective: Captured,
    *,
    method: str,
    run: RunOptions,
    statuses: Sequence[Status],
    began: float,
    stats: Mapping[str, Any] | None = None,
    location: Tensor,
    covariance: Tensor | None = None,
    variance: Tensor | None = None,
    draws: Mapping[str, np.ndarray],
    **fields: Any,
) -> Result:
    """The Result of a run.

    Args:
        began: ``time.monotonic()`` at its beginning.
        variance: None: the diagonal of ``covariance``.
        draws: by site; those that ``run.keep`` does not name are left out.
        fields: further fields of the Result.

    Raises:
        InferenceError: if ``run.throw`` and the run did not converge.
    """
    status = worst(statuses)
    compile_seconds = objective.compile_seconds
    common: dict[str, Any] = {
        "counts": dict(objective.counts),
        "compile_seconds": compile_seconds,
        "compiled": dict(getattr(objective, "compiled", {})),
        "run_seconds": time.monotonic() - began - compile_seconds,
        "notes": list(objective.notes),
    }
    all_stats = common | dict(stats or {})
    if variance is None and covariance is not None:
        variance = covariance.diagonal(dim1=1, dim2=2)
    if run.throw and not status.ok:
        raise InferenceError(f"{method} on {problem.name}: {status.value}; {all_stats}")
    return Result(
        status=status,
        statuses=() if problem.batch is None else tuple(statuses),
        seed=run.seed,
        model=problem.name,
        method=method,
        digest=problem.digest,
        stats=all_stats,
        location=location.detach().cpu().numpy(),
        covariance=None if covariance is None else covariance.detach().cpu().numpy(),
        variance=None if variance is None else variance.detach().cpu().numpy(),
        draws=kept_sites(draws, run),
        dims=dict(problem.dims),
        coords=dict(problem.coords),
        **fields,
    )
