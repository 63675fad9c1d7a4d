"""Fixtures of the tests of survey/ and survey/celeste/."""

from __future__ import annotations

import numpy as np
import pytest

from astrozoo.survey.partition import Sources


@pytest.fixture
def located(simulated_field):
    field = simulated_field[0] if isinstance(simulated_field, tuple) else simulated_field
    ny, nx = field.images[0].shape
    xy = np.array([[nx / 2 + 0.3, ny / 2 - 0.2], [0.4, 1.2], [nx / 2 + 6, ny / 2]])
    ra, dec = field.images[0].wcs.all_pix2world(xy, 0).T
    return field, Sources.locate(field, ra, dec, np.array([8, 8, 8])), xy
