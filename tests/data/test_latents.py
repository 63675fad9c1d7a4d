"""Tables of latents: every format, and tables that are damaged or incomplete."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.table import Table
from safetensors.numpy import save_file

from astrozoo.data.latents import LatentTable, read_latents
from astrozoo.errors import DataError, InputError

RNG = np.random.default_rng(0)
COLUMNS = {
    "mean": RNG.normal(size=(6, 3)).astype(np.float32),
    "sd": RNG.uniform(0.1, 1, (6, 3)).astype(np.float32),
    "redshift": RNG.uniform(0, 1, 6).astype(np.float32),
    "half_light_radius": RNG.uniform(0.1, 1, 6).astype(np.float32),
}


def _write(folder, suffix, columns):
    path = folder / f"latents{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    elif suffix == ".safetensors":
        save_file(columns, path)
    else:
        Table(columns).write(path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".fits", ".fits.gz"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    path = _write(tmp_path, suffix, COLUMNS)
    table = read_latents(path, ["half_light_radius", "redshift"])
    np.testing.assert_array_equal(table.mean.numpy(), COLUMNS["mean"])
    np.testing.assert_array_equal(table.sd.numpy(), COLUMNS["sd"])
    np.testing.assert_array_equal(table.conditions[:, 1].numpy(), COLUMNS["redshift"])
    assert table.names == ("half_light_radius", "redshift")
    assert set(read_latents(path).names) == {"half_light_radius", "redshift"}


def test_words_beside_the_numbers_are_no_conditions(tmp_path):
    path = _write(tmp_path, ".fits", {**COLUMNS, "name": np.array(list("abcdef"))})
    assert set(read_latents(path).names) == {"redshift", "half_light_radius"}


def test_rows_columns_and_draws():
    table = LatentTable(torch.zeros(5, 2), torch.ones(5, 2), torch.arange(10.0).reshape(5, 2), ("a", "b"))
    assert len(table[1:4]) == 3
    assert table.only(["b"]).conditions.flatten().tolist() == [1, 3, 5, 7, 9]
    draws = [table.draw(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(InputError, match="no c"):
        table.only(["c"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sd": None}, "no sd"),
        ({"sd": COLUMNS["sd"][:, :2]}, "mean"),
        ({"sd": -COLUMNS["sd"]}, "0 or less in 6 rows"),
        ({"mean": COLUMNS["mean"] * np.nan}, "not finite in 6 of 6 rows"),
        ({"redshift": COLUMNS["redshift"] * np.inf}, "redshift"),
        ({"redshift": COLUMNS["redshift"][:4]}, "lengths"),
        ({"mean": COLUMNS["mean"][:0], "sd": COLUMNS["sd"][:0], **dict.fromkeys(list(COLUMNS)[2:])}, "mean"),
    ],
)
def test_incomplete_tables_are_refused(tmp_path, columns, message):
    merged = {name: column for name, column in {**COLUMNS, **columns}.items() if column is not None}
    path = _write(tmp_path, ".npz", merged)
    with pytest.raises(DataError, match=message):
        read_latents(path)


def test_damaged_missing_and_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_latents(tmp_path / "none.npz")
    for suffix in (".npz", ".safetensors", ".fits"):
        path = _write(tmp_path, suffix, COLUMNS)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError):
            read_latents(path)
    other = tmp_path / "latents.txt"
    other.write_text("1 2 3")
    with pytest.raises(DataError, match=r"\.npz"):
        read_latents(other)
    with pytest.raises(DataError, match="no column colour"):
        read_latents(_write(tmp_path, ".npz", COLUMNS), ["colour"])
