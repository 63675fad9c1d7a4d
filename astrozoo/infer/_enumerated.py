"""Problems without continuous latents: every method gives the same, exact draws of the discrete ones."""

from __future__ import annotations

import time

import torch

from astrozoo.density import log_density
from astrozoo.infer.options import RunOptions
from astrozoo.infer.results import by_chain, constrained, finish
from astrozoo.types import Problem, Result, Status

__all__ = ["enumerated"]


def enumerated(problem: Problem, method: str, run: RunOptions) -> Result:
    """Independent draws of the discrete latents, by a sum over their assignments.

    Raises:
        CaptureError: if there are more assignments than can be enumerated.
    """
    began = time.monotonic()
    target = log_density(problem, compile="never")
    rows = problem.batch or 1
    z = torch.zeros(rows, run.chains * run.draws, 0, dtype=target.dtype, device=target.device)
    sites = constrained(target, z, run.seed)
    return finish(
        problem,
        target,
        method=method,
        run=run,
        statuses=[Status.CONVERGED] * rows,
        began=began,
        stats={"notes": ["there are no continuous latents: the draws are exact, by enumeration"]},
        location=z[:, 0],
        covariance=z.new_zeros(rows, 0, 0),
        draws={name: by_chain(x, run.chains, problem.batch is not None) for name, x in sites.items()},
    )
