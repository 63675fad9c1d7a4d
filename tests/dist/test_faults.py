"""Ranks that are killed, fail, are interrupted or compute something else: all end, and their work is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from astrozoo.types import load

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from launch import LAUNCHERS, command, environment, launched  # noqa: E402

_LIMIT = 300
"""[s] Most that all ranks take to end. A rank that waits for another would do so for an hour."""


def runs(tmp_path_factory, *names):
    """How the commands of ``faults.py`` ended, and the folder with their results."""
    folder = tmp_path_factory.mktemp("faults")
    program = launched("alone", 1, str(_HERE / "faults.py"), str(folder), *names, timeout=600)
    assert program.returncode == 0, program.stderr[-3000:]
    return {"folder": folder, **json.loads((folder / "ended.json").read_text())}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return runs(tmp_path_factory, "whole", "raise", "kill", "kill, again", "interrupt")


@pytest.fixture(scope="module")
def ended_too(tmp_path_factory):
    names = ("whole", "interrupt", "interrupt, again", "drift")
    return runs(tmp_path_factory, *names, *(f"chains, {what}" for what in ("kill", "again", "whole")))


def draws(ended, name):
    return load(ended["folder"] / name / "posterior.nc").draws


def continued(ended, name, whole):
    """Check that a run continued to the draws of one that was never stopped, and left no work in progress."""
    assert set(ended[f"{name}, again"]["codes"]) == {0}, ended[f"{name}, again"]["printed"]
    again, expected = draws(ended, name), draws(ended, whole)
    for site, values in expected.items():
        np.testing.assert_allclose(again[site], values, rtol=1e-6, atol=1e-6)
    assert not (ended["folder"] / name / "checkpoint").exists()


def test_an_exception_on_one_rank_ends_all_and_is_reported(ended):
    found = ended["raise"]
    assert found["codes"] == [1, 1]
    assert "rank 1: unexpected ZeroDivisionError: on purpose" in found["printed"][1]
    assert "another rank has ended" in found["printed"][0]


def test_a_killed_rank_ends_all_and_the_run_continues_on_another_number_of_ranks(ended):
    assert ended["kill"]["codes"] == [1, -signal.SIGKILL, 1]
    continued(ended, "kill", "whole")
    stats = load(ended["folder"] / "kill" / "posterior.nc").stats
    assert stats["shared"]["all_reduce"] < stats["gradients_per_chain"]  # it began at the checkpoint


def test_an_interrupt_of_one_rank_stops_all_and_keeps_the_work(ended):
    found = ended["interrupt"]
    assert found["codes"] == [130, 130]
    assert "the same command continues it" in found["printed"][0]
    assert "interrupted" in found["printed"][1]
    assert [x.name for x in (ended["folder"] / "interrupt" / "checkpoint").iterdir()] == ["hmc.npz"]


@pytest.mark.slow
def test_an_interrupted_run_continues_alone(ended_too):
    continued(ended_too, "interrupt", "whole")


@pytest.mark.slow
def test_a_rank_that_computes_something_else_is_named(ended_too):
    found = ended_too["drift"]
    assert found["codes"] == [1, 1, 1]
    assert "rank 1 drifted: at evaluation 20 (gradient)" in found["printed"][0]


@pytest.mark.slow
def test_finished_chains_of_a_killed_rank_are_kept(ended_too):
    assert ended_too["chains, kill"]["codes"] == [1, -signal.SIGKILL]
    continued(ended_too, "chains", "chains whole")


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_end_all_ranks(launcher, tmp_path):
    """A killed rank; then Ctrl-C of the launcher; then the run is continued to its end on three ranks."""
    words = (str(_HERE / "program.py"), "run", "line", "--demo", "--shard", "data", "--out", str(tmp_path))
    killed = launched(launcher, 2, *words, timeout=_LIMIT, FAULT="kill:1:20")
    assert killed.returncode not in (0, 130)
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        command(launcher, 2, *words),
        env=environment(FAULT="wait:0:40", READY=str(ready)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + _LIMIT
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=_LIMIT)
    assert process.returncode != 0
    assert "astrozoo: interrupted" in printed
    assert (tmp_path / "checkpoint" / "hmc.npz").stat().st_size > 0
    finished = launched(launcher, 3, *words, timeout=_LIMIT)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "posterior.nc").exists()
