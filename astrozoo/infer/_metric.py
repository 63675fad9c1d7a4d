"""Normals near the posterior: a centre and an inverse mass matrix, and their estimates from ensembles.

An inverse mass matrix ``root root'`` is an operator: dense, a diagonal, a diagonal with a few directions
corrected, a diagonal in Fourier space, or one of these for each site.
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
    "Blocks",
    "Corrected",
    "Dense",
    "Diagonal",
    "Fourier",
    "LowRank",
    "Metric",
    "Preconditioner",
    "arrays",
    "checked_root",
    "estimated",
    "given",
    "hartley",
    "identity",
    "of_result",
    "padded",
    "restored",
    "updated",
]

DENSE_LIMIT = 200
"""[dimensions] The most for which the mass matrix is dense by default. A dense one needs several draws per
dimension in each window of the warm-up. More dimensions have a diagonal with ``RANK`` directions corrected.
"""
RANK = 40
"""Directions that a low-rank mass matrix corrects."""


class Preconditioner(Protocol):
    """A linear map ``root`` of which ``root root'`` is about the covariance of the posterior."""

    @property
    def log_det(self) -> Float[Tensor, "B"]:
        """``ln |det root|`` of each problem (it shifts the ``log_ratio`` of Laplace's approximation)."""
        ...

    def velocity(self, r: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root r``."""
        ...

    def force(self, g: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root' g``."""
        ...

    def whiten(self, x: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``root^-1 x``."""
        ...


class Metric(Preconditioner, Protocol):
    """A normal near the posterior of each of ``B`` problems: its centre, and a root of its covariance.

    The covariance ``root root'`` is the inverse mass matrix. ``velocity`` is that of momenta of unit mass.
    """

    @property
    def centre(self) -> Float[Tensor, "B d"]:
        """Its mean."""
        ...

    def take(self, rows: list[int]) -> Metric:
        """Of a subset of the problems."""
        ...


@dataclass(frozen=True)
class Dense:
    """Any root, and its inverse."""

    centre: Float[Tensor, "B d"]
    root: Float[Tensor, "B d d"]
    inverse: Float[Tensor, "B d d"]

    @property
    def log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.root)[1]

    def velocity(self, r: Tensor) -> Tensor:
        return r @ self.root.mT

    def force(self, g: Tensor) -> Tensor:
        return g @ self.root

    def whiten(self, x: Tensor) -> Tensor:
        return x @ self.inverse.mT

    def take(self, rows: list[int]) -> Dense:
        return Dense(self.centre[rows], self.root[rows], self.inverse[rows])


@dataclass(frozen=True)
class Diagonal:
    """Independent coordinates; one of scale 0 never moves."""

    centre: Float[Tensor, "B d"]
    scale: Float[Tensor, "B d"]

    @property
    def log_det(self) -> Tensor:
        return self.scale.log().sum(1)

    def velocity(self, r: Tensor) -> Tensor:
        return r * self.scale[:, None]

    def force(self, g: Tensor) -> Tensor:
        return g * self.scale[:, None]

    def whiten(self, x: Tensor) -> Tensor:
        scale = self.scale[:, None]
        return torch.where(scale > 0, x / scale, 0.0)

    def take(self, rows: list[int]) -> Diagonal:
        return Diagonal(self.centre[rows], self.scale[rows])


@dataclass(frozen=True)
class LowRank:
    """``scale (1 + basis (stretch - 1) basis')``, ``basis`` orthonormal and ``stretch`` the SDs along it."""

    centre: Float[Tensor, "B d"]
    scale: Float[Tensor, "B d"]
    basis: Float[Tensor, "B d k"]
    stretch: Float[Tensor, "B k"]

    @property
    def log_det(self) -> Tensor:
        return self.scale.log().sum(1) + self.stretch.log().sum(1)

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


@dataclass(frozen=True)
class Fourier:
    """``H scale``: independent Fourier modes of a field on a grid, H the Hartley transform.

    It suits a field whose posterior is about stationary: a stationary prior, and noise that varies little.

    Args:
        scale: SD of each mode.
        grid: lengths of the one or two last axes of the field, which are transformed.
    """

    centre: Float[Tensor, "B d"]
    scale: Float[Tensor, "B d"]
    grid: tuple[int, ...]

    @property
    def log_det(self) -> Tensor:
        return self.scale.log().sum(1)

    def velocity(self, r: Tensor) -> Tensor:
        return hartley(r * self.scale[:, None], self.grid)

    def force(self, g: Tensor) -> Tensor:
        return hartley(g, self.grid) * self.scale[:, None]

    def whiten(self, x: Tensor) -> Tensor:
        return hartley(x, self.grid) / self.scale[:, None]

    def take(self, rows: list[int]) -> Fourier:
        return Fourier(self.centre[rows], self.scale[rows], self.grid)


@dataclass(frozen=True)
class Blocks:
    """A metric for each part of the vector; ``parts`` are in order."""

    parts: tuple[Metric, ...]

    @property
    def centre(self) -> Tensor:
        return torch.cat([part.centre for part in self.parts], 1)

    @property
    def log_det(self) -> Tensor:
        return torch.stack([part.log_det for part in self.parts]).sum(0)

    def velocity(self, r: Tensor) -> Tensor:
        return torch.cat([part.velocity(x) for part, x in self._split(r)], -1)

    def force(self, g: Tensor) -> Tensor:
        return torch.cat([part.force(x) for part, x in self._split(g)], -1)

    def whiten(self, x: Tensor) -> Tensor:
        return torch.cat([part.whiten(y) for part, y in self._split(x)], -1)

    def take(self, rows: list[int]) -> Blocks:
        return Blocks(tuple(part.take(rows) for part in self.parts))

    def _split(self, x: Tensor) -> list[tuple[Metric, Tensor]]:
        lengths = [part.centre.shape[1] for part in self.parts]
        return list(zip(self.parts, x.split(lengths, -1), strict=True))


@dataclass(frozen=True)
class Corrected:
    """``outer inner``: a preconditioner that was given, and what was estimated in its coordinates."""

    centre: Float[Tensor, "B d"]
    outer: Preconditioner
    inner: Metric

    @property
    def log_det(self) -> Tensor:
        return self.outer.log_det + self.inner.log_det

    def velocity(self, r: Tensor) -> Tensor:
        return self.outer.velocity(self.inner.velocity(r))

    def force(self, g: Tensor) -> Tensor:
        return self.inner.force(self.outer.force(g))

    def whiten(self, x: Tensor) -> Tensor:
        return self.inner.whiten(self.outer.whiten(x))

    def take(self, rows: list[int]) -> Corrected:
        return Corrected(self.centre[rows], self.outer, self.inner.take(rows))


@dataclass(frozen=True)
class Block:
    """A part of the vector whose metric is estimated for itself.

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
        outer: an operator that was given, in whose coordinates the rest is estimated.
    """

    blocks: tuple[Block, ...] = ()
    outer: Preconditioner | None = None


DEFAULT = Structure()
"""The structure of a mass matrix where neither the user nor the problem states one."""
KINDS = ("dense", "low_rank", "diagonal", "fourier")
"""Names that the option ``metric`` takes for the mass matrix of a site."""


def hartley(x: Float[Tensor, "*b d"], grid: tuple[int, ...]) -> Float[Tensor, "*b d"]:
    """The orthonormal Hartley transform over the last axes of flattened fields; it is its own inverse.

    References:
        Bracewell 1983, J. Opt. Soc. Am. 73, 1832.
    """
    waves = torch.fft.fftn(x.unflatten(-1, (-1, *grid)), dim=tuple(range(-len(grid), 0)), norm="ortho")
    return (waves.real - waves.imag).flatten(-1 - len(grid))


def identity(centre: Float[Tensor, "B d"], structure: Structure = DEFAULT) -> Metric:
    """Unit mass (in the coordinates of ``structure.outer``, if there is one)."""
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
    """Of a mean and a covariance ``root root'``."""
    return Dense(centre, root, torch.linalg.inv(root))


def padded(metric: Metric, discrete: int) -> Metric:
    """With coordinates at the end that never move."""
    if not discrete:
        return metric
    if isinstance(metric, Dense):
        roots = (pad(x, (0, discrete, 0, discrete)) for x in (metric.root, metric.inverse))
        return Dense(pad(metric.centre, (0, discrete)), *roots)
    still = metric.centre.new_zeros(len(metric.centre), discrete)
    return Blocks((metric, Diagonal(still, still)))


def arrays(metric: Metric, prefix: str = "metric") -> dict[str, np.ndarray]:
    """For a checkpoint; of a :class:`Corrected` only what was estimated."""
    found: dict[str, Any] = {f"{prefix}_kind": np.asarray(type(metric).__name__)}
    if isinstance(metric, Blocks):
        found[f"{prefix}_parts"] = np.asarray(len(metric.parts))
        for i, part in enumerate(metric.parts):
            found |= arrays(part, f"{prefix}_{i}")
        return found
    for f in fields(metric):  # type: ignore[arg-type]
        value = getattr(metric, f.name)
        if isinstance(value, Tensor):
            found[f"{prefix}_{f.name}"] = value.cpu().numpy()
        elif f.name == "inner":
            found |= arrays(value, f"{prefix}_inner")
        elif f.name == "grid":
            found[f"{prefix}_grid"] = np.asarray(value)
    return found


def restored(
    saved: Mapping[str, np.ndarray],
    device: torch.device,
    outer: Preconditioner | None = None,
    prefix: str = "metric",
) -> Metric:
    """From a checkpoint.

    Args:
        outer: of a :class:`Corrected`, whose arrays do not have it.
    """
    kinds: tuple[Any, ...] = (Dense, Diagonal, LowRank, Fourier, Blocks, Corrected)
    kind = next(k for k in kinds if k.__name__ == str(saved[f"{prefix}_kind"]))
    if kind is Blocks:
        count = int(saved[f"{prefix}_parts"])
        return Blocks(tuple(restored(saved, device, outer, f"{prefix}_{i}") for i in range(count)))
    values: dict[str, Any] = {}
    for f in fields(kind):
        if f.name == "outer":
            values["outer"] = outer
        elif f.name == "inner":
            values["inner"] = restored(saved, device, None, f"{prefix}_inner")
        elif f.name == "grid":
            values["grid"] = tuple(saved[f"{prefix}_grid"].tolist())
        else:
            values[f.name] = torch.as_tensor(saved[f"{prefix}_{f.name}"], device=device)
    return kind(**values)


def estimated(x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"], structure: Structure = DEFAULT) -> Metric:
    """From draws and gradients of the log density there.

    The matrix S for which ``S cov(g) S = cov(x)``: of all Gaussians ``N(mean, S)`` it has the least Fisher
    divergence. If the posterior is Gaussian it is exact from any ``n > d`` points, wherever they lie; a
    diagonal one, in whatever basis, from any two if the posterior is diagonal there. Correlations are shrunk
    where ``n`` is not many times ``d``. The mean is that of the draws after a Newton step by S.

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
    """For the next window: :func:`estimated` afresh, unless it is dense above ``DENSE_LIMIT``.

    That one was given, and knows more than a window can tell: what is estimated in the coordinates that it
    whitens, a diagonal and ``RANK`` directions, corrects it, and all else stays.
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
