"""Initial conditions of the universe from a density field, by differentiable N-body simulations.

    white ~ N(0, 1) in each cell
    linear = the field of that white noise with the linear power spectrum
    particles = second-order perturbation theory to an early time, then particle-mesh steps
    density = particles per cell, in units of the mean
    data ~ Poisson(mean (1 + b (density - 1)))          counts of galaxies
    data ~ N(b (density - 1), noise^2)                  density contrast
    data ~ N(sum_z w_z (density - 1), noise^2)          convergence of the box along its last axis

Cells without data have no likelihood. The box is periodic. Omega_m and sigma8 may be latents.

With a bias b above 1 the expected counts of an empty cell would be negative. They are limited smoothly:
``u -> (u + sqrt(u^2 + e^2)) / 2`` with e = :data:`SMOOTH`.

References:
    Wang et al. 2014, ApJ 794, 94 and Jasche & Lavaux 2019, A&A 625, A64 (initial conditions by HMC with a
    particle-mesh model); Modi et al. 2021, Astronomy & Computing 37, 100505 (FlowPM); Feng et al. 2016,
    MNRAS 463, 2273 (FastPM).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data import density_files
from astrozoo.errors import InputError
from astrozoo.models.nbody_grid import Cells, DensityGrid, Kind
from astrozoo.physics.cosmology import HUBBLE_DISTANCE, Cosmology, comoving_distance, make_cosmology
from astrozoo.physics.matter_power import linear_power
from astrozoo.physics.modes import (
    Modes,
    box_modes,
    field_of,
    mesh_power,
    tabulated_power,
)
from astrozoo.physics.painting import cloud, paint
from astrozoo.physics.pm import (
    checked_displacement,
    checked_mesh,
    checked_times,
    force_kernels,
    positions,
    schedule,
)
from astrozoo.types import Problem

__all__ = [
    "OMEGA_M",
    "SIGMA8",
    "SMOOTH",
    "Box",
    "NBody",
    "linear_estimate",
    "make_box",
    "problem",
    "simulate",
]

SMOOTH = 0.1
"""Width e of the smooth limit of expected counts, in units of the mean. It adds e^2 / 4, 0.25 %, to a cell of
mean density, and leaves e / 2 to an empty one, so that a galaxy in it is unlikely but possible."""
OMEGA_M = (0.15, 0.5)
"""Range of the uniform prior of Omega_m: several times that which surveys leave open."""
SIGMA8 = (0.5, 1.1)
"""Range of the uniform prior of sigma8: several times that which surveys leave open."""
_START = 0.1
"""Scale factor of the first particles. Second-order perturbation theory is accurate there."""
_CELL = (0.05, 100.0)
"""[Mpc / h] Sides of a cell that are accepted. Outside of it the box is in other units."""
_STEPS = 3
"""Particle-mesh steps by default. In a box of 8 Mpc/h cells, more of them change the density by less than the
noise of a galaxy survey."""


class Box(NamedTuple):
    """The box and its cosmology.

    Args:
        modes: the wave numbers.
        power: of each of ``modes.k``, relative to white noise; for a fixed cosmology.
        times: scale factors of the simulation.
        kernels: of the force.
        cosmology: of the growth, and of the spectrum where Omega_m and sigma8 are latents.
        source: scale factor of the sources of the convergence.
    """

    modes: Modes
    power: Float[Tensor, "n"]
    times: Float[Tensor, "steps_1"]
    kernels: Float[Tensor, "3 x y h"]
    cosmology: Cosmology
    source: Float[Tensor, ""]


@dataclass(frozen=True)
class NBody:
    """The model. The latent site ``white`` has the shape of the box.

    Args:
        kind: what the data are.
        bias: b of the data. The convergence has none.
        free: whether Omega_m and sigma8 are latents (``omega_m``, ``sigma8``).
    """

    kind: Kind = "counts"
    bias: float = 1.0
    free: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError("kind", repr(self.kind), " or ".join(map(repr, get_args(Kind))))
        if not self.bias > 0:
            raise InputError("bias", self.bias, "a number above 0")

    def __call__(self, cells: Cells, box: Box) -> None:
        n_x, n_y, h = box.modes.which.shape
        blank = box.kernels.new_zeros(n_x, n_y, 2 * (h - 1))
        white = pyro.sample("white", dist.Normal(blank, 1.0).to_event(3))
        cosmology = box.cosmology
        if self.free:
            omega_m, sigma8 = (
                pyro.sample(name, dist.Uniform(blank.new_tensor(low), blank.new_tensor(high)))
                for name, (low, high) in (("omega_m", OMEGA_M), ("sigma8", SIGMA8))
            )
            cosmology = cosmology._replace(omega_m=omega_m, sigma8=sigma8)
        linear = pyro.deterministic("linear", self.linear(white, box, cosmology))
        density = pyro.deterministic("density", self.density(linear, box, cosmology))
        expected = self.expected(density, cells, box, cosmology)
        noise: Any = dist.Poisson(expected) if self.kind == "counts" else dist.Normal(expected, cells.noise)
        pyro.sample("data", noise.mask(cells.mask).to_event(cells.values.dim()), obs=cells.values)

    def linear(self, white: Float[Tensor, "x y z"], box: Box, cosmology: Cosmology) -> Float[Tensor, "x y z"]:
        """The linear density today of given white noise."""
        power = box.power
        if self.free:
            power = mesh_power(linear_power(box.modes.k[1:].double(), cosmology), box.modes)
        return field_of(white, power, box.modes)

    def density(
        self, linear: Float[Tensor, "x y z"], box: Box, cosmology: Cosmology
    ) -> Float[Tensor, "x y z"]:
        """The density at the last time, in units of the mean."""
        return paint(cloud(self.displacement(linear, box, cosmology)))

    def displacement(
        self, linear: Float[Tensor, "x y z"], box: Box, cosmology: Cosmology
    ) -> Float[Tensor, "3 x y z"]:
        """Displacements of the particles at the last time [cells]."""
        return positions(linear, schedule(box.times, cosmology), box.kernels)

    def expected(
        self, density: Float[Tensor, "x y z"], cells: Cells, box: Box, cosmology: Cosmology
    ) -> Float[Tensor, "*cells"]:
        """The data without noise."""
        contrast = density - 1
        if self.kind == "kappa":
            return (contrast * lensing_weights(density.shape[2], box, cosmology).to(density.dtype)).sum(-1)
        if self.kind == "density":
            return self.bias * contrast
        unlimited = 1 + self.bias * contrast
        return cells.mean * (unlimited + (unlimited**2 + SMOOTH**2).sqrt()) / 2


def lensing_weights(count: int, box: Box, cosmology: Cosmology) -> Float[Tensor, "z"]:
    """The weight of the contrast of each layer along the line of sight in the convergence (Born).

    The middle of the box is at the distance of its scale factor. The box does not evolve along the line.
    """
    a = box.times[-1].double()
    middle, source = comoving_distance(torch.stack((a, box.source.double())), cosmology)
    cell = box.modes.cell.double()
    index = torch.arange(count, dtype=torch.float64, device=cell.device)
    layers = middle + (index - (count - 1) / 2) * cell
    return 1.5 * cosmology.omega_m / HUBBLE_DISTANCE**2 * layers * (1 - layers / source) / a * cell


def make_box(
    shape: tuple[int, int, int],
    box: float,
    *,
    steps: int = _STEPS,
    redshift: float = 0.0,
    cosmology: Cosmology | None = None,
    spectrum: str | Path | None = None,
    source_redshift: float = 1.0,
) -> Box:
    """The box of a simulation.

    Args:
        shape: cells along each axis.
        box: length of the first axis [Mpc / h].
        steps: particle-mesh steps; with 0, particles of perturbation theory.
        redshift: of the data.
        cosmology: Planck 2015 by default.
        spectrum: file of the linear power spectrum today, with the columns k [h / Mpc] and P [(Mpc / h)^3].
            That of Eisenstein & Hu by default.
        source_redshift: of the sources of a convergence.

    Raises:
        InputError: an odd mesh, a box in other units, or a spectrum that does not cover the modes of the box.
        DataError: the file of the spectrum has no such columns.
    """
    shape = checked_mesh(shape)
    if not _CELL[0] <= box / shape[0] <= _CELL[1]:
        got = f"{box:g}, so cells of {box / shape[0]:.3g} Mpc/h"
        raise InputError("box", got, f"its length in Mpc/h, with cells of {_CELL[0]:g} to {_CELL[1]:g} Mpc/h")
    for name, value in (("steps", steps), ("redshift", redshift)):
        if not value >= 0:
            raise InputError(name, value, "0 or more")
    if not source_redshift > 0:
        raise InputError("source_redshift", source_redshift, "a number above 0")
    last = 1 / (1 + redshift)
    if steps and last <= _START:
        raise InputError("redshift", redshift, f"less than {1 / _START - 1:g}, or steps = 0")
    cosmology = make_cosmology() if cosmology is None else cosmology
    modes = box_modes(shape, box)
    k = modes.k[1:]
    power = (
        linear_power(k, cosmology)
        if spectrum is None
        else tabulated_power(k, density_files.read_spectrum(Path(spectrum)))
    )
    a = torch.as_tensor(np.linspace(_START if steps else last, last, steps + 1))
    source = torch.tensor(1 / (1 + source_redshift), dtype=torch.float64)
    kernels = force_kernels(shape, modes.cell)
    return Box(modes, mesh_power(power, modes), checked_times(a), kernels, cosmology, source)


def linear_estimate(data: DensityGrid, model: NBody, box: Box) -> Float[Tensor, "x y z"]:
    """White noise whose linear density is the Wiener filter of the data, as if all structure were linear.

    It is where chains start. That of a convergence is 0.
    """
    if data.kind == "kappa":
        return torch.zeros(data.shape, dtype=torch.float64)
    values, noise, mask, mean = data.cells
    gain = model.bias * schedule(box.times[-1:], box.cosmology).start[0]
    if data.kind == "counts":
        contrast, variance = values / mean - 1, 1 / mean
    else:
        contrast, variance = values, noise[mask].square().mean()
    seen = torch.fft.rfftn(torch.where(mask, contrast, 0.0))
    root = box.power.sqrt()[box.modes.which]
    return torch.fft.irfftn(seen * root * gain / (root**2 * gain**2 + variance), s=data.shape)


def problem(
    data: DensityGrid,
    *,
    bias: float = 1.0,
    steps: int = _STEPS,
    redshift: float | None = None,
    source_redshift: float = 1.0,
    free: bool = False,
    omega_m: float | None = None,
    sigma8: float | None = None,
    spectrum: str | Path | None = None,
) -> Problem:
    """The inference problem of data on a grid.

    Args:
        bias, free: of :class:`NBody`.
        steps, redshift, source_redshift, spectrum: of :func:`make_box`. The redshift is 0 by default, and 0.5
            of a convergence.
        omega_m, sigma8: of the cosmology, where they are not latents; Planck 2015 by default.

    Raises:
        InputError, DataError: as :class:`NBody` and :func:`make_box`; a spectrum, or a value of a parameter,
            that would be free.
    """
    given = {name: x for name, x in (("omega_m", omega_m), ("sigma8", sigma8)) if x is not None}
    if free and (given or spectrum is not None):
        named = ", ".join([*given, *(["spectrum"] if spectrum is not None else [])])
        raise InputError("free", f"with {named}", "it without, because Omega_m and sigma8 are latents")
    model = NBody(data.kind, bias, free)
    if redshift is None:
        redshift = 0.5 if data.kind == "kappa" else 0.0
    box = make_box(
        data.shape,
        data.box,
        steps=steps,
        redshift=redshift,
        cosmology=make_cosmology(**given),
        spectrum=spectrum,
        source_redshift=source_redshift,
    )
    if data.kind == "kappa":
        _checked_distance(data, box)
    start = {"white": linear_estimate(data, model, box)}
    if free:
        start |= {"omega_m": box.cosmology.omega_m, "sigma8": box.cosmology.sigma8}
    axes = ("x", "y", "z")
    return Problem(
        model,
        (data.cells, box),
        name="nbody",
        start=start,
        dims={"white": axes, "linear": axes, "density": axes, "data": axes[: data.cells.values.dim()]},
        guides={"fourier": "astrozoo.guides.nbody:fourier"},
        preconditioner={"white": "fourier_3d"},
    )


def _checked_distance(data: DensityGrid, box: Box) -> None:
    middle = float(comoving_distance(box.times[-1:], box.cosmology))
    source = float(comoving_distance(box.source[None], box.cosmology))
    half = data.shape[2] * float(box.modes.cell) / 2
    if not half < middle < source - half:
        got = f"a box from {middle - half:.0f} to {middle + half:.0f} Mpc/h"
        raise InputError("redshift", got, f"one between here and the sources, at {source:.0f} Mpc/h")


def simulate(
    seed: int = 0,
    *,
    size: int = 8,
    box: float | None = None,
    kind: Kind = "counts",
    mean: float = 3.0,
    noise: float | None = None,
    unseen: float = 0.0,
    **settings: Any,
) -> tuple[DensityGrid, dict[str, Tensor]]:
    """Data drawn from the model.

    Args:
        size: cells along each axis.
        box: length [Mpc / h]; cells of 8 Mpc/h by default.
        kind: of the data.
        mean: counts of a cell of mean density.
        noise: SD of a cell of the density contrast (default 0.5) or of the convergence (default 0.002).
        unseen: fraction of the first axis that has no data.
        settings: of :func:`problem`. With ``free``, Omega_m and sigma8 are drawn from their priors.
    """
    length = 8.0 * size if box is None else box
    shape = checked_mesh((size, size, size))
    sides = shape[:2] if kind == "kappa" else shape
    mask = torch.ones(sides, dtype=torch.bool)
    mask[: round(unseen * size)] = False
    blank = torch.zeros(sides, dtype=torch.float64)
    sd = torch.full_like(blank, (0.002 if kind == "kappa" else 0.5) if noise is None else noise)
    cells = Cells(blank, sd, mask, torch.tensor(float(mean), dtype=torch.float64))
    origin = f"simulated by the model itself, seed {seed}"
    empty = DensityGrid(cells, kind, length, shape, origin)
    prepared = problem(empty, **settings)
    model: Any = prepared.model
    operators, generator = prepared.args[1], torch.Generator().manual_seed(seed)
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    truth, cosmology = {"white": white}, operators.cosmology
    if model.free:
        for name, (low, high) in (("omega_m", OMEGA_M), ("sigma8", SIGMA8)):
            truth[name] = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)
        cosmology = cosmology._replace(omega_m=truth["omega_m"], sigma8=truth["sigma8"])
    truth["linear"] = model.linear(white, operators, cosmology)
    displacement = checked_displacement(model.displacement(truth["linear"], operators, cosmology))
    truth["density"] = paint(cloud(displacement))
    expected = model.expected(truth["density"], cells, operators, cosmology)
    if kind == "counts":
        drawn = torch.poisson(expected, generator=generator)
    else:
        drawn = expected + sd * torch.randn(sides, generator=generator, dtype=torch.float64)
    values = torch.where(mask, drawn, 0.0)
    return DensityGrid(cells._replace(values=values), kind, length, shape, origin), truth
