"""Train the priors of latents that the package ships, on latents of the shipped `psf_vae` encoder.

    python -m experiments.train_latent_flow --out runs/latent_flow [--galaxies 4000] [--steps 1500] [--seed 0]

The galaxies take 10 ms each, and the three priors 70 CPU seconds in all. The same command continues a run
that was stopped. Files in ``--out``:

- ``latent_flow.safetensors``: p(z | half-light radius, magnitude, redshift), which ``models/`` has a copy of;
- ``latent_flow_unconditional.safetensors``: p(z), likewise;
- ``table.npz``: the latents, for ``astrozoo run latent_flow --data``;
- ``training.json``: settings, CPU seconds, and gains over N(0, I) on galaxies that are not trained on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import astrozoo
from astrozoo._files import replacing, write_json
from astrozoo._trained import Trained
from astrozoo.data.latents import LatentTable
from astrozoo.data.simulate_galaxies import simulate_galaxies
from astrozoo.galaxies.latent_scores import gains
from astrozoo.models import galaxy_population, latent_flow
from astrozoo.models.galaxy_population import SURVEY
from astrozoo.models.latent_galaxies import table_of

SEED = 10
"""Seed of the galaxies with ``--seed 0``: those that the encoder was trained on have seed 0."""
KINDS = ("realnvp", "vamp")
"""Priors without conditions that are trained. The flow is shipped, and the VampPrior is compared with it."""


def table(count: int, seed: int, cache: Path) -> LatentTable:
    """Latents of simulated galaxies."""
    stamps = simulate_galaxies(SURVEY, count, seed=seed, cache=cache)
    return table_of(galaxy_population.load(dtype=torch.float32), stamps, SURVEY, seed=seed)


def trained(
    kind: str, trained_on: LatentTable, held_out: LatentTable, options: Any, settings: dict[str, Any]
) -> Trained:
    """A prior that is fitted to a table."""
    prior = latent_flow.fitted_to(trained_on, kind, seed=options.seed, **settings)
    name = f"{kind}-{len(trained_on.names)}"
    checkpoint = options.out / f"{name}.checkpoint"
    result = astrozoo.train(
        latent_flow.training_problem(prior, trained_on),
        "posterior",
        steps=options.steps,
        batch=512,
        seed=options.seed,
        learning_rate=2e-3,
        gradient_clip=100.0,
        held_out=latent_flow.training_problem(prior, held_out),
        checkpoint=checkpoint,
    )
    checkpoint.unlink(missing_ok=True)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--galaxies", type=int, default=4_000, help="number of galaxies to train on")
    parser.add_argument("--steps", type=int, default=1_500, help="of each prior")
    parser.add_argument("--flow", default="realnvp", choices=latent_flow.KINDS, help="kind of the flows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder of simulated galaxies; by default in --out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache, seed = options.cache or options.out / "galaxies", SEED + 2 * options.seed
    began = time.process_time()
    training = table(options.galaxies, seed, cache)
    held_out = table(max(options.galaxies // 6, 20), seed + 1, cache)
    with replacing(options.out / "table.npz") as partial, partial.open("wb") as file:
        columns = dict(zip(training.names, training.conditions.T.numpy(), strict=True))
        np.savez(file, mean=training.mean.numpy(), sd=training.sd.numpy(), **columns)
    seconds = {"galaxies and their latents, less if cached": time.process_time() - began}
    priors = {"normal with the moments of the table": latent_flow.fitted_to(training.only(()))}
    jobs = {
        "latent_flow": (options.flow, training, held_out),
        "latent_flow_unconditional": (options.flow, training.only(()), held_out.only(())),
        "vamp": ("vamp", training.only(()), held_out.only(())),
    }
    for name, (kind, rows, others) in jobs.items():
        began = time.process_time()
        result = trained(kind, rows, others, options, {})
        seconds[name] = time.process_time() - began
        result.save(options.out / f"{name}.safetensors")
        priors[name] = latent_flow.load(weights=result)
    record = {
        "galaxies": options.galaxies,
        "held-out galaxies": len(held_out),
        "steps": options.steps,
        "seed": options.seed,
        "CPU seconds": {name: round(value, 1) for name, value in seconds.items()},
        "gains": gains(held_out, priors),
    }
    write_json(record, options.out / "training.json")
    for name, value in record.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
