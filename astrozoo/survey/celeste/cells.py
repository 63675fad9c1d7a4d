"""Cells of a patch: what one patch counts as one measurement.

In a patch of usual size every pixel is a cell. A large patch has single pixels near its source, squares of
3x3 pixels farther out, and of 9x9 pixels beyond. A large galaxy is smooth there, so that little is lost, and
the cost of a fit stays that of a patch of usual size: 3,825 cells for 135x135 pixels, 5,625 for 405x405.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.survey.partition import HALF_SIZES

__all__ = ["cell_means", "cell_sums", "cells", "count_cells", "offsets"]

_SINGLE = 22
"""Distance from the middle within which a large patch has single pixels [px]: 45x45 of them.

A profile falls by less than a tenth across a cell of 3 px there, unless the source is small."""
_COARSER = 3
"""Ratio of the sides of successive cells. It is odd, so that the cells of each size tile a square ring."""


def offsets(half: int) -> Int[Tensor, "2 p"]:
    """(x, y) of the pixels of a patch, row by row, relative to its middle."""
    grid = torch.arange(-half, half + 1)
    dy, dx = torch.meshgrid(grid, grid, indexing="ij")
    return torch.stack((dx.flatten(), dy.flatten()))


@cache
def cells(half: int) -> Int[Tensor, "p"] | None:
    """The number of each pixel's cell in a patch; None where every pixel is a cell.

    Args:
        half: half size of the patch [px]. The patches of :data:`astrozoo.survey.partition.LARGE_HALF_SIZES`
            are filled by whole cells.
    """
    if half <= HALF_SIZES[-1]:
        return None
    dx, dy = offsets(half).numpy()
    distance = np.maximum(np.abs(dx), np.abs(dy))
    number, inner, outer, side = np.zeros((3, len(dx)), int), -1, _SINGLE, 1
    while inner < half:
        ring = (distance > inner) & (distance <= outer)
        number[:, ring] = np.full(ring.sum(), side), (dy[ring] + outer) // side, (dx[ring] + outer) // side
        inner, outer, side = outer, _COARSER * outer + 1, _COARSER * side
    return torch.from_numpy(np.unique(number, axis=1, return_inverse=True)[1].reshape(-1))


def count_cells(half: int) -> int:
    """The number of cells of a patch."""
    cell = cells(half)
    return (2 * half + 1) ** 2 if cell is None else int(cell.max()) + 1


def cell_sums(values: Float[Tensor, "*b p"], cell: Int[Tensor, "p"] | None) -> Float[Tensor, "*b cell"]:
    """The sum of each cell's pixels."""
    if cell is None:
        return values
    out = values.new_zeros(*values.shape[:-1], int(cell.max()) + 1)
    return out.index_add_(-1, cell, values)


def cell_means(
    values: Float[Tensor, "*b p"], weight: Float[Tensor, "*b p"], cell: Int[Tensor, "p"] | None
) -> Float[Tensor, "*b cell"]:
    """The mean of each cell's pixels by weight; the plain mean where all weights are zero."""
    if cell is None:
        return values
    total = cell_sums(weight, cell)
    weighted = cell_sums(weight * values, cell) / torch.where(total > 0, total, 1.0)
    plain = cell_sums(values, cell) / cell_sums(torch.ones_like(values), cell)
    return torch.where(total > 0, weighted, plain)
