"""Normals near the posterior: a centre and an inverse mass matrix, and their estimates from ensembles.

Mass matrices are dense, or a diagonal with a few directions corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from astrozoo.errors import InputError
from astrozoo.types import Result

__all__ = [
    "DENSE_LIMIT",
    "RANK",
    "Dense",
    "LowRank",
    "Metric",
    "arrays",
    "checked_root",
    "estimated",
    "given",
    "identity",
    "padded",
    "restored",
    "updated",
]

DENSE_LIMIT = 200
"""Dimensions up to which the mass matrix is dense; above, it is if one was given."""
RANK = 40
"""Directions that a mass matrix of more dimensions corrects."""


class Metric(Protocol):
    """A normal near the posterior of each of ``B`` problems: its centre, and a root of its covariance.

    The covariance ``root root'`` is the inverse mass matrix.
    """

    @property
    def centre(self) -> Float[Tensor, "B d"]:
        """Its mean."""
        ...

    def velocity(self, r: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root r``: of momenta of unit mass."""
        ...

    def force(self, g: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root' g``."""
        ...

    def whiten(self, x: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root^-1 x``."""
        ...

    def take(self, rows: list[int]) -> Metric:
        """Of some of the problems."""
        ...


@dataclass(frozen=True)
class Dense:
    """Any root, and its inverse."""

    centre: Float[Tensor, "B d"]
    root: Float[Tensor, "B d d"]
    inverse: Float[Tensor, "B d d"]

    def velocity(self, r: Tensor) -> Tensor:
        return r @ self.root.mT

    def force(self, g: Tensor) -> Tensor:
        return g @ self.root

    def whiten(self, x: Tensor) -> Tensor:
        return x @ self.inverse.mT

    def take(self, rows: list[int]) -> Dense:
        return Dense(self.centre[rows], self.root[rows], self.inverse[rows])


@dataclass(frozen=True)
class LowRank:
    """``scale (1 + basis (stretch - 1) basis')``, ``basis`` orthonormal and ``stretch`` the SDs along it."""

    centre: Float[Tensor, "B d"]
    scale: Float[Tensor, "B d"]
    basis: Float[Tensor, "B d k"]
    stretch: Float[Tensor, "B k"]

    def velocity(self, r: Tensor) -> Tensor:
        return self._stretched(r, self.stretch) * self.scale[:, None]

    def force(self, g: Tensor) -> Tensor:
        return self._stretched(g * self.scale[:, None], self.stretch)

    def whiten(self, x: Tensor) -> Tensor:
        scale = self.scale[:, None]
        return self._stretched(torch.where(scale > 0, x / scale, 0.0), 1 / self.stretch)

    def take(self, rows: list[int]) -> LowRank:
        return LowRank(self.centre[rows], self.scale[rows], self.basis[rows], self.stretch[rows])

    def _stretched(self, x: Tensor, by: Tensor) -> Tensor:
        return x + ((x @ self.basis) * (by - 1)[:, None]) @ self.basis.mT


def identity(centre: Float[Tensor, "B d"]) -> Metric:
    """Unit mass."""
    problems, d = centre.shape
    if d <= DENSE_LIMIT:
        eye = torch.eye(d, dtype=centre.dtype, device=centre.device).expand(problems, d, d)
        return Dense(centre, eye, eye)
    none = centre.new_zeros(problems, d, 0)
    return LowRank(centre, torch.ones_like(centre), none, none[:, 0])


def checked_root(
    precondition: Result, problems: int, d: int, like: Mapping[str, Any]
) -> Float[Tensor, "B d d"]:
    """The Cholesky factor of a result's covariance.

    Raises:
        InputError: if it has none, of another shape, or one that is not positive definite.
    """
    if precondition.covariance is None or precondition.covariance.shape != (problems, d, d):
        got = None if precondition.covariance is None else precondition.covariance.shape
        raise InputError(
            "precondition", f"a result with covariance {got}", f"one of shape {(problems, d, d)}"
        )
    covariance = torch.as_tensor(precondition.covariance, **like)
    root, failed = torch.linalg.cholesky_ex(covariance)
    bad = (failed > 0) | ~covariance.isfinite().flatten(1).all(1)
    if bad.any():
        which = f" of problem {int(bad.nonzero()[0])}" if len(bad) > 1 else ""
        raise InputError("precondition", f"a covariance{which} that is not positive definite", "one that is")
    return root


def given(centre: Float[Tensor, "B d"], root: Float[Tensor, "B d d"]) -> Dense:
    """Of a mean and a covariance ``root root'``."""
    return Dense(centre, root, torch.linalg.inv(root))


def padded(metric: Metric, discrete: int) -> Metric:
    """With coordinates at the end that never move."""
    if not discrete:
        return metric
    centre = pad(metric.centre, (0, discrete))
    if isinstance(metric, Dense):
        return Dense(centre, *(pad(x, (0, discrete, 0, discrete)) for x in (metric.root, metric.inverse)))
    assert isinstance(metric, LowRank)
    scale, basis = pad(metric.scale, (0, discrete)), pad(metric.basis, (0, 0, 0, discrete))
    return LowRank(centre, scale, basis, metric.stretch)


def arrays(metric: Any) -> dict[str, np.ndarray]:
    """For a checkpoint."""
    return {f"metric_{f.name}": getattr(metric, f.name).cpu().numpy() for f in fields(metric)}


def restored(held: Mapping[str, np.ndarray], device: torch.device) -> Metric:
    """From a checkpoint."""
    kind: Any = Dense if "metric_root" in held else LowRank
    return kind(*[torch.as_tensor(held[f"metric_{f.name}"], device=device) for f in fields(kind)])


def estimated(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> Metric:
    """From draws and gradients of the log density there.

    The matrix S for which ``S cov(g) S = cov(x)``: of all Gaussians ``N(mean, S)`` it has the least Fisher
    divergence. If the posterior is Gaussian it is exact from any ``n > d`` points, wherever they lie.
    Correlations are shrunk where ``n`` is not many times ``d``. The mean is that of the draws after a Newton
    step by S.

    References:
        Seyboldt, Carlson & Carpenter 2026, arXiv 2603.18845.
    """
    middle, slant = x.mean(1, keepdim=True), g.mean(1, keepdim=True)
    x, g = x - middle, g - slant
    tiny = torch.finfo(x.dtype).tiny ** 0.25
    spread, slope = (y.square().mean(1).sqrt().clamp(tiny, 1 / tiny) for y in (x, g))
    scale = (spread / slope).sqrt()
    x, g = x / scale[:, None], g * scale[:, None]
    metric: Any
    if x.shape[2] > DENSE_LIMIT:
        metric = _low_rank(scale, x, g)
    else:
        metric = given(middle[:, 0], scale[..., None] * _fisher_root(x, g))
    return replace(metric, centre=(middle + metric.velocity(metric.force(slant)))[:, 0])


def updated(metric: Metric, x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> Metric:
    """For the next window: :func:`estimated` afresh, unless it is dense above ``DENSE_LIMIT``.

    That one was given, and knows more than a window can tell: what is estimated in the coordinates that it
    whitens, a diagonal and ``RANK`` directions, corrects it, and all else stays.
    """
    d = x.shape[2]
    if d <= DENSE_LIMIT or not isinstance(metric, Dense):
        return estimated(x, g)
    metric = Dense(metric.centre[:, :d], metric.root[:, :d, :d], metric.inverse[:, :d, :d])
    off = estimated(metric.whiten(x), metric.force(g))
    centre = metric.velocity(off.centre[:, None])[:, 0]
    return Dense(centre, off.force(metric.root), off.whiten(metric.inverse.mT).mT)


def _shrunk(y: Float[Tensor, "B n d"], shrink: float) -> Float[Tensor, "B d d"]:
    covariance = y.mT @ y / y.shape[1]
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    return (1 - shrink) * covariance + torch.diag_embed((shrink + 1e-10) * diagonal)


def _fisher_root(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> Float[Tensor, "B d d"]:
    """A root of the S with ``S cov(g) S = cov(x)``; the identity where rounding leaves none."""
    shrink = min(1.0, 3 * x.shape[2] / x.shape[1]) ** 6  # of note for short windows only
    cx, cg = _shrunk(x, shrink), _shrunk(g, shrink)
    eye = torch.eye(cx.shape[1], dtype=cx.dtype, device=cx.device)
    L, failed = torch.linalg.cholesky_ex(cg)
    bad = (failed > 0) | ~cx.isfinite().flatten(1).all(1)
    L, cx = torch.where(bad[:, None, None], eye, L), torch.where(bad[:, None, None], eye, cx)
    values, vectors = torch.linalg.eigh(L.mT @ cx @ L)
    least = values[:, -1:] * torch.finfo(cx.dtype).eps
    return torch.linalg.solve_triangular(L.mT, vectors * values.clamp_min(least)[:, None] ** 0.25, upper=True)


def _low_rank(scale: Tensor, x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> LowRank:
    """In the span of the principal directions of both: soft ones stand out in ``x``, stiff ones in ``g``.

    They are few beside the draws (some of which repeat others, after rejections): along a direction of the
    one that lies outside the span of the other's draws the two variances could not be compared.
    """
    k = min(RANK // 2, x.shape[1] // 8)
    spans = [torch.linalg.svd(y, full_matrices=False)[2][:, :k].mT for y in (x, g)]
    basis, _ = torch.linalg.qr(torch.cat(spans, 2))
    turn, stretch, _ = torch.linalg.svd(_fisher_root(x @ basis, g @ basis))
    return LowRank(torch.zeros_like(scale), scale, basis @ turn, stretch)
