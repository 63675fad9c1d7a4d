"""Particle-mesh N-body simulations: Lagrangian perturbation theory and FastPM steps.

Lengths are cells of the mesh, and there is one particle per cell. Time is the scale factor ``a``. The
momentum is ``p = a^3 E dx/da``. The force is ``F = -grad lap^-1 delta``. A linear density is that of today.

A step from a0 to a1 is kick, drift, kick. Its factors give the exact growth of linear modes:

    kick  p += (G(a1) - G(a0)) / D(ac) F        at the time ac of the force
    drift x += (D(a1) - D(a0)) / G(ac) p        ac is the middle of the step

with the linear growth D and ``G = a^3 E dD/da``. The last kick of a step and the first of the next use the
same force, and are one. Everything is differentiable to any order, and can be captured and mapped over a
batch.

The force is a function of the displacements, an argument of :func:`evolve`, so that another way to compute it
(such as on slabs of a mesh over several processes) needs no other integrator.

References:
    Feng et al. 2016, MNRAS 463, 2273 (FastPM); Modi et al. 2021, Astronomy & Computing 37, 100505 (FlowPM);
    Bouchet et al. 1995, A&A 296, 575 (second-order perturbation theory).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics import fourier
from astrozoo.physics.cosmology import Cosmology, growth, hubble
from astrozoo.physics.painting import cloud, paint, read

__all__ = [
    "Bank",
    "Force",
    "Particles",
    "Schedule",
    "Waves",
    "checked_displacement",
    "checked_mesh",
    "checked_times",
    "evolve",
    "force_filters",
    "force_kernels",
    "lpt",
    "mesh_force",
    "particles_at_start",
    "positions",
    "schedule",
    "wave_numbers",
]

Force = Callable[[Float[Tensor, "3 x y z"]], Float[Tensor, "3 x y z"]]
"""From displacements to the force on each particle."""


Waves = tuple[Float[Tensor, "x 1 1"], Float[Tensor, "y 1"], Float[Tensor, "h"]]
"""Wave numbers of modes along each axis [radian / cell]."""
Bank = Callable[[Float[Tensor, "x y z"], Shaped[Tensor, "m x y h"]], Float[Tensor, "m x y z"]]
"""From a field and filters in Fourier space to the field under each of them."""


class Particles(NamedTuple):
    """Displacements from the lattice [cells], and momenta."""

    displacement: Float[Tensor, "3 x y z"]
    momentum: Float[Tensor, "3 x y z"]


class Schedule(NamedTuple):
    """The factors of a simulation.

    Args:
        start: D1, D2 and their G1, G2 at the first scale factor.
        kicks: before each drift, and one after the last.
        drifts: of each step.
    """

    start: Float[Tensor, "4"]
    kicks: Float[Tensor, "steps_1"]
    drifts: Float[Tensor, "steps"]


def checked_mesh(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of a mesh.

    Raises:
        InputError: unless it has three even sides of at least 4.
    """
    if len(shape) != 3 or any(n % 2 or n < 4 for n in shape):
        raise InputError("mesh", tuple(shape), "three even sides of 4 cells or more")
    return shape[0], shape[1], shape[2]


def checked_displacement(displacement: Float[Tensor, "3 x y z"]) -> Float[Tensor, "3 x y z"]:
    """The displacements of particles.

    Raises:
        InputError: if some are NaN, or longer than the box.
    """
    sides = displacement.new_tensor(displacement.shape[1:]).view(3, 1, 1, 1)
    bad = int((~(displacement.abs() < sides)).any(0).sum())
    if bad:
        got = f"{bad:,} of {displacement[0].numel():,} particles that are NaN or left the box"
        raise InputError(
            "simulation", got, "displacements shorter than the box: check the units of the spectrum"
        )
    return displacement


def wave_numbers(shape: tuple[int, int, int], like: Tensor) -> Waves:
    """Wave numbers of the modes of ``rfftn`` along each axis [radian / cell]."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    nx, ny, nz = shape
    kx, ky = (2 * math.pi * torch.fft.fftfreq(n, **options) for n in (nx, ny))
    return kx[:, None, None], ky[:, None], 2 * math.pi * torch.fft.rfftfreq(nz, **options)


def _inverse_square(waves: Waves) -> Float[Tensor, "x y h"]:
    """1 / k^2, and 0 for the mean."""
    square = waves[0] ** 2 + waves[1] ** 2 + waves[2] ** 2
    return torch.where(square > 0, 1 / square.clamp_min(1e-30), 0.0)


def force_filters(waves: Waves) -> Float[Tensor, "3 x y h"]:
    """Imaginary part of the filters from density to force: differences of fourth order of the potential."""
    inverse = _inverse_square(waves)
    slopes = [(8 * torch.sin(k) - torch.sin(2 * k)) / 6 for k in waves]
    return torch.stack([slope * inverse for slope in slopes])


def force_kernels(shape: tuple[int, int, int], like: Tensor) -> Float[Tensor, "3 x y h"]:
    """:func:`force_filters` of all modes of a mesh."""
    return force_filters(wave_numbers(checked_mesh(shape), like))


def mesh_force(
    displacement: Float[Tensor, "3 x y z"], kernels: Float[Tensor, "3 x y h"]
) -> Float[Tensor, "3 x y z"]:
    """The force on each particle, on one device."""
    particles = cloud(displacement)
    return read(fourier.filter_bank(paint(particles), 1j * kernels), particles)


def lpt(
    delta: Float[Tensor, "x y z"],
    order: int = 2,
    *,
    waves: Waves | None = None,
    bank: Bank = fourier.filter_bank,
) -> list[Float[Tensor, "3 x y z"]]:
    """Displacements of Lagrangian perturbation theory, of first and second order, for growth of 1.

    Derivatives are exact in Fourier space.

    Args:
        delta: the linear density.
        order: 1 or 2.
        waves, bank: the modes and the filters of a field that is a part of a mesh.
    """
    waves = wave_numbers(checked_mesh(tuple(delta.shape)), delta) if waves is None else waves
    inverse = _inverse_square(waves)
    odd = [torch.where(k.abs() < math.pi * (1 - 1e-6), k, 0.0) for k in waves]
    gradient = torch.stack([1j * k * inverse for k in odd])
    first = bank(delta, gradient)
    if order == 1:
        return [first]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    squares = torch.stack(
        [(waves[i] if i == j else odd[i]) * (waves[j] if i == j else odd[j]) * inverse for i, j in pairs]
    )
    xx, yy, zz, xy, xz, yz = bank(delta, squares)
    source = xx * yy + xx * zz + yy * zz - xy**2 - xz**2 - yz**2
    return [first, bank(source, -gradient)]


def checked_times(a: Float[Tensor, "steps_1"]) -> Float[Tensor, "steps_1"]:
    """The scale factors of a simulation.

    Raises:
        InputError: unless they increase from above 0 to at most 1.
    """
    if len(a) == 0 or not bool(((a > 0) & (a <= 1)).all()) or not bool((a.diff() > 0).all()):
        raise InputError("scale factors", a.tolist(), "increasing ones above 0, up to 1")
    return a


def schedule(a: Float[Tensor, "steps_1"], cosmology: Cosmology) -> Schedule:
    """The factors of steps between scale factors (:func:`checked_times`).

    The middle of a step is the geometric mean.
    """
    a = a.to(torch.float64)
    middle = (a[:-1] * a[1:]).sqrt()
    times = torch.cat((a, middle))
    g = growth(times, cosmology)
    rate = times**2 * hubble(times, cosmology)
    d, slope = g.d1, rate * g.f1 * g.d1  # D and G at a, then at the middles
    n = len(a)
    first = (slope[n:] - slope[: n - 1]) / d[: n - 1]
    last = (slope[1:n] - slope[n:]) / d[1:n]
    zero = d.new_zeros(1)
    kicks = torch.cat((first, zero)) + torch.cat((zero, last))
    drifts = (d[1:n] - d[: n - 1]) / slope[n:]
    return Schedule(torch.stack((d[0], g.d2[0], slope[0], (rate * g.f2 * g.d2)[0])), kicks, drifts)


def particles_at_start(
    delta: Float[Tensor, "x y z"], factors: Schedule, order: int = 2, **mesh: Any
) -> Particles:
    """Particles at the first scale factor, by perturbation theory.

    Args:
        mesh: further arguments of :func:`lpt`.
    """
    d1, d2, g1, g2 = factors.start.to(delta.dtype)
    parts = lpt(delta, order, **mesh)
    if order == 1:
        return Particles(d1 * parts[0], g1 * parts[0])
    return Particles(d1 * parts[0] + d2 * parts[1], g1 * parts[0] + g2 * parts[1])


def evolve(particles: Particles, factors: Schedule, force: Force, *, last_kick: bool = True) -> Particles:
    """Particles at the last scale factor.

    Args:
        force: such as :func:`mesh_force` with its kernels.
        last_kick: positions do not need it. Without it, the momenta are those of the middle of the last step.
    """
    x, p = particles
    kicks, drifts = factors.kicks.to(x.dtype), factors.drifts.to(x.dtype)
    for i in range(len(drifts)):
        p = p + kicks[i] * force(x)
        x = x + drifts[i] * p
    if last_kick:
        p = p + kicks[-1] * force(x)
    return Particles(x, p)


def positions(
    delta: Float[Tensor, "x y z"], factors: Schedule, kernels: Float[Tensor, "3 x y h"], order: int = 2
) -> Float[Tensor, "3 x y z"]:
    """Displacements at the last scale factor of the particles of a linear density. No steps: those of LPT."""
    start = particles_at_start(delta, factors, order)
    return evolve(start, factors, partial(mesh_force, kernels=kernels), last_kick=False).displacement
