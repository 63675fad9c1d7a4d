"""Code that takes too long is ended, in the main thread and in others."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from astrozoo import _graph
from astrozoo._time_limit import time_limit
from astrozoo.density import PureFunction


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            sum(range(100))
        except Exception:  # as a library might, which must not hide the limit
            continue


def waiting(seconds):
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({seconds})"], check=True)


def limited(work, limit, seconds):
    began = time.monotonic()
    try:
        with time_limit(limit):
            work(seconds)
    except TimeoutError as error:
        return time.monotonic() - began, str(error)
    return time.monotonic() - began, None


@pytest.mark.parametrize("work", [busy, waiting, time.sleep])
def test_the_main_thread_is_ended_whatever_it_does(work):
    seconds, message = limited(work, 0.2, 20)
    assert message == "it took longer than 0.2 s"
    assert seconds < 5


def test_another_thread_is_ended_when_it_runs_python():
    with ThreadPoolExecutor(1) as pool:
        seconds, message = pool.submit(limited, busy, 0.2, 20).result()
        assert message == "it took longer than 0.2 s"
        assert seconds < 5
        # The thread works on, and code that is quick enough is left alone.
        assert pool.submit(limited, busy, 5.0, 0.05).result()[1] is None


def test_the_users_alarm_is_put_back():
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert limited(busy, 0.1, 20)[1] is not None
        assert not rung.is_set()
        busy(0.5)
        assert rung.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_compilation_that_takes_too_long_leaves_the_graph_with_a_note(thread, monkeypatch):
    monkeypatch.setattr(_graph, "COMPILE_LIMIT", 0.2)
    monkeypatch.setattr(_graph, "compile_graph", lambda *arguments: busy(20))
    f = PureFunction(lambda w: -(w**2).sum(), 3, dtype=torch.float64, compile="always")
    w = torch.ones(2, 3, dtype=torch.float64)
    began = time.monotonic()
    if thread == "main":
        values = f.values(w)
    else:
        with ThreadPoolExecutor(1) as pool:
            values = pool.submit(f.values, w).result()
    assert time.monotonic() - began < 10
    torch.testing.assert_close(values, torch.full_like(values, -3.0))
    assert len(f.notes) == 1
    assert "not compiled: TimeoutError: it took longer than 0.2 s (after 0." in f.notes[0]
    torch.testing.assert_close(f.values(2 * w), 4 * values)
