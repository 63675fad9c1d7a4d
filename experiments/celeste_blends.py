"""Pairs of sources at given separations: are the posteriors of blends calibrated?

    python experiments/celeste_blends.py --separations 4,6 --pairs 64

GalSim renders pairs of sources of the model's prior (r = 17 to 21) at SDSS depth, on a grid; their positions
are given to the fit, so that detection plays no part. For each separation, a row: shares of log fluxes (g, r,
i) and coordinates within 1 and 2 posterior standard deviations of the truth (.683 and .954 if calibrated), of
types that are right, of posteriors that say of themselves not to be trusted, and of those that Markov chains
drew.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from typing import Any

import numpy as np
import torch
from astropy.table import Table

from astrozoo.data.simulate import draw_sources, simulate_field
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.fit import fit_field

R_RANGE = (17.0, 21.0)
APART = 40
"""Between pairs [px]."""


def pairs(separation: float, count: int, seed: int) -> Table:
    """Sources of the model's prior, two and two at a separation [px]."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count**0.5))
    cell = np.arange(count)
    first = (
        np.column_stack((cell % side, cell // side)) * APART + APART / 2 + rng.uniform(-0.5, 0.5, (count, 2))
    )
    angle = rng.uniform(0, 2 * np.pi, count)
    second = first + separation * np.column_stack((np.cos(angle), np.sin(angle)))
    table = draw_sources(2 * count, rng, r_range=R_RANGE)
    table["x"], table["y"] = np.concatenate((first, second)).T
    return table


def measure(separation: float, count: int, seed: int) -> dict[str, Any]:
    """A row of the table."""
    sources = pairs(separation, count, seed)
    side = int(max(sources["x"].max(), sources["y"].max())) + APART // 2
    images, truth = simulate_field(sources=sources, seed=seed, shape=(side, side))
    began = time.perf_counter()
    fit = fit_field(images, truth[["ra", "dec"]], seed=seed)
    seconds = time.perf_counter() - began
    found = catalogue(fit)
    z_flux = [
        (found[f"log_flux_{b}"] - np.log(truth[f"flux_{b}"])) / found[f"log_flux_{b}_sd"] for b in "gri"
    ]
    east = (found["ra"] - truth["ra"]) * np.cos(np.deg2rad(truth["dec"])) * 3.6e6 / found["ra_sd"]
    north = (found["dec"] - truth["dec"]) * 3.6e6 / found["dec_sd"]
    row: dict[str, Any] = {"separation": separation, "sources": len(truth)}
    for name, z in (("flux", np.abs(z_flux)), ("position", np.abs([east, north]))):
        row |= {f"{name} {k} SD": float((z < k).mean()) for k in (1, 2)}
    row["types right"] = float(((found["p_star"] > 0.5) == truth["is_star"]).mean())
    row["poor"] = float(fit.poor.mean())
    row["by chains"] = float(np.isfinite(fit.r_hat).mean())
    return row | {"sweeps": fit.stats["sweeps"], "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--separations", default="3,4,5,6,8,20", help="[px], with commas between")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    writer = None
    for separation in map(float, options.separations.split(",")):
        row = measure(separation, options.pairs, options.seed)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row))
            writer.writeheader()
        writer.writerow({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()})
        sys.stdout.flush()
