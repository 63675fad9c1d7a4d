"""A simulated sky through the whole survey: catalogue, resumption, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from distributed import LocalCluster

from astrozoo.data.simulate_sky import SimulatedSky
from astrozoo.errors import InputError
from astrozoo.survey.celeste import survey_job
from astrozoo.survey.celeste.survey_job import survey

_SKY = SimulatedSky(rows=1, columns=2, side=130, overlap=40, density=9, faint=20.0, bands="gr", seed=3)


@pytest.fixture(scope="module")
def scheduler():
    """A cluster in this process: workers that start at once and have imported everything."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as local:
        yield local.scheduler_address


@pytest.fixture(scope="module")
def finished(scheduler, tmp_path_factory):
    """A survey of a sky of two fields: small boxes, few draws."""
    out = tmp_path_factory.mktemp("sky")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey_job.Store, "remove", lambda store: None)
        settings = {"demo": True, "sky": _SKY, "draws": 64, "box_seconds": 1.0, "progress": False}
        summary = survey(out=out, scheduler=scheduler, say=said.append, **settings)
    return out, summary, said


def test_every_source_is_once_in_the_catalogue(finished):
    out, summary, said = finished
    table, truth = Table.read(out / "catalog.fits"), _SKY.truth()
    assert summary["failures"] == []
    assert summary["sources"] == len(table) == len(set(table["id"]))
    assert len(set(table["box"])) > 1
    known = SkyCoord(truth["ra"], truth["dec"], unit="deg")
    found = SkyCoord(table["ra"], table["dec"], unit="deg")
    _, distance, _ = known.match_to_catalog_sky(found)
    bright = np.asarray(truth["inside"]) & (np.asarray(truth["flux_r"]) > 10 ** (0.4 * (22.5 - 20)))
    assert (distance.arcsec[bright] < 1).all()
    assert summary["completeness"] == 1
    assert summary["false"] == 0
    nearest = found.match_to_catalog_sky(found, nthneighbor=2)[1]
    assert nearest.arcsec.min() > 1
    assert any("boxes" in line for line in said)


def test_what_a_survey_leaves(finished):
    out, _, _ = finished
    assert {p.name for p in out.iterdir()} >= {
        "catalog", "catalog.fits", "report.html", "summary.json", "failures.csv",
    }  # fmt: skip
    rows = sum(pq.read_metadata(p).num_rows for p in out.glob("catalog/dataset/*/*/Npix=*.parquet"))
    assert rows == json.loads((out / "summary.json").read_text())["sources"]
    html = (out / "report.html").read_text()
    assert "Sources per square arcminute" in html
    assert "Fraction of true sources found" in html


def test_a_survey_that_was_stopped_does_only_what_is_missing(finished, scheduler, monkeypatch):
    out, summary, _ = finished
    second = sorted((out / "work" / "second").glob("*.parquet"))
    lost = max(second, key=lambda p: pq.read_metadata(p).num_rows)
    before = {p: p.stat().st_mtime_ns for p in (out / "work").rglob("*") if p.is_file() and p != lost}
    table = Table.read(out / "catalog.fits")
    lost.unlink()
    settings = {"demo": True, "sky": _SKY, "draws": 64, "box_seconds": 1.0, "progress": False}
    monkeypatch.setattr(survey_job.Store, "remove", lambda store: None)
    again = survey(out=out, scheduler=scheduler, say=lambda text: None, **settings)
    assert again["sources"] == summary["sources"]
    assert lost.exists()
    changed = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert changed <= {"used.json"}
    after = Table.read(out / "catalog.fits")
    assert (after["id"] == table["id"]).all()
    assert np.array_equal(after["flux_r"], table["flux_r"])


def test_another_survey_in_the_same_folder_is_refused(finished):
    out, _, _ = finished
    settings = {"demo": True, "sky": _SKY, "draws": 65, "box_seconds": 1.0, "progress": False}
    with pytest.raises(InputError, match="draws"):
        survey(out=out, say=lambda text: None, **settings)


def test_neither_fields_nor_the_demonstration_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="--data or --demo"):
        survey(out=tmp_path)
