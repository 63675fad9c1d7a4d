"""Two stars that detection takes for one source."""

import numpy as np
from astropy.table import Table

from astrozoo.data.simulate import simulate_field
from astrozoo.survey.celeste.fit import fit_field
from astrozoo.survey.detect import detect


def test_two_stars_at_3_px_are_two_stars():
    truth = Table({"is_star": [True] * 4, "x": [24.0, 26.6, 60.0, 24.0], "y": [24.0, 25.5, 24.0, 60.0]})
    for name in ("radius", "axis_ratio", "angle", "dev_fraction"):
        truth[name] = np.nan
    for band in "gri":
        truth[f"flux_{band}"] = [60.0, 30.0, 50.0, 40.0]
    images, _ = simulate_field(sources=truth, seed=3, shape=(84, 84), bands="gri")
    assert len(detect(images)) == 3
    fit = fit_field(images, draws=64, progress=False, max_sweeps=8)
    flux = np.exp(np.median(fit.draws["log_flux"], 1))
    assert (fit.p_star > 0.99).all()
    np.testing.assert_allclose(np.sort(flux), [30, 40, 50, 60], rtol=0.1)


def test_two_stars_at_1_px_are_one_source_that_is_marked():
    truth = Table({"is_star": [True] * 4, "x": [24.0, 24.8, 60.0, 24.0], "y": [24.0, 24.6, 24.0, 60.0]})
    for name in ("radius", "axis_ratio", "angle", "dev_fraction"):
        truth[name] = np.nan
    for band, relative in zip("gri", (0.655, 1.0, 1.17), strict=True):  # of a star of average colour
        truth[f"flux_{band}"] = relative * np.array([60.0, 20.0, 80.0, 40.0])
    images, _ = simulate_field(sources=truth, seed=3, shape=(84, 84), bands="gri")
    fit = fit_field(images, draws=64, progress=False, max_sweeps=8)
    assert len(fit.detections) == 3
    pair = np.hypot(fit.detections["x"] - 24.2, fit.detections["y"] - 24.15) < 3
    assert list(fit.flags["maybe_double"]) == list(pair)
