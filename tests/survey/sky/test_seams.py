"""What two boxes have both seen is kept once."""

from __future__ import annotations

import numpy as np

from astrozoo.survey.sky.seams import SAME, kept

_ARCSEC = 1 / 3600


def _kept(*boxes: list[tuple[float, float, bool]]) -> list[list[bool]]:
    """Sources as (east, north) of (120, 40) deg [arcsec], and whether each is inside its box."""
    scale = np.array((_ARCSEC / np.cos(np.deg2rad(40)), _ARCSEC))
    positions = [np.array([row[:2] for row in box]).reshape(-1, 2) * scale + (120, 40) for box in boxes]
    inside = [np.array([row[2] for row in box], bool) for box in boxes]
    return [keep.tolist() for keep in kept(positions, inside)]


def test_a_source_that_moves_over_the_seam_is_kept_once():
    # the seam is at east = 0; the first box is west of it
    assert _kept([(-0.2, 0, True)], [(-0.3, 0, False)]) == [[True], [False]]
    assert _kept([(0.1, 0, False)], [(0.2, 0, True)]) == [[False], [True]]
    # both see it inside, or neither does
    assert _kept([(-0.2, 0, True)], [(0.2, 0, True)]) == [[True], [False]]
    assert _kept([(0.2, 0, False)], [(-0.2, 0, False)]) == [[True], [False]]


def test_the_box_that_has_a_place_inside_decides_what_is_there():
    assert _kept([(0.5, 0, False)], []) == [[False], []]
    assert _kept([(-0.5, 0, True)], []) == [[True], []]


def test_a_pair_on_the_seam_stays_a_pair():
    pair = [(-0.3, 0, True), (0.4, 0, False)]
    other = [(-0.25, 0, False), (0.45, 0, True)]
    assert _kept(pair, other) == [[True, False], [False, True]]


def test_at_a_corner_four_boxes_keep_one():
    seen = [[(0.1 * k, 0.1, k == 2)] for k in range(4)]
    assert _kept(*seen) == [[False], [False], [True], [False]]
    assert _kept(*[[(0.1 * k, 0.1, False)] for k in range(4)]) == [[True], [False], [False], [False]]


def test_sources_farther_apart_than_the_limit_are_two():
    far = SAME + 0.1
    assert _kept([(-far / 2, 0, True)], [(far / 2, 0, True)]) == [[True], [True]]


def test_every_source_of_a_crowd_is_kept_once():
    """Positions scatter by a tenth of an arcsecond between boxes; the seam is a line of sources."""
    rng = np.random.default_rng(1)
    truth = np.stack((rng.uniform(-3, 3, 400), np.arange(400) * 3.0), -1)
    boxes = []
    for west in (True, False):
        seen = truth + 0.1 * rng.standard_normal(truth.shape)
        boxes.append([(x, y, bool((x < 0) == west)) for x, y in seen])
    keep = _kept(*boxes)
    assert (np.array(keep).sum(0) == 1).all()


def test_no_sources():
    assert _kept([], []) == [[], []]
