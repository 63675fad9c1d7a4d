"""Catalogues by HEALPix: every row once, few enough rows in a file, and a layout that LSDB opens."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astrozoo.errors import OutputError
from astrozoo.survey.sky.hats import HEALPIX, healpix, partition, write_hats

_LSDB = """
import sys
import lsdb
import numpy as np

catalog = lsdb.open_catalog(sys.argv[1])
cone = catalog.cone_search(ra=10.0, dec=0.5, radius_arcsec=1000).compute()
np.save(sys.argv[2], np.sort(cone["id"].to_numpy(np.int64)))
np.save(sys.argv[3], np.sort(catalog.compute()["id"].to_numpy(np.int64)))
"""


@pytest.fixture
def parts(tmp_path):
    """Files of boxes with 5,000 sources in all; the second has a column that the first lacks."""
    rng = np.random.default_rng(0)
    ra, dec = rng.normal(10, 0.5, 5000) % 360, rng.normal(0.5, 0.5, 5000)
    paths = []
    for k, rows in enumerate((slice(0, 3000), slice(3000, 5000))):
        columns = {"id": np.arange(5000)[rows], "ra": ra[rows], "dec": dec[rows]}
        columns[HEALPIX] = healpix(ra[rows], dec[rows])
        if k:
            columns["flux_z"] = dec[rows]
        paths.append(tmp_path / f"{k}.parquet")
        pq.write_table(pa.table(columns), paths[-1])
    return paths, ra, dec


def test_pixels_nest():
    ra, dec = np.array([10.0, 200.0, 359.9]), np.array([0.5, -89.0, 45.0])
    assert (healpix(ra, dec) >> 2 * (29 - 5) == healpix(ra, dec, 5)).all()
    assert healpix(np.array([0.0, 45.0, 45.0]), np.array([0.0, 41.0, -41.0]), 0).tolist() == [4, 0, 8]


def test_files_have_few_rows_and_all_rows_are_in_one(parts):
    _, ra, dec = parts
    pixels = healpix(ra, dec)
    files = partition(pixels, 300)
    counts = [(pixels >> 2 * (29 - order) == pixel).sum() for order, pixel in files]
    assert sum(counts) == len(pixels)
    assert max(counts) <= 300
    assert len(files) > 16
    assert partition(pixels[:0]) == []


def test_rows_at_one_place_end_the_division():
    assert len(partition(np.full(10, 12345678901), 3)) == 1


def test_lsdb_opens_it_and_a_cone_search_is_that_of_the_table(parts, tmp_path):
    paths, ra, dec = parts
    assert write_hats(paths, tmp_path / "catalog", "test", rows=300) == 5000
    cone, every = tmp_path / "cone.npy", tmp_path / "all.npy"
    subprocess.run([sys.executable, "-c", _LSDB, tmp_path / "catalog", cone, every], check=True)
    vectors = [np.stack((np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d))) for r, d in (
        np.deg2rad((ra, dec)), np.deg2rad(np.array(((10.0,), (0.5,)))),
    )]  # fmt: skip
    near = np.rad2deg(np.arccos(np.clip(vectors[1].T @ vectors[0], -1, 1)))[0] * 3600 < 1000
    assert near.sum() > 100
    assert np.load(cone).tolist() == np.flatnonzero(near).tolist()
    assert np.load(every).tolist() == list(range(5000))


def test_what_was_there_is_replaced_only_by_a_whole_catalogue(parts, tmp_path):
    paths, _, _ = parts
    folder = tmp_path / "catalog"
    write_hats(paths, folder, "test")
    assert not (folder / "dataset" / "Norder=1").exists()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises((OutputError, pa.ArrowInvalid)):
        write_hats([*paths, tmp_path / "broken.parquet"], folder, "test")
    assert sum(pq.read_metadata(f).num_rows for f in folder.glob("dataset/*/*/Npix=*")) == 5000
    assert not list(tmp_path.glob(".catalog*"))
