"""The commands of latent_flow, from a table of latents to a report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from astrozoo.cli import app
from astrozoo.errors import InputError
from astrozoo.models import latent_flow


def _table(folder, rows=60):
    g = torch.Generator().manual_seed(0)
    size = 0.1 + torch.rand(rows, generator=g)
    mean = torch.stack((size.log(), torch.randn(rows, generator=g)), 1)
    path = folder / "latents.npz"
    np.savez(path, mean=mean, sd=torch.full((rows, 2), 0.2), half_light_radius=size, magnitude=22 + size)
    return path


def _call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def _words(path, *more):
    return ("run", "latent_flow", "--data", path, "--method", "laplace", *more)


def test_run_on_a_table(tmp_path):
    out = tmp_path / "out"
    words = _words(_table(tmp_path, 200), "--conditions", "half_light_radius", "--steps", 5, "--out", out)
    done = _call(*words)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["flow"] == "realnvp, given half_light_radius"
    assert (summary["galaxies"], summary["galaxy"]) == (200, 180)
    report = (out / "report.html").read_text()
    for text in ("VampPrior", "N(0, I)", "trained ranges", "beta = 1"):
        assert text in report
    assert latent_flow.load(weights=out / "weights.safetensors").conditions == ("half_light_radius",)


@pytest.mark.slow
def test_run_with_weights_of_an_earlier_training(tmp_path):
    path, out = _table(tmp_path), tmp_path / "out"
    trained = ("train", "latent_flow", "--data", path, "--steps", 2, "--out", tmp_path / "trained")
    assert _call(*trained).exit_code == 0
    weights = tmp_path / "trained" / "weights.safetensors"
    words = _words(path, "--weights", weights, "--galaxy", 3, "--infer-conditions", "--out", out)
    done = _call(*words)
    assert done.exit_code == 0, done.output
    assert not (out / "weights.safetensors").exists()
    assert json.loads((out / "summary.json").read_text())["galaxy"] == 3


def test_train_writes_weights(tmp_path):
    words = ("train", "latent_flow", "--data", _table(tmp_path), "--steps", 2)
    done = _call(*words, "--flow", "vamp", "--out", tmp_path / "out")
    assert isinstance(done.exception, InputError)
    assert "128 or more" in str(done.exception)  # each component starts at a galaxy
    done = _call(*words, "--flow", "maf", "--conditions", "", "--out", tmp_path / "maf")
    assert done.exit_code == 0, done.output
    assert latent_flow.load(weights=tmp_path / "maf" / "weights.safetensors").conditions == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--conditions", "colour"), "no column colour"), (("--galaxy", "60"), "a row, 0 to 59")],
)
def test_bad_options_are_errors_before_training(tmp_path, words, message):
    done = _call(*_words(_table(tmp_path), *words, "--out", tmp_path / "out"))
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert "training" not in done.output
