"""The mode of a lens with a source of pixels, and its curvature, from first derivatives of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import layout_of
from astrozoo.infer.progress import progress_bar
from astrozoo.types import Problem, Result, Status

__all__ = ["gauss_newton", "log_evidence"]

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
    progress: bool = True,
) -> Result:
    """Levenberg-Marquardt from ``z`` to a mode, and the normal there with the Gauss-Newton covariance.

    Derivatives of the image are central differences: a source that is interpolated between pixels has no
    second derivatives, and where the model fits, those are small in the Hessian. Nothing is traced or
    compiled: an iteration renders each derivative once, which takes less time than tracing.

    Args:
        problem: of a :class:`~astrozoo.models.strong_lens.StrongLens`. The model may have ``slopes(values,
            data)``, exact derivatives by sites that are standard normal.
        z: unconstrained start.
        iterations: the most.
        tolerance: it has converged when an iteration raises the log density by less [nat].
        draws: of the normal, in the result.

    Returns:
        A Result with the mode as ``location``, and the normal's covariance and draws.
    """
    target = _Target(problem)
    local = target.expansion(z)
    damping, status, gain, i = 1e-2, Status.BUDGET_SPENT, math.inf, 0
    with progress_bar("mode", iterations, progress) as report:
        for i in range(1, iterations + 1):
            stepped = False
            while damping < _MOST_DAMPING and not stepped:
                damped = local.curvature + damping * torch.diag(local.curvature.diagonal())
                trial = z + torch.linalg.solve(damped, local.gradient)
                value = target.value(trial)
                stepped = bool(value.isfinite() and value > local.value)
                damping = max(damping / 5, 1e-6) if stepped else 4 * damping
            if stepped:
                gain = float(value - local.value)
                z, local = trial, target.expansion(trial)
            report(i, f"log density {float(local.value):.1f}")
            if not stepped or gain < tolerance:
                status = Status.CONVERGED
                break
    covariance = torch.linalg.inv(local.curvature)
    root = torch.linalg.cholesky(covariance)
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
            "log_density": float(local.value),
            "iterations": i,
            "notes": [],
            "counts": {"value": target.images, "gradient": target.expansions},
        },
        dims=dict(problem.dims),
        coords=dict(problem.coords),
        location=z[None].numpy(),
        covariance=covariance[None].numpy(),
    )


def log_evidence(mode: Result) -> float:
    """Laplace's ln Z, from a mode and the normal there; minus infinity where that is none."""
    if mode.covariance is None:
        return -math.inf
    sign, volume = np.linalg.slogdet(2 * np.pi * mode.covariance[0])
    value = float(np.ravel(mode.stats["log_density"])[0]) + volume / 2
    return value if sign > 0 and np.isfinite(value) else -math.inf


@dataclass(frozen=True)
class _Expansion:
    """The log density at a point, its gradient, and minus its Hessian as Gauss and Newton have it."""

    value: Tensor
    gradient: Float[Tensor, "dim"]
    curvature: Float[Tensor, "dim dim"]


class _Target:
    """The log density of a lens in unconstrained coordinates.

    Attributes:
        images, expansions: how many of each were computed.
    """

    def __init__(self, problem: Problem) -> None:
        self.model = cast(Any, problem.model)
        self.data = problem.args[0]
        self.layout = layout_of(problem)
        self.priors: dict[str, Any] = self.model.sites(*problem.args)
        self.images = self.expansions = 0

    def prior(self, z: Float[Tensor, "dim"]) -> Tensor:
        values, jacobian = self.layout.constrain_with_jacobian(z)
        return jacobian + sum(self.priors[name].log_prob(value).sum() for name, value in values.items())

    def likelihood(self, image: Tensor) -> Tensor:
        pixels, seen = self.model.pixels_of(image, self.data)
        return pixels.log_prob(seen).sum()

    def image(self, z: Float[Tensor, "dim"]) -> Tensor:
        return self.model.render(self.layout.constrain(z), self.data)

    def value(self, z: Float[Tensor, "dim"]) -> Tensor:
        self.images += 1
        with torch.no_grad():
            return self.prior(z) + self.likelihood(self.image(z))

    def expansion(self, z: Float[Tensor, "dim"]) -> _Expansion:
        self.expansions += 1
        with torch.no_grad():
            image = self.image(z)
            weight = (self.data.mask / self.data.total_variance(image)).flatten()
            used = weight > 0
            slopes, rest = self._slopes(z, used)
        pull, likelihood = torch.func.grad_and_value(self.likelihood)(image)
        towards, prior = torch.func.grad_and_value(self.prior)(z)
        gradient = towards + (slopes @ pull.flatten()[used].to(slopes)).to(z)
        slopes *= weight[used].sqrt().to(slopes)
        curvature = torch.eye(len(z)).to(z)
        curvature[rest.outer(rest)] = self._bend(z, rest).flatten()
        return _Expansion(prior + likelihood, gradient, curvature + (slopes @ slopes.T).to(z))

    def _slopes(self, z: Float[Tensor, "dim"], used: Tensor) -> tuple[Float[Tensor, "dim n"], Tensor]:
        """Derivatives of the used pixels, and which coordinates the model has no exact ones for."""
        exact: dict[str, Tensor] = {}
        if hasattr(self.model, "slopes"):
            exact = self.model.slopes(self.layout.constrain(z), self.data)
        spans = {site.name: slice(site.start, site.stop) for site in self.layout.sites}
        rest = torch.ones(len(z), dtype=torch.bool)
        for name in exact:
            rest[spans[name]] = False
        shifts = _STEP * torch.eye(len(z)).to(z)[rest]
        shifts = torch.cat((shifts, -shifts))
        shifted = torch.cat([torch.vmap(self.image)(z + part) for part in shifts.split(_CHUNK)]).flatten(1)
        up, down = shifted[:, used].chunk(2)
        slopes = torch.zeros(len(z), int(used.sum()), dtype=next(iter(exact.values()), shifted).dtype)
        slopes[rest] = ((up - down) / (2 * _STEP)).to(slopes)
        for name, rows in exact.items():
            slopes[spans[name]] = rows[:, used]
        return slopes, rest

    def _bend(self, z: Float[Tensor, "dim"], rest: Tensor) -> Float[Tensor, "m m"]:
        """Minus the Hessian of the log prior in some coordinates, and flat where truncated priors bend up."""

        def prior(part: Tensor) -> Tensor:
            return self.prior(z.masked_scatter(rest, part))

        values, vectors = torch.linalg.eigh(-torch.func.jacrev(torch.func.grad(prior))(z[rest]))
        return vectors * values.clamp_min(_FLAT) @ vectors.T
