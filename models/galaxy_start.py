"""Where the fit of a galaxy starts: Gauss-Newton steps from the encoder's means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["gauss_newton"]

_STEP = 1e-4
"""Step of the central differences by the latents, which are of order 1. In float64 their relative error is
about 1e-8."""
_ITERATIONS = 12
"""The most iterations. Galaxies like those of the training set need three."""
_GAIN = 1e-3
"""[nat] The search ends when a step raises the log posterior by less."""
_DAMPING = (1e-3, 1e6)
"""Damping of the first step, relative to the curvature, and the one at which the search ends."""


def gauss_newton(
    residuals: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n r"]], z: Float[Tensor, "d"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """A mode of ``exp(-sum(residuals^2) / 2)``, and the lower triangular root of the covariance there.

    Args:
        residuals: of several points at once, in float64: those of the data, whitened, and of the prior.
        z: start.
    """
    value, damping = _half_square(residuals, z), _DAMPING[0]
    for _ in range(_ITERATIONS):
        slopes, residual = _slopes(residuals, z)
        curvature, gradient = slopes @ slopes.mT, slopes @ residual
        gain = 0.0
        while damping < _DAMPING[1]:
            damped = curvature + damping * torch.diag(curvature.diagonal())
            trial = z - torch.linalg.solve(damped, gradient)
            new = _half_square(residuals, trial)
            if new.isfinite() and new <= value:
                gain, z, value, damping = float(value - new), trial, new, damping / 10
                break
            damping *= 10
        if gain < _GAIN:
            break
    slopes, _ = _slopes(residuals, z)
    covariance = torch.linalg.inv(slopes @ slopes.mT)
    return z, torch.linalg.cholesky((covariance + covariance.mT) / 2)


def _half_square(residuals: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return 0.5 * residuals(z[None]).square().sum()


def _slopes(
    residuals: Callable[[Tensor], Tensor], z: Float[Tensor, "d"]
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r"]]:
    """Derivatives of the residuals by each coordinate, and the residuals."""
    steps = _STEP * torch.eye(len(z), dtype=z.dtype)
    up, down = residuals(z + steps), residuals(z - steps)
    return (up - down) / (2 * _STEP), residuals(z[None])[0]
