"""A run that is killed, in a process of its own, goes on to the draws of one that was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from problems import banana

import astrozoo

METHODS = {
    "svi": {"budget": 600, "particles": 2},
    "trust_region": {"guide": "mean_field"},
    "hmc": {"chains": 3, "draws": 20, "warmup": 40},
}
KILLED = 3
"""The save in the middle of whose writing the process is killed."""

SCRIPT = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_killed
from astrozoo import checkpoint

checkpoint.SAVE_INTERVAL = 0.0
written, saves = np.savez, []

def savez(file, **arrays):
    saves.append(file)
    if len(saves) == test_killed.KILLED:
        file.write(b"half of a file")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    written(file, **arrays)

np.savez = savez
test_killed.run(sys.argv[2], sys.argv[3])
"""


def run(method, checkpoint=None):
    options = {"seed": 5, "compile": "never", "progress": False, **METHODS[method]}
    return astrozoo.infer(banana(), method, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("method", METHODS)
def test_killed_run_resumes_to_the_same_draws(method, tmp_path):
    path = tmp_path / "run.npz"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), method, str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    with np.load(path) as held:
        assert held["iteration"] > 0 if "iteration" in held else len(held) > 1
    rest, whole = run(method, path), run(method)
    for name, draws in whole.draws.items():
        np.testing.assert_array_equal(rest.draws[name], draws)
    assert rest.status is whole.status
