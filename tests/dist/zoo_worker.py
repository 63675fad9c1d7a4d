"""Models of the zoo and all methods, by several processes: ``zoo_worker.py torch|mpi FILE SIZE ...``.

What differs from one process is written (see ``worker.py``): evaluations of the zoo's models, and the draws
of every method on small models.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import worker

import astrozoo
import models
from astrozoo._sharing import share
from astrozoo.density import elbo, log_density
from astrozoo.errors import AstrozooError
from astrozoo.guides.auto import mean_field
from astrozoo.models import galaxy_vae, galaxy_vae_training
from astrozoo.types import stack

QUICK = {"compile": "never", "progress": False, "seed": 3}
RUNS = {
    "trust_region": {"guide": "mean_field", "budget": 4, "draws": 6},
    "svi": {"guide": "mean_field", "budget": 20, "draws": 6},
    "laplace": {"budget": 20, "draws": 6},
    "el2o": {"guide": "full_rank", "budget": 3, "draws": 6},
    "wiener": {"draws": 6},
    "hmc": {"draws": 8, "chains": 5, "warmup": 8},
    "mclmc": {"draws": 8, "chains": 5, "warmup": 8},
    "auto": {"draws": 8, "chains": 5},
    "nuts": {"draws": 4, "chains": 3, "warmup": 4},
    "nutpie": {"draws": 20, "chains": 3, "warmup": 20},
}


def _entry(name):
    entry = astrozoo.get(name)
    return entry, lambda seed: entry.problem(entry.simulate(seed, **entry.simulated)[0])


def _vae():
    """Galaxies whose latents lie in the data plate, under networks of random weights."""
    stamps, _ = galaxy_vae.simulate(0, galaxies=5)
    nets = galaxy_vae_training.untrained(stamps.pixels, latent=3, hidden=(8,))
    nets.decoder.double().requires_grad_(False)
    nets.encoder.double().requires_grad_(False)
    return galaxy_vae.training_problem(stamps.pixels, nets)


def zoo():
    """By name: a problem, what is divided, rows, and a capture."""
    density, of = partial(log_density, compile="never"), {n: _entry(n)[1] for n in ZOO}
    return {
        "celeste, chains": (of["celeste"](0), "chains", 5, density),
        "celeste, problems": (stack([of["celeste"](seed) for seed in range(4)]), "problems", None, density),
        "strong_lens, chains": (of["strong_lens"](0), "chains", 5, density),
        "mass_map, chains": (of["mass_map"](0), "chains", 5, density),
        "nbody, chains": (of["nbody"](0), "chains", 5, density),
        "shear, data": (of["shear"](0), "data", 2, density),
        "galaxy_vae, data": (_vae(), "data", 2, density),
        "a user's model, data": (models.stars(5), "data", 2, partial(elbo, guide=mean_field)),
    }


ZOO = ("celeste", "strong_lens", "mass_map", "nbody", "shear")


def _evaluated(target, rows):
    random = torch.Generator().manual_seed(1)
    b = target.batch or rows
    like = {"generator": random, "dtype": target.dtype}
    w = 0.1 * torch.randn(b, target.dim, **like)
    v = torch.randn(b, target.dim, **like)
    noise = torch.randn(2, target.noise_dim, **like) if target.noise_dim else None
    if target.noise_dim:
        w = target.initial().expand(b, -1) + 0.1 * w
    return {"value and gradient": target.value_and_grad(w, noise), "hvp": target.hvp(w, noise, v)}


def _problems():
    return {"data": models.line(7), "chains": models.line(7), "problems": models.lines(4)}


def run(method, problem, **shared):
    problem = models.linear() if method == "wiener" and problem.batch is None else problem
    if method == "wiener" and problem.batch is not None:
        problem = stack([models.linear(seed) for seed in range(4)])
    return astrozoo.infer(problem, method, **RUNS[method], **QUICK, **shared)


def _apart(pair):
    a, b = pair
    return float(np.abs(a - b).max() / (1 + np.abs(b).max()))


def methods(comm):
    found, problems = {}, _problems()
    for method in RUNS:
        for kind, problem in problems.items():
            try:
                shared = run(method, problem, comm=comm, shard=kind)
            except AstrozooError as error:
                found[f"{method}, {kind}"] = str(error)
                continue
            if comm.rank == 0:
                alone = run(method, problem)
                pairs = ((shared.draws[site], x) for site, x in alone.draws.items())
                found[f"{method}, {kind}"] = max(map(_apart, pairs))
    return found


def differences(comm, expected):
    found = {}
    for name, (problem, kind, rows, capture) in zoo().items():
        for entry, got in _evaluated(capture(share(problem, comm, kind)), rows).items():
            got, whole = ((x if isinstance(x, tuple) else (x,)) for x in (got, expected[name][entry]))
            found[f"{name}, {entry}"] = worker.distance(got, whole)
    return {"zoo": found, "methods": methods(comm)}


if __name__ == "__main__":
    kind, file, *sizes = sys.argv[1:]
    whole = {name: _evaluated(capture(p), rows) for name, (p, _, rows, capture) in zoo().items()}
    worker.in_groups(kind, file, [int(n) for n in sizes], whole, differences)
