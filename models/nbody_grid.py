"""Data of N-body initial conditions: grids of counts, density contrast or convergence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.data import density_files
from astrozoo.errors import InputError
from astrozoo.physics.pm import checked_mesh

__all__ = ["Cells", "DensityGrid", "Kind", "read"]

Kind = Literal["counts", "density", "kappa"]


class Cells(NamedTuple):
    """What the model is given of the data.

    Args:
        values: counts, density contrast or convergence; 0 where there are no data.
        noise: SD of each (of counts: not used).
        mask: cells with data.
        mean: counts of a cell of mean density (of counts only).
    """

    values: Float[Tensor, "*cells"]
    noise: Float[Tensor, "*cells"]
    mask: Bool[Tensor, "*cells"]
    mean: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class DensityGrid:
    """Data on a grid, and the box that they fill.

    Args:
        cells: values, noise and mask (double precision).
        kind: what the values are.
        box: length of the first axis [Mpc / h].
        shape: cells of the simulation along each axis; of a convergence, more than the data have.
        origin: one line on the data.
    """

    cells: Cells
    kind: Kind
    box: float
    shape: tuple[int, int, int]
    origin: str = ""


def read(
    path: str | Path,
    *,
    kind: Kind | None = None,
    box: float | None = None,
    mean: float | None = None,
    noise: float | None = None,
    mask_grid: str | Path | None = None,
    depth: int | None = None,
) -> DensityGrid:
    """Data on a grid, from an NPZ file or a FITS cube.

    The arrays of an NPZ file are ``counts``, ``density`` (the contrast) or ``kappa``, and of free choice
    ``box``, ``mean``, ``noise`` (a number or a grid) and ``mask``. A FITS file has one image, and perhaps the
    card BOX. The axes are in the order of NumPy.

    Args:
        kind: what the values are, where the file does not say.
        box: length of the first axis [Mpc / h].
        mean: counts of a cell of mean density; by default the mean of the cells with data.
        noise: SD of a cell of a contrast or a convergence.
        mask_grid: file of a grid that is 1 in cells with data.
        depth: of a convergence, cells along the line of sight; by default as many as along the first axis.

    Raises:
        DataError: a file that is missing or unreadable, or that lacks something.
        InputError: values that no such grid has.
    """
    grid = density_files.read_grid(Path(path), kind)
    length = grid.box if box is None else box
    if length is None:
        raise InputError("box", "none", "the length of the first axis [Mpc/h]")
    values = grid.values
    mask = np.isfinite(values) if grid.mask is None else grid.mask
    mask = mask if mask_grid is None else density_files.read_mask(Path(mask_grid))
    if mask.shape != values.shape or not mask.any():
        got = f"shape {mask.shape} with {int(mask.sum())} cells"
        raise InputError("mask", got, f"shape {values.shape} with data in some cells")
    seen = values[mask]
    if not np.isfinite(seen).all():
        bad = int((~np.isfinite(seen)).sum())
        raise InputError(str(path), f"{bad} values NaN or infinite where there are data", "finite ones")
    sd: Any = grid.noise if noise is None else noise
    if grid.kind == "counts":
        if (seen < 0).any() or (seen != np.round(seen)).any():
            raise InputError(f"{path}, counts", "values below 0 or between integers", "numbers of galaxies")
        sd = 1.0
    elif sd is None or not np.all(np.asarray(sd)[mask if np.ndim(sd) else ...] > 0):
        got = sd if np.ndim(sd) == 0 else "values that are not positive"
        raise InputError("noise", got, "the SD of a cell, above 0")
    of_mean = float(seen.mean()) if grid.mean is None and mean is None else float(mean or grid.mean or 0)
    if grid.kind == "counts" and not of_mean > 0:
        raise InputError("mean", of_mean, "a number of galaxies above 0")
    flat = grid.kind == "kappa"
    shape = checked_mesh((*values.shape, depth or values.shape[0]) if flat else values.shape)
    filled, of_noise = (
        torch.as_tensor(np.where(mask, x, y).astype(float)) for x, y in ((values, 0.0), (sd, 1.0))
    )
    cells = Cells(filled, of_noise, torch.as_tensor(mask), torch.tensor(of_mean, dtype=torch.float64))
    extent = f"{int(mask.sum()):,} of {mask.size:,} cells of {length / shape[0]:.3g} Mpc/h"
    origin = f"{path}: {grid.kind} in {extent}"
    return DensityGrid(cells, grid.kind, float(length), shape, origin)
