"""Particles and a mesh: cloud-in-cell painting and reading.

A particle is a displacement from a cell of a periodic lattice, in units of a cell. The fraction of a cell is
therefore as precise in single precision on a large mesh as on a small one.

Painting is one ``scatter_add`` and reading one ``gather``. Each is the derivative of the other, both work
under ``vmap``, and in compiled code the weights are computed in one pass.

References:
    Hockney & Eastwood 1988, Computer Simulation Using Particles, chapter 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Cloud", "cloud", "paint", "read"]


class Cloud(NamedTuple):
    """The eight cells around each particle.

    Args:
        cell: index of the cells in the flattened mesh, corner by corner.
        weight: share of the particle in each.
        shape: of the mesh.
        lattice: shape of the lattice of the particles.
    """

    cell: Int[Tensor, "corners_particles"]
    weight: Float[Tensor, "corners_particles"]
    shape: tuple[int, int, int]
    lattice: tuple[int, int, int]


def cloud(displacement: Float[Tensor, "3 x y z"], halo: int = 0) -> Cloud:
    """The cells of particles that are displaced from the cells of a lattice [cells].

    Args:
        halo: rows that the mesh has before the first row of the lattice and after the last one.
    """
    nx, ny, nz = (int(n) for n in displacement.shape[1:])
    rows = nx + 2 * halo
    index, weight = [], []
    for axis, (count, first, n, stride) in enumerate(
        ((nx, halo, rows, ny * nz), (ny, 0, ny, nz), (nz, 0, nz, 1))
    ):
        column = [1, 1, 1]
        column[axis] = count
        lattice = torch.arange(first, first + count, device=displacement.device).view(column)
        shift = displacement[axis].floor()
        fraction = displacement[axis] - shift
        left = torch.remainder(lattice + shift.long(), n)
        right = torch.where(left == n - 1, 0, left + 1)
        index.append(torch.stack((left, right)).flatten(1) * stride)
        weight.append(torch.stack((1 - fraction, fraction)).flatten(1))
    (ix, iy, iz), (wx, wy, wz) = index, weight
    cells = ix[:, None, None] + (iy[:, None] + iz)
    shares = wx[:, None, None] * (wy[:, None] * wz)
    return Cloud(cells.flatten(), shares.flatten(), (rows, ny, nz), (nx, ny, nz))


def paint(particles: Cloud) -> Float[Tensor, "x y z"]:
    """Particles per cell."""
    nx, ny, nz = particles.shape
    mesh = particles.weight.new_zeros(nx * ny * nz)
    return mesh.scatter_add(0, particles.cell, particles.weight).view(nx, ny, nz)


def read(fields: Float[Tensor, "m x y z"], particles: Cloud) -> Float[Tensor, "m a b c"]:
    """Fields at the positions of particles, on the lattice."""
    flat = fields.flatten(1)
    values = torch.gather(flat, 1, particles.cell.expand(len(flat), -1))
    return (values * particles.weight).unflatten(1, (8, -1)).sum(1).view(-1, *particles.lattice)
