"""``astrozoo run galaxy_vae``: files of stamps to a report, and errors before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits

from astrozoo import cli
from astrozoo.models import galaxy_vae
from astrozoo.types import load


def call(*words) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main([str(word) for word in words])
    return raised.value.code


def images(sides=(69, 40, 81)):
    """Galaxies of the model, cropped or padded with sky."""
    stamps, _ = galaxy_vae.simulate(3, galaxies=len(sides), noise=0.3)
    rng = np.random.default_rng(0)
    made = []
    for side, image in zip(sides, stamps.pixels.image.numpy(), strict=True):
        cut = max(0, (69 - side) // 2)
        image = image[cut : 69 - cut, cut : 69 - cut]
        if side > 69:
            frame = 0.3 * rng.standard_normal((side, side))
            frame[:69, :69] = image
            image = frame
        made.append(7.0 * image)
    return made


def test_stamps_of_mixed_sizes_are_fitted_and_shown(tmp_path):
    path = tmp_path / "stamps.fits"
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(image) for image in images())]).writeto(path)
    out = tmp_path / "out"
    assert call("run", "galaxy_vae", "--data", path, "--noise", 2.1, "--method", "laplace", "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["galaxies"] == 3
    assert summary["median chi2 per pixel"] == pytest.approx(1.0, abs=0.1)
    assert load(out / "posterior.nc").draws["z"].shape[2:] == (3, galaxy_vae.LATENT)
    html = (out / "report.html").read_text()
    assert "posterior draws" in html
    assert "chi2 per pixel" in html


@pytest.mark.parametrize(
    ("arrays", "options", "code", "message"),
    [
        ({"image": np.zeros((0, 30, 30))}, (), 3, "no images"),
        ({"image": np.ones((2, 30, 30))}, (), 3, "the value 1 in all pixels"),
        ({"image": np.eye(30)[None]}, ("--noise", 0), 3, "noise of stamp 0: got 0"),
        ({"image": np.eye(30)[None], "noise_rms": [np.nan]}, (), 3, "noise of stamp 0: got nan"),
        (
            {"image": np.eye(30)[None]},
            ("--noise", 1, "--size", 33),
            3,
            "the size that the weights are trained on",
        ),
        ({"image": np.eye(30)[None]}, ("--noise", 1, "--first", 1), 3, "1 stamps, expected more than 1"),
    ],
)
def test_bad_stamps_are_refused(arrays, options, code, message, tmp_path, capsys):
    path = tmp_path / "stamps.npz"
    np.savez(path, **arrays)
    assert call("run", "galaxy_vae", "--data", path, *options, "--out", tmp_path / "out") == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_of_reading_need_data(tmp_path, capsys):
    assert call("run", "galaxy_vae", "--demo", "--noise", 1, "--out", tmp_path / "out") == 2
    assert "--noise with --data only" in " ".join(capsys.readouterr().err.split())


def test_corrupt_weights_are_refused(tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"not weights")
    assert call("run", "galaxy_vae", "--demo", "--weights", weights, "--out", tmp_path / "out") == 3
    assert "unreadable" in capsys.readouterr().err
