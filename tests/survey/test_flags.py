"""Flags of sources by where they lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.survey.flags import POSITION_FLAGS, position_flags


def test_flags_of_sources_that_were_not_detected_but_given() -> None:
    field, truth = simulate_field(n_sources=8, seed=3, shape=(96, 96), r_range=(16, 20), min_separation=12)
    given = Table({"ra": truth["ra"], "dec": truth["dec"]})
    x, y = round(truth["x"][4]), round(truth["y"][4])
    images = []
    for image in field:
        saturated, valid = image.saturated.copy(), image.valid.copy()
        if image.band == "r":
            saturated[y, x + 2], valid[y, x + 2] = True, False
        images.append(replace(image, saturated=saturated, valid=valid))
    given["dec"][5], given["ra"][5] = given["dec"][6] + 3 / 3600, given["ra"][6]
    flags = position_flags(Field(tuple(images)), given)
    assert list(flags) == list(POSITION_FLAGS)
    assert list(np.flatnonzero(flags["saturated"])) == [4]
    assert flags["blended"][5]
    assert flags["blended"][6]


def test_flags_of_detection_stand() -> None:
    field, truth = simulate_field(n_sources=2, seed=3, shape=(64, 64), min_separation=12)
    detected = Table({"ra": truth["ra"], "dec": truth["dec"], "edge": [True, False]})
    assert list(position_flags(field, detected)["edge"]) == [True, False]
