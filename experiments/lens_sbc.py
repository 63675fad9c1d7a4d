"""Are posteriors of lenses right? Simulation-based calibration on lenses drawn from the model's prior.

    python -m experiments.lens_sbc --out runs/lens_sbc --lenses 100 --batch 25

Each lens is a draw of the whole model: 22 parameters with the priors of GIGA-Lens (power law, shear, Sersic
lens light and source), its image and its noise. Lenses are fitted in batches by ``method="auto"``, which
starts from draws of the prior and does not know the truth. The rank of each true parameter among the draws
is recorded, and the rank of the true log density. If the posteriors are right, ranks are uniform. Lenses
whose fit did not converge are counted too, because leaving them out would flatter. "Search missed" counts
lenses whose true log density is larger than that of every draw by more than 10: their chains are at a mode
that is not the best.

Finished batches are saved as ``<first seed>.json``, and the same command continues from them. At the end
``calibration.csv`` (a row per parameter) and ``ranks.png`` are written.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

import astrozoo
from astrozoo.density import log_density
from astrozoo.diagnostics.arviz import ess, r_hat
from astrozoo.diagnostics.metrics import scalars
from astrozoo.diagnostics.report import write_rows
from astrozoo.diagnostics.sbc import RANKED, calibration, in_batches, ranks_of, sbc_figure
from astrozoo.errors import InputError
from astrozoo.models.strong_lens import problem, simulate
from astrozoo.types import Problem, Result

__all__ = ["LEVELS", "batch", "main", "ranked", "truth_density"]

LEVELS = (0.68, 0.95)
SHOWN = ("einstein_radius", "slope", "shear[component=1]", "shear[component=2]", "log density")
MISSED = 10.0


def truth_density(task: Problem, truths: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """The unconstrained log density of every problem of a batch at its truth."""
    target = log_density(task, compile="never")
    z = target.layout.unconstrain({name: torch.stack([t[name] for t in truths]) for name in truths[0]})
    return target.values(z)[:, 0].numpy()


def ranked(
    result: Result, truths: Sequence[Mapping[str, Tensor]], density: np.ndarray, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """For each problem of a batch: ranks of the truth by parameter, R-hat, and whether a mode was missed.

    Args:
        density: of the truths, see :func:`truth_density`.
    """
    rows = []
    lp = {"log density": result.sample_stats["lp"]}
    whole = replace(result, draws={name: x.astype(float) for name, x in (result.draws | lp).items()})
    for i, (truth, seed) in enumerate(zip(truths, seeds, strict=True)):
        fit = whole.take(i)
        draws = scalars(fit).draws
        rows.append(
            {
                "seed": seed,
                "ranks": ranks_of(fit, {**truth, "log density": density[i]}, seed),
                "status": fit.status.value,
                "R-hat": float(r_hat(draws).max()),
                "effective draws": float(ess(draws, "bulk").min()),
                "missed": bool(density[i] > fit.draws["log density"].max() + MISSED),
            }
        )
    return rows


def batch(seeds: Sequence[int], settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Simulate and fit a batch of lenses. Returns their rows and the seconds of the fit."""
    lenses, truths = zip(*(simulate(seed, **settings) for seed in seeds), strict=True)
    task = problem(list(lenses), prior="gigalens", supersample=settings["supersample"])
    began = time.monotonic()
    result = astrozoo.infer(task, "auto", seed=seeds[0], progress=False, **options)
    seconds = time.monotonic() - began
    rows = ranked(result, truths, truth_density(task, truths), seeds)
    stages = {**result.stats["stage_seconds"], "compiling": result.stats["compile_seconds"]}
    return {"rows": rows, "seconds": seconds, "stages": stages, "at best": result.stats["modes"]["at_best"]}


def report(done: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the table and the figure, and print a summary."""
    rows = [row for part in done for row in part["rows"]]
    labels = list(rows[0]["ranks"])
    found = np.array([[row["ranks"][label] for label in labels] for row in rows])
    table = calibration(labels, found, RANKED, LEVELS)
    write_rows(table, out / "calibration.csv")
    shown = [labels.index(name) for name in SHOWN]
    sbc_figure([labels[i] for i in shown], found[:, shown], RANKED).savefig(out / "ranks.png", dpi=80)
    names = [name for name in table[0] if name != "parameter"]
    print(f"{'':32}" + "".join(f"{name:>17}" for name in names))
    for row in table:
        print(f"{row['parameter']:32}" + "".join(f"{row[name]:17.3f}" for name in names))
    seconds = [part["seconds"] for part in done]
    print(f"lenses                     {len(rows)}")
    print(f"converged                  {sum(row['status'] == 'converged' for row in rows)}")
    print(f"greatest R-hat             {max(row['R-hat'] for row in rows):.3f}")
    print(f"least effective draws      {min(row['effective draws'] for row in rows):.0f}")
    print(f"with fewer than {RANKED}         {sum(row['effective draws'] < RANKED for row in rows)}")
    print(f"search missed              {sum(row['missed'] for row in rows)}")
    print(f"seconds per lens           {sum(seconds) / len(rows):.1f}")
    for stage in done[0]["stages"]:
        print(f"  {stage:25}{sum(part['stages'][stage] for part in done) / len(rows):.1f}")


def main(out: Path, lenses: int, size: int, in_batch: int, first: int, settings: Any, options: Any) -> None:
    """Run all batches. Finished ones are read from their files.

    Raises:
        InputError: the folder holds batches of other settings, or fewer than 20 lenses are asked for.
    """
    if lenses < 20:
        raise InputError("--lenses", lenses, "20 or more")
    out.mkdir(parents=True, exist_ok=True)
    settings = {"size": size, **settings}
    print(
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {settings}, {options}", flush=True
    )
    asked = {"settings": settings, "options": options}
    fit = partial(batch, settings=settings, options=options)
    batches = in_batches(out, range(first, first + lenses), in_batch, asked, fit)
    report(list(track(batches, "batches of lenses", total=math.ceil(lenses / in_batch))), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lenses", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25, help="lenses fitted at once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first lens")
    parser.add_argument("--size", type=int, default=40, help="pixels along a side")
    parser.add_argument("--pixel-scale", type=float, default=0.14, help="[arcsec]")
    parser.add_argument("--supersample", type=int, default=1)
    parser.add_argument("--chains", type=int, default=20, help="chains per lens, and starts of its search")
    parser.add_argument("--draws", type=int, default=100, help="draws per chain")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--precision", choices=["data", "single"], default="single")
    given = parser.parse_args()
    main(
        given.out, given.lenses, given.size, given.batch, given.seed,
        {"pixel_scale": given.pixel_scale, "supersample": given.supersample},
        {
            "chains": given.chains, "starts": given.chains, "draws": given.draws, "warmup": given.warmup,
            "precision": given.precision,
        },
    )  # fmt: skip
