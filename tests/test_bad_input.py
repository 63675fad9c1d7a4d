"""What goes wrong with a survey's field: one clear line and its exit code, or a flag; never a traceback.

The readers' part (files that are cut short, bands, PSFs or calibrations that are missing) is in
``data/test_sdss.py``, that of detection in ``survey/test_detect.py``, of any model in ``test_cli.py``.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from astrozoo import cli
from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field
from astrozoo.errors import InputError
from astrozoo.models.celeste import load_prior
from astrozoo.survey import catalogue, fields
from astrozoo.survey.celeste import fit, job
from astrozoo.survey.partition import Sources, colouring, half_sizes, neighbours
from astrozoo.types import load

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    simulated_field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Run:
    """``astrozoo run celeste`` on a field of two sources: (exit code, what it said on standard error)."""
    monkeypatch.setattr(job, "read_images", lambda path, survey=None: simulated_field)
    (tmp_path / "data").mkdir()

    def call(*words: object, images: Field | None = None, out: str = "out") -> tuple[int, str]:
        if images is not None:
            monkeypatch.setattr(job, "read_images", lambda path, survey=None: images)
        every = ["run", "celeste", "--data", tmp_path / "data", "--out", tmp_path / out, *words]
        with pytest.raises(SystemExit) as raised:
            cli.main([str(word) for word in every])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return int(raised.value.code or 0), said

    return call


def _last(said: str) -> str:
    return said.strip().splitlines()[-1]


def _spoilt(images: Field, band: int, **changes: Any) -> Field:
    """With a function of each named array in place of it, in one image."""
    held = list(images.images)
    held[band] = replace(held[band], **{k: f(getattr(held[band], k).copy()) for k, f in changes.items()})
    return replace(images, images=tuple(held))


def _corner(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[:3, :3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "svi"), "--method: got svi, expected nothing: `astrozoo run celeste` has one way"),
        (("--guide", "structured"), "--guide: got structured, expected nothing"),
        (("--box", "300-556"), "box: got '300-556', expected 'row:row,column:column'"),
        (("--box", "900:950,0:20"), "a box that overlaps the (64, 64) image"),
    ],
)
def test_words_that_mean_nothing(run: Run, words: tuple[str, ...], said: str) -> None:
    code, told = run(*words)
    assert code == 2
    assert said in _last(told)


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["run", "celest", "--out", "never"])
    assert raised.value.code == 2
    assert "did you mean 'celeste'?" in capsys.readouterr().err


def test_folders_that_hold_no_field(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, said in ((None, "fields []"), ("frame-r-000042-3-0007.fits", "psField-000042-3-0007.fits")):
        if name:
            (tmp_path / name).write_bytes(b"SIMPLE  = T")
        with pytest.raises(SystemExit) as raised:
            cli.main(["run", "celeste", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
        assert raised.value.code == 3
        assert said in _last(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "value"),
    [("counts", np.nan), ("counts", np.inf), ("sky", np.nan), ("sky", -1.0), ("calibration", 0.0)],
)
def test_valid_pixels_without_numbers(run: Run, simulated_field: Field, name: str, value: float) -> None:
    code, said = run(images=_spoilt(simulated_field, 1, **{name: _corner(value)}))
    assert code == 2
    assert f"image simulated-g: got 9 valid pixels with {name} not finite" in _last(said)


def test_masked_pixels_may_hold_anything(simulated_field: Field) -> None:
    spoilt = _spoilt(simulated_field, 1, counts=_corner(np.nan), sky=_corner(-1.0), valid=_corner(0))
    fields.check_pixels(spoilt)
    Sources.locate(spoilt, np.array([150.0]), np.array([2.0]), np.array([8]))


def test_everything_masked(run: Run, simulated_field: Field) -> None:
    masked = _spoilt(simulated_field, 0, valid=np.zeros_like)
    code, said = run(images=_spoilt(masked, 1, valid=np.zeros_like))
    assert code == 2
    assert "every pixel masked" in _last(said)


@pytest.mark.parametrize(
    ("columns", "code", "said"),
    [
        ({"ra": [np.deg2rad(150.0)], "dec": [np.deg2rad(2.0)]}, 2, "none on field 'simulated'"),
        ({"ra": [150.0], "dec": [95.0]}, 2, "none on field 'simulated'"),
        ({"ra": [np.nan], "dec": [2.0]}, 2, "none on field 'simulated'"),
        ({"x": [20.0], "y": [41.0]}, 3, "expected ra and dec [deg]"),
    ],
)
def test_catalogues_in_other_units(
    run: Run, tmp_path: Path, columns: dict[str, list[float]], code: int, said: str
) -> None:
    Table(columns).write(tmp_path / "given.csv")
    got, told = run("--catalog", tmp_path / "given.csv")
    assert got == code
    assert said in _last(told)
    assert run("--catalog", tmp_path / "nothing.csv")[0] == 3


def test_bands_that_a_given_prior_does_not_have(simulated_field: Field) -> None:
    first, second = simulated_field.images
    renamed = replace(simulated_field, images=(first, replace(second, band="Y")))
    with pytest.raises(InputError, match=r"bands: got \['Y'\]"):
        fit.fit_field(renamed, prior=load_prior())


def test_sources_at_the_edge_and_saturated_are_flagged_rows(
    run: Run, simulated_field: Field, tmp_path: Path
) -> None:
    image = simulated_field.images[0]
    x, y = map(float, simulated_field.meta["star"].split())
    core = np.zeros(image.shape, bool)
    core[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2] = True
    cut = replace(image, saturated=core, valid=image.valid & ~core)
    images = replace(simulated_field, images=(cut, simulated_field.images[1]))
    box = f"0:64,0:{round(float(simulated_field.meta['galaxy'].split()[0])) + 3}"
    assert run("--box", box, images=images)[0] == 0
    table = Table.read(tmp_path / "out" / "catalog.fits")
    table.sort("ra", reverse=True)  # east is left
    assert table["saturated"].tolist()[0]
    assert table["edge"].tolist()[-1]
    assert np.isfinite(table["flux_r"]).all()


def test_a_full_disk_keeps_what_was_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    assert run()[0] == 0
    assert not (out / "checkpoint").exists()
    assert load(out / "posterior.nc").stats["k_hat"]
    before = {path: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_write_fits", full)
        code, said = run()
    assert code == 4
    assert "cannot write" in _last(said)
    assert "No space left" in _last(said)
    assert {path: path.read_bytes() for path in before} == before
    assert any((out / "checkpoint").glob("field.draws-*.npz"))
    assert run()[0] == 0  # goes on from the checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            Checkpoint(tmp_path / "other" / "part.npz", {})
    assert not list((tmp_path / "other").iterdir())


def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "draw_posteriors", stopped)
        code, said = run()
    assert code == 130
    told, last = said.strip().splitlines()[-2:]
    assert "the same command continues it" in told
    assert last == "astrozoo: interrupted"
    assert not (tmp_path / "out" / "catalog.fits").exists()
    code, said = run()
    assert code == 0
    assert "going on with an earlier run" in said


def test_no_permission(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = run(out="file/below")
    assert code == 4
    assert "cannot write into" in _last(said)


def test_thousands_of_sources_are_placed_and_coloured_quickly(simulated_field: Field) -> None:
    rng = np.random.default_rng(0)
    shape = (1500, 2000)
    image = simulated_field.images[0]
    arrays = {
        name: np.broadcast_to(getattr(image, name)[0, 0], shape) for name in ("counts", "sky", "calibration")
    }
    masks = {name: np.broadcast_to(flag, shape) for name, flag in (("valid", True), ("saturated", False))}
    field = Field((replace(image, **arrays, **masks),))
    x, y = rng.uniform(0, shape[1] - 1, 3000), rng.uniform(0, shape[0] - 1, 3000)
    ra, dec = image.wcs.all_pix2world(x, y, 0)
    started = time.process_time()
    sources = Sources.locate(field, ra, dec, half_sizes(rng.gamma(4.0, 0.7, 3000)))
    adjacent = neighbours(sources)
    colour = colouring(adjacent)
    assert time.process_time() - started < 10
    assert all((colour[near] != own).all() for own, near in zip(colour, adjacent, strict=True))
    assert colour.max() < 40
    with pytest.raises(InputError, match="1 of 3000 sources in no image"):
        Sources.locate(field, np.where(np.arange(3000) == 7, ra + 3, ra), dec, sources.half)
