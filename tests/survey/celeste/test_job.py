"""From a folder to a catalogue and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from matplotlib.figure import Figure

from astrozoo.data.images import Field
from astrozoo.diagnostics.report import report
from astrozoo.errors import DataError, InputError
from astrozoo.survey.celeste import fit as fitting
from astrozoo.survey.celeste import job, pages
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.fit import FieldFit
from astrozoo.survey.celeste.goodness import chi2_by_band, patches
from astrozoo.survey.celeste.pictures import cutouts, overview
from astrozoo.types import Result, Status

Fake = tuple[FieldFit, Table]


def test_the_demonstration_says_that_it_is_simulated_where_there_are_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(name: str, *, progress: bool) -> Path:
        raise DataError(name, "no connection", "a connection")

    monkeypatch.setattr(job, "fetch", unreachable)
    outcome = job.run(out=tmp_path, demo=True, seed=2, box="60:130,60:130")
    said = capsys.readouterr().err
    assert "no connection" in said
    assert "simulated by GalSim" in " ".join(said.split())
    assert "simulated by GalSim" in outcome.summary["field"]
    table = Table.read(tmp_path / "catalog.fits")
    assert len(table) == outcome.summary["sources"] > 0
    assert set(outcome.files) <= {path.name for path in tmp_path.iterdir()}
    assert all(0.8 < value < 1.3 for value in outcome.summary["chi2 per pixel"].values())
    result = outcome.result
    assert result.draws["colour"].shape[0] == 1
    assert result.draws["colour"].shape[2:] == (len(table), 4)
    assert result.groups()["posterior"]["offset"].dims == ("chain", "draw", "problem", "axis")


def test_a_result_that_can_be_saved_and_reported(fake_fit: Fake, tmp_path: Path) -> None:
    fit, _ = fake_fit
    table = catalogue(fit)
    result = job.to_result(fit, table, seed=5)
    assert result.status is Status.BUDGET_SPENT
    assert result.statuses.count(Status.CONVERGED) == len(table) - 1
    assert (result.method, result.guide) == ("importance", "")
    back = Result.load(result.save(tmp_path / "posterior.nc"))
    np.testing.assert_array_equal(back.draws["log_flux"][0, :, 3], fit.draws["log_flux"][3])
    np.testing.assert_array_equal(back.draws["colour"][0, :, 3], fit.draws["colour"][3])
    assert back.digest == result.digest
    moved = replace(fit, detections=fit.detections[::-1])
    assert job.to_result(moved, table, seed=5).digest != result.digest
    path = report(result, tmp_path / "report.html", pages=pages.report_pages(fit, table, "simulated", 3))
    html = path.read_text()
    assert html.count("data:image/png") >= 2
    assert "celeste: importance" in html
    assert "trust_region" not in html
    assert f"1 of {len(table)} problems have a k-hat above 0.7" in html
    assert "<h2>Summary</h2>" not in html
    html = report(back, tmp_path / "again.html").read_text()  # of the saved result, without the pages
    assert "<h2>Summary</h2>" in html


def _sky_alone(images: Field) -> Field:
    rng = np.random.default_rng(1)
    return Field(tuple(replace(i, counts=rng.poisson(i.sky).astype(float)) for i in images))


def test_a_field_without_sources_gives_an_empty_catalogue_and_says_so(
    fake_fit: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "read_images", lambda path, survey=None: _sky_alone(fake_fit[0].field))
    outcome = job.run(out=tmp_path, path=tmp_path, progress=False)
    assert outcome.summary["sources"] == 0
    assert len(Table.read(tmp_path / "catalog.fits")) == len(Table.read(tmp_path / "catalog.parquet")) == 0
    assert outcome.result.status is Status.CONVERGED
    back = Result.load(outcome.result.save(tmp_path / "posterior.nc"))
    html = report(back, tmp_path / "report.html", pages=outcome.pages).read_text()
    assert "No source was found" in html
    assert "Posterior" not in html


def test_a_killed_run_goes_on_to_the_same_answer(
    fake_fit: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "read_images", lambda path, survey=None: fake_fit[0].field)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    settings = {"path": tmp_path, "box": "20:75,10:65", "progress": False}
    whole = job.run(out=tmp_path / "whole", **settings)
    original = fitting._posterior

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_posterior", killed)
    with pytest.raises(KeyboardInterrupt):
        job.run(out=tmp_path / "killed", **settings)
    assert not (tmp_path / "killed" / "catalog.fits").exists()
    monkeypatch.setattr(fitting, "_posterior", original)

    def refitted(*arguments: object) -> None:
        raise AssertionError("the fit was done already")

    monkeypatch.setattr(fitting.Sweeps, "_fit", refitted)
    again = job.run(out=tmp_path / "killed", **settings)
    for name, draws in whole.result.draws.items():
        np.testing.assert_allclose(again.result.draws[name], draws, rtol=1e-9, err_msg=name)
    with pytest.raises(InputError, match="sources, seed and settings"):
        job.run(out=tmp_path / "killed", seed=1, **settings)


def test_sources_are_detected_once_and_what_is_left_over_is_told(
    fake_fit: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, _ = fake_fit
    monkeypatch.setattr(job, "read_images", lambda path, survey=None: fit.field)
    given: list[Table | None] = []

    def fitted(images: Field, catalog: Table | None, *, detections: Table, **settings: object) -> FieldFit:
        given.append(detections)
        left = fit.detections[:2].copy()
        left["snr"] = [12.0, 30.0]
        return replace(fit, left_over=left)

    monkeypatch.setattr(job, "fit_field", fitted)
    outcome = job.run(out=tmp_path, path=tmp_path, progress=True)
    assert given[0] is not None
    assert len(given[0]) > 2
    assert outcome.summary["not modelled"] == 2
    note = "2 detections in the residuals are not modelled"
    assert note in capsys.readouterr().err.replace("\n", " ")
    assert any(note in str(part) for page in outcome.pages for part in page.parts)


def test_bad_sources_are_shown_whatever_their_flux(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    table = catalogue(fit)
    order = np.argsort(-np.asarray(table["flux_r"]))
    chi2 = fit.chi2.copy()
    chi2[order[-1], 2] = 40.0
    chi2[:, 0] = np.nan  # a band without pixels
    shown = pages._chosen(table, replace(fit, chi2=chi2), 2)
    assert set(shown) == {*order[:2], 3, order[-1]}
    assert len(pages._chosen(table, fit, None)) == len(table)


def test_goodness_of_fit_is_one_for_the_true_model(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    rng = np.random.default_rng(0)
    images = tuple(
        replace(image, counts=rng.poisson(model).astype(float))
        for image, model in zip(fit.field, fit.model, strict=True)
    )
    saturated = images[2].saturated.copy()
    saturated[40, 40] = True
    spoilt = images[2].counts.copy()
    spoilt[38:43, 38:43] = 1e5  # all within three pixels
    images = (*images[:2], replace(images[2], counts=spoilt, saturated=saturated), *images[3:])
    rows = chi2_by_band(replace(fit, field=Field(images)))
    assert [row["band"] for row in rows] == list("ugriz")
    for row in rows:
        assert row["chi2 per pixel"] == pytest.approx(1, abs=0.06)
        assert row["in patches"] == pytest.approx(1, abs=0.1)
        assert row["pixels beyond 5 sigma"] <= 1
    inside = patches(fit)[2]
    assert inside[round(fit.detections["y"][0]), round(fit.detections["x"][0])]
    assert not inside.all()


def test_pictures_of_fields_of_few_bands_and_no_sources(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    some = Field(tuple(image for image in fit.field if image.band in "gi"))
    one = replace(fit, field=some, chi2=fit.chi2[:, :2], model=[fit.model[1], fit.model[3]])
    table = catalogue(one)
    figures = [overview(one, table), *cutouts(one, table, np.arange(5))]
    assert len(figures) == 3
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    empty = replace(one, detections=one.detections[:0])
    overview(empty, table[:0]).draw_without_rendering()


def test_settings_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of them"):
        job.run(out=tmp_path, demo=True, path=tmp_path)
