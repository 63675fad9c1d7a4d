"""Weighted least squares of many independent problems at once, by the batched trust region."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.infer.maximise import maximise
from astrozoo.types import Status

__all__ = ["LeastSquares", "LeastSquaresFit", "least_squares"]

_CHUNK = 32
"""Problems whose Jacobians are computed at once. It limits memory; more are not faster."""


@dataclass(frozen=True)
class LeastSquaresFit:
    """The fits of all problems.

    Args:
        parameters: at the least sum of squares.
        chi2: sum of squares of the residuals.
        covariance: ``(J' J)^-1``; NaN where the Jacobian is singular.
        statuses: of each problem.
        iterations: of the longest fit.
    """

    parameters: Float[Tensor, "b p"]
    chi2: Float[Tensor, "b"]
    covariance: Float[Tensor, "b p p"]
    statuses: tuple[Status, ...]
    iterations: int


def least_squares(
    residual: Callable[..., Float[Tensor, "m"]],
    start: Float[Tensor, "b p"],
    data: tuple[Tensor, ...] = (),
    *,
    max_iterations: int = 100,
    radius: float = 1.0,
    tolerance: float = 1e-2,
) -> LeastSquaresFit:
    """Minimise the sum of squares of ``residual(parameters, *data)`` for each problem.

    The trust region's model of the curvature is that of Gauss and Newton, ``J' J``.

    Args:
        residual: residuals of one problem in units of their SD. It must be traceable by ``torch.func``.
        start: one row for each problem.
        data: tensors whose leading axis is that of the problems.
        radius: first radius of the trust region, in units of the parameters.
        tolerance: length of the last step, in SDs of the parameters.

    Raises:
        InputError: the start is not a matrix, or the data have another number of problems.
    """
    objective = LeastSquares(residual, start, data)
    solution = maximise(
        objective, start, mode="fixed", max_iterations=max_iterations, radius=radius, tolerance=tolerance
    )
    value, _, hessian = objective.value_grad_hessian(solution.w)
    factor, failed = torch.linalg.cholesky_ex(-hessian)
    covariance = torch.cholesky_inverse(
        torch.where(failed[:, None, None] > 0, torch.eye(objective.dim).to(factor), factor)
    )
    covariance = torch.where(failed[:, None, None] > 0, torch.nan, covariance)
    return LeastSquaresFit(solution.w, -2 * value, covariance, solution.statuses, solution.iterations)


class LeastSquares:
    """Minus half a sum of squares as an :class:`~astrozoo.objective.Objective`, whose Hessian is ``-J'
    J``."""

    noise_dim = 0
    compile_seconds = 0.0

    def __init__(
        self,
        residual: Callable[..., Float[Tensor, "m"]],
        like: Float[Tensor, "b p"],
        data: tuple[Tensor, ...],
    ) -> None:
        if like.ndim != 2:
            raise InputError("start", f"shape {tuple(like.shape)}", "[problems, parameters]")
        for x in data:
            if x.ndim == 0 or len(x) != len(like):
                raise InputError("data", f"shape {tuple(x.shape)}", f"a leading axis of {len(like)} problems")
        self.residual, self.data = residual, data
        self.batch: int | None = len(like)
        self.dim, self.dtype, self.device = like.shape[1], like.dtype, like.device
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
        self._residuals = torch.func.vmap(residual)
        self._slopes = torch.func.vmap(torch.func.jacfwd(lambda *x: (residual(*x),) * 2, has_aux=True))

    def values(self, w: Tensor, noise: Tensor | None = None) -> Float[Tensor, "b 1"]:
        """Minus half the sum of squares."""
        self.counts["value"] += len(w)
        parts = [self._residuals(*part).square().sum(1) for part in self._chunks(w)]
        return -0.5 * torch.cat(parts)[:, None]

    def value_and_grad(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Its value and gradient."""
        return self.value_grad_hessian(w)[:2]

    def value_grad_hessian(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Its value, gradient, and the Hessian of Gauss and Newton."""
        self.counts["hessian"] += len(w)
        parts = []
        for part in self._chunks(w):
            with warnings.catch_warnings():  # the first derivative of this kind makes torch load scripts
                warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
                slopes, r = self._slopes(*part)  # [b, m, p], [b, m]
            parts.append((-0.5 * r.square().sum(1), -(r[:, None] @ slopes)[:, 0], -(slopes.mT @ slopes)))
        value, gradient, hessian = (torch.cat(column) for column in zip(*parts, strict=True))
        return value, gradient, hessian

    def hvp(self, w: Tensor, noise: Tensor | None, v: Tensor) -> Tensor:
        """That Hessian times ``v``."""
        self.counts["hvp"] += len(w)
        return (self.value_grad_hessian(w)[2] @ v[..., None])[..., 0]

    def take(self, rows: Tensor) -> Self:
        """Of a subset of the problems."""
        part: Any = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.data, part.batch = tuple(x[rows] for x in self.data), len(rows)
        return part

    def _chunks(self, w: Tensor) -> list[tuple[Tensor, ...]]:
        return list(zip(*(x.split(_CHUNK) for x in (w, *self.data)), strict=True))
