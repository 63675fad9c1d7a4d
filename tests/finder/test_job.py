"""``astrozoo run lens_finder``: from stamps to a ranking and candidates, and errors before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import Table

from astrozoo import cli
from astrozoo.data import lenses
from astrozoo.data.lens_survey import SURVEYS
from astrozoo.data.simulate_lens_stamps import simulate_lens_stamps


def call(*words) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main([str(word) for word in words])
    return raised.value.code


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """A file of labelled stamps, one of which has missing pixels."""
    drawn = simulate_lens_stamps(SURVEYS["ground"], 24, seed=77)
    image = drawn.image.nan_to_num(100.0).numpy()
    image[3, 1, :, :5] = 100.0
    path = tmp_path_factory.mktemp("stamps") / "stamps.npz"
    label = (drawn.truth.kind == 0).float().numpy()
    np.savez(path, images=image, label=label, bands=["g", "r", "i"], names=[f"s/{i}" for i in range(24)])
    return path


def test_a_file_of_stamps_is_ranked_and_its_best_are_handed_on(stamps, tmp_path):
    words = ("--pixel-scale", 0.23, "--psf-fwhm", 0.9, "--prevalence", 0.5, "--candidates", 2)
    assert call("run", "lens_finder", "--data", stamps, *words, "--out", tmp_path) == 0
    table = Table.read(tmp_path / "ranking.parquet")
    assert list(table["rank"]) == list(range(1, 25))
    assert sorted(table["index"]) == list(range(24))
    like = ~np.asarray(table["unlike_training"])
    assert (np.diff(table["log_ratio"][like]) <= 0).all()
    assert ((table["low"] <= table["probability"]) & (table["probability"] <= table["high"])).all()
    assert table["missing"][list(table["index"]).index(3)] == pytest.approx(5 / 48 / 3, abs=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stamps"] == 24
    assert 0 <= summary["AUROC"] <= 1
    assert "strong_lens --data" in summary["model the best candidate"]
    files = sorted((tmp_path / "candidates").iterdir())
    assert len(files) == 2
    lens = lenses.read(files[0])
    assert (lens.shape, lens.pixel_scale, lens.band) == ((48, 48), 0.23, "g")
    assert "Labelled stamps" in (tmp_path / "report.html").read_text()


def test_an_order_of_bands_that_is_wrong_is_flagged(stamps, tmp_path):
    assert call("run", "lens_finder", "--data", stamps, "--bands", "i,r,g", "--out", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["unlike the training"] > 12
    assert "unlike those" in summary["warning"]


def test_without_optics_the_command_asks_for_them(stamps, tmp_path):
    assert call("run", "lens_finder", "--data", stamps, "--candidates", 1, "--out", tmp_path) == 0
    command = json.loads((tmp_path / "summary.json").read_text())["model the best candidate"]
    assert "--pixel-scale ARCSEC --psf FILE" in command
    (file,) = (tmp_path / "candidates").iterdir()
    with pytest.raises(Exception, match="psf"):
        lenses.read(file)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--bands", "g,r"), 3, "expected 3 (g, r, i), those of the weights"),
        (("--bands", "g,r,z"), 2, "some of g, r, i"),
        (("--prevalence", "1"), 2, "a fraction between 0 and 1"),
        (("--missing", "nan"), 0, ""),
    ],
)
def test_options_that_do_not_fit_are_refused(options, code, message, stamps, tmp_path, capsys):
    assert call("run", "lens_finder", "--data", stamps, *options, "--out", tmp_path) == code
    assert message in " ".join(capsys.readouterr().err.split())


def _small(rng):
    return rng.normal(size=(3, 3, 40, 40))


def _empty(rng):
    images = rng.normal(size=(3, 3, 48, 48))
    images[1] = 100.0
    return images


def _nan(rng):
    images = rng.normal(size=(3, 3, 48, 48))
    images[2, 0, :20] = np.nan
    return images


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_small, "40 x 40 px, expected 48 px or more"),
        (_empty, "stamp 1: got more than 30% of the pixels of a band without data"),
        (_nan, "stamp 2: got more than 30% of the pixels of a band without data"),
        (lambda rng: np.ones((2, 3, 48, 48)), "stamp 0, 1: got a band with the same value"),
    ],
)
def test_bad_stamps_are_refused(make, message, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=make(np.random.default_rng(0)))
    assert call("run", "lens_finder", "--data", tmp_path / "a.npz", "--out", tmp_path / "out") == 3
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_of_reading_need_data(tmp_path, capsys):
    assert call("run", "lens_finder", "--demo", "--bands", "g", "--out", tmp_path) == 2
    assert "--bands" in capsys.readouterr().err
