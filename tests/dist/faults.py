"""Faults of ranks: ``faults.py FOLDER NAME ...`` runs commands and writes FOLDER/ended.json.

The processes are forked once everything is imported, with the environment that torchrun gives its own. No
launcher watches them: a rank notices by itself that another has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import program  # adds the entry
import torch

from astrozoo import _jobs, cli

HMC = ("--shard", "data")
CHAINS = ("--shard", "chains", "--method", "nuts")


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _child(rank, environment, words, output, fault):
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    log = os.open(f"{output}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if fault:
        program.with_fault(*fault)
    try:
        cli.main(words)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code or 0)


def together(size, folder, options, fault, name):
    """Run the command; by rank its exit code (of a signal, minus that) and what it printed, and seconds."""
    words = ["run", "line", "--demo", "--out", str(folder), *(options if size else options[2:])]
    environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    output, began, processes = folder.with_name(f"{name}.printed"), time.monotonic(), []
    for rank in range(max(1, size)):
        process = os.fork()
        if process == 0:
            _child(rank, environment if size else {}, words, output, fault)
        processes.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    printed = [Path(f"{output}.{rank}").read_text() for rank in range(len(processes))]
    return {"codes": codes, "printed": printed, "seconds": time.monotonic() - began}


RUNS = {
    "whole": (0, "whole", HMC, None),
    "raise": (2, "raise", HMC, ("raise", 1, 20)),
    "kill": (3, "kill", HMC, ("kill", 1, 60)),
    "kill, again": (2, "kill", HMC, None),
    "interrupt": (2, "interrupt", HMC, ("interrupt", 1, 60)),
    "interrupt, again": (0, "interrupt", HMC, None),
    "drift": (3, "drift", HMC, ("drift", 1, 20)),
    "chains, kill": (2, "chains", CHAINS, ("kill chains", 1, 1)),
    "chains, again": (3, "chains", CHAINS, None),
    "chains, whole": (0, "chains whole", CHAINS, None),
}
"""Number of ranks (0: one process without a launcher), folder, options and fault."""


def main(folder, names):
    torch.set_num_threads(1)
    _jobs.report = lambda *_, **__: None  # pictures take longer than all else
    ended = {}
    for name in names:
        ranks, out, options, fault = RUNS[name]
        ended[name] = together(ranks, folder / out, options, fault, name)
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    signal.alarm(500)
    main(Path(sys.argv[1]), sys.argv[2:])
