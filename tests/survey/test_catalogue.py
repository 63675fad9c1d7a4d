"""Catalogues written and read back, and positions read from tables of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Column, Table

from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.errors import DataError, InputError, OutputError
from astrozoo.survey.catalogue import read_sources, write_catalogue

Scene = tuple[Field, Table]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate_field(n_sources=8, seed=3, shape=(96, 96), r_range=(16, 20), min_separation=12)


@pytest.fixture
def table() -> Table:
    """A few columns, with the units and descriptions that catalogues have."""
    flux = Column(
        [1.5, 20.0], unit=units.Unit("nmgy"), description="flux in r [nanomaggy = 3.631 microjansky]"
    )
    covariance = Column([0.1, np.nan], unit=units.mas**2, description="covariance of ra cos(dec) and dec")
    return Table({"id": [1, 2], "flux_r": flux, "ra_dec_cov": covariance})


def test_written_and_read_back(table: Table, tmp_path: Path) -> None:
    path = write_catalogue(table, tmp_path / "catalog.fits")
    back = Table.read(path)
    assert back.colnames == table.colnames
    for name in table.colnames:
        np.testing.assert_array_equal(np.ma.filled(back[name], np.nan), np.asarray(table[name]))
    assert back["ra_dec_cov"].unit == units.mas**2
    header = fits.getheader(path, 1)
    column = table.colnames.index("flux_r") + 1
    assert f"TUNIT{column}" not in header
    assert "nanomaggy" in header[f"TCOMM{column}"]
    path = write_catalogue(table, tmp_path / "catalog.parquet")
    back = Table.read(path)
    np.testing.assert_array_equal(back["flux_r"], table["flux_r"])
    assert str(back["flux_r"].unit) == "nmgy"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.fits", "catalog.parquet"]


@pytest.mark.parametrize("name", ["catalog.fits", "catalog.parquet"])
def test_a_folder_that_is_not_there(table: Table, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_catalogue(table, tmp_path / "missing" / name)


def test_a_name_that_tells_no_format(table: Table, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in \.fits or \.parquet"):
        write_catalogue(table, tmp_path / "catalog.txt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_what_was_there(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "catalog.fits"
    path.write_text("of an earlier run")
    (tmp_path / ".catalog.partial.fits").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        write_catalogue(table, path)
    assert [p.name for p in tmp_path.iterdir()] == ["catalog.fits"]
    assert path.read_text() == "of an earlier run"


def test_given_sources_are_those_on_the_field(scene: Scene, tmp_path: Path) -> None:
    images, truth = scene
    rows = Table({"RA": truth["ra"], "DEC": truth["dec"], "mag": np.arange(len(truth))})
    rows.add_row((190.0, -0.5, 1))  # the far side of the sky
    rows.add_row((11.0, 0.5, 1))
    rows.write(tmp_path / "given.csv")
    found = read_sources(tmp_path / "given.csv", images)
    assert list(found["id"]) == list(range(1, len(truth) + 1))
    np.testing.assert_allclose(found["ra"], truth["ra"])
    rows["ID"] = np.arange(100, 100 + len(rows))
    rows[::-1].write(tmp_path / "given.fits")
    assert found["id"][0] == 1
    assert list(read_sources(tmp_path / "given.fits", images)["id"]) == list(range(99 + len(truth), 99, -1))


def test_positions_in_every_unit_and_name(scene: Scene, tmp_path: Path) -> None:
    images, truth = scene
    ra, dec = (np.asarray(truth[name], float) for name in ("ra", "dec"))
    sky = SkyCoord(ra, dec, unit="deg")
    hours = sky.ra.hour * units.hourangle
    letters = [text.split() for text in sky.to_string("hmsdms", precision=6)]
    colons = [text.split() for text in sky.to_string("hmsdms", sep=":", precision=6)]
    tables = {
        "hours.ecsv": Table({"ra": hours, "dec": dec * units.deg}),
        "hours.csv": Table({"ra_hours": hours.value, "dec_deg": dec}),
        "radians.fits": Table(
            {"coord_ra": np.deg2rad(ra) * units.rad, "coord_dec": np.deg2rad(dec) * units.rad}
        ),
        "radians.csv": Table({"ra_rad": np.deg2rad(ra), "dec_rad": np.deg2rad(dec)}),
        "names.fits": Table({"RAJ2000": ra * units.deg, "DEJ2000": dec * units.deg}),
        "sextractor.csv": Table({"ALPHA_J2000": ra, "DELTA_J2000": dec}),
        "letters.csv": Table({"ra": [t[0] for t in letters], "dec": [t[1] for t in letters]}),
        "colons.csv": Table({"ra": [t[0] for t in colons], "dec": [t[1] for t in colons]}),
        "texts.fits": Table({"ra": [t[0] for t in colons], "dec": [f"{d:.9f}" for d in dec]}),
        "arcsec.ecsv": Table({"ra": ra * 3600 * units.arcsec, "dec": dec * 60 * units.arcmin}),
    }  # fmt: skip
    for name, table in tables.items():
        table.write(tmp_path / name)
        found = read_sources(tmp_path / name, images)
        np.testing.assert_allclose(found["ra"], ra, rtol=0, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(found["dec"], dec, rtol=0, atol=1e-7, err_msg=name)


def test_positions_that_are_not_in_degrees_are_named(scene: Scene, tmp_path: Path) -> None:
    images, truth = scene
    ra, dec = (np.asarray(truth[name], float) for name in ("ra", "dec"))
    Table({"ra": ra / 15, "dec": dec}).write(tmp_path / "hours.csv")
    with pytest.raises(InputError, match=f"{len(ra)} would be in other units: name the columns ra_hours"):
        read_sources(tmp_path / "hours.csv", images)
    Table({"ra": np.deg2rad(ra), "dec": np.deg2rad(dec)}).write(tmp_path / "radians.csv")
    with pytest.raises(InputError, match="name the columns ra_rad and dec_rad"):
        read_sources(tmp_path / "radians.csv", images)
    Table({"ra": ["10:61:00"], "dec": [2.0]}).write(tmp_path / "minutes.csv")
    with pytest.raises(DataError, match=r"ra: got '10:61:00', expected an angle such as"):
        read_sources(tmp_path / "minutes.csv", images)
    Table({"ra": ra * units.s, "dec": dec}).write(tmp_path / "seconds.ecsv")
    with pytest.raises(DataError, match="the unit s, expected deg, hourangle or rad"):
        read_sources(tmp_path / "seconds.ecsv", images)


def test_given_sources_that_cannot_be_used(scene: Scene, tmp_path: Path) -> None:
    images, _ = scene
    with pytest.raises(DataError, match=r"missing\.fits"):
        read_sources(tmp_path / "missing.fits", images)
    (tmp_path / "text.fits").write_text("no table")
    with pytest.raises(DataError, match=r"text\.fits"):
        read_sources(tmp_path / "text.fits", images)
    Table({"x": [1.0]}).write(tmp_path / "pixels.csv")
    with pytest.raises(DataError, match="ra and dec"):
        read_sources(tmp_path / "pixels.csv", images)
    Table({"ra": [200.0], "dec": [80.0]}).write(tmp_path / "elsewhere.csv")
    with pytest.raises(InputError, match="none on field"):
        read_sources(tmp_path / "elsewhere.csv", images)
