"""Compile seconds of a first and of a second process whose lenses have the same shape, and their bits.

    python -m experiments.bench.compile_cache [--settings compact gigalens] [--quick] [--limit 900]

Each process fits a lens from a cold start by ``method="auto"``. The first finds an empty cache. The
second fits the same lens, and its draws must have the same bits. For "compact" a third fits another lens
of the same shape. ``gigalens`` reads the demo image in ``$ASTROZOO_DATA``. ``--quick`` fits a regression
of three coefficients instead, to try the script.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from typing import Any

from experiments.bench._child import ChildError, run_child

__all__ = ["main"]


def regression(seed: int) -> Any:
    """A problem that compiles in seconds."""
    import pyro
    import pyro.distributions as dist
    import torch

    import astrozoo

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)

    x, noise = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return astrozoo.Problem(model, (x, x.sum(1) + noise[:, 0]), name="regression")


def fit(setting: str, seed: int) -> None:
    """Fit one problem in this process, and print its figures as JSON."""
    import astrozoo

    options: dict[str, Any] = {"seed": 0, "progress": False, "compile": "always"}
    if setting == "quick":
        result = astrozoo.infer(regression(seed), "hmc", chains=4, warmup=20, draws=20, **options)
    elif setting == "compact":
        from astrozoo.models.strong_lens import problem, simulate

        image, _ = simulate(seed, setting="compact", size=32, pixel_scale=0.15)
        lens = problem(image, setting="compact", prior="gigalens")
        result = astrozoo.infer(lens, "auto", **options)
    else:
        from experiments.lens_gigalens import fit as fit_demo

        result, _ = fit_demo(1, seed=0, progress=False)
    h = hashlib.sha256()
    for name in sorted(result.draws):
        h.update(result.draws[name].tobytes())
    stats = {name: result.stats[name] for name in ("compile_seconds", "compiled", "notes")}
    print(json.dumps({**stats, "bits": h.hexdigest()[:16]}))


def main(settings: list[str], limit: float) -> None:
    """Run the processes one after another, and print a row for each."""
    columns = ("total s", "compile s", "fresh", "cached", "load")
    print(f"{'problem':9} {'process':13} " + " ".join(f"{name:>9}" for name in columns) + "  bits")
    for setting in settings:
        runs = [("first", 4), ("second", 4)] + [("other data", 5)] * (setting != "gigalens")
        first_bits = None
        with tempfile.TemporaryDirectory() as folder:
            for name, seed in runs:
                arguments = ["-m", "experiments.bench.compile_cache", "--fit", setting, str(seed)]
                try:
                    seconds, out = run_child(arguments, limit, ASTROZOO_CACHE=folder)
                except ChildError as error:
                    print(f"{setting:9} {name:13} {error}", flush=True)
                    break  # the next process would only find an empty cache
                figures = json.loads(out.splitlines()[-1])
                first_bits = first_bits or figures["bits"]
                bits = {"first": first_bits, "second": "equal to the first: "}.get(name, "")
                if name == "second":
                    bits += "yes" if figures["bits"] == first_bits else f"NO, {figures['bits']}"
                counts = figures["compiled"]
                print(
                    f"{setting:9} {name:13} {seconds:9.1f} {figures['compile_seconds']:9.1f} "
                    f"{counts['fresh']:9} {counts['cached']:9} {os.getloadavg()[0]:9.1f}  {bits}",
                    flush=True,
                )
                for note in figures["notes"]:
                    print(f"{'':9} note: {note}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--settings", nargs="+", choices=["compact", "gigalens"], default=["compact", "gigalens"]
    )
    parser.add_argument("--quick", action="store_true", help="a small regression, to try the script")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that one process may take")
    parser.add_argument("--fit", nargs=2, metavar=("SETTING", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit[0], int(options.fit[1]))
    else:
        main(["quick"] if options.quick else options.settings, options.limit)
