"""Parts of a run: saved whole, loaded as they were, refused where they are of another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from astrozoo import checkpoint as checkpointing
from astrozoo.checkpoint import Checkpoint
from astrozoo.errors import DataError, InputError, OutputError

HEADER = {"digest": "abc"}


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "folder" / "run.npz", HEADER)
    part = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False]), "n": np.asarray(3)}
    assert checkpoint.load("part") is None
    checkpoint.save(part, "part")
    loaded = Checkpoint(tmp_path / "folder" / "run.npz", HEADER).load("part")
    assert loaded is not None
    assert set(loaded) == set(part)
    for name, value in part.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"run.npz", "run.part.npz"}


def test_without_a_path_nothing_is_saved() -> None:
    checkpoint = Checkpoint(None, HEADER)
    checkpoint.save({"a": np.zeros(1)}, "part")
    assert checkpoint.load("part") is None
    assert not checkpoint.due


def test_work_of_another_run_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run.npz", HEADER)
    with pytest.raises(InputError, match="digest abc, expected digest abd"):
        Checkpoint(tmp_path / "run.npz", {"digest": "abd"})


@pytest.mark.parametrize("cut", [0, 3, 100, -20])
def test_a_truncated_part_is_named(tmp_path: Path, cut: int) -> None:
    checkpoint = Checkpoint(tmp_path / "run.npz", HEADER)
    checkpoint.save({"a": np.arange(1000.0)}, "part")
    path = tmp_path / "run.part.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"part\.npz.*unreadable"):
        checkpoint.load("part")


def test_a_disk_that_fills_up_leaves_the_last_whole_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "run.npz", HEADER)
    checkpoint.save({"a": np.ones(3)}, "part")

    def full(file: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoint.save({"a": np.zeros(3)}, "part")
    loaded = checkpoint.load("part")
    assert loaded is not None
    np.testing.assert_array_equal(loaded["a"], 1)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        Checkpoint(tmp_path / "file" / "kept" / "run.npz", HEADER)
