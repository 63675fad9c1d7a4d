"""The mode of a lens with a source of pixels, and its curvature, from first derivatives of the image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import LogDensity, log_density
from astrozoo.infer.progress import progress_bar
from astrozoo.types import Problem, Result, Status

__all__ = ["gauss_newton"]

_STEP = 1e-4
"""Step of differences, in unconstrained coordinates."""
_CHUNK = 16
"""Images that are rendered at once: it limits memory."""
_FLAT = 0.01
"""Least curvature of the prior: an SD of 10 unconstrained units says nothing."""
_MOST_DAMPING = 1e8
"""Damping at which the search gives up: steps are then lost in rounding."""


def gauss_newton(
    problem: Problem,
    z: Float[Tensor, "dim"],
    *,
    iterations: int = 60,
    tolerance: float = 0.01,
    draws: int = 1000,
    seed: int = 0,
    compile: str = "auto",
    progress: bool = True,
) -> Result:
    """Levenberg-Marquardt from ``z`` to a mode, and the normal there with the Gauss-Newton covariance.

    Derivatives of the image are central differences: a source that is interpolated between pixels has no
    second derivatives, and where the model fits, those are small in the Hessian.

    Args:
        problem: of a model with ``render(values, data)``, and data with ``mask`` and ``total_variance``. The
            model may have ``slopes(values, data)``, exact derivatives by sites that are standard normal.
        z: unconstrained start.
        iterations: the most.
        tolerance: it has converged when an iteration raises the log density by less [nat].
        draws: of the normal, in the result.

    Returns:
        A Result whose ``stats["log_evidence"]`` is Laplace's ln Z.
    """
    target = log_density(problem, compile=compile)
    data, *rest = problem.args
    blind = (data._replace(mask=torch.zeros_like(data.mask)), *rest)
    prior = log_density(replace(problem, args=blind, images=(), proposals=None), compile=compile)
    (value,), (gradient,) = target.value_and_grad(z[None])
    damping, status = 1e-2, Status.BUDGET_SPENT
    with progress_bar("mode", iterations, progress) as report:
        for i in range(iterations):
            curvature = _curvature(problem, target, prior, z)
            gain = math.inf
            while damping < _MOST_DAMPING:
                damped = curvature + damping * torch.diag(curvature.diagonal())
                trial = z + torch.linalg.solve(damped, gradient)
                (new,), (slope,) = target.value_and_grad(trial[None])
                if new.isfinite() and new > value:
                    gain, z, value, gradient = float(new - value), trial, new, slope
                    damping = max(damping / 5, 1e-6)
                    break
                damping *= 4
            report(i + 1, f"log density {float(value):.1f}")
            if damping >= _MOST_DAMPING or gain < tolerance:
                status = Status.CONVERGED
                break
    covariance = torch.linalg.inv(_curvature(problem, target, prior, z))
    root = torch.linalg.cholesky(covariance)
    evidence = value + root.diagonal().log().sum() + len(z) / 2 * math.log(2 * math.pi)
    normals = torch.randn(draws, len(z), generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
    drawn = target.layout.constrain(z + normals @ root.T)
    return Result(
        draws={name: values[None].numpy() for name, values in drawn.items()},
        status=status,
        seed=seed,
        model=problem.name,
        method="gauss_newton",
        digest=problem.digest,
        stats={
            "log_density": float(value),
            "log_evidence": float(evidence),
            "iterations": i + 1,
            "notes": [],
            "counts": dict(target.counts),
        },
        dims=dict(problem.dims),
        coords=dict(problem.coords),
        location=z[None].numpy(),
        covariance=covariance[None].numpy(),
    )


def _curvature(
    problem: Problem, target: LogDensity, prior: LogDensity, z: Float[Tensor, "dim"]
) -> Float[Tensor, "dim dim"]:
    """Minus the Hessian of the log prior, and J' W J of the image."""
    data, values = problem.args[0], target.layout.constrain(z)
    model: Any = problem.model
    exact = model.slopes(values, data) if hasattr(model, "slopes") else {}
    spans = {site.name: slice(site.start, site.stop) for site in target.layout.sites}
    rest = torch.ones(len(z), dtype=torch.bool)
    for name in exact:
        rest[spans[name]] = False
    shifts = _STEP * torch.eye(len(z)).to(z)[rest]
    shifts = torch.cat((shifts, -shifts))

    def image(z: Tensor) -> Tensor:
        return model.render(target.layout.constrain(z), data)

    with torch.no_grad():
        images = torch.cat([torch.vmap(image)(z + part) for part in shifts.split(_CHUNK)]).flatten(1)
        weight = (data.mask / data.total_variance(image(z))).flatten()
    up, down = images.chunk(2)
    used, dtype = weight > 0, next(iter(exact.values()), images).dtype
    slopes = torch.zeros(len(z), int(used.sum()), dtype=dtype)
    slopes[rest] = ((up - down)[:, used] / (2 * _STEP)).to(dtype)
    for name, rows in exact.items():
        slopes[spans[name]] = rows[:, used]
    slopes *= weight[used].sqrt().to(dtype)
    up, down = prior.value_and_grad(z + shifts)[1].chunk(2)
    bend = torch.linalg.eigh((down - up)[:, rest] / (2 * _STEP))  # reads one triangle
    hessian = torch.eye(len(z)).to(z)
    # truncated priors bend upwards near their ends
    hessian[rest.outer(rest)] = (bend[1] * bend[0].clamp_min(_FLAT) @ bend[1].T).flatten()
    return (slopes @ slopes.T).to(z) + hessian
