"""Planes of the PSF's area through simulated stars: against the truth, with outliers, with nothing to see."""

import numpy as np

from astrozoo.survey.celeste.planes import fit_planes


def stars(rng, n, slopes, scatter, error):
    places = np.column_stack((np.ones(n), rng.uniform(-1, 1, (n, 2))))
    sd = rng.uniform(0.5, 1.5, (len(slopes), n)) * error
    delta = slopes @ places.T + np.hypot(scatter, sd) * rng.standard_normal((len(slopes), n))
    return places, delta, sd


def test_planes_and_scatter_are_recovered_in_spite_of_outliers():
    rng = np.random.default_rng(1)
    slopes = np.array([[0.05, 0.02, -0.01], [-0.03, 0.0, 0.02]])
    places, delta, error = stars(rng, 200, slopes, 0.02, 0.02)
    delta[:, :10] += 0.5  # galaxies taken for stars
    found = fit_planes([places, places], delta, error, np.ones(200, bool))
    # 200 stars of about 0.03 each: 0.002 for the mean, 0.004 for the slopes, 5 % for the scatter; four each
    np.testing.assert_allclose(found.slopes, slopes, atol=0.016)
    assert abs(found.scatter - 0.02) < 4 * 0.05 * 0.02 * (0.028 / 0.02) ** 2
    np.testing.assert_allclose(found.error, (error**-2).sum(0) ** -0.5)


def test_what_is_no_star_is_not_asked():
    rng = np.random.default_rng(2)
    places, delta, error = stars(rng, 60, np.zeros((1, 3)), 0.01, 0.01)
    chosen = np.arange(60) < 30
    without = fit_planes([places], delta, error, chosen)
    delta[:, ~chosen] = 9.0
    np.testing.assert_array_equal(fit_planes([places], delta, error, chosen).slopes, without.slopes)


def test_without_stars_nothing_is_corrected():
    places = np.column_stack((np.ones(3), np.zeros((3, 2))))
    found = fit_planes([places], np.full((1, 3), 0.3), np.full((1, 3), np.inf), np.ones(3, bool))
    np.testing.assert_array_equal(found.slopes, 0.0)
    assert found.scatter == 0.02
    assert np.isinf(found.error).all()
