from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from astrozoo.cli import app
from astrozoo.errors import InputError
from astrozoo.images.denoise_job import run
from astrozoo.models import denoise


def invoke(*args):
    return CliRunner().invoke(app, ["run", "denoise", *map(str, args)])


def test_an_image_becomes_maps_and_a_report(tmp_path):
    data, truth = denoise.simulate(2, size=24, noise=0.3)
    image = np.where(data.pixels.mask, data.pixels.values, np.nan)
    fits.PrimaryHDU(image).writeto(tmp_path / "image.fits")
    out = tmp_path / "out"
    ran = invoke(
        "--data", tmp_path / "image.fits", "--noise", 0.3, "--method", "wiener", "--draws", 60, "--out", out
    )
    assert ran.exit_code == 0, ran.output
    with fits.open(out / "image.fits") as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["MEAN", "SD", "Q025", "Q16", "Q50", "Q84", "Q975"]
        assert hdus["MEAN"].data.shape == (24, 24)
        z = (hdus["MEAN"].data - truth["image"].numpy()) / hdus["SD"].data
        assert np.abs(z).max() < 4.5
    assert fits.getdata(out / "image_draws.fits").shape == (50, 24, 24)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["chi2 per pixel of draws"] == pytest.approx(1, abs=0.2)
    assert "Power" in (out / "report.html").read_text()


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"--method wiener: got --prior two_moons"):
        run(out=tmp_path, demo=True, method="wiener", prior="two_moons")
    with pytest.raises(InputError, match="--margin with --data only"):
        run(out=tmp_path, demo=True, margin=3)
    with pytest.raises(InputError, match="--noise: got x"):
        run(out=tmp_path, demo=True, noise="x")
