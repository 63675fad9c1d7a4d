"""Where runs start: the user's values, an earlier result, or the problem's own start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.infer.randomness import generator_for
from astrozoo.objective import Captured, Density, VariationalObjective
from astrozoo.types import Result

__all__ = ["chain_starts", "density_starts", "start_points", "variational_start"]


def density_starts(start: Any, density: Density, rows: int, seed: int) -> Float[Tensor, "rows dim"]:
    """Unconstrained starts of a density, one per row; without ``start`` the density's own.

    Args:
        rows: number of rows of the whole run, problem by problem; a multiple of the number of problems.

    Raises:
        InputError: as :func:`start_points`.
    """
    if start is None:
        return density.initial(rows, generator_for(seed, 0))
    return start_points(start, density, rows, density.dim)


def start_points(start: Any, like: Captured, rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Starts of length ``dim``, one per row.

    Args:
        start: a Result (its location), or ``[dim]`` or ``[rows or problems, dim]`` values.
        like: the objective whose dtype and device they get.
        rows: number of rows of the whole run, problem by problem; a multiple of the number of problems.

    Raises:
        InputError: if ``start`` is of another type or shape, or is not finite.
    """
    return _by_row(_values(start), like, rows, (dim,))


def variational_start(start: Any, elbo: VariationalObjective) -> Float[Tensor, "b p"]:
    """Starting parameters of a guide, from latents or from parameters (distinguished by their length).

    Raises:
        InputError: as :func:`start_points`.
    """
    if start is None:
        return elbo.initial(None)
    latents, parameters = elbo.layout.dim, elbo.dim
    points = _by_row(_values(start), elbo, elbo.batch or 1, (latents, parameters))
    if points.shape[1] != latents:
        return points
    return elbo.initial(points, (start.parameters or None) if isinstance(start, Result) else None)


def _values(start: Any) -> Tensor:
    """The numbers of a start."""
    expected = "unconstrained values (numbers, an array or a tensor), a Result or 'search'"
    if isinstance(start, Mapping):
        names = ", ".join(map(repr, list(start)[:5]))
        expected += "; constrained values by site belong to Problem(start=...)"
        raise InputError("start", f"a mapping of {names or 'nothing'}", expected)
    if isinstance(start, Result):
        if start.location is None:
            raise InputError("start", f"a Result of {start.method} without a location", expected)
        start = start.location
    try:
        values = start if isinstance(start, Tensor) else torch.as_tensor(np.asarray(start))
    except (TypeError, ValueError) as error:
        raise InputError("start", f"a {type(start).__name__} ({error})", expected) from error
    if values.is_complex() or values.dtype is torch.bool:
        raise InputError("start", f"values of {values.dtype}", "real numbers")
    return values.detach()


def _by_row(
    values: Tensor, like: Captured, rows: int, lengths: tuple[int, ...]
) -> Float[Tensor, "rows length"]:
    """The values repeated so that every row has one start, of one of the given lengths."""
    points = values.to(dtype=like.dtype, device=like.device)
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] not in lengths or len(points) == 0 or rows % len(points):
        shapes = [f"[{n}] or [{rows}, {n}]" for n in dict.fromkeys(lengths)]
        names = ("latents", "guide parameters")
        described = [f"{shape} ({name})" for shape, name in zip(shapes, names, strict=False)]
        raise InputError("start", f"shape {tuple(values.shape)}", ", or ".join(described))
    if not points.isfinite().all():
        raise InputError("start", "values that are not finite", "finite unconstrained values")
    return points.repeat_interleave(rows // len(points), 0)


def chain_starts(density: Density, chains: int, seed: int) -> Float[Tensor, "b c dim"]:
    """The density's own starts, for every chain of every problem."""
    if density.batch is None:
        return density.initial(chains, generator_for(seed, 0))[None]
    return torch.stack([density.initial(density.batch, generator_for(seed, 0, c)) for c in range(chains)], 1)
