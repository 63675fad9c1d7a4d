"""Roots of covariance matrices as operators: a centre, and a linear map that whitens a posterior.

Such a ``root``, whose ``root root'`` is the inverse mass matrix, is dense, a diagonal, a diagonal with a few
directions corrected, a diagonal in Fourier space, or one of these for each site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Blocks",
    "Corrected",
    "Dense",
    "Diagonal",
    "Fourier",
    "LowRank",
    "Metric",
    "Preconditioner",
    "arrays",
    "hartley",
    "restored",
]


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
        """The mean of the normal."""
        ...

    def take(self, rows: list[int]) -> Metric:
        """The metric of a subset of the problems."""
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
        grid: lengths of the last axes of the field (one to three), which are transformed.
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
    """``outer inner``: a preconditioner, and a metric that was estimated in its coordinates."""

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


def hartley(x: Float[Tensor, "*b d"], grid: tuple[int, ...]) -> Float[Tensor, "*b d"]:
    """The orthonormal Hartley transform over the last axes of flattened fields; it is its own inverse.

    References:
        Bracewell 1983, J. Opt. Soc. Am. 73, 1832.
    """
    waves = torch.fft.fftn(x.unflatten(-1, (-1, *grid)), dim=tuple(range(-len(grid), 0)), norm="ortho")
    return (waves.real - waves.imag).flatten(-1 - len(grid))


def arrays(metric: Metric, prefix: str = "metric") -> dict[str, np.ndarray]:
    """The arrays of a checkpoint. Those of a :class:`Corrected` contain only its inner metric."""
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
    """The metric that a checkpoint contains.

    Args:
        outer: the preconditioner of a :class:`Corrected`, which a checkpoint does not contain.
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
