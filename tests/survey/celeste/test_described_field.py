"""A described field from its files to the catalogue, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy import units
from astropy.io import fits
from astropy.table import Table

from astrozoo import cli
from astrozoo.data.simulate import simulate_field
from astrozoo.diagnostics.scoring import match


def _exit_code(*words: object) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main([str(word) for word in words])
    return int(raised.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """Two bands, one of them not SDSS's, in units of two kinds, with a mask; and the truth."""
    folder = tmp_path_factory.mktemp("described")
    images, truth = simulate_field(n_sources=4, seed=11, shape=(96, 96), r_range=(18, 20), min_separation=24)
    entries = []
    for image, name, band in zip(images.images[2:4], ("a", "b"), ("r", "F775W"), strict=True):
        header = image.wcs.to_header()
        gain = float(np.median(image.calibration))
        rate = name == "b"
        value = image.counts / 100 if rate else image.nanomaggies
        fits.PrimaryHDU(value, header).writeto(folder / f"{name}.fits")
        np.save(folder / f"{name}-psf.npy", image.psf.stamp(48, 48))
        fits.PrimaryHDU((~image.valid).astype(np.uint8)).writeto(folder / f"{name}-mask.fits")
        calibrated = (
            {"unit": "e-/s", "exposure": 100.0, "calibration": 100 / gain}
            if rate
            else {"unit": "nmgy", "gain": gain, "sky_subtracted": True}
        )
        level = float(np.median(image.sky))
        entries.append(
            {"file": f"{name}.fits", "band": band, "sky": level / 100 if rate else level / gain,
             "mask": {"file": f"{name}-mask.fits", "good": 0}, "psf": {"stamp": f"{name}-psf.npy"},
             **calibrated}
        )  # fmt: skip
    (folder / "images.yaml").write_text(yaml.safe_dump({"name": "mine", "images": entries}))
    return folder, truth


def test_a_described_field_has_its_catalogue(files: tuple[Path, Table], tmp_path: Path) -> None:
    folder, truth = files
    given = Table({k: np.deg2rad(np.asarray(truth[k], float)) * units.rad for k in ("ra", "dec")})
    given.write(tmp_path / "radians.ecsv")
    words = ("run", "celeste", "--data", folder / "images.yaml", "--catalog", tmp_path / "radians.ecsv")
    assert _exit_code(*words, "--sweeps", 4, "--out", tmp_path / "out") == 0
    table = Table.read(tmp_path / "out" / "catalog.fits")
    i, j = match(truth, table)
    assert list(i) == [0, 1, 2, 3]
    for band, true in (("r", "r"), ("F775W", "i")):
        z = (table[f"log_flux_{band}"][j] - np.log(truth[f"flux_{true}"][i])) / table[f"log_flux_{band}_sd"][
            j
        ]
        assert np.abs(z).max() < 5
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "mine" in summary["field"]
    assert any("prior of colours with F775W" in note for note in summary["notes"])
    assert all(0.8 < value < 1.2 for value in summary["chi2 per pixel"].values())


def test_a_bad_description_ends_before_any_work(
    files: tuple[Path, Table], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = files
    content = yaml.safe_load((folder / "images.yaml").read_text())
    content["images"][1]["psf"] = {"stamp": "missing.npy"}
    (folder / "bad.yaml").write_text(yaml.safe_dump(content))
    assert _exit_code("run", "celeste", "--data", folder / "bad.yaml", "--out", tmp_path / "out") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "bad.yaml: images[1]: psf: stamp: file: got no file" in said
    assert _exit_code("run", "celeste", "--data", folder, "--survey", "lsst", "--out", tmp_path / "out") == 2
    assert "unknown survey 'lsst'" in capsys.readouterr().err
