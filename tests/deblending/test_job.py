from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from typer.testing import CliRunner

from astrozoo.cli import app
from astrozoo.data.scene_files import read_scene
from astrozoo.data.simulate_blends import BlendSurvey, blendedness, simulate_blend
from astrozoo.errors import DataError, InputError
from astrozoo.models import deblend


def saved(path, **changes):
    """A scene of the model with a star, as an NPZ file."""
    scene, _ = deblend.simulate(1, size=18, prior="sersic")
    rows = np.array([(x, y, i == 0) for i, (x, y) in enumerate(scene.sources["x", "y"])])
    catalog = np.rec.fromarrays(rows.T, names="x,y,is_star")
    parts = {"images": scene.images, "psfs": scene.psfs, "filters": list(scene.bands)}
    parts |= {"variance": scene.noise**2, "catalog": catalog} | changes
    np.savez(path, **{name: np.asarray(value) for name, value in parts.items() if value is not None})
    return scene


def test_a_cutout_becomes_images_of_its_sources_and_a_report(tmp_path):
    scene = saved(tmp_path / "cutout.npz")
    words = ["--data", tmp_path / "cutout.npz", "--prior", "sersic", "--out", tmp_path / "out"]
    ran = CliRunner().invoke(app, ["run", "deblend", *map(str, words)])
    assert ran.exit_code == 0, ran.output
    with fits.open(tmp_path / "out" / "scene.fits") as hdus:
        assert hdus["SOURCES"].data.shape == (2, *scene.images.shape)
        np.testing.assert_allclose(hdus["SOURCES"].data.sum(0), hdus["MODEL"].data, atol=1e-3)
        assert (hdus["SOURCES_SD"].data >= 0).all()
        covariance = hdus["FLUX_COVARIANCE"].data
        assert (np.linalg.eigvalsh(covariance) > 0).all()
    table = Table.read(tmp_path / "out" / "catalog.parquet")
    assert list(table["is_star"]) == [True, False]
    assert np.isnan(table["half_light_radius"][0])
    assert np.isfinite(table["half_light_radius"][1])
    errors = np.sqrt(np.diag(covariance)).reshape(2, 2)
    for k, band in enumerate(scene.bands):
        np.testing.assert_allclose(table[f"fluxerr_{band}"], errors[:, k], rtol=0.25)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sources"] == 2
    report = (tmp_path / "out" / "report.html").read_text()
    for title in ("Scene", "Residuals", "Sources", "Fluxes"):
        assert title in report


def test_sources_come_from_detection_or_a_table(tmp_path):
    survey = BlendSurvey(separation=(10.0, 11.0), clumpy=0.0)
    scene, _ = simulate_blend(3, 2, survey)
    parts = {"images": scene.images, "psfs": scene.psfs, "filters": np.array(scene.bands)}
    np.savez(tmp_path / "blend.npz", **parts)
    found = read_scene(tmp_path / "blend.npz")
    distance = np.hypot(found.sources["x"][:, None] - scene.sources["x_true"],
                        found.sources["y"][:, None] - scene.sources["y_true"])  # fmt: skip
    assert (distance.min(0) < 1.0).all()
    assert found.noise.mean() == pytest.approx(scene.noise.mean(), rel=0.2)  # measured
    scene.sources["x", "y"].write(tmp_path / "sources.csv")
    listed = read_scene(
        tmp_path / "blend.npz", catalog=tmp_path / "sources.csv", bands="r,i", box="4:44,2:48"
    )
    assert listed.bands == ("r", "i")
    assert listed.shape == (40, 46)
    np.testing.assert_allclose(listed.sources["x"], scene.sources["x"] - 2)


def test_masked_pixels_and_a_zero_variance_are_not_used(tmp_path):
    variance = np.ones((2, 18, 18))
    variance[1] = 0
    mask = np.zeros((2, 18, 18), np.int32)
    mask[0, 0, 0], mask[0, 0, 1] = 2, 32  # saturated; detected
    saved(tmp_path / "cutout.npz", variance=variance, mask=mask)
    scene = read_scene(tmp_path / "cutout.npz")
    assert not scene.mask[1].any()
    assert not scene.mask[0, 0, 0]
    assert scene.mask[0, 0, 1]
    assert list(scene.used) == [True, False]


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "cutout.npz"
    for message, changes in {
        "an array 'psfs'": {"psfs": None},
        "variance of shape": {"variance": np.ones((2, 3, 3))},
        "mask of shape": {"mask": np.zeros((1, 18, 18), bool)},
        "columns x and y": {"catalog": np.rec.fromarrays([[1.0]], names="ra")},
    }.items():
        saved(path, **changes)
        with pytest.raises(DataError, match=message):
            read_scene(path)
    saved(path)
    with pytest.raises(InputError, match=r"bands of cutout\.npz: u, g"):
        read_scene(path, bands="r")
    with pytest.raises(InputError, match="y0:y1,x0:x1"):
        read_scene(path, box="1:2")
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="NPZ"):
        read_scene(path)


def test_blendedness_is_zero_alone():
    image = np.zeros((2, 6, 6))
    image[0, 1, 1] = image[1, 4, 4] = 1.0
    assert blendedness(image) == pytest.approx([0, 0])
    image[1] = 3 * image[0]
    assert blendedness(image) == pytest.approx([0.75, 0.25])


def test_hsc_cutouts_are_read(data_root):
    scene = read_scene(data_root / "hsc_blends" / "hsc_cosmos_35.npz")
    assert scene.bands == ("g", "r", "i", "z", "y")
    assert len(scene.sources) == 7
    assert scene.mask.mean() > 0.9
