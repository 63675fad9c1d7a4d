from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from astrozoo.cli import app
from astrozoo.errors import InputError
from astrozoo.nbody.job import run
from astrozoo.nbody.spectra import by_scale, rows
from astrozoo.physics.modes import box_modes, make_shells


def test_a_grid_becomes_initial_conditions_and_a_report(tmp_path):
    counts = np.random.default_rng(0).poisson(2.0, (4, 4, 4))
    np.savez(tmp_path / "galaxies.npz", counts=counts, box=40.0)
    out = tmp_path / "out"
    arguments = [
        "--data",
        tmp_path / "galaxies.npz",
        "--steps",
        0,
        "--chains",
        2,
        "--draws",
        6,
        "--warmup",
        6,
    ]
    ran = CliRunner().invoke(app, ["run", "nbody", *map(str, arguments), "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    with np.load(out / "initial_conditions.npz", allow_pickle=False) as found:
        assert found["linear_mean"].shape == (4, 4, 4)
        assert (found["linear_sd"] > 0).all()
        assert float(found["box"]) == 40
    text = (out / "report.html").read_text()
    assert "Slices" in text
    assert "Scales" in text
    assert "of 64 cells of 10 Mpc/h" in json.loads((out / "summary.json").read_text())["data"]


def test_options_of_reading_and_of_simulating_are_kept_apart(tmp_path):
    with pytest.raises(InputError, match="--depth with --data only"):
        run(out=tmp_path, demo=True, depth=8)
    with pytest.raises(InputError, match="--size: got 8, expected it without --data"):
        run(out=tmp_path, path=tmp_path / "x.npz", size=8)


def test_draws_of_the_truth_s_own_distribution_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(41, 8, 8, 8, generator=generator, dtype=torch.float64)
    shells = make_shells(box_modes((8, 8, 8), 80.0), 8)
    scales = by_scale(draws[1:], shells, 2.0, draws[0])
    error = 1 / np.sqrt(2 * shells.size.numpy())
    assert (np.abs(scales.z - 1) < 4 * error).all()
    np.testing.assert_allclose(scales.spread, 2.0, atol=0.3)
    assert len(rows(scales)) == len(scales.k)
