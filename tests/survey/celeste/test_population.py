"""The fraction of stars and the luminosity functions of a field, from simulated evidences."""

from dataclasses import replace

import numpy as np
import pytest

from astrozoo.models.celeste import load_prior
from astrozoo.survey.celeste.population import Fluxes, learn

TRUE = {"mean": np.array([2.0, 1.0]), "sd": np.array([0.6, 1.2])}


def field(n, star_fraction, seed=0):
    """Sources of known types; some log fluxes and types are hardly measured."""
    prior, rng = load_prior(), np.random.default_rng(seed)
    star = rng.random(n) < star_fraction
    kind = star.astype(int)
    log_flux = TRUE["mean"][kind] + TRUE["sd"][kind] * rng.standard_normal(n)
    sd = rng.uniform(0.05, 1.0, n)
    seen = log_flux + sd * rng.standard_normal(n)
    # log likelihood ratio of a star by shape: a normal of mean 2 and variance 4 for stars, -2 for galaxies
    lead = np.where(star, 2.0, -2.0) + 2.0 * rng.standard_normal(n)
    mean, variance = (np.repeat(x[:, None], 2, 1) for x in (seen, sd**2))
    spread = variance + np.array(prior.log_flux_sd) ** 2
    evidence = np.column_stack((np.zeros(n), lead)) + np.log([1 - prior.prob_star, prior.prob_star])
    evidence += -0.5 * (np.log(spread) + (mean - np.array(prior.log_flux_mean)) ** 2 / spread)
    return prior, Fluxes(evidence, mean, variance), star


@pytest.mark.parametrize("star_fraction", [0.1, 0.95])
def test_a_field_of_many_sources_says_what_they_are(star_fraction):
    prior, fluxes, star = field(4000, star_fraction)
    learned = learn(prior, fluxes)
    assert abs(learned.prob_star - star.mean()) < 4 * np.sqrt(0.25 / 4000) + 20 / 4000
    for kind, count in enumerate((sum(~star), sum(star))):
        away = abs(learned.log_flux_mean[kind] - prior.log_flux_mean[kind])
        assert away > 0.5 * abs(TRUE["mean"][kind] - prior.log_flux_mean[kind])
        if count < 1000:  # the 20 sources of the prior, and doubtful types, keep it from the truth
            continue
        assert abs(learned.log_flux_mean[kind] - TRUE["mean"][kind]) < 6 * TRUE["sd"][kind] / np.sqrt(count)
        assert abs(np.log(learned.log_flux_sd[kind] / TRUE["sd"][kind])) < 6 / np.sqrt(2 * count) + 20 / count


def test_a_few_sources_leave_the_survey_s_prior():
    prior, fluxes, _ = field(3, 1.0)
    learned = learn(prior, fluxes)
    assert abs(learned.prob_star - prior.prob_star) < 3 / 23
    assert np.abs(np.subtract(learned.log_flux_mean, prior.log_flux_mean)).max() < 0.3
    none = Fluxes(*(part[:0] for part in fluxes))
    assert learn(prior, none) == prior


def test_a_fraction_that_is_given_is_kept():
    prior, fluxes, _ = field(1000, 0.9)
    given = replace(prior, prob_star=0.3)
    assert learn(given, fluxes, star_fraction=0.3).prob_star == 0.3
