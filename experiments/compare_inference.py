"""Every inference method on posteriors whose answers are known: a table of errors and costs.

The answers are those of :mod:`experiments.reference_problems`: exact, or from long runs of posteriordb. Each
method runs with several seeds. A run that fails keeps its row. Errors are in units of the true posterior SD,
and ``z`` in units of the combined Monte-Carlo error. Seconds are wall-clock from a cold start; those of
compilation have a column too.

    python -m experiments.compare_inference --out FOLDER [--methods el2o,laplace ...] [--seeds 5]
        [--problems kidscore,nes ...]

writes ``runs.csv`` and ``runs.parquet`` (a row per problem, method and seed) and prints medians per method.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import astrozoo
from astrozoo.data import root
from astrozoo.diagnostics.metrics import diagnose
from astrozoo.diagnostics.report import write_rows
from astrozoo.diagnostics.runs import cost
from experiments.reference_problems import SAMPLED, Reference, analytic, sampled, z_scores

__all__ = ["RUNS", "main", "references"]

RUNS: dict[str, dict[str, Any]] = {
    "trust_region": {"method": "trust_region"},
    "trust_region full": {"method": "trust_region", "guide": "full_rank"},
    "linear response": {
        "method": "trust_region", "mode": "fixed", "particles": 30, "covariance": "linear_response",
    },
    "svi": {"method": "svi"},
    "svi full": {"method": "svi", "guide": "full_rank"},
    "el2o": {"method": "el2o"},
    "el2o full": {"method": "el2o", "guide": "full_rank"},
    "laplace": {"method": "laplace"},
    "hmc": {"method": "hmc"},
    "nuts": {"method": "nuts"},
}  # fmt: skip
"""Options of ``infer`` by name."""


def references(names: list[str]) -> Iterator[Reference]:
    """Factories of the requested references by name. Those of posteriordb need its files."""
    folder = root()
    known: dict[str, Callable[[], Reference]] = {r.name: lambda r=r: r for r in analytic()}  # type: ignore[misc]
    if folder is not None:
        known |= {name: lambda name=name: sampled(name, folder) for name in SAMPLED}  # type: ignore[misc]
    for name in names or known:
        yield known[name]()


def graded(reference: Reference, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """A row of the table: errors of the expectations, diagnostics and cost of one run."""
    began = time.monotonic()
    result = astrozoo.infer(reference.problem, seed=seed, progress=False, **options)
    seconds = time.monotonic() - began
    draws = reference.scalars(result.draws)
    pairs = [(draws[name], true) for name, true in reference.exact.items()]
    means = [abs(x.mean() - true.mean) / true.sd for x, true in pairs]
    scales = [abs(x.std() / true.sd - 1) for x, true in pairs]
    z = np.array(list(z_scores(result, reference).values()))
    found = diagnose(result)
    return cost(result) | {
        "median mean error": float(np.median(means)),
        "largest mean error": float(np.max(means)),
        "median sd error": float(np.median(scales)),
        "largest |z| of means": float(np.abs(z[:, 0]).max()),
        "largest |z| of sds": float(np.abs(z[:, 1]).max()),
        "k-hat": found.get("largest k-hat", np.nan),
        "el2o value": found.get("largest el2o value", np.nan),
        "largest r-hat": found.get("largest r-hat", np.nan),
        "smallest bulk ess": found.get("smallest bulk ess", np.nan),
        "seconds": seconds,
    }


def main(out: Path, methods: list[str], problems: list[str], seeds: int) -> list[dict[str, Any]]:
    """Run all methods on all problems. The table is written after every run."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for reference in references(problems):
        for name in methods:
            for seed in range(seeds):
                row: dict[str, Any] = {"problem": reference.name, "run": name}
                row |= {"unimodal": reference.unimodal, "seed": seed}
                try:
                    row |= graded(reference, RUNS[name], seed)
                except (astrozoo.AstrozooError, RuntimeError) as error:
                    row["status"] = f"failed: {type(error).__name__}: {error}"
                rows.append(row)
                shown = ("median mean error", "median sd error", "largest |z| of means", "k-hat", "seconds")
                told = ", ".join(f"{key} {row[key]:.3g}" for key in shown if key in row)
                print(f"{reference.name} | {name} | {seed} | {row['status']} | {told}", flush=True)
                write_rows(rows, out / "runs.csv")
    write_rows(rows, out / "runs.parquet")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(RUNS), help="names separated by commas")
    parser.add_argument("--problems", default="", help="names separated by commas; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    found = main(
        given.out, given.methods.split(","), [p for p in given.problems.split(",") if p], given.seeds
    )
    print("\nmedians over problems and seeds:")
    for name in given.methods.split(","):
        rows = [row for row in found if row["run"] == name and "seconds" in row]
        failed = sum(row["run"] == name for row in found) - len(rows)
        told = [
            f"{key} {np.nanmedian([row[key] for row in rows]):.3g}"
            for key in ("median mean error", "median sd error", "seconds")
            if rows
        ]
        print(f"{name}: {', '.join(told)}; {failed} of {failed + len(rows)} failed")
