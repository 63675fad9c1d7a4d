"""Compile seconds of a first and of a second process whose lenses have the same shape, and their bits.

    python -m experiments.bench.compile_cache [--setting compact gigalens]

Each process fits a lens from a cold start by ``method="auto"``. The first finds an empty cache. The
second fits the same lens, and its draws must have the same bits. For "compact" a third fits another lens
of the same shape. ``gigalens`` reads the demo image in ``$ASTROZOO_DATA``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

__all__ = ["main"]


def fit(setting: str, seed: int) -> None:
    """Fit one lens in this process, and print its figures as JSON."""
    import astrozoo

    if setting == "compact":
        from astrozoo.models.strong_lens import problem, simulate

        lens = problem(simulate(seed, setting="compact", size=32, pixel_scale=0.15)[0], setting="compact")
        result = astrozoo.infer(lens, "auto", seed=0, progress=False, compile="always")
    else:
        from experiments.lens_gigalens import fit as fit_demo

        result, _ = fit_demo(1, seed=0, progress=False)
    h = hashlib.sha256()
    for name in sorted(result.draws):
        h.update(result.draws[name].tobytes())
    kept = {name: result.stats[name] for name in ("compile_seconds", "compiled", "notes")}
    print(json.dumps({**kept, "bits": h.hexdigest()[:16]}))


def main(settings: list[str]) -> None:
    """Run the processes one after another, and print a line for each."""
    for setting in settings:
        runs = [("first", 4), ("second", 4)] + [("another lens", 5)] * (setting == "compact")
        with tempfile.TemporaryDirectory() as folder:
            for name, seed in runs:
                began = time.monotonic()
                command = [
                    sys.executable,
                    "-m",
                    "experiments.bench.compile_cache",
                    "--fit",
                    setting,
                    str(seed),
                ]
                env = {**os.environ, "ASTROZOO_CACHE": folder}
                out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
                figures = json.loads(out.splitlines()[-1])
                seconds = time.monotonic() - began
                print(
                    f"{setting}, {name}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}, {figures}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--setting", nargs="+", choices=["compact", "gigalens"], default=["compact", "gigalens"]
    )
    parser.add_argument("--fit", nargs=2, metavar=("SETTING", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit[0], int(options.fit[1]))
    else:
        main(options.setting)
