"""What a field says of its sources."""

from __future__ import annotations

import numpy as np
import pytest

from astrozoo.errors import InputError
from astrozoo.survey.crowded.learning import galaxy_counts, integral
from astrozoo.survey.crowded.prior import FieldPrior

_AREA = 9000.0
_LIMITS = (0.7, 3000.0)
_ABOUT = {"bands": "gri", "reference": 1, "area": _AREA, "limits": _LIMITS}


def _stars(n: int, slope: float = 0.6, scatter: float = 0.06, seed: int = 0) -> np.ndarray:
    """Fluxes of dN/dlnf ~ f^-slope, on a locus that is a line."""
    rng = np.random.default_rng(seed)
    log_flux = np.log(_LIMITS[0]) + rng.exponential(1 / slope, 2 * n)
    log_flux = log_flux[log_flux < np.log(_LIMITS[1])][:n]
    ratio = np.stack([-0.6 + 0.08 * log_flux, 0 * log_flux, 0.3 - 0.04 * log_flux], -1)
    return np.exp(log_flux[:, None] + ratio + scatter * np.array([1, 0, 1]) * rng.standard_normal((n, 3)))


def _no_shapes(n: int) -> np.ndarray:
    return np.full((n, 3), np.nan)


def test_density_slope_and_locus_of_a_cluster() -> None:
    flux = _stars(1500)
    prior = FieldPrior.learn(flux, _no_shapes(1500), **_ABOUT)
    assert prior.star.density * _AREA == pytest.approx(1500, rel=0.01)
    knots = prior.star.log_flux
    slope = np.polyfit(knots[:5], prior.star.log_number[:5], 1)[0]
    assert slope == pytest.approx(-0.6, abs=0.06)
    assert integral(knots, prior.star.log_number) == pytest.approx(1, rel=1e-6)
    at = np.array([1.0, 2.0])
    assert prior.star.locus(at)[:, 0] == pytest.approx(-0.6 + 0.08 * at, abs=0.03)
    assert prior.star.locus(at)[:, 1] == pytest.approx(0, abs=1e-12)
    assert np.sqrt(np.diag(prior.star.scatter)) == pytest.approx([0.06, 0.06], abs=0.02)
    assert prior.star_fraction > 0.98


def test_what_is_missing_below_the_completeness_limit_is_extrapolated() -> None:
    flux = _stars(1500)
    bright = flux[flux[:, 1] > 3.0]
    cut = FieldPrior.learn(bright, _no_shapes(len(bright)), complete=3.0, **_ABOUT)
    assert cut.star.density * _AREA == pytest.approx(1500, rel=0.2)
    naive = FieldPrior.learn(bright, _no_shapes(len(bright)), **_ABOUT)
    assert naive.star.density * _AREA < 0.7 * 1500


def test_measurement_errors_do_not_widen_the_locus() -> None:
    flux = _stars(1500)
    rng = np.random.default_rng(1)
    sd = 0.1 * np.sqrt(flux)
    seen = flux * np.exp(sd / flux * rng.standard_normal(flux.shape))
    told = FieldPrior.learn(seen, _no_shapes(1500), flux_sd=sd, **_ABOUT)
    naive = FieldPrior.learn(seen, _no_shapes(1500), **_ABOUT)
    assert np.sqrt(told.star.scatter[0, 0]) == pytest.approx(0.06, abs=0.025)
    assert naive.star.scatter[0, 0] > 1.5 * told.star.scatter[0, 0]


def test_an_outlier_does_not_move_the_locus() -> None:
    flux = _stars(300)
    blue = flux.copy()
    blue[::25, 0] *= 3  # 4 % horizontal-branch stars
    plain, mixed = (FieldPrior.learn(f, _no_shapes(300), **_ABOUT) for f in (flux, blue))
    at = np.array([0.5, 1.5])
    assert mixed.star.locus(at)[:, 0] == pytest.approx(plain.star.locus(at)[:, 0], abs=0.05)


def test_the_hyperprior_decides_where_there_are_few_sources() -> None:
    nothing = FieldPrior.learn(np.zeros((0, 3)), _no_shapes(0), **_ABOUT)
    expected = integral(nothing.galaxy.log_flux, galaxy_counts(nothing.galaxy.log_flux, 0.396))
    assert 0.3 < nothing.galaxy.density / expected < 1  # two were expected, and none seen
    flux = _stars(40)
    shape = np.tile([2.0, 0.1, 0.0], (40, 1))
    many = FieldPrior.learn(flux, shape, **_ABOUT)
    assert 10 < many.galaxy.density * _AREA < 40  # the field is believed, but not at once
    assert np.exp(many.log_radius[0]) == pytest.approx(2, rel=0.1)


def test_draws_of_catalogues_count_by_their_weights() -> None:
    flux = _stars(400)
    once = FieldPrior.learn(flux, _no_shapes(400), **_ABOUT)
    five = FieldPrior.learn(np.tile(flux, (5, 1)), _no_shapes(2000), weight=np.full(2000, 0.2), **_ABOUT)
    assert five.density == pytest.approx(once.density, rel=1e-9)
    assert five.star.scatter == pytest.approx(once.star.scatter, rel=1e-6)


def test_star_fraction() -> None:
    prior = FieldPrior.learn(_stars(100), _no_shapes(100), **_ABOUT)
    half = prior.with_star_fraction(0.5)
    assert half.star_fraction == pytest.approx(0.5)
    assert half.density == pytest.approx(prior.density)
    assert prior.with_star_fraction(1).galaxy.density == 0
    with pytest.raises(InputError, match="between 0 and 1"):
        prior.with_star_fraction(1.5)


def test_the_intensity_integrates_to_the_density() -> None:
    prior = FieldPrior.learn(_stars(300), _no_shapes(300), **_ABOUT).with_star_fraction(0.7)
    rng = np.random.default_rng(2)
    n = 200_000
    low, high = prior.star.log_flux[[0, -1]]
    log_flux = rng.uniform(low, high, n)

    def around(locus: np.ndarray, reach: float) -> np.ndarray:
        deviation = rng.uniform(-reach, reach, (n, 3)) * [1, 0, 1]
        return np.exp(log_flux[:, None] + locus + deviation)

    flux = around(prior.star.locus(log_flux), 0.6)
    star = np.exp(prior.log_intensity(flux, _no_shapes(n))).mean() * (high - low) * 1.2**2
    assert star == pytest.approx(prior.star.density, rel=0.05)
    mean, sd = prior.log_radius
    log_radius, e = rng.uniform(mean - 5 * sd, mean + 5 * sd, n), rng.uniform(-2.5, 2.5, (n, 2))
    shape = np.column_stack([np.exp(log_radius), e])
    flux = around(prior.galaxy.locus(log_flux), 3.0)
    galaxy = np.exp(prior.log_intensity(flux, shape)).mean() * (high - low) * 6**2 * 10 * sd * 5**2
    assert galaxy == pytest.approx(prior.galaxy.density, rel=0.1)


def test_bands_without_a_survey_prior_and_bad_input() -> None:
    prior = FieldPrior.learn(
        np.ones((5, 2)), _no_shapes(5), bands=("VIS", "Y"), reference=0, area=_AREA, limits=_LIMITS
    )
    assert np.isfinite(prior.log_intensity(np.full((1, 2), 2.0), _no_shapes(1))).all()
    with pytest.raises(InputError, match="not positive"):
        FieldPrior.learn(np.zeros((2, 3)), _no_shapes(2), **_ABOUT)
    with pytest.raises(InputError, match=r"\[s, 3\]"):
        FieldPrior.learn(np.ones((2, 2)), _no_shapes(2), **_ABOUT)
    with pytest.raises(InputError, match="ascending"):
        FieldPrior.learn(np.ones((2, 3)), _no_shapes(2), **(_ABOUT | {"limits": (2.0, 1.0)}))
