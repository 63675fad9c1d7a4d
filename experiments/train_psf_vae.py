"""Train the weights that `psf_vae` ships, as ``astrozoo train psf_vae`` does.

    python -m experiments.train_psf_vae --out runs/psf_vae [--galaxies 4000] [--steps 1100,450,250] [--seed 0]

The galaxies take 10 ms each, and the steps 35 to 70 ms, on one core. The same command continues a run that
was stopped. Files in ``--out``:

- ``weights.safetensors``: ``models/psf_vae.safetensors`` is a copy;
- ``training.json``: settings, CPU seconds, and the ELBO of held-out galaxies after the last phase.

Only the last phase maximises the ELBO. The objectives of the first two are not evidence bounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from astrozoo._files import write_json
from astrozoo._train_command import train_stages
from astrozoo.data.noisy_stamps import noisy_stamps
from astrozoo.data.simulate_galaxies import simulate_galaxies
from astrozoo.models import galaxy_population
from astrozoo.models.galaxy_population import SNR, STEPS, SURVEY
from astrozoo.nets.galaxy import ENCODED


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--galaxies", type=int, default=4000, help="number of galaxies to train on")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="of the three phases")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = tuple(int(n) for n in options.steps.split(","))
    cache, seed = options.out / "galaxies", 2 * options.seed
    began = time.process_time()
    stamps = simulate_galaxies(SURVEY, options.galaxies, seed=seed, cache=cache)
    others = simulate_galaxies(SURVEY, max(options.galaxies // 12, 1), seed=seed + 1, cache=cache)
    drawn = time.process_time()
    held_out = noisy_stamps(others.noiseless, others.psf, snr=SNR, size=ENCODED, seed=options.seed)
    phases = galaxy_population.phases(stamps.noiseless, stamps.psf, held_out, seed=options.seed, steps=steps)
    trained = train_stages(phases, options.out, seed=options.seed)
    trained.save(options.out / "weights.safetensors")
    elbos = galaxy_population.elbos(galaxy_population.load(trained, dtype=torch.float32), held_out)
    record = {
        "galaxies": options.galaxies,
        "steps": list(steps),
        "seed": options.seed,
        "status": trained.status.value,
        "CPU seconds of the galaxies, 0 if cached": round(drawn - began, 1),
        "CPU seconds of training in this process": round(time.process_time() - drawn, 1),
        "held-out galaxies": len(elbos),
        "held-out ELBO, mean [nat]": float(elbos.mean()),
        "held-out ELBO, median [nat]": float(elbos.median()),
    }
    write_json(record, options.out / "training.json")
    for name, value in record.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
