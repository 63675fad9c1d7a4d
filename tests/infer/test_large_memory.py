"""Methods on an image of 130,000 pixels: memory, and errors against the exact posterior."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 4.0
"""[GiB] Peak memory of a run: what a laptop with 8 GiB can spare."""
LARGEST_Z = 6.0
"""The largest of 130,000 normal deviates is above 6.0 in 3 of 10,000 cases."""


@pytest.mark.slow
@pytest.mark.parametrize("run", ["hmc", "laplace"])
def test_an_image_of_130_000_pixels_takes_less_than_4_gib(run):
    """The process measures its own peak by ``getrusage``; it has no other work than this run."""
    command = [sys.executable, "-m", "experiments.bench.large", run, "--inside"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = json.loads(found.stdout.splitlines()[-1])
    assert row["status"] == "converged"
    assert 0.3 < row["GB"] < LIMIT
    assert row["z mean"] < LARGEST_Z
    assert row["z sd"] < LARGEST_Z
    assert row["rms z mean"] == pytest.approx(1, abs=0.1)
    assert row["rms z sd"] == pytest.approx(1, abs=0.1)
