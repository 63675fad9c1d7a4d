"""Fields and simulations on slabs: ``slab_worker.py torch|mpi FILE SIZE ...`` (see ``worker.py``)."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import worker

from astrozoo.dist.exchange import replicated, total
from astrozoo.dist.particle_mesh import ParticleMesh
from astrozoo.dist.slabs import Slabs
from astrozoo.physics import fourier
from astrozoo.physics.cosmology import make_cosmology
from astrozoo.physics.painting import cloud, paint
from astrozoo.physics.pm import (
    evolve,
    force_kernels,
    mesh_force,
    particles_at_start,
    schedule,
    wave_numbers,
)
from astrozoo.physics.pm_adjoint import evolve_reversible

SHAPES = ((12, 6, 8), (10, 8, 4), (6, 4, 6))
"""Of the meshes: among 4 ranks slabs of 3 rows, of 2 or 3, and of 1 or 2."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_fields(shape):
    """What one process computes: name -> whole field, gradient or number."""
    field, target = normal(*shape), normal(*shape, seed=1)
    kernels = 1j * force_kernels(shape, field)
    x = field.clone().requires_grad_()
    waves = torch.fft.rfftn(x)
    loss = (torch.fft.irfftn(waves * waves.abs() ** 2, s=shape) * target).sum()
    y = field.clone().requires_grad_()
    filtered = fourier.filter_bank(y, kernels)
    (of_filter,) = torch.autograd.grad((filtered**3).sum(), y)
    (of_power,) = torch.autograd.grad(loss, x)
    return {
        "transform": torch.fft.rfftn(field),
        "gradient through transforms": of_power,
        "filter": filtered.detach(),
        "gradient of filter": of_filter,
    }


def slab_fields(comm, shape):
    slabs = Slabs(comm, shape)
    field, target = slabs.own(normal(*shape)), slabs.own(normal(*shape, seed=1))
    kernels = 1j * force_kernels(shape, field)[:, :, slabs.columns]
    x = field.clone().requires_grad_()
    waves = slabs.transform(x)
    loss = total((slabs.inverse(waves * waves.abs() ** 2) * target).sum(), comm)
    y = field.clone().requires_grad_()
    filtered = slabs.filter_bank(y, kernels)
    (of_filter,) = torch.autograd.grad(total((filtered**3).sum(), comm), y)
    (of_power,) = torch.autograd.grad(loss, x)
    return {
        "transform": (slabs.transform(field).detach(), slabs.columns),
        "gradient through transforms": slabs.whole(of_power),
        "filter": slabs.whole(filtered.detach()),
        "gradient of filter": slabs.whole(of_filter),
    }


def simulation(shape, run, amplitude, comm=None):
    """Density, momenta and gradients: of the linear field and of the amplitude of its power."""
    mesh = None if comm is None else ParticleMesh(comm, shape)
    white = normal(*shape, seed=2)
    waves = wave_numbers(shape, white)
    number = sum(k**2 for k in waves).sqrt()
    power = torch.exp(-(number**2) / 2) * math.prod(shape) / 100
    a = torch.tensor(amplitude, dtype=torch.float64, requires_grad=True)
    factors = schedule(torch.linspace(0.1, 1.0, 4, dtype=torch.float64), make_cosmology())
    target = normal(*shape, seed=3)
    if mesh is None:
        white = white.clone().requires_grad_()
        root = (power * a).sqrt() * (number > 0)
        delta = torch.fft.irfftn(torch.fft.rfftn(white) * root, s=shape)
        end = run(
            particles_at_start(delta, factors),
            factors,
            partial(mesh_force, kernels=force_kernels(shape, delta)),
        )
        density = paint(cloud(end.displacement))
        loss = ((density - target) ** 2).sum() + (end.momentum**3).sum()
        loss.backward()
        fields = [density.detach(), end.momentum.detach(), white.grad]
    else:
        slabs = mesh.slabs
        white, target = slabs.own(white).requires_grad_(), slabs.own(target)
        delta = mesh.field_of(white, power[:, slabs.columns] * replicated(a, comm))
        end = run(particles_at_start(delta, factors, **mesh.lpt), factors, mesh.force)
        density = mesh.paint(end.displacement)
        loss = total(((density - target) ** 2).sum() + (end.momentum**3).sum(), comm)
        loss.backward()
        fields = [slabs.whole(x) for x in (density.detach(), end.momentum.detach(), white.grad)]
    reach = end.displacement.detach()[0].abs().max() if end.displacement.numel() else torch.zeros(())
    names = ("density", "momentum", "gradient of the field", "value", "gradient of the amplitude")
    return dict(zip(names, (*fields, loss.detach(), a.grad), strict=True)), float(reach)


RUNS = {"autograd": evolve, "adjoint": evolve_reversible}
AMPLITUDES = (1.0, 200.0)
"""Of the power: particles that move by about a cell, and by several slabs."""


def cases():
    return [(shape, how, amplitude) for shape in SHAPES for how in RUNS for amplitude in AMPLITUDES]


def expected():
    found = {"fields": {shape: whole_fields(shape) for shape in SHAPES}, "simulations": {}}
    for case in cases():
        found["simulations"][case], reach = simulation(case[0], RUNS[case[1]], case[2])
        assert case[2] == 1.0 or reach > case[0][0] / 4, (case, reach)  # particles cross slabs
    return found


def differences(comm, whole):
    found = {}
    for shape, fields in whole["fields"].items():
        ours = slab_fields(comm, shape)
        waves, columns = ours.pop("transform")
        found[f"{shape}, transform"] = worker.distance(waves, fields["transform"][:, columns])
        for name, value in ours.items():
            found[f"{shape}, {name}"] = worker.distance(value, fields[name])
    for (shape, how, amplitude), theirs in whole["simulations"].items():
        ours, _ = simulation(shape, RUNS[how], amplitude, comm)
        for name, value in ours.items():
            found[f"{shape}, {how}, {amplitude}, {name}"] = worker.distance(value, theirs[name])
    return found


if __name__ == "__main__":
    kind, file, *sizes = sys.argv[1:]
    worker.in_groups(kind, file, [int(n) for n in sizes], expected(), differences)
