"""Means and SDs of eight posteriors, by our samplers and by the reference draws of posteriordb.

    python -m experiments.reference_posteriors [--methods hmc,nuts] [--only arK,garch] [--seed 0]

A z-score is a difference of means (or of SDs) over the combined standard error. The standard error of a mean
is SD / sqrt(ESS); that of an SD is the error of the mean squared deviation over twice the SD. A run passes if
every |z| < 4 and R-hat (rank-normalised, split) < 1.01. The exit status is 1 if any run does not pass or ends
in an error.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

import astrozoo
from astrozoo.data import root
from astrozoo.diagnostics.arviz import ess, r_hat
from experiments.reference_problems import SAMPLED, Reference, sampled, z_scores

__all__ = ["OPTIONS", "graded", "main", "passed"]

OPTIONS: dict[str, dict[str, Any]] = {
    "hmc": {"draws": 500},
    "nuts": {"draws": 1000, "dense_mass": True},
    "nutpie": {"draws": 1000},
}
COLUMNS = {
    "problem": "14s", "method": "7s", "status": "13s", "scalars": "8d", "worst z of means": "17.2f",
    "worst z of SDs": "15.2f", "R-hat": "8.4f", "min ESS": "8.0f", "divergences": "12d", "gradients": "10d",
    "seconds": "8.1f",
}  # fmt: skip


def graded(reference: Reference, method: str, **options: Any) -> dict[str, Any]:
    """A row for one run: the largest absolute z-scores, R-hat, the smallest ESS, and the cost."""
    began = time.monotonic()
    result = astrozoo.infer(reference.problem, method, **{"progress": False} | OPTIONS[method] | options)
    seconds = time.monotonic() - began
    draws = reference.scalars(result.draws)
    scores = z_scores(result, reference)
    means, sds = zip(*scores.values(), strict=True)
    return {
        "problem": reference.name,
        "method": method,
        "status": result.status.value,
        "scalars": len(scores),
        "worst z of means": max(map(abs, means)),
        "worst z of SDs": max(map(abs, sds)),
        "R-hat": max(float(r_hat(x)) for x in draws.values()),
        "min ESS": min(float(ess(x, "bulk")) for x in draws.values()),
        "divergences": int(result.sample_stats["diverging"].sum()),
        "gradients": result.stats["counts"]["gradient"],
        "seconds": seconds,
    }


def passed(row: dict[str, Any]) -> bool:
    """Whether all moments are within four standard errors of the reference and R-hat is below 1.01."""
    return (
        "error" not in row and max(row["worst z of means"], row["worst z of SDs"]) < 4 and row["R-hat"] < 1.01
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="hmc,nuts")
    parser.add_argument("--only", default=",".join(SAMPLED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = root()
    if folder is None:
        print("no reference draws: set ASTROZOO_DATA, or put them at ../shared/data", file=sys.stderr)
        return 1
    widths = {name: int(spec.split(".")[0].rstrip("sdf")) for name, spec in COLUMNS.items()}
    print(" ".join(f"{name:>{width}s}" for name, width in widths.items()))
    rows = []
    for name in options.only.split(","):
        reference = sampled(name, folder)
        for method in options.methods.split(","):
            try:
                row = graded(reference, method, seed=options.seed)
                print(" ".join(f"{row[c]:>{spec}}" for c, spec in COLUMNS.items()), flush=True)
            except astrozoo.AstrozooError as error:
                row = {"error": error}
                print(f"{name:>14s} {method:>7s} {type(error).__name__}: {error}", flush=True)
            rows.append(row)
    print(f"{sum(map(passed, rows))} of {len(rows)} runs within 4 standard errors and with R-hat < 1.01")
    return 0 if all(map(passed, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
