"""The exact posterior of a linear-Gaussian model: the Wiener filter, and draws from it."""

from __future__ import annotations

import time

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.infer._curvature import preconditioner, solve
from astrozoo.infer._metric import Structure
from astrozoo.infer._structure import structure_for
from astrozoo.infer.laplace import normal_at
from astrozoo.infer.options import RunOptions, WienerSettings
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import finish
from astrozoo.infer.starts import density_starts
from astrozoo.objective import Density
from astrozoo.types import Problem, Result, Status

__all__ = ["wiener"]

DISTANCE = 3.0
"""[posterior SD] Distance in every latent at which a log density is compared with a quadratic function: most
of a posterior lies nearer."""
ROUNDING = 0.4
"""Power of the unit of rounding that a relative difference between gradients may reach: 5e-7 in double
precision. It leaves room for the rounding of a sum over a million pixels, which amounts to 1e-10."""
_CHECK = 2
"""Stream of the random numbers of the check."""
_PROBE = 3
"""Stream of the random numbers of the preconditioner."""


def wiener(problem: Problem, run: RunOptions, settings: WienerSettings) -> Result:
    """Mean and draws of a posterior whose log density is quadratic in unconstrained space.

    The mean is one solution of linear equations, by conjugate gradients on Hessian-vector products. Draws are
    the mean plus ``A^-1/2`` times standard normals, A the negative Hessian. Up to ``DENSE_COVARIANCE``
    latents that root is dense. Above, it is applied by Lanczos (:mod:`astrozoo.infer._curvature`), and
    variances are those of the draws.

    Returns:
        a Result whose ``location`` is the posterior mean. ``log_ratio`` of its draws is constant, up to
        rounding and the tolerance of the draws. A problem whose posterior is improper has diverged. One whose
        equations were not solved within ``budget`` products has spent its budget.

    Raises:
        InputError: for a log density that is not quadratic (the message names a site), a model with discrete
            sites, a start of the wrong shape, or a metric that does not suit the problem. All are raised
            before the equations are solved.

    References:
        Wiener 1949; Elsner & Wandelt 2013, A&A 549, A111 (masked maps); Chow & Saad 2014 (draws).
    """
    began = time.monotonic()
    target = log_density(problem, compile=run.compile)
    if target.summed_out or target.choices:
        sites = ", ".join(map(repr, [*target.summed_out, *target.in_vector]))
        raise InputError("model for wiener", f"discrete sites: {sites}", "continuous latents only")
    structure = structure_for(problem, settings.metric, target.layout)
    start = density_starts(run.start, target, problem.batch or 1, run.seed)
    gradient = target.value_and_grad(start)[1]
    _check_quadratic(target, start, gradient, run.seed)
    rows = [
        _mean(target, i, start[i], gradient[i], structure, run, settings.tolerance) for i in range(len(start))
    ]
    mean = torch.stack([row[0] for row in rows])
    solved = mean.isfinite().all(1)
    mean = torch.where(solved[:, None], mean, start)
    fields, bad, stats = normal_at(target, mean, structure, run)
    statuses = []
    for ok, (_, _, reached), failed in zip(solved.tolist(), rows, bad.tolist(), strict=True):
        good = Status.CONVERGED if reached else Status.BUDGET_SPENT
        statuses.append(Status.DIVERGED if failed or not ok else good)
    stats |= {"products for the mean": [row[1] for row in rows]}
    return finish(
        problem, target, method="wiener", run=run, statuses=statuses, began=began, location=mean,
        stats=stats, **fields,
    )  # fmt: skip


def _mean(
    target: Density,
    row: int,
    start: Float[Tensor, "d"],
    gradient: Float[Tensor, "d"],
    structure: Structure,
    run: RunOptions,
    tolerance: float,
) -> tuple[Float[Tensor, "d"], int, bool]:
    """The mean of one problem, the products that it took, and whether the tolerance was reached."""

    def product(v: Float[Tensor, "k d"]) -> Tensor:
        rows = torch.full((len(v),), row, device=v.device)
        return -target.take(rows).hvp(start.expand_as(v), None, v)

    metric = preconditioner(product, start, generator_for(run.seed, _PROBE, row), structure)
    step, products, reached = solve(product, gradient, metric, tolerance=tolerance, most=run.iterations)
    return start + step, products, reached


def _check_quadratic(
    target: Density, start: Float[Tensor, "b d"], gradient: Float[Tensor, "b d"], seed: int
) -> None:
    """Compare gradients at two random points with those that the Hessian at the start predicts.

    Raises:
        InputError: they differ by more than rounding. It names the site of the largest difference.
    """
    generator = generator_for(seed, _CHECK)

    def normals() -> Tensor:
        return torch.randn(start.shape, generator=generator, dtype=start.dtype).to(start.device)

    probe = normals()
    curvature = (target.hvp(start, None, probe) * probe).abs()
    typical = curvature.mean(1, keepdim=True)
    scale = torch.where(curvature > 0.01 * typical, curvature, typical).rsqrt().nan_to_num(1.0, 1.0, 1.0)
    for _ in range(2):
        move = DISTANCE * scale * normals()
        change = target.hvp(start, None, move)
        difference = target.value_and_grad(start + move)[1] - gradient - change
        size = torch.linalg.vector_norm(change, dim=1) + torch.linalg.vector_norm(gradient, dim=1)
        allowed = torch.finfo(start.dtype).eps ** ROUNDING * (size + 1)
        off = ~(torch.linalg.vector_norm(difference, dim=1) <= allowed)
        if off.any():
            row = int(off.nonzero()[0])
            at = int(difference[row].nan_to_num(torch.inf).abs().argmax())
            site = next(s.name for s in target.layout.sites if s.start <= at < s.stop)
            raise InputError(
                "model for wiener",
                f"a log density that is not quadratic in site {site!r}",
                "a linear model with Gaussian prior and noise; other methods take any model",
            )
