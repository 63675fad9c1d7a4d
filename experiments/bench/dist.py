"""What sharing a run costs: calls and bytes of a step, and the speed of several ranks against one.

    torchrun --nproc-per-node 2 experiments/bench/dist.py [--terms 1000000] [--mesh 128]

Two measurements. The first is a likelihood of many terms (a logistic regression), whose value and gradient
are evaluated by one rank alone and then by all of them. The second is the gradient of an N-body simulation,
by one rank alone and on slabs. Efficiency is seconds of one rank over seconds of n ranks over n. On a machine
that does other work the wall clock is not the cost, so the processor seconds of the slowest rank are given
too: the efficiency by these assumes that every rank has a core, and leaves out waiting.

Each rank needs a core of its own and one thread (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from astrozoo._sharing import share
from astrozoo.density import log_density
from astrozoo.dist import Comm, from_launcher
from astrozoo.dist.exchange import total
from astrozoo.dist.particle_mesh import ParticleMesh
from astrozoo.physics.cosmology import make_cosmology
from astrozoo.physics.modes import box_modes, field_of
from astrozoo.physics.painting import cloud, paint
from astrozoo.physics.pm import force_kernels, mesh_force, particles_at_start, schedule
from astrozoo.physics.pm_adjoint import evolve_reversible
from astrozoo.types import Problem

FEATURES = 20
"""Coefficients of the regression: a term costs about 20 multiplications."""
STEPS = 3
"""Particle-mesh steps of the simulation, the default of the model ``nbody``."""


def logistic(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def logistic_problem(terms: int) -> Problem:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(terms, FEATURES, generator=random, dtype=torch.float64)
    y = torch.bernoulli(torch.sigmoid(x.sum(1)), generator=random)
    return Problem(logistic, (x, y), data_plates={"data": {"x": 0, "y": 0}})


def gradient_of_simulation(comm: Comm | None, side: int) -> Callable[[], Tensor]:
    """A function that computes the gradient, of one rank or on slabs."""
    shape = (side, side, side)
    white = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = schedule(torch.linspace(0.1, 1.0, STEPS + 1), make_cosmology())
    if comm is None:
        modes, kernels = box_modes(shape, float(side)), force_kernels(shape, white)
        power = torch.exp(-(modes.k**2) * 2) * 100

        def alone() -> Tensor:
            w = white.clone().requires_grad_()
            delta = field_of(w, power, modes)
            start = particles_at_start(delta, factors)
            end = evolve_reversible(start, factors, partial(mesh_force, kernels=kernels))
            (paint(cloud(end.displacement)) - 1).square().sum().backward()
            assert w.grad is not None
            return w.grad

        return alone
    mesh = ParticleMesh(comm, shape)
    power, slab = torch.exp(-(mesh.wave_number**2) * 2) * 100, mesh.slabs.own(white)

    def on_slabs() -> Tensor:
        w = slab.clone().requires_grad_()
        start = particles_at_start(mesh.field_of(w, power), factors, **mesh.lpt)
        end = evolve_reversible(start, factors, mesh.force)
        total((mesh.paint(end.displacement) - 1).square().sum(), comm).backward()
        assert w.grad is not None
        return w.grad

    return on_slabs


def timed(f: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least wall and processor seconds of a call, after one that is not counted."""
    f()
    wall, cpu = [], []
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        f()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return min(wall), min(cpu)


def against_one(comm: Comm, alone: Callable[[], Any], shared: Callable[[], Any], repeats: int) -> Any:
    """Seconds, efficiency, and calls and bytes of one evaluation. While one rank works alone, others wait."""
    one = timed(alone, repeats) if comm.rank == 0 else (0.0, 0.0)
    comm.barrier()
    before = dict(comm.counts)
    shared()
    used = {name: n - before[name] for name, n in comm.counts.items() if n > before[name]}
    several = comm.all_gather(torch.tensor(timed(shared, repeats), dtype=torch.float64)).amax(0).tolist()
    return {
        "one rank, wall and CPU s": [round(x, 4) for x in one],
        f"{comm.size} ranks, wall and CPU s": [round(x, 4) for x in several],
        "efficiency by wall clock": round(one[0] / several[0] / comm.size, 3),
        "efficiency by CPU seconds": round(one[1] / several[1] / comm.size, 3),
        "one evaluation": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--terms", type=int, default=1_000_000)
    parser.add_argument("--mesh", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    comm = from_launcher()
    w = 0.1 * torch.ones(1, FEATURES, dtype=torch.float64)
    problem = logistic_problem(given.terms)
    alone, shared = (log_density(p, compile="never") for p in (problem, share(problem, comm, "data")))
    found: dict[str, Any] = {"ranks": comm.size, "cores": os.cpu_count(), "load": list(os.getloadavg())}
    found[f"likelihood of {given.terms} terms"] = against_one(
        comm, lambda: alone.value_and_grad(w), lambda: shared.value_and_grad(w), given.repeats
    )
    one, slabs = (gradient_of_simulation(c, given.mesh) for c in (None, comm))
    name = f"gradient of an N-body simulation, {given.mesh}^3, {STEPS} steps"
    found[name] = against_one(comm, one, slabs, max(1, given.repeats // 2))
    found["load at the end"] = list(os.getloadavg())
    if comm.rank == 0:
        print(json.dumps(found, indent=1))
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
