"""Masked cores of stars are filled for detection; other holes are not."""

import numpy as np
import pytest
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field, with_holes
from astrozoo.survey.cores import fill_cores
from astrozoo.survey.detect import detect
from astrozoo.survey.flags import position_flags


@pytest.fixture(scope="module")
def star():
    """A star of 2,000 nMgy at (30, 33) and one of 40 at (55, 20)."""
    table = Table({"is_star": [True, True], "x": [30.0, 55.0], "y": [33.0, 20.0]})
    for name in ("radius", "axis_ratio", "angle", "dev_fraction"):
        table[name] = np.nan
    for band in "gr":
        table[f"flux_{band}"] = [2000.0, 40.0]
    return simulate_field(sources=table, seed=2, shape=(64, 80), bands="gr")[0]


def holed(images, x, y, radius, marked):
    """Pixels within a radius [px] of a position have no value."""
    ra, dec = images.images[1].wcs.all_pix2world(x, y, 0)
    holes = []
    for image in images:
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        x0, y0 = image.wcs.all_world2pix(ra, dec, 0)
        holes.append(np.hypot(columns - x0, rows - y0) < radius)
    return with_holes(images, holes, saturated=marked)


@pytest.mark.parametrize("marked", [True, False])
def test_a_star_without_a_core_is_one_source_at_its_place(star, marked):
    table = detect(holed(star, 30, 33, 4.0, marked))
    assert len(table) == 2
    bright = table[np.argmax(table["flux_r"])]
    assert np.hypot(bright["x"] - 30, bright["y"] - 33) < 0.5
    assert bright["saturated"]
    assert not bright["edge"]
    flagged = position_flags(holed(star, 30, 33, 4.0, marked), table)["no_core"]
    assert list(flagged) == list(table["saturated"])


@pytest.mark.parametrize(("x", "y"), [(15, 10), (36, 33)])
def test_holes_in_the_sky_and_on_the_flank_of_a_star_stay_holes(star, x, y):
    for image in holed(star, x, y, 2.5, marked=False):
        assert fill_cores(image) is image


def test_a_field_without_holes_is_left_as_it_is(star):
    assert all(fill_cores(image) is image for image in star)
    assert isinstance(star, Field)
