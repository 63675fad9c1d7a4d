"""The commands of latent_flow, from a table of latents to a report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from astrozoo.cli import app
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


def test_run_on_a_table_and_again_with_its_weights(tmp_path):
    path, first, second = _table(tmp_path, 200), tmp_path / "first", tmp_path / "second"
    words = ("run", "latent_flow", "--data", path, "--conditions", "half_light_radius", "--method", "laplace")
    done = _call(*words, "--steps", 5, "--out", first)
    assert done.exit_code == 0, done.output
    summary = json.loads((first / "summary.json").read_text())
    assert summary["flow"] == "realnvp, given half_light_radius"
    assert (summary["galaxies"], summary["galaxy"]) == (200, 180)
    report = (first / "report.html").read_text()
    for text in ("VampPrior", "N(0, I)", "trained ranges", "beta = 1"):
        assert text in report
    prior = latent_flow.load(weights=first / "weights.safetensors")
    assert prior.conditions == ("half_light_radius",)
    again = ("--weights", first / "weights.safetensors", "--galaxy", 3, "--infer-conditions")
    done = _call(*words, *again, "--out", second)
    assert done.exit_code == 0, done.output
    assert not (second / "weights.safetensors").exists()
    assert json.loads((second / "summary.json").read_text())["galaxy"] == 3


def test_train_writes_weights(tmp_path):
    words = ("train", "latent_flow", "--data", _table(tmp_path), "--steps", 2)
    done = _call(*words, "--flow", "vamp", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "128 or more" in " ".join(done.output.split())  # each component starts at a galaxy
    done = _call(*words, "--flow", "maf", "--conditions", "", "--out", tmp_path / "maf")
    assert done.exit_code == 0, done.output
    assert latent_flow.load(weights=tmp_path / "maf" / "weights.safetensors").conditions == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--conditions", "colour"), "no column colour"), (("--galaxy", "60"), "a row, 0 to 59")],
)
def test_bad_options_are_errors(tmp_path, words, message):
    path, out = _table(tmp_path), tmp_path / "out"
    done = _call("run", "latent_flow", "--data", path, "--steps", 2, *words, "--out", out)
    assert done.exit_code in (2, 3)
    assert message in " ".join(done.output.split())
