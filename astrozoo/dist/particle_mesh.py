"""Particle-mesh simulations (:mod:`astrozoo.physics.pm`) on slabs, for boxes that one rank cannot hold.

Each rank has the particles of its rows of the lattice, wherever they have moved, and its rows of the mesh. To
paint, it adds them to its slab and a halo of rows, as wide as the farthest particle of all ranks has moved
along the first axis, and the halo is added to the slabs of its owners. To read, it gets such a halo. Forces
are filters in Fourier space (:mod:`astrozoo.dist.slabs`).

    mesh = ParticleMesh(comm, (128, 128, 128))
    delta = mesh.field_of(white, power)                     # slabs
    x = mesh.positions(delta, schedule(times, cosmology))
    loss = total((mesh.paint(x) - data).square().sum(), comm)
    loss.backward()                                         # the gradient of each rank's slab of white
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._comm import Comm
from astrozoo.dist.exchange import largest
from astrozoo.dist.slabs import Slabs
from astrozoo.errors import InputError
from astrozoo.physics.painting import cloud, paint, read
from astrozoo.physics.pm import (
    Schedule,
    Waves,
    checked_mesh,
    evolve,
    force_filters,
    particles_at_start,
    wave_numbers,
)

__all__ = ["ParticleMesh"]


class ParticleMesh:
    """A mesh and its particles, one per cell, cut in slabs.

    Args:
        comm: the ranks.
        shape: of the whole mesh.
        dtype: of fields and particles.

    Raises:
        InputError: unless the mesh has three even sides of at least 4.
    """

    def __init__(self, comm: Comm, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> None:
        self.comm, self.slabs = comm, Slabs(comm, checked_mesh(shape))
        self.like = torch.zeros((), dtype=dtype, device=comm.device)

    @cached_property
    def waves(self) -> Waves:
        """Wave numbers of this rank's modes [radian / cell]."""
        kx, ky, kz = wave_numbers(self.slabs.shape, self.like)
        return kx, ky[self.slabs.columns], kz

    @cached_property
    def wave_number(self) -> Float[Tensor, "x columns h"]:
        """Length of the wave vector of each of this rank's modes [radian / cell]."""
        kx, ky, kz = self.waves
        return (kx**2 + ky**2 + kz**2).sqrt()

    def field_of(
        self, white: Float[Tensor, "rows y z"], power: Float[Tensor, "x columns h"]
    ) -> Float[Tensor, "rows y z"]:
        """The Gaussian field of white noise with a power spectrum, differentiable in both.

        Args:
            power: of each of this rank's modes (:attr:`wave_number`), relative to white noise of unit
                variance. That of the mean is not used.
        """
        some = self.wave_number > 0
        root = torch.where(some, torch.where(some, power, 1.0).sqrt(), 0.0).to(white.dtype)
        return self.slabs.inverse(self.slabs.transform(white) * root)

    def halo(self, displacement: Float[Tensor, "3 rows y z"]) -> int:
        """Rows beyond its slab that some rank's particles have reached.

        Raises:
            InputError: on all ranks, if particles are NaN or left the box.
        """
        distance = displacement[0].abs()
        farthest = distance.max() if distance.numel() else distance.new_zeros(())
        reached = float(largest(farthest, self.comm))
        if not reached < self.slabs.shape[0]:
            expected = "displacements shorter than the box: check the units of the spectrum"
            raise InputError("simulation", "particles that are NaN or left the box", expected)
        return int(reached) + 2

    def paint(self, displacement: Float[Tensor, "3 rows y z"]) -> Float[Tensor, "rows y z"]:
        """Particles per cell of this rank's slab."""
        halo = self.halo(displacement)
        return self.slabs.fold(paint(cloud(displacement, halo)), halo)

    def force(self, displacement: Float[Tensor, "3 rows y z"]) -> Float[Tensor, "3 rows y z"]:
        """The force on each of this rank's particles."""
        halo = self.halo(displacement)
        particles = cloud(displacement, halo)
        density = self.slabs.fold(paint(particles), halo)
        fields = self.slabs.filter_bank(density, self._kernels)
        return read(self.slabs.with_halo(fields, halo), particles)

    @cached_property
    def _kernels(self) -> Tensor:
        return 1j * force_filters(self.waves)

    @property
    def lpt(self) -> dict[str, Any]:
        """Arguments with which :func:`astrozoo.physics.pm.lpt` computes on slabs."""
        return {"waves": self.waves, "bank": self.slabs.filter_bank}

    def positions(
        self, delta: Float[Tensor, "rows y z"], factors: Schedule, order: int = 2
    ) -> Float[Tensor, "3 rows y z"]:
        """Displacements at the last scale factor of the particles of a linear density."""
        start = particles_at_start(delta, factors, order, **self.lpt)
        return evolve(start, factors, self.force, last_kick=False).displacement
