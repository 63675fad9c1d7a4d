"""Starts the processes of a test with each launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LAUNCHERS = ("torch", "mpi")


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
