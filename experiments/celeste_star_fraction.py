"""Is P(star) calibrated in fields that are rich in stars, or poor in them?

    python experiments/celeste_star_fraction.py --fractions 0.1,0.95 --fields 2

Fields are simulated (GalSim, r = 15.5 to 22.5) with a given fraction of stars, detected and fitted. Fluxes,
colours and shapes are those of the survey's prior. A row for each fraction: the fraction that the fit
learned; among matched sources the mean P(star) beside the fraction of stars, in all and in the fainter half;
the log score (mean of -ln P of the true type), and shares of true stars and galaxies that are taken for the
other type.
The same for the survey's own fraction (``--star-fraction`` of the command line).
"""

from __future__ import annotations

import argparse
import csv
import sys
from typing import Any

import numpy as np
import torch
from astropy.table import Table, vstack

from astrozoo.data.simulate import draw_sources, simulate_field
from astrozoo.diagnostics.scoring import match
from astrozoo.models.celeste import load_prior
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.fit import fit_field

R_RANGE = (15.5, 22.5)


def population(count: int, star_fraction: float, rng: np.random.Generator) -> Table:
    """Sources of the survey's prior, with another fraction of stars."""
    many = draw_sources(40 * count, rng, r_range=R_RANGE)
    star = rng.random(count) < star_fraction
    is_star = np.asarray(many["is_star"], bool)
    chosen = vstack([many[is_star][: star.sum()], many[~is_star][: (~star).sum()]])
    return chosen[rng.permutation(count)]


def measure(star_fraction: float, options: argparse.Namespace, learned: bool) -> dict[str, Any]:
    """A row of the table."""
    p_star, truth, flux, fractions = [], [], [], []
    for number in range(options.fields):
        rng = np.random.default_rng([options.seed, number, int(1000 * star_fraction)])
        sources = population(options.sources, star_fraction, rng)
        for axis in ("x", "y"):
            sources[axis] = rng.uniform(12, options.size - 12, len(sources))
        images, known = simulate_field(
            sources=sources, seed=options.seed + number, shape=(options.size, options.size)
        )
        fixed = None if learned else load_prior().prob_star
        fit = fit_field(images, seed=options.seed, star_fraction=fixed, progress=False)
        table = catalogue(fit)
        i, j = match(known, table)
        p_star.append(np.asarray(table["p_star"])[j])
        truth.append(np.asarray(known["is_star"], bool)[i])
        flux.append(np.asarray(known["flux_r"])[i])
        fractions.append(fit.prior.prob_star)
    p, star, f = (np.concatenate(parts) for parts in (p_star, truth, flux))
    faint = f < np.median(f)
    chance = np.where(star, p, 1 - p).clip(1e-12)
    return {
        "stars simulated": star_fraction,
        "prior": "learned" if learned else "survey's",
        "fraction in the prior": np.mean(fractions),
        "matched": len(p),
        "mean P(star)": p.mean(),
        "stars": star.mean(),
        "faint: mean P(star)": p[faint].mean(),
        "faint: stars": star[faint].mean(),
        "error": np.sqrt((p * (1 - p)).sum()) / len(p),
        "log score": -np.log(chance).mean(),
        "stars called galaxies": float((p[star] < 0.5).mean()),
        "galaxies called stars": float((p[~star] > 0.5).mean()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fractions", default="0.1,0.33,0.7,0.95", help="with commas between")
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument("--sources", type=int, default=100, help="of a field")
    parser.add_argument("--size", type=int, default=512, help="side of a field [px]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    writer = None
    for fraction in map(float, options.fractions.split(",")):
        for learned in (True, False):
            row = measure(fraction, options, learned)
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(row))
                writer.writeheader()
            writer.writerow({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()})
            sys.stdout.flush()
