"""Wall-clock of a fit on an idle machine and beside one busy process on each core, and their ratio.

    python -m experiments.bench.neighbours [--rounds 3] [--cases gigalens celeste] [--policies PASSIVE ACTIVE]

Rounds alternate idle and busy runs. Each run is a new process that reads compiled graphs from one cache,
filled by a run before that is not counted. The busy processes are loops of this script, which it starts
and ends. ``--quick`` runs one round of a small regression, to try the script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.bench._child import ChildError, run_child

__all__ = ["main"]

CASES = {
    "gigalens": ["-c", "from experiments.lens_gigalens import fit; fit(1, seed=0, progress=False)"],
    "celeste": ["-m", "astrozoo", "run", "celeste", "--demo"],
    "quick": ["-c", "from experiments.bench.compile_cache import fit; fit('quick', 0)"],
}
"""Arguments of Python; "celeste" is also given a folder for its output."""


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep each core that this process may use busy with a loop."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(case: str, policy: str, cache: str, limit: float) -> float:
    """Seconds of one process from its start to its end."""
    with tempfile.TemporaryDirectory() as out:
        more = ["--out", str(Path(out) / "run")] if case == "celeste" else []
        return run_child([*CASES[case], *more], limit, ASTROZOO_CACHE=cache, OMP_WAIT_POLICY=policy)[0]


def compare(case: str, policy: str, rounds: int, cache: str, limit: float) -> None:
    """Run the rounds of one policy, and print medians with their ranges."""
    idle, busy = [], []
    for _ in range(rounds):
        idle.append(seconds(case, policy, cache, limit))
        with busy_cores():
            busy.append(seconds(case, policy, cache, limit))
    ratios = [b / i for b, i in zip(busy, idle, strict=True)]
    cells = [f"{statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in (idle, busy, ratios)]
    row = " ".join(f"{cell:>22}" for cell in cells)
    print(f"{case:9} {policy:8} {row} {os.getloadavg()[0]:5.1f}", flush=True)


def main(cases: list[str], rounds: int, policies: list[str], limit: float) -> None:
    """Print a row for every case and policy."""
    print(f"{'problem':9} {'policy':8} {'idle s':>22} {'busy s':>22} {'busy / idle':>22} {'load':>5}")
    for case in cases:
        with tempfile.TemporaryDirectory() as cache:
            try:
                first = seconds(case, policies[0], cache, limit)
                print(f"{case:9} first run, nothing cached: {first:.1f} s", flush=True)
                for policy in policies:
                    compare(case, policy, rounds, cache, limit)
            except ChildError as error:
                print(f"{case:9} {error}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cases", nargs="+", choices=["gigalens", "celeste"], default=["gigalens", "celeste"]
    )
    parser.add_argument("--policies", nargs="+", default=["PASSIVE"])
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that one process may take")
    parser.add_argument("--quick", action="store_true", help="one round of a small regression")
    options = parser.parse_args()
    cases, rounds = (["quick"], 1) if options.quick else (options.cases, options.rounds)
    main(cases, rounds, options.policies, options.limit)
