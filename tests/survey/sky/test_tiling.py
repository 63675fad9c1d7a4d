"""Two tilings of the sky: each position is in one box, and their sides are apart."""

from __future__ import annotations

import numpy as np
import pytest

from astrozoo.errors import InputError
from astrozoo.survey.sky.tiling import LEVELS, Box, Tiling, divide

_SKY = np.random.default_rng(0)


def _positions(n: int) -> tuple[np.ndarray, np.ndarray]:
    return _SKY.uniform(0, 360, n), np.rad2deg(np.arcsin(_SKY.uniform(-1, 1, n)))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("height", [0.2, 7.0])
def test_every_position_is_in_one_box(height, shifted):
    tiling = Tiling(height, shifted)
    ra, dec = _positions(300)
    ra[:4], dec[:4] = (0.0, 360.0, 359.9999999, 180.0), (-90.0, 90.0, 0.0, -1e-12)
    places = tiling.places(ra, dec)
    weight = _SKY.uniform(0.5, 2, len(ra))
    boxes = divide(places, lambda rows: weight[rows].sum(), 2.0)
    assert sum(tiling.contains(box, ra, dec).astype(int) for box in boxes).tolist() == [1] * len(ra)
    assert len({box.number for box in boxes}) == len(boxes)
    assert all(Box.named(box.name) == box for box in boxes)
    for box in boxes:
        inside = tiling.contains(box, ra, dec)
        assert weight[inside].sum() <= 2.0 or box.level == LEVELS
        assert tiling.near(box, ra[inside], dec[inside], 1e-9).all()


def test_positions_on_the_sides_of_boxes_are_in_one_box():
    tiling = Tiling(0.5)
    boxes = [Box(180, 3), *Box(180, 3).parts, Box(180, 4), Box(181, 3), Box(181, 4), Box(179, 3)]
    leaves = [box for box in boxes if box != Box(180, 3)]
    ra0, width, low, high = tiling.bounds(Box(180, 3))
    ra = np.array([ra0, ra0 + width / 2, ra0 + width, ra0 + width / 2, ra0])
    dec = np.array([(low + high) / 2, low, (low + high) / 2, high, (low + high) / 2])
    counts = sum(tiling.contains(box, ra, dec).astype(int) for box in leaves)
    # the cell to the west, and those of the next zones, are not all among the leaves
    assert counts.max() == 1
    assert counts[0] == counts[1] == counts[2] == 1


def test_sides_of_the_two_tilings_are_apart():
    first, second = Tiling(0.4), Tiling(0.4, shifted=True)
    for level in (0, 1, 2, 3):
        side = 0.4 / 2**level
        lows = {first.bounds(Box(200, 1, level, row, 0))[2] for row in range(2**level)}
        others = [
            second.bounds(Box(zone, 1, level, row, 0))[2]
            for zone in (199, 200, 201)
            for row in range(2**level)
        ]
        apart = [abs(low - other) for low in lows for other in others]
        assert min(apart) > 0.99 * side / 3


def test_margin_is_an_angle_on_the_sky_and_crosses_zero():
    tiling = Tiling(0.5)
    box = Box(int((60 + 90) / 0.5), 0)
    ra0, width, low, high = tiling.bounds(box)
    assert ra0 == 0
    aside = 0.1 / np.cos(np.deg2rad(60))
    ra = np.array([360 - 0.9 * aside, 360 - 1.2 * aside, width + 0.9 * aside, width + 1.2 * aside])
    near = tiling.near(box, ra, np.full(4, (low + high) / 2), 0.1)
    assert near.tolist() == [True, False, True, False]


def test_heights_that_numbers_of_boxes_have_no_room_for_are_refused():
    with pytest.raises(InputError, match=r"0\.05 to 30"):
        Tiling(0.01)
