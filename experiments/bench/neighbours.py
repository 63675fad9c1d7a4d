"""Wall-clock of a fit on an idle machine and beside one busy process on each core, and their ratio.

    python -m experiments.bench.neighbours [--rounds 3] [--cases gigalens celeste] [--policy PASSIVE ACTIVE]

Rounds alternate idle and busy runs. Each run is a new process that reads compiled graphs from one cache,
filled by a run before that is not counted. The busy processes are loops of this script, which it starts
and ends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["main"]

CASES = {
    "gigalens": [
        "-c", "from experiments.lens_gigalens import fit; fit(1, seed=0, progress=False)",
    ],
    "celeste": ["-m", "astrozoo", "run", "celeste", "--demo"],
}  # fmt: skip


@contextmanager
def busy_cores() -> Iterator[None]:
    """One process that never waits on each core that this one may use."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(case: str, policy: str, cache: str) -> float:
    """Of one process from its start to its end."""
    with tempfile.TemporaryDirectory() as out:
        more = ["--out", out] if case == "celeste" else []
        env = {**os.environ, "ASTROZOO_CACHE": cache, "OMP_WAIT_POLICY": policy}
        began = time.monotonic()
        subprocess.run([sys.executable, *CASES[case], *more], env=env, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - began


def main(cases: list[str], rounds: int, policies: list[str]) -> None:
    """Run the rounds, and print medians with their ranges."""
    for case in cases:
        with tempfile.TemporaryDirectory() as cache:
            print(f"{case}: first run, nothing cached: {seconds(case, policies[0], cache):.1f} s", flush=True)
            for policy in policies:
                idle, busy = [], []
                for _ in range(rounds):
                    idle.append(seconds(case, policy, cache))
                    with busy_cores():
                        busy.append(seconds(case, policy, cache))
                ratios = [b / i for b, i in zip(busy, idle, strict=True)]
                shown = [
                    f"{name} {statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]"
                    for name, x in (("idle s", idle), ("busy s", busy), ("ratio", ratios))
                ]
                print(f"{case}, {policy}, load {os.getloadavg()[0]:.1f}: {'; '.join(shown)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policy", nargs="+", default=["PASSIVE"])
    options = parser.parse_args()
    main(options.cases, options.rounds, options.policy)
