"""Whether a field is crowded."""

from __future__ import annotations

import numpy as np
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.survey.crowded.density import CROWDED, crowding


def _at(images: Field, x: np.ndarray, y: np.ndarray) -> Table:
    ra, dec = images.images[0].wcs.all_pix2world(x, y, 0)
    return Table({"ra": ra, "dec": dec})


def test_density_is_per_area_of_the_psf(simulated_field: Field) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 63, (2, 100))
    measured = crowding(simulated_field, _at(simulated_field, x, y))
    assert measured.density == 100 / 64**2 * measured.area
    assert measured.crowded
    assert "above" in str(measured)
    few = crowding(simulated_field, _at(simulated_field, x[:5], y[:5]))
    assert few.density < CROWDED
    assert not few.crowded
    assert not crowding(simulated_field, _at(simulated_field, x[:0], y[:0])).crowded
