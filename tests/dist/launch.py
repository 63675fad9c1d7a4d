"""Starts the processes of a test with each launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LAUNCHERS = ("torch", "mpi")
GROUPS = (("torch", (2, 4)), ("mpi", (2,)))
"""Launchers and numbers of processes of the fast tests."""


def command(launcher, ranks, *program):
    """The command that starts ``python program`` in several processes."""
    folder = Path(sys.executable).parent
    if launcher == "alone":
        return [sys.executable, *program]
    if launcher == "torch":
        return [folder / "torchrun", "--nproc-per-node", str(ranks), *program]
    return [folder / "mpiexec", "-n", str(ranks), sys.executable, *program]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def launched(launcher, ranks, *program, timeout=300, **more):
    """Run it to its end."""
    return subprocess.run(
        command(launcher, ranks, *program),
        env=environment(**more),
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def outcomes(worker, launcher, sizes, folder, timeout):
    """What groups of processes that run a worker have written, by their number."""
    file = folder / "found.json"
    starter = "alone" if launcher == "torch" else launcher
    program = (str(Path(__file__).parent / worker), launcher, str(file), *map(str, sizes))
    ended = launched(starter, max(sizes), *program, timeout=timeout)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(file.read_text())
    assert sorted(map(int, found)) == list(sizes)
    return found
