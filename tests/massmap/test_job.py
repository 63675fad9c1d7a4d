from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from typer.testing import CliRunner

from astrozoo.cli import app
from astrozoo.errors import InputError
from astrozoo.massmap.job import run


def invoke(*args):
    return CliRunner().invoke(app, ["run", "mass_map", *map(str, args)])


def test_a_catalogue_becomes_maps_with_a_wcs_and_a_report(tmp_path):
    rng = np.random.default_rng(0)
    n = 2000
    columns = {"ra": rng.uniform(9.9, 10.1, n), "dec": rng.uniform(-0.1, 0.1, n)}
    columns |= {name: 0.3 * rng.standard_normal(n) for name in ("e1", "e2")}
    Table(columns).write(tmp_path / "shear.fits")
    out = tmp_path / "out"
    ran = invoke(
        "--data",
        tmp_path / "shear.fits",
        "--pixel",
        1,
        "--method",
        "wiener",
        "--prior",
        "gaussian",
        "--draws",
        40,
        "--out",
        out,
    )
    assert ran.exit_code == 0, ran.output
    with fits.open(out / "kappa.fits") as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["MEAN", "SD", "Q025", "Q16", "Q50", "Q84", "Q975"]
        assert hdus["MEAN"].header["CTYPE1"] == "RA---TAN"
        assert hdus["MEAN"].header["CRVAL1"] == pytest.approx(10, abs=0.01)
        shape = hdus["MEAN"].data.shape
        assert (hdus["SD"].data > 0).all()
        assert (hdus["Q16"].data <= hdus["Q84"].data).all()
    assert fits.getdata(out / "kappa_draws.fits").shape == (40, *shape)
    text = (out / "report.html").read_text()
    for title in ("Convergence", "Peaks", "E and B modes", "Power"):
        assert title in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["B variance / noise"] == pytest.approx(1, abs=0.6)


def test_wiener_needs_the_gaussian_prior(tmp_path):
    with pytest.raises(InputError, match=r"--method wiener: .* expected it with --prior gaussian"):
        run(out=tmp_path, demo=True, method="wiener")


def test_options_of_reading_need_data(tmp_path):
    with pytest.raises(InputError, match="--pixel with --data only"):
        run(out=tmp_path, demo=True, pixel=1.0)
