"""Parts of the work on a field: kept whole, taken up again, refused where they are of something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astrozoo.data.images import Field, GaussianMixture
from astrozoo.data.psf import MixturePsf
from astrozoo.errors import DataError, InputError, OutputError
from astrozoo.survey import checkpoint as checkpointing
from astrozoo.survey.checkpoint import Checkpoint, fingerprint

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
