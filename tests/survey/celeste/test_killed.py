"""Fits of fields that were killed go on to the same answer, and without doing again what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from astrozoo import checkpoint as checkpointing
from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.errors import DataError, InputError
from astrozoo.survey.celeste import fit as fitting
from astrozoo.survey.celeste.fit import FieldFit, Sweeps, fit_field
from astrozoo.survey.detect import detect

SETTINGS: dict[str, Any] = {"draws": 32, "progress": False, "max_sweeps": 2}


@pytest.fixture(scope="module")
def images() -> Field:
    return simulate_field(
        n_sources=3, seed=5, shape=(72, 72), bands="r", r_range=(18, 19.5), min_separation=15
    )[0]


@pytest.fixture(scope="module")
def whole(images: Field) -> FieldFit:
    return fit_field(images, **SETTINGS)


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, calls: list[np.ndarray]) -> None:
    """Raise at a call of the fit of a batch; note the rows of all calls."""
    plain = Sweeps._fit

    def counted(self: Sweeps, rows: np.ndarray) -> None:
        calls.append(rows)
        if len(calls) == at:
            raise KeyboardInterrupt
        plain(self, rows)

    monkeypatch.setattr(Sweeps, "_fit", counted)


@pytest.mark.parametrize(("every", "at"), [(30.0, 2), (-1.0, 2), (-1.0, 3)])
def test_a_fit_interrupted_between_batches_goes_on_to_the_same_answer(
    images: Field, whole: FieldFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, at: int
) -> None:
    monkeypatch.setattr(
        checkpointing, "SAVE_INTERVAL", every
    )  # saved after each batch, or not before a sweep's end
    with monkeypatch.context() as patched:
        calls: list[np.ndarray] = []
        interrupt(patched, 0, calls)
        fit_field(images, **SETTINGS)
    needed = len(calls)
    with monkeypatch.context() as patched:
        interrupt(patched, at, [])
        with pytest.raises(KeyboardInterrupt):
            fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)
    calls = []
    interrupt(monkeypatch, 0, calls)
    again = fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)
    if every < 0:
        assert len(calls) == needed - at + 1  # what was fitted is not fitted again
    # light is painted in another order, which rounds differently
    for name, draws in whole.draws.items():
        np.testing.assert_allclose(again.draws[name], draws, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(again.p_star, whole.p_star, rtol=1e-6, atol=1e-9)
    for a, b in zip(again.model, whole.model, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(InputError, match="sources, seed and settings"):
        fit_field(images, seed=1, checkpoint=tmp_path / "kept", **SETTINGS)


@pytest.mark.parametrize("step", ["_correct_sky", "_correct_psf"])
def test_a_fit_interrupted_after_a_correction_goes_on_to_the_same_answer(
    images: Field, whole: FieldFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between it and the next state that is kept: it is then made again, from what it was made of."""
    monkeypatch.setattr(checkpointing, "SAVE_INTERVAL", -1.0)
    plain = getattr(Sweeps, step)

    def last(self: Sweeps) -> None:
        plain(self)
        if self.state.light[0] is not None:  # not before the first sweep
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Sweeps, step, last)
        with pytest.raises(KeyboardInterrupt):
            fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)
    again = fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)
    for name, draws in whole.draws.items():
        np.testing.assert_allclose(again.draws[name], draws, rtol=1e-6, atol=1e-6, err_msg=name)
    for a, b in zip(again.model, whole.model, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_sky_that_is_gone_is_missed(images: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 4, [])
    with pytest.raises(KeyboardInterrupt):
        fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)
    (tmp_path / "kept" / "field.sky-2.npz").unlink()
    with pytest.raises(DataError, match="no part sky-2"):
        fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)


@pytest.mark.parametrize("at", [3, 4])
def test_companions_that_were_found_are_not_looked_for_again(
    images: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A search of the same model, its light painted in another order, may find others."""
    table = detect(images)
    monkeypatch.setattr(fitting, "detect", lambda images: table[1:])  # the residuals show the first
    searched: list[int] = []
    plain = fitting.companions

    def counted(self: Sweeps) -> Table:
        searched.append(len(self.sources))
        return plain(self)

    monkeypatch.setattr(fitting, "companions", counted)
    settings = SETTINGS | {"max_sweeps": 4}
    straight = fit_field(images, **settings)
    assert searched == [len(table) - 1, len(table)]
    assert len(straight.detections) == len(table)
    with monkeypatch.context() as patched:
        interrupt(patched, at, [])
        with pytest.raises(KeyboardInterrupt):
            fit_field(images, checkpoint=tmp_path / "kept", **settings)
    searched.clear()
    again = fit_field(images, checkpoint=tmp_path / "kept", **settings)
    assert len(table) - 1 not in searched
    for name in straight.detections.colnames:
        np.testing.assert_array_equal(again.detections[name], straight.detections[name], err_msg=name)
        assert again.detections[name].unit == straight.detections[name].unit
    np.testing.assert_allclose(again.p_star, straight.p_star, rtol=1e-6, atol=1e-9)
    a, b = again.draws["log_flux"], straight.draws["log_flux"]
    np.testing.assert_array_equal(np.isnan(again.r_hat), np.isnan(straight.r_hat))
    weighted = np.isnan(straight.r_hat)  # Markov chains enlarge differences of rounding
    assert weighted.any()
    np.testing.assert_allclose(a[weighted], b[weighted], rtol=1e-6, atol=1e-6)
    standard_error = np.sqrt(2 / a.shape[1]) * b.std(1)
    assert (np.abs(a.mean(1) - b.mean(1)) <= 5 * standard_error).all()


def test_a_fit_of_few_sweeps_goes_on_with_more(images: Field, tmp_path: Path) -> None:
    """The draws that were kept are of the modes of before: they are made again."""
    few = fit_field(images, checkpoint=tmp_path / "kept", **(SETTINGS | {"max_sweeps": 1}))
    more = fit_field(images, checkpoint=tmp_path / "kept", **(SETTINGS | {"max_sweeps": 4}))
    straight = fit_field(images, **(SETTINGS | {"max_sweeps": 4}))
    assert few.stats["sweeps"] == 1
    assert more.stats["evaluations"] == straight.stats["evaluations"]
    assert more.stats["seconds"]["fit"] > few.stats["seconds"]["fit"] > 0
    assert not few.converged.any()
    assert more.stats["sweeps"] == straight.stats["sweeps"] > 1
    np.testing.assert_allclose(more.p_star, straight.p_star, rtol=1e-6, atol=1e-9)
    for name, draws in straight.draws.items():
        np.testing.assert_allclose(more.draws[name], draws, rtol=1e-6, atol=1e-6, err_msg=name)
