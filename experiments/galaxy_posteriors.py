"""Posteriors of galaxies' latents by each method, beside long chains of HMC.

    python -m experiments.galaxy_posteriors [--galaxies 8] [--methods laplace,trust_region,svi,hmc]

GalSim draws the galaxies. All are fitted at once by each method, from the encoder, under the shipped weights
of ``galaxy_vae``. Each method gives a CSV row: CPU seconds per galaxy, evaluations per galaxy, the share that
converged, and the Wasserstein distance W1 of each latent's marginal to that of the long chains, in SDs of
these: the median and the greatest over galaxies and latents. The row "halves" compares the halves of the long
chains. ``svi`` takes minutes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

import astrozoo
from astrozoo.data.simulate_galaxies import simulate_galaxies
from astrozoo.data.stamps import standardise
from astrozoo.models import galaxy_vae, galaxy_vae_training
from astrozoo.types import Result

SEED = 1_000_005
"""Seed of the galaxies, which are not in the training set."""
OPTIONS: dict[str, dict[str, Any]] = {
    "laplace": {},
    "trust_region": {"mode": "fixed"},
    "svi": {"tolerance": 0.01},
    "hmc": {},
}
"""Options of each method."""


def marginals(result: Result) -> np.ndarray:
    """Draws ``[draw, galaxy * latent]``."""
    z = result.draws["z"]
    return z.reshape(z.shape[0] * z.shape[1], -1)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """W1 of each column, in SDs of ``b``: the mean distance of equal quantiles."""
    at = (np.arange(400) + 0.5) / 400
    return np.abs(np.quantile(a, at, axis=0) - np.quantile(b, at, axis=0)).mean(0) / b.std(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--galaxies", type=int, default=8)
    parser.add_argument("--methods", default=",".join(OPTIONS))
    parser.add_argument("--compile", default="auto", choices=("auto", "always", "never"))
    options = parser.parse_args()
    drawn = simulate_galaxies(galaxy_vae_training.survey(), options.galaxies, seed=SEED)
    stamps = standardise(drawn.image.numpy(), galaxy_vae.SIZE, drawn.noise_rms.numpy())
    problem = replace(galaxy_vae.problem(stamps), images=())
    shared: dict[str, Any] = {"progress": False, "compile": options.compile}
    reference = marginals(astrozoo.infer(problem, "hmc", draws=500, chains=16, seed=1, **shared))
    writer = None
    for method in [*options.methods.split(","), "halves"]:
        started = time.process_time()
        row: dict[str, Any] = {"method": method, "cpu_s_per_galaxy": "", "evaluations": "", "converged": ""}
        if method == "halves":
            half = len(reference) // 2
            apart = distances(reference[:half], reference[half:])
        else:
            result = astrozoo.infer(problem, method, "encoder", seed=2, **shared, **OPTIONS[method])
            row["cpu_s_per_galaxy"] = f"{(time.process_time() - started) / options.galaxies:.2f}"
            counts = result.stats["counts"]
            each = {name: n / options.galaxies for name, n in counts.items() if n}
            row["evaluations"] = "  ".join(f"{name} {n:.0f}" for name, n in each.items())
            statuses = result.statuses or (result.status,)
            row["converged"] = f"{np.mean([status.ok for status in statuses]):.2f}"
            apart = distances(marginals(result), reference)
        row |= {"w1_median": f"{np.median(apart):.3f}", "w1_greatest": f"{apart.max():.3f}"}
        if writer is None:
            writer = csv.DictWriter(sys.stdout, row)
            writer.writeheader()
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
