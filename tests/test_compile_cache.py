"""Compiled graphs are kept on disk: a second process loads them, and gets the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from astrozoo import _cache, _compile, _graph
from astrozoo._graph import PureFunction

SCRIPT = """
import sys, hashlib, json, torch
from astrozoo._graph import PureFunction
torch.set_num_threads(1)
scale = torch.tensor([1.0, float(sys.argv[1]), 3.0], dtype=torch.float64)
def f(w, x):
    names = {"sin", "cos", "exp"}  # in an order that PYTHONHASHSEED changes: the graph must not
    return sum((getattr(torch, n)(w * scale) * x).sum() for n in sorted(names))
x = torch.linspace(0, 1, 3, dtype=torch.float64) + float(sys.argv[2])
p = PureFunction(f, 3, args=(x,), compile="always")
w = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
value, gradient = p.value_and_grad(w)
value, gradient = p.value_and_grad(w)
expected = PureFunction(f, 3, args=(x,), compile="never").value_and_grad(w)
assert torch.allclose(gradient, expected[1], rtol=1e-12, atol=0), (gradient, expected[1])
bits = hashlib.sha256(value.numpy().tobytes() + gradient.numpy().tobytes()).hexdigest()
print(json.dumps({"compiled": p.compiled, "notes": p.notes, "bits": bits, "seconds": p.compile_seconds}))
"""

FRESH, CACHED = {"fresh": 1, "cached": 0}, {"fresh": 0, "cached": 1}


def start(folder, scale="2.0", shift="0.0", hash_seed="0"):
    env = {**os.environ, _cache.VARIABLE: str(folder), "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, scale, shift], env=env, stdout=subprocess.PIPE, text=True
    )


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def graphs(folder):
    return [p.parent for p in folder.glob("*/*/manifest.json")]


def wave(w):
    return (w.sin() * 2).sum()


def points():
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(_cache.VARIABLE, str(tmp_path / "graphs"))
    return tmp_path / "graphs"


def test_a_second_process_loads_the_graph_whatever_the_constants(folder):
    first = finish(start(folder))
    assert first["compiled"] == FRESH
    assert first["notes"] == []
    again = finish(start(folder, hash_seed="7"))
    assert again["compiled"] == CACHED
    assert again["bits"] == first["bits"]
    assert again["seconds"] < first["seconds"]
    other = finish(start(folder, scale="2.5", shift="1.0"))  # other data, and another closed-over tensor
    assert other["compiled"] == CACHED
    assert other["bits"] != first["bits"]
    assert len(graphs(folder)) == 1
    assert (folder.stat().st_mode & 0o777) == 0o700


def test_processes_that_start_together_compile_once(folder):
    results = [finish(p) for p in [start(folder) for _ in range(2)]]
    assert sorted(r["compiled"]["fresh"] for r in results) == [0, 1]
    assert results[0]["bits"] == results[1]["bits"]
    assert len(graphs(folder)) == 1


@pytest.mark.parametrize("suffix", [".bin", ".so"])
def test_a_damaged_file_is_compiled_again_with_a_note(folder, suffix):
    first = finish(start(folder))
    victim = next(p for p in graphs(folder)[0].rglob("*") if p.suffix == suffix)
    victim.write_bytes(victim.read_bytes()[:-100])
    second = finish(start(folder))
    assert second["compiled"] == FRESH
    assert "compiled again" in second["notes"][0]
    assert victim.name in second["notes"][0]
    assert second["bits"] == first["bits"]
    assert finish(start(folder))["compiled"] == CACHED


def test_other_code_shapes_types_and_threads_have_other_keys():
    def key(f, w):
        return _compile.graph_key(_graph.trace_graph(f, (w,)), (w,))

    w = points()
    same = key(torch.sin, w)
    assert key(torch.sin, w + 1) == same
    assert key(torch.cos, w) != same
    assert key(lambda x: torch.sin(x) * 2.0, w) != key(lambda x: torch.sin(x) * 2.1, w)
    assert key(torch.sin, w[:2]) != same
    assert key(torch.sin, w.float()) != same
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert key(torch.sin, w) != same
    finally:
        torch.set_num_threads(threads)


def test_auto_loads_what_is_cached_before_compiling_would_pay(folder, monkeypatch):
    PureFunction(wave, 3, compile="always").value_and_grad(points())
    monkeypatch.setattr(_graph, "LOAD_AFTER", -1.0)
    monkeypatch.setattr(_graph, "UNCAPTURED", 0.0)
    auto = PureFunction(wave, 3)
    auto.value_and_grad(points())
    assert auto.compiled == CACHED
    elsewhere = PureFunction(wave, 3)
    elsewhere.hvp(points(), None, points())
    assert elsewhere.compiled == {"fresh": 0, "cached": 0}


def test_a_cached_graph_that_is_wrong_is_compiled_again(folder, monkeypatch):
    PureFunction(wave, 3, compile="always").values(points())
    right = _compile._callable
    calls = []

    def wrong_once(artifact, constants, single):
        calls.append(1)
        run = right(artifact, constants, single)
        return (lambda *x: run(*x) * 1.5) if len(calls) == 1 else run

    monkeypatch.setattr(_compile, "_callable", wrong_once)
    second = PureFunction(wave, 3, compile="always")
    second.values(points())
    assert second.compiled == FRESH
    assert "compiled again" in second.notes[0]
    torch.testing.assert_close(second.values(points())[:, 0], (points().sin() * 2).sum(1))


def test_a_folder_that_others_may_write_to_is_not_used(folder):
    folder.mkdir()
    folder.chmod(0o777)
    f = PureFunction(wave, 3, compile="always")
    f.value_and_grad(points())
    assert f.compiled == FRESH
    assert "others may write" in f.notes[0]
    assert graphs(folder) == []


def test_an_empty_variable_switches_the_cache_off(monkeypatch):
    monkeypatch.setenv(_cache.VARIABLE, "")
    for _ in range(2):
        f = PureFunction(wave, 3, compile="always")
        f.values(points())
        assert f.compiled == FRESH
        assert f.notes == []


def test_the_least_recently_used_graphs_are_deleted(folder, monkeypatch):
    store, note = _cache.open_store()
    assert note is None
    monkeypatch.setattr(_cache, "MAX_BYTES", 2500)
    for i, key in enumerate("abc"):
        store.add(key, lambda path: (path / "file.bin").write_bytes(bytes(1000)) and None)
        if store.contains(key):
            os.utime(store.path(key), (i, i))
        if key == "b":
            store.verify("a")  # used now
    assert [store.contains(key) for key in "abc"] == [True, False, True]


def test_rows_are_compared_by_their_own_size():
    expected = torch.tensor([[1.0, 2.0], [1e17, 3e16], [torch.nan, 1.0], [3.0, -1.0]], dtype=torch.float64)
    nearby = expected * (1 + 1e-15)
    huge = expected.clone()
    huge[1, 0] += 2.2e6
    assert _compile.difference(huge, expected, nearby) is None
    small = expected.clone()
    small[0, 0] += 1e-5  # hidden by the largest row, if all rows were compared by one size
    assert "discarded" in _compile.difference(small, expected, nearby)
    undefined = expected.clone()
    undefined[3, 1] = torch.nan
    assert "discarded" in _compile.difference(undefined, expected, nearby)
    chaotic = nearby.clone()
    chaotic[0] += 0.1  # rounding alone moves this row: it decides nothing
    assert _compile.difference(small, expected, chaotic) is None
