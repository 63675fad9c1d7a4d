"""The ``astrozoo`` command with one more entry, ``line``, and with faults: ``FAULT=kind:rank:evaluation``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from astrozoo import _sharing, checkpoint, cli, registry
from astrozoo.infer import _spread

ENTRY = registry.Entry(
    name="line",
    summary="A line",
    citation="none",
    model="models:Line",
    guides=("mean_field",),
    methods=("hmc", "nuts", "svi"),
    default_guide="mean_field",
    default_method="hmc",
    options={
        "hmc": {"chains": 4, "draws": 30, "warmup": 30, "compile": "never"},
        "nuts": {"chains": 4, "draws": 5, "warmup": 5, "compile": "never"},
        "svi": {"compile": "never"},
    },
)


def _fault(kind, comm, state):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise ZeroDivisionError("on purpose")
    if kind == "drift":
        state[0].add_(1e-9)
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if kind == "wait":  # for the test to interrupt the launcher
        Path(os.environ["READY"]).touch()
        time.sleep(0.05)


def with_fault(kind, rank, evaluation):
    """Let a rank have a fault at an evaluation that all share, or when it has finished so many chains."""
    joined = _sharing.Sharing.joined
    count = 0

    def faulty(self, part, entry, state):
        nonlocal count
        count += 1
        if self.comm.rank == rank and (count == evaluation or (kind == "wait" and count > evaluation)):
            _fault(kind, self.comm, state)
        return joined(self, part, entry, state)

    added = _spread.Spread.add

    def faulty_chain(self, arrays):
        nonlocal count
        added(self, arrays)
        count += 1
        if self.comm is not None and self.comm.rank == rank and count == evaluation:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "kill chains":
        _spread.Spread.add = faulty_chain
    else:
        _sharing.Sharing.joined = faulty


registry._ENTRIES = (*registry._ENTRIES, ENTRY)
checkpoint.SAVE_INTERVAL = 0.0

if __name__ == "__main__":
    if "FAULT" in os.environ:
        kind, rank, evaluation = os.environ["FAULT"].split(":")
        with_fault(kind, int(rank), int(evaluation))
    cli.main()
