"""Files are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from astrozoo._files import replacing, write_json
from astrozoo.errors import OutputError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as partial:
        partial.write_text("new")
        assert partial.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bad")]
)
def test_what_stood_there_stays_if_writing_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = OutputError if isinstance(error, OSError) else type(error)

    def half_way(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(expected), replacing(path) as partial:
        half_way(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_is_none_is_an_output_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / folder / "a.txt"
    with pytest.raises(OutputError, match="cannot write") as raised, replacing(path) as partial:
        partial.write_text("new")
    assert str(path) in str(raised.value)


def test_json_has_plain_values_and_null_for_numbers_it_lacks(tmp_path: Path) -> None:
    told = {"a": np.array([1.0, np.nan]), "b": {1: (2, float("inf"))}, "c": np.int64(3), "d": Path("x")}
    write_json(told, tmp_path / "a.json")
    held = json.loads((tmp_path / "a.json").read_text())
    assert held == {"a": [1.0, None], "b": {"1": [2, None]}, "c": 3, "d": "x"}
