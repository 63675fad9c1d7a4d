"""The command's crowded way: from images to a consensus, all catalogues and a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.table import Table

from astrozoo.data.images import Field, reference_image
from astrozoo.data.simulate_crowded import simulate_cluster
from astrozoo.diagnostics.report import report
from astrozoo.errors import DataError, InputError
from astrozoo.survey.catalogue import read_sources
from astrozoo.survey.celeste import crowded_job, job
from astrozoo.survey.celeste.crowded_catalogue import CROWDED_FLAGS
from astrozoo.survey.crowded import fit as fitting
from astrozoo.types import Outcome, Result

SETTINGS: dict[str, Any] = {"chains": 2, "draws": 6, "progress": False}


@pytest.fixture(scope="module")
def cluster() -> tuple[Field, Table]:
    return simulate_cluster(seed=4, shape=(22, 20), bands="gr", density=0.04)


@pytest.fixture
def short(cluster: tuple[Field, Table], monkeypatch: pytest.MonkeyPatch) -> Field:
    """The command reads the cluster, and its chains are short."""
    monkeypatch.setattr(job, "read_images", lambda path, survey=None: cluster[0])
    monkeypatch.setattr(crowded_job, "STEPS", 60)
    return cluster[0]


@pytest.fixture(scope="module")
def done(cluster: tuple[Field, Table], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("crowded")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "read_images", lambda path, survey=None: cluster[0])
        patched.setattr(crowded_job, "STEPS", 200)
        return job.run(out=out, path=out, **SETTINGS), out


def test_a_dense_field_is_fitted_as_a_crowded_one(
    done: tuple[Outcome, Path], cluster: tuple[Field, Table]
) -> None:
    outcome, out = done
    assert "above 0.1" in outcome.summary["way"]
    assert all(0.6 < chi2 < 1.6 for chi2 in outcome.summary["chi2 per pixel"].values())
    assert set(outcome.files) <= {path.name for path in out.iterdir()}
    table = Table.read(out / "catalog.fits")
    assert len(table) == len(Table.read(out / "catalog.parquet")) == outcome.summary["sources"]
    truth = cluster[1]
    bright = truth[truth["flux_r"] > 10]
    inside = (np.abs(bright["x"] - 9.5) < 8) & (np.abs(bright["y"] - 10.5) < 9)
    for star in bright[inside]:
        apart = np.hypot(table["x"] - star["x"], table["y"] - star["y"])
        nearest = table[np.argmin(apart)]
        assert apart.min() < 0.7
        assert nearest["flux_r"] == pytest.approx(star["flux_r"], rel=0.4)
    assert (table["flux_r_q025"] <= table["flux_r_q16"]).all()
    assert (table["flux_r_q84"] <= table["flux_r_q975"]).all()
    assert ((table["p_exists"] > 0) & (table["p_exists"] <= 1)).all()
    bits = sum(np.where(table[name], 2**k, 0) for k, name in enumerate(CROWDED_FLAGS))
    np.testing.assert_array_equal(table["flags"], bits)


def test_all_catalogues_are_kept(done: tuple[Outcome, Path], cluster: tuple[Field, Table]) -> None:
    outcome, out = done
    table = Table.read(out / "catalogs.parquet")
    catalogues, counts = np.unique(table["chain"] * 6 + table["sample"], return_counts=True)
    assert len(catalogues) == 12
    np.testing.assert_array_equal(outcome.result.draws["sources"].ravel(), counts)
    total = outcome.result.draws["total_flux"]
    assert total.shape == (2, 6, 2)
    first = (table["chain"] == 0) & (table["sample"] == 0)
    assert total[0, 0, 1] == pytest.approx(table["flux_r"][first].sum())
    x, y = reference_image(cluster[0]).wcs.all_world2pix(table["ra"], table["dec"], 0)
    np.testing.assert_allclose(x, table["x"], atol=1e-6)
    np.testing.assert_allclose(y, table["y"], atol=1e-6)


def test_the_result_is_saved_and_reported(done: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, _ = done
    back = Result.load(outcome.result.save(tmp_path / "posterior.nc"))
    assert back.groups()["posterior"]["total_flux"].dims == ("chain", "draw", "band")
    np.testing.assert_array_equal(back.draws["sources"], outcome.result.draws["sources"])
    html = report(back, tmp_path / "report.html", pages=outcome.pages).read_text()
    for text in ("Counts and luminosity function", "R-hat", "Goodness of fit", "P(exists)"):
        assert text in html
    assert html.count("data:image/png") >= 4


def test_a_killed_run_continues_to_the_same_catalogues(
    short: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed").mkdir()
    settings = {"path": tmp_path, "crowded": True, **SETTINGS}
    plain = fitting.sample

    def killed(*arguments: Any, **options: Any) -> Any:
        if options["keep"] != fitting.PILOT_KEPT:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(fitting, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        job.run(out=tmp_path / "killed", **settings)
    assert not (tmp_path / "killed" / "catalog.fits").exists()
    monkeypatch.setattr(fitting, "sample", plain)

    def refitted(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the joint mode was fitted already")

    monkeypatch.setattr(fitting, "fit_mode", refitted)
    shutil.copytree(tmp_path / "killed", tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("block-0-pilot.npz"):
        path.unlink()
    whole = job.run(out=tmp_path / "whole", **settings)
    again = job.run(out=tmp_path / "killed", **settings)
    for name, draws in whole.result.draws.items():
        np.testing.assert_array_equal(again.result.draws[name], draws)
    with pytest.raises(InputError, match="seed and settings"):
        job.run(out=tmp_path / "killed", seed=1, **settings)


def test_given_positions_are_held_to_their_errors(
    short: Field, cluster: tuple[Field, Table], tmp_path: Path
) -> None:
    truth = cluster[1]
    inside = (truth["x"] > -0.5) & (truth["x"] < 19.5) & (truth["y"] > -0.5) & (truth["y"] < 21.5)
    truth[["ra", "dec"]].write(tmp_path / "given.csv")  # those around the image too
    given = {"catalog": tmp_path / "given.csv", "crowded": True, **SETTINGS}
    outcome = job.run(out=tmp_path, path=tmp_path, position_error=0.01, **given)
    table = Table.read(tmp_path / "catalog.parquet")
    assert len(table) == inside.sum()
    assert (np.asarray(table["p_exists"]) == 1).all()
    order = np.argsort(-np.asarray(truth["flux_r"][inside]))
    for star in truth[inside][order][:5]:
        row = table[np.argmin(np.hypot(table["x"] - star["x"], table["y"] - star["y"]))]
        assert np.hypot(row["x"] - star["x"], row["y"] - star["y"]) < 3 * 0.01 / 0.396
        assert row["flux_r"] == pytest.approx(star["flux_r"], rel=0.15)
        assert row["flux_r_sd"] > 0
    assert all(0.7 < chi2 < 1.3 for chi2 in outcome.summary["chi2 per pixel"].values())


def test_options_that_do_not_fit_together_are_errors_before_work(short: Field, tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        job.run(out=tmp_path, path=tmp_path, progress=False, **options)

    with pytest.raises(InputError, match=r"--stars.*--star-fraction 0.5 too"):
        run(stars=True, star_fraction=0.5)
    with pytest.raises(InputError, match=r"--position-error.*--catalog with it"):
        run(position_error=0.1)
    with pytest.raises(InputError, match=r"--stars.*with a crowded field"):
        run(stars=True, crowded=False)
    with pytest.raises(InputError, match=r"--chains.*with a crowded field"):
        run(chains=3, crowded=False)
    assert not list(tmp_path.iterdir())


def test_errors_of_positions_are_read_with_their_units(cluster: tuple[Field, Table], tmp_path: Path) -> None:
    images = cluster[0]
    ra, dec = reference_image(images).wcs.all_pix2world([5.0, 9.0], [4.0, 8.0], 0)
    table = Table({"ra": ra, "dec": dec, "position_error": [0.1, 0.2]})
    path = tmp_path / "given.ecsv"

    def read(changed: Table) -> np.ndarray:
        changed.write(path, overwrite=True)
        return np.asarray(read_sources(path, images)["position_error"])

    np.testing.assert_allclose(read(table), [0.1, 0.2])
    table["position_error"].unit = units.mas
    np.testing.assert_allclose(read(table), [1e-4, 2e-4])
    of_catalogue = Table({"ra": ra, "dec": dec, "ra_sd": [30.0, 10.0], "dec_sd": [40.0, 10.0]})
    np.testing.assert_allclose(read(of_catalogue), [np.sqrt(1250) / 1e3, 0.01])
    table["position_error"].unit = units.kg
    with pytest.raises(DataError, match=r"position_error: got the unit kg"):
        read(table)
    table["position_error"] = [0.1, -0.2]
    with pytest.raises(DataError, match="1 position errors not positive"):
        read(table)
