"""Trained weights: saved, loaded by name and path, and refused where they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import astrozoo
from astrozoo._trained import FORMAT, Trained
from astrozoo.data import weights
from astrozoo.errors import DataError, OutputError, UnknownNameError
from astrozoo.types import Status


def trained():
    linear = nn.Linear(2, 3)
    return Trained(
        {f"model.net.{name}": w for name, w in linear.state_dict().items()},
        Status.BUDGET_SPENT,
        seed=3,
        model="m",
        guide="g",
        digest="abc",
        data="float32 [5, 2]",
        curve={"step": np.arange(1.0, 4), "elbo": np.array([-3.0, -2.0, np.nan]), "rate": np.ones(3)},
        settings={"steps": 3, "batch": {"data": 2}},
        stats={"steps": 3},
    )


def test_saved_and_loaded(tmp_path):
    before = trained()
    after = astrozoo.load_weights(before.save(tmp_path / "w.safetensors"))
    for name, w in before.weights.items():
        torch.testing.assert_close(after.weights[name], w, rtol=0, atol=0)
    for name in ("status", "seed", "model", "guide", "digest", "data", "settings", "stats", "environment"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.curve["elbo"], before.curve["elbo"])
    module = nn.Linear(2, 3)
    after.load_into(module, "model.net")
    torch.testing.assert_close(module.weight.data, before.weights["model.net.weight"])


def test_reported(tmp_path):
    path = trained().save(tmp_path / "w.safetensors")
    astrozoo.report(astrozoo.load_weights(path), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    for text in ("All steps were made", "model.net.weight", "float32 [5, 2]", "abc"):
        assert text in html


def test_shipped_weights_have_their_checksum(tmp_path, monkeypatch):
    shipped = astrozoo.load_weights("learned_source")
    assert shipped.part("model.decoder")
    damaged = replace(weights._WEIGHTS["learned_source"], sha256="0" * 64)
    monkeypatch.setitem(weights._WEIGHTS, "learned_source", damaged)
    with pytest.raises(DataError, match="SHA-256"):
        astrozoo.load_weights("learned_source")


def test_fetched_weights_are_checked_and_kept(tmp_path, monkeypatch):
    source = trained().save(tmp_path / "source.safetensors")
    monkeypatch.setattr(weights.pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(weights.pooch.core, "choose_downloader", lambda *a, **k: _copy)
    good = weights.hashlib.sha256(source.read_bytes()).hexdigest()
    for name, digest in (("good", good), ("bad", "0" * 64)):
        entry = weights._Weights("", digest, url=f"https://example.org/{source}")
        monkeypatch.setitem(weights._WEIGHTS, name, entry)
    assert astrozoo.load_weights("good").seed == 3
    with pytest.raises(DataError, match="the right checksum"):
        astrozoo.load_weights("bad")


def _copy(url, output, *unused, **options):
    from pathlib import Path

    Path(output).write_bytes(Path(url.removeprefix("https://example.org/")).read_bytes())


def test_files_that_are_not_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataError, match="no such file"):
        astrozoo.load_weights(path)
    path.write_bytes(trained().save(tmp_path / "whole.safetensors").read_bytes()[:-5])
    with pytest.raises(DataError, match="unreadable"):
        astrozoo.load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="without a record"):
        astrozoo.load_weights(path)
    save_file({"a": torch.zeros(1)}, path, {"astrozoo": json.dumps({"format": FORMAT + 1})})
    with pytest.raises(DataError, match=f"format {FORMAT + 1}"):
        astrozoo.load_weights(path)
    with pytest.raises(UnknownNameError, match="did you mean 'learned_source'"):
        astrozoo.load_weights("learned_sourse")
    with pytest.raises(OutputError):
        trained().save(tmp_path / "no folder" / "w.safetensors")


def test_other_names_and_shapes_are_refused():
    with pytest.raises(DataError, match="missing \\['bias', 'weight'\\]"):
        trained().load_into(nn.Linear(2, 3), "model.other")
    with pytest.raises(DataError, match="shape \\(3, 2\\), expected shape \\(3, 4\\)"):
        trained().load_into(nn.Linear(4, 3), "model.net")
