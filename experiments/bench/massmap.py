"""Cost of mass maps: CPU seconds and gradients per effective sample, time and memory of the Wiener filter.

    python -m experiments.bench.massmap [METHOD ...] [--size 360] [--chains 4] [--draws 100] [--out FILE]

Methods: hmc, mclmc, unadjusted (mclmc without its test), annealed, wiener. The map is simulated with the
log-normal prior and the noise of COSMOS; wiener has the Gaussian prior. Run each method in a process of its
own to compare peaks of memory.

Effective sample sizes are those of :func:`experiments.massmap_ktng.effective_sizes`: of the median of 400
pixels, and of the slowest Fourier mode. CPU seconds are those of one thread, of all chains and of the
warm-up; gradients are those of all chains after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import astrozoo
from astrozoo.models import mass_map
from experiments.massmap_ktng import effective_sizes

METHODS = ("hmc", "mclmc", "unadjusted", "annealed", "wiener")


def run(method: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The row of one method."""
    prior = "gaussian" if method == "wiener" else "lognormal"
    maps, _ = mass_map.simulate(0, size=chosen.size, prior=prior)
    problem = mass_map.problem(maps, prior=prior)
    options: dict[str, Any] = {"keep": ["kappa"], "compile": "never", "seed": 0, "draws": chosen.draws}
    row: dict[str, Any] = {"method": method, "size": chosen.size, "chains": chosen.chains}
    cpu = time.process_time()
    if method == "wiener":
        options["draws"] = 1
        result = astrozoo.infer(problem, "wiener", **options)
        first = time.process_time() - cpu
        result = astrozoo.infer(problem, "wiener", **options | {"draws": 1 + chosen.draws})
        both = time.process_time() - cpu - first
        row |= {"CPU s of the mean and a draw": first, "CPU s of a draw": (both - first) / chosen.draws}
    else:
        special = {"adjusted": False} if method == "unadjusted" else {}
        name = "mclmc" if method == "unadjusted" else method
        with tempfile.TemporaryDirectory() as folder:
            stream = {"stream": folder} if chosen.stream else {}
            result = astrozoo.infer(
                problem, name, chains=chosen.chains, warmup=chosen.warmup, **options, **special, **stream
            )
            seconds = time.process_time() - cpu
            kept = result.draws["kappa"]
            sizes = effective_sizes(kept, maps.pixels.mask.numpy())
        spent = chosen.chains * (result.stats["gradients_per_chain"] - result.stats["warmup_gradients"])
        row |= {"status": str(result.status), "CPU seconds": seconds, "gradients": spent} | sizes
        for what in ("median pixel", "slowest mode"):
            effective = sizes[f"ESS of the {what}"]
            row[f"gradients per ESS of the {what}"] = spent / effective
            row[f"CPU s per ESS of the {what}"] = seconds / effective
    row["peak memory [GiB]"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--size", type=int, default=360)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--stream", action="store_true", help="write draws to disk as they come")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    for method in chosen.methods:
        if method not in METHODS:
            parser.error(f"unknown method {method!r}: {', '.join(METHODS)}")
        line = json.dumps(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in run(method, chosen).items()}
        )
        print(line, flush=True)
        if chosen.out is not None:
            with chosen.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
