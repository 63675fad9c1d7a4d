"""Where runs start: the user's values, an earlier result, or the problem's own start."""

from __future__ import annotations

from typing import Any

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
        InputError: if ``start`` has another shape, or is not finite.
    """
    value = start.location if isinstance(start, Result) else start
    z = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    z = z[None] if z.ndim == 1 else z
    if z.ndim != 2 or z.shape[1] != dim or rows % len(z):
        raise InputError("start", f"shape {tuple(z.shape)}", f"[{dim}] or [{rows}, {dim}]")
    if not z.isfinite().all():
        raise InputError("start", "values that are not finite", "finite unconstrained values")
    return z.repeat_interleave(rows // len(z), 0)


def variational_start(start: Any, elbo: VariationalObjective) -> Float[Tensor, "b p"]:
    """Starting parameters of a guide, from latents or from parameters (distinguished by their length).

    Raises:
        InputError: as :func:`start_points`.
    """
    rows = elbo.batch or 1
    if start is None:
        return elbo.initial(None)
    value = torch.as_tensor(start.location if isinstance(start, Result) else start)
    if value.shape[-1] == elbo.dim and elbo.dim != elbo.layout.dim:
        return start_points(value, elbo, rows, elbo.dim)
    parameters = (start.parameters or None) if isinstance(start, Result) else None
    return elbo.initial(start_points(value, elbo, rows, elbo.layout.dim), parameters)


def chain_starts(density: Density, chains: int, seed: int) -> Float[Tensor, "b c dim"]:
    """The density's own starts, for every chain of every problem."""
    if density.batch is None:
        return density.initial(chains, generator_for(seed, 0))[None]
    return torch.stack([density.initial(density.batch, generator_for(seed, 0, c)) for c in range(chains)], 1)
