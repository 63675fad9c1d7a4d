"""Compiled graphs are kept on disk: a second process loads them, and gets the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from astrozoo import _cache, _compile, _graph
from astrozoo._pure_function import PureFunction

SCRIPT = """
import sys, hashlib, json, torch
from astrozoo._pure_function import PureFunction
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


def test_other_processes_load_the_graph_whatever_the_constants_and_mend_damage(folder):
    together = [finish(p) for p in [start(folder) for _ in range(2)]]
    assert sorted(r["compiled"]["fresh"] for r in together) == [0, 1]  # one waited for the other
    assert [r["notes"] for r in together] == [[], []]
    assert together[0]["bits"] == together[1]["bits"]
    (graph,) = graphs(folder)
    assert (folder.stat().st_mode & 0o777) == 0o700
    other = finish(
        start(folder, scale="2.5", shift="1.0", hash_seed="7")
    )  # other data and closed-over tensor
    assert other["compiled"] == CACHED
    assert other["bits"] != together[0]["bits"]
    victim = next(p for p in graph.rglob("*.so"))
    victim.write_bytes(victim.read_bytes()[:-100])
    mended = finish(start(folder, hash_seed="7"))
    assert mended["compiled"] == FRESH
    assert "compiled again" in mended["notes"][0]
    assert victim.name in mended["notes"][0]
    assert mended["bits"] == together[0]["bits"]
    assert len(graphs(folder)) == 1


def test_a_missing_or_damaged_file_of_any_kind_fails_the_verification(folder):
    store, _ = _cache.open_store()
    for i, damage in enumerate((lambda p: p.unlink(), lambda p: p.write_bytes(b"other"))):
        store.add(str(i), lambda path: (path / "artifact.bin").write_bytes(b"content") and None)
        store.verify(str(i))
        damage(store.path(str(i)) / "artifact.bin")
        with pytest.raises(ValueError, match=r"artifact\.bin is missing or damaged"):
            store.verify(str(i))


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


def test_auto_loads_what_is_cached_and_compiles_again_what_is_wrong(folder, monkeypatch):
    PureFunction(wave, 3, compile="always").values(points())
    monkeypatch.setattr(_graph, "LOAD_AFTER", -1.0)
    monkeypatch.setattr(_graph, "UNCAPTURED", 0.0)
    auto = PureFunction(wave, 3)
    auto.values(points())
    assert auto.compiled == CACHED  # long before compiling would pay
    auto.hvp(points(), None, points())
    assert auto.compiled == CACHED
    right, calls = _compile._callable, []

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


def test_wrong_code_is_remembered_and_not_compiled_again(folder, monkeypatch):
    made, right = [], _compile._callable

    def wrong(artifact, constants, single):
        made.append(1)
        run = right(artifact, constants, single)
        return lambda *x: run(*x) * 1.5

    monkeypatch.setattr(_compile, "_callable", wrong)
    for _ in range(2):
        f = PureFunction(wave, 3, compile="always")
        torch.testing.assert_close(f.values(points())[:, 0], (points().sin() * 2).sum(1))
        assert f.compiled == {"fresh": 0, "cached": 0}
    assert len(made) == 1
    assert "found before" in f.notes[0]
    assert "of a row's size" in f.notes[0]
    assert not graphs(folder)


def test_waiting_for_a_processor_does_not_count_as_work(monkeypatch):
    def slept(w):
        time.sleep(0.3)
        return wave(w)

    monkeypatch.setattr(_graph, "UNCAPTURED", 0.2)
    graph = _graph.Graph(slept, "auto", lambda: 0.1, lambda *_: None)
    graph(points()[0])
    assert graph.spent < 0.1
    assert graph.run is None


@pytest.fixture
def fake_compiler(folder, monkeypatch):
    """Compiles nothing; its code returns the graph's results times ``factor[0]``."""
    factor, runs = [1.0], []

    def compile_graph(graph, inputs, fresh=False):
        def run(*x):
            runs.append(x)
            return graph(*x) * factor[0]

        return _compile.Compiled(run, False)

    monkeypatch.setattr(_graph, "compile_graph", compile_graph)
    return factor, runs


def undefined():
    return torch.full((4, 3), torch.nan, dtype=torch.float64)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_compiled_code_is_checked_at_the_first_call_that_allows_it(fake_compiler, factor):
    fake_compiler[0][0] = factor
    f = PureFunction(wave, 3, compile="always")
    for _ in range(3):  # checked at the first and the second call
        assert f.values(undefined()).isnan().all()
    assert f.compiled == {"fresh": 0, "cached": 0}
    assert len(fake_compiler[1]) == 2
    for _ in range(2):
        torch.testing.assert_close(f.values(points())[:, 0], (points().sin() * 2).sum(1))
    right = factor == 1.0
    assert f.compiled == {"fresh": int(right), "cached": 0}
    assert len(fake_compiler[1]) == (4 if right else 3)
    assert f.notes == [] if right else "discarded after" in f.notes[0]


def test_compiled_code_that_can_never_be_checked_is_discarded(fake_compiler):
    f = PureFunction(wave, 3, compile="always")
    for _ in range(_graph.MAX_UNCHECKED_CALLS + 10):
        f.values(undefined())
    assert f.compiled == {"fresh": 0, "cached": 0}
    assert len(fake_compiler[1]) == 8
    assert "could not be checked" in f.notes[0]


def test_a_compilation_is_announced(monkeypatch):
    monkeypatch.setenv(_cache.VARIABLE, "")
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda graph, *_, **__: graph)
    lines = []
    with _compile.announcing(lines.append):
        PureFunction(wave, 3, compile="always").values(points())
    PureFunction(wave, 3, compile="always").values(points())
    assert len(lines) == 2
    assert "compiling a graph of" in lines[0]
    assert "ended after" in lines[1]


def test_a_folder_that_others_may_write_to_is_not_used(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda graph, *_, **__: graph)
    f = PureFunction(wave, 3, compile="always")
    f.values(points())
    assert f.compiled == FRESH
    assert "others may write" in f.notes[0]
    assert graphs(folder) == []


def test_an_empty_variable_switches_the_cache_off(monkeypatch):
    monkeypatch.setenv(_cache.VARIABLE, "")
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda graph, *_, **__: graph)
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
    assert _compile.compare(huge, expected, nearby) == (3, None)
    small = expected.clone()
    small[0, 0] += 1e-5  # hidden by the largest row, if all rows were compared by one size
    assert "differs" in _compile.compare(small, expected, nearby)[1]
    undefined = expected.clone()
    undefined[3, 1] = torch.nan
    assert "differs" in _compile.compare(undefined, expected, nearby)[1]
    chaotic = nearby.clone()
    chaotic[0] += 0.1  # rounding alone moves this row: it decides nothing
    assert _compile.compare(small, expected, chaotic) == (2, None)
