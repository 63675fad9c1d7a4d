"""``astrozoo train``: a run, a run that is stopped and continued, and errors before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import astrozoo
from astrozoo import cli
from astrozoo.models import learned_source
from astrozoo.train import _loop

TINY = ("train", "strong_lens", "--galaxies", 24, "--photons", 1000, "--steps", 6, "--batch", 8)


def call(*words) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main([str(word) for word in words])
    return raised.value.code


def test_a_stopped_run_continues_to_the_same_weights(tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*TINY, "--out", whole) == 0
    assert {"weights.safetensors", "summary.json", "report.html"} <= {p.name for p in whole.iterdir()}
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["status"], summary["settings"]["steps"], summary["seed"]) == ("budget spent", 6, 0)
    assert "elbo" in capsys.readouterr().out

    save = _loop.Loop._save

    def stop(loop, path):
        save(loop, path)
        if loop.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_loop, "SAVE_EVERY", 0.0)
        patched.setattr(_loop.Loop, "_save", stop)
        assert call(*TINY, "--out", stopped) == 130
    assert "the same command continues it" in capsys.readouterr().err
    assert not (stopped / "weights.safetensors").exists()
    assert call(*TINY, "--seed", 1, "--out", stopped) == 2
    assert "seed 0, expected seed 1" in " ".join(capsys.readouterr().err.split())
    assert call(*TINY, "--out", stopped) == 0
    assert not (stopped / "training.checkpoint").exists()
    first, again = (astrozoo.load_weights(out / "weights.safetensors") for out in (whole, stopped))
    for name, w in first.weights.items():
        torch.testing.assert_close(again.weights[name], w, rtol=0, atol=0)
    assert call("report", whole / "weights.safetensors", "--out", tmp_path / "again.html") == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train", "celeste", "--out", "o"), 2, "command for celeste: got train"),
        (("train", "strong_lense", "--out", "o"), 2, "did you mean 'strong_lens'?"),
        ((*TINY, "--out", "o", "--batch", 0), 2, "--batch"),
        ((*TINY, "--out", "o", "--batch", 500), 2, "batch: got 500"),
        ((*TINY, "--out", "o", "--rate", -1), 2, "learning_rate: got -1"),
        ((*TINY, "--out", "o", "--epochs", 1), 2, "steps and epochs: got both"),
        ((*TINY, "--out", "o", "--precision", "8"), 2, "precision: got '8'"),
        ((*TINY, "--out", "o", "--photons", 0), 2, "--photons"),
        ((*TINY, "--out", "o", "--data", "none.safetensors"), 3, "--data none.safetensors"),
        ((*TINY, "--out", "o", "--data", "a_file"), 3, "unusable"),
        ((*TINY, "--out", "a_file/below"), 4, "cannot write into a_file/below"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("x")
    assert call(*words) == code
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_show_and_help_list_what_training_takes(capsys):
    assert call("show", "strong_lens") == 0
    assert "train --galaxies N" in capsys.readouterr().out
    assert call("show", "celeste") == 0
    assert "train" not in capsys.readouterr().out
    assert call("train", "--help") == 0
    assert "astrozoo train strong_lens --out weights" in " ".join(capsys.readouterr().out.split())
    assert call("train", "strong_lens", "--help") == 0
    shown = capsys.readouterr().out
    assert "--galaxies" in shown
    assert "--method" not in shown


def test_a_lens_takes_trained_weights(tmp_path):
    """Other weights give another image and another digest."""
    options = learned_source.training(out=tmp_path, path=None, seed=0, galaxies=24, photons=1000)
    trained = astrozoo.train(**options | {"steps": 4, "batch": 8}, progress=False)
    path = trained.save(tmp_path / "weights.safetensors")
    entry = astrozoo.get("strong_lens")
    data, truth = entry.simulate(0, setting="talk", size=24)
    shipped = entry.problem(data, setting="talk")
    ours = entry.problem(data, setting="talk", source_weights=path)
    images = [problem.model.render(truth, problem.args[0]) for problem in (shipped, ours)]
    assert not torch.allclose(*images)
    assert shipped.digest != ours.digest
    assert entry.problem(data, setting="talk", source_weights=path).digest == ours.digest
    with pytest.raises(astrozoo.errors.InputError, match="source='learned'"):
        entry.problem(data, source_weights=path)
    with pytest.raises(astrozoo.errors.DataError, match="no such file"):
        entry.problem(data, setting="talk", source_weights=tmp_path / "none.safetensors")


def galaxy_stamps(path):
    y, x = np.mgrid[:21, :21] - 10.0
    rng = np.random.default_rng(0)
    widths = rng.uniform(2, 4, (40, 2, 1, 1))
    images = np.exp(-0.5 * (x**2 / widths[:, 0] ** 2 + y**2 / widths[:, 1] ** 2))
    np.savez(path, image=images + 0.05 * rng.standard_normal(images.shape), noise_rms=np.full(40, 0.05))
    return path


@pytest.mark.parametrize("saves", [3, 9])
def test_a_run_of_two_stages_that_is_stopped_in_either_continues_to_the_same_weights(
    saves, tmp_path, monkeypatch, capsys
):
    data = galaxy_stamps(tmp_path / "stamps.npz")
    command = ("train", "galaxy_vae", "--data", data, "--size", 21, "--steps", 6, "--batch", 5)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*command, "--out", whole) == 0
    assert {p.name for p in whole.iterdir()} == {"weights.safetensors", "summary.json", "report.html"}
    save, count = _loop.Loop._save, []

    def stop(loop, path):
        save(loop, path)
        count.append(loop.global_step)
        if len(count) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_loop, "SAVE_EVERY", 0.0)
        patched.setattr(_loop.Loop, "_save", stop)
        assert call(*command, "--out", stopped) == 130
    assert count[-1] == 3
    assert (stopped / "stage-1.safetensors").exists() == (saves > 6)
    if saves > 6:
        assert call(*command, "--seed", 1, "--out", stopped) == 2
        assert "stage-1.safetensors: got seed 0, expected seed 1" in " ".join(capsys.readouterr().err.split())
    assert call(*command, "--out", stopped) == 0
    assert not {"stage-1.safetensors", "training.checkpoint"} & {p.name for p in stopped.iterdir()}
    first, again = (astrozoo.load_weights(out / "weights.safetensors") for out in (whole, stopped))
    assert first.weights.keys() == again.weights.keys()
    for name, w in first.weights.items():
        torch.testing.assert_close(again.weights[name], w, rtol=0, atol=0)
