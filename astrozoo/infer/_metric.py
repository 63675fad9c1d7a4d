"""Mass matrices of Markov chains: which kind each site has, and their estimates from ensembles of draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from astrozoo.errors import InputError
from astrozoo.infer._operators import (
    Blocks,
    Corrected,
    Dense,
    Diagonal,
    Fourier,
    LowRank,
    Metric,
    Preconditioner,
    hartley,
)
from astrozoo.types import Result

__all__ = [
    "DEFAULT",
    "DENSE_LIMIT",
    "KINDS",
    "RANK",
    "Block",
    "Structure",
    "checked_root",
    "estimated",
    "given",
    "identity",
    "of_result",
    "padded",
    "updated",
]

DENSE_LIMIT = 200
"""[dimensions] The most for which the mass matrix is dense by default. A dense one needs several draws per
dimension in each window of the warm-up. More dimensions have a diagonal with ``RANK`` directions corrected.
"""
RANK = 40
"""Directions that a low-rank mass matrix corrects."""


@dataclass(frozen=True)
class Block:
    """A part of the vector whose metric is estimated separately.

    Args:
        size: its length.
        kind: "dense", "low_rank", "diagonal" or "fourier"; "": dense up to ``DENSE_LIMIT`` dimensions, else
            low rank.
        grid: axes of a "fourier" block.
    """

    size: int
    kind: str = ""
    grid: tuple[int, ...] = ()


@dataclass(frozen=True)
class Structure:
    """Which metrics a run estimates.

    Args:
        blocks: of all coordinates but those of discrete sites; none: one of the default kind.
        outer: an operator that the user or the problem states. The rest is estimated in its coordinates.
    """

    blocks: tuple[Block, ...] = ()
    outer: Preconditioner | None = None


DEFAULT = Structure()
"""The structure of a mass matrix where neither the user nor the problem states one."""
KINDS = ("dense", "low_rank", "diagonal", "fourier", "fourier_3d")
"""Names that the option ``metric`` takes for the mass matrix of a site."""


def identity(centre: Float[Tensor, "B d"], structure: Structure = DEFAULT) -> Metric:
    """The metric of unit mass (in the coordinates of ``structure.outer``, if there is one)."""
    problems, d = centre.shape
    if d <= DENSE_LIMIT and structure == DEFAULT:
        eye = torch.eye(d, dtype=centre.dtype, device=centre.device).expand(problems, d, d)
        return Dense(centre, eye, eye)
    unit = Diagonal(centre, torch.ones_like(centre))
    return unit if structure.outer is None else Corrected(centre, structure.outer, unit)


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


def of_result(precondition: Result, problems: int, d: int, like: Mapping[str, Any]) -> Metric:
    """The normal of a result: of its covariance, or of its variances where it has no covariance.

    Raises:
        InputError: if it has neither, of another shape, or one that is not positive (definite).
    """
    location, variance = precondition.location, precondition.variance
    dense = precondition.covariance is not None or variance is None
    root = checked_root(precondition, problems, d, like) if dense else None
    if location is None or location.shape != (problems, d):
        got = None if location is None else location.shape
        raise InputError("precondition", f"a result with location {got}", f"one of shape {(problems, d)}")
    centre = torch.as_tensor(location, **like)
    if root is not None:
        return given(centre, root)
    assert variance is not None
    scale = torch.as_tensor(variance, **like).sqrt()
    if scale.shape != centre.shape or not (scale.isfinite() & (scale > 0)).all():
        raise InputError(
            "precondition", f"variances of shape {variance.shape}", f"positive ones of shape {(problems, d)}"
        )
    return Diagonal(centre, scale)


def given(centre: Float[Tensor, "B d"], root: Float[Tensor, "B d d"]) -> Dense:
    """The metric of a mean and a covariance ``root root'``."""
    return Dense(centre, root, torch.linalg.inv(root))


def padded(metric: Metric, discrete: int) -> Metric:
    """The metric with further coordinates at the end, which never move."""
    if not discrete:
        return metric
    if isinstance(metric, Dense):
        roots = (pad(x, (0, discrete, 0, discrete)) for x in (metric.root, metric.inverse))
        return Dense(pad(metric.centre, (0, discrete)), *roots)
    still = metric.centre.new_zeros(len(metric.centre), discrete)
    return Blocks((metric, Diagonal(still, still)))


def estimated(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"], structure: Structure = DEFAULT) -> Metric:
    """The metric of draws ``x`` and gradients ``g`` of their log density.

    Its covariance is the matrix S for which ``S cov(g) S = cov(x)``. Of all Gaussians ``N(mean, S)`` this one
    has the smallest Fisher divergence. If the posterior is Gaussian, S is exact from any ``n > d`` points,
    wherever they are. A diagonal S is exact from any two points if the posterior is diagonal in the same
    basis. Correlations are shrunk if ``n`` is not many times ``d``. The mean is that of the draws, moved by a
    Newton step with S.

    References:
        Seyboldt, Carlson & Carpenter 2026, arXiv 2603.18845.
    """
    if structure.outer is not None:
        inner = estimated(structure.outer.whiten(x), structure.outer.force(g), replace(structure, outer=None))
        centre = structure.outer.velocity(inner.centre[:, None])[:, 0]
        return Corrected(centre, structure.outer, inner)
    if not structure.blocks:
        return _estimated(x, g, Block(x.shape[2]))
    sizes = [block.size for block in structure.blocks]
    columns = zip(structure.blocks, x.split(sizes, 2), g.split(sizes, 2), strict=True)
    parts = tuple(_estimated(x_part, g_part, block) for block, x_part, g_part in columns)
    return parts[0] if len(parts) == 1 else Blocks(parts)


def _estimated(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"], block: Block) -> Metric:
    middle, slant = x.mean(1, keepdim=True), g.mean(1, keepdim=True)
    x, g = x - middle, g - slant
    metric: Any
    if block.kind == "fourier":
        grid = block.grid
        spread, slope = (_mode_sd(hartley(y, grid), grid) for y in (x, g))
        metric = Fourier(middle[:, 0], _ratio(spread, slope), grid)
    else:
        spread, slope = (y.square().mean(1).sqrt() for y in (x, g))
        scale = _ratio(spread, slope)
        if block.kind == "diagonal":
            metric = Diagonal(middle[:, 0], scale)
        else:
            x, g = x / scale[:, None], g * scale[:, None]
            if block.kind == "low_rank" or (not block.kind and x.shape[2] > DENSE_LIMIT):
                metric = _low_rank(scale, x, g)
            else:
                metric = given(middle[:, 0], scale[..., None] * _fisher_root(x, g))
    return replace(metric, centre=(middle + metric.velocity(metric.force(slant)))[:, 0])


def _ratio(spread: Float[Tensor, "B d"], slope: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
    """SDs of the normal whose draws and gradients have these SDs."""
    tiny = torch.finfo(spread.dtype).tiny ** 0.25
    return (spread.clamp(tiny, 1 / tiny) / slope.clamp(tiny, 1 / tiny)).sqrt()


def _mode_sd(waves: Float[Tensor, "B n d"], grid: tuple[int, ...]) -> Float[Tensor, "B d"]:
    """Root mean square of each mode and that of the opposite wave vector, which have one variance."""
    power = waves.square().mean(1).unflatten(-1, (-1, *grid))
    axes = tuple(range(-len(grid), 0))
    opposite = power.flip(axes).roll((1,) * len(grid), axes)
    return ((power + opposite) / 2).sqrt().flatten(1)


def updated(
    metric: Metric, x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"], structure: Structure = DEFAULT
) -> Metric:
    """The metric for the next window.

    It is :func:`estimated` anew, unless the present one is dense above ``DENSE_LIMIT`` dimensions. That one
    comes from ``precondition`` and has more information than a window. It is corrected by a diagonal and
    ``RANK`` directions, which are estimated in the coordinates that it whitens.
    """
    d = x.shape[2]
    if d <= DENSE_LIMIT or structure != DEFAULT or not isinstance(metric, Dense):
        return estimated(x, g, structure)
    metric = Dense(metric.centre[:, :d], metric.root[:, :d, :d], metric.inverse[:, :d, :d])
    off = estimated(metric.whiten(x), metric.force(g))
    centre = metric.velocity(off.centre[:, None])[:, 0]
    return Dense(centre, off.force(metric.root), off.whiten(metric.inverse.mT).mT)


def _shrunk(y: Float[Tensor, "B n d"], shrink: float) -> Float[Tensor, "B d d"]:
    covariance = y.mT @ y / y.shape[1]
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    return (1 - shrink) * covariance + torch.diag_embed((shrink + 1e-10) * diagonal)


def _fisher_root(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> Float[Tensor, "B d d"]:
    """A root of the S with ``S cov(g) S = cov(x)``, or the identity if rounding errors prevent it."""
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
    """The low-rank metric in the span of the principal directions of draws and gradients.

    Directions of large variance have large components in ``x``, those of small variance in ``g``. The number
    of directions is limited to a fraction of the draws, some of which repeat others after rejections. In a
    direction outside the span of the other set the two variances could not be compared.
    """
    k = min(RANK // 2, x.shape[1] // 8)
    spans = [torch.linalg.svd(y, full_matrices=False)[2][:, :k].mT for y in (x, g)]
    basis, _ = torch.linalg.qr(torch.cat(spans, 2))
    turn, stretch, _ = torch.linalg.svd(_fisher_root(x @ basis, g @ basis))
    return LowRank(torch.zeros_like(scale), scale, basis @ turn, stretch)
