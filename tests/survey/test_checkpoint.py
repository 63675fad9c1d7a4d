"""Parts of the work on a field: kept whole, taken up again, refused where they are of something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from astrozoo.data.images import Field, GaussianMixture
from astrozoo.data.psf import MixturePsf
from astrozoo.data.simulate import simulate_field
from astrozoo.errors import DataError, InputError, OutputError
from astrozoo.survey import checkpoint as checkpointing
from astrozoo.survey import fit as fitting
from astrozoo.survey.checkpoint import Checkpoint, fingerprint
from astrozoo.survey.detect import detect
from astrozoo.survey.fit import FieldFit, Sweeps, fit_field

SETTINGS: dict[str, Any] = {"draws": 32, "progress": False, "max_sweeps": 2}


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Checkpoint(tmp_path / "kept", "abc")
    part = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False]), "n": np.asarray(3)}
    assert store.load("part") is None
    store.save("part", part)
    back = Checkpoint(tmp_path / "kept", "abc").load("part")
    assert back is not None
    assert set(back) == set(part)
    for name, value in part.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].dtype == value.dtype
    assert {path.name for path in store.folder.iterdir()} == {"key.npz", "part.npz"}  # type: ignore[union-attr]
    store.clear()
    assert not (tmp_path / "kept").exists()


def test_without_a_folder_nothing_is_kept() -> None:
    store = Checkpoint(None, "abc")
    store.save("part", {"a": np.zeros(1)})
    assert store.load("part") is None
    assert not store.due
    store.clear()


def test_work_of_another_key_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "abc")
    with pytest.raises(InputError, match="another field, catalogue, seed or setting"):
        Checkpoint(tmp_path, "abd")


@pytest.mark.parametrize("cut", [0, 3, 100, -20])
def test_a_truncated_part_is_named(tmp_path: Path, cut: int) -> None:
    store = Checkpoint(tmp_path, "abc")
    store.save("part", {"a": np.arange(1000.0)})
    path = tmp_path / "part.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"part\.npz.*unreadable"):
        store.load("part")


def test_a_disk_that_fills_up_leaves_the_last_whole_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoint(tmp_path, "abc")
    store.save("part", {"a": np.ones(3)})

    def full(path: Path, **arrays: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        store.save("part", {"a": np.zeros(3)})
    held = store.load("part")
    assert held is not None
    np.testing.assert_array_equal(held["a"], 1)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        Checkpoint(tmp_path / "file" / "kept", "abc")


def test_a_fingerprint_is_of_all_that_matters(simulated_field: Field) -> None:
    image = simulated_field.images[0]

    def of(changed: dict[str, Any], *settings: object) -> str:
        return fingerprint(Field((replace(image, **changed),)), *settings)

    counts, valid, wcs = image.counts.copy(), image.valid.copy(), image.wcs.deepcopy()
    counts[3, 4] += 1
    valid[3, 4] = False
    wcs.wcs.crval = [150.0, 2.0001]
    round_psf = MixturePsf(GaussianMixture(np.ones(1), np.zeros((1, 2)), 2 * np.eye(2)[None]))
    reshaped = {
        k: getattr(image, k).reshape(32, 128) for k in ("counts", "sky", "calibration", "valid", "saturated")
    }
    keys = [
        of({}, 1, 2512), of({}, 12, 512), of({}, np.zeros(2), np.zeros(1)), of({}, np.zeros(1), np.zeros(2)),
        of({"counts": counts}, 1, 2512), of({"valid": valid}, 1, 2512), of({"band": "g"}, 1, 2512),
        of({"wcs": wcs}, 1, 2512), of({"psf": round_psf}, 1, 2512),
        of(reshaped, 1, 2512),
    ]  # fmt: skip
    assert keys[0] == of({}, 1, 2512)
    assert len(set(keys)) == len(keys)


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
    monkeypatch.setattr(checkpointing, "_EVERY", every)  # saved after each batch, or not before a sweep's end
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
    with pytest.raises(InputError, match="another field"):
        fit_field(images, seed=1, checkpoint=tmp_path / "kept", **SETTINGS)


@pytest.mark.parametrize("step", ["_correct_sky", "_correct_psf"])
def test_a_fit_interrupted_after_a_correction_goes_on_to_the_same_answer(
    images: Field, whole: FieldFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between it and the next state that is kept: it is then made again, from what it was made of."""
    monkeypatch.setattr(checkpointing, "_EVERY", -1.0)
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
    (tmp_path / "kept" / "sky-2.npz").unlink()
    with pytest.raises(DataError, match="no sky-2"):
        fit_field(images, checkpoint=tmp_path / "kept", **SETTINGS)


@pytest.mark.parametrize("at", [3, 4])
def test_companions_that_were_found_are_not_looked_for_again(
    images: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A search of the same model, its light painted in another order, may find others."""
    table = detect(images)
    monkeypatch.setattr(fitting, "detect", lambda images: table[1:])  # the residuals show the first
    searched: list[int] = []
    plain = Sweeps.companions

    def counted(self: Sweeps) -> Table:
        searched.append(len(self.sources))
        return plain(self)

    monkeypatch.setattr(Sweeps, "companions", counted)
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
    np.testing.assert_allclose(again.draws["log_flux"], straight.draws["log_flux"], rtol=1e-6, atol=1e-6)


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
