from dataclasses import replace

import numpy as np
import pytest

from astrozoo.survey.crowded import births as births_module
from astrozoo.survey.crowded.births import births, significances, weakest
from astrozoo.survey.crowded.joint import Prior, Stars, _Step, _System, far_light, improve, linearise
from astrozoo.survey.crowded.locus import first_locus, learn_locus
from astrozoo.survey.crowded.uncertainty import standard_deviations


@pytest.fixture(scope="module")
def start(scene, truth):
    xy, flux = truth
    rng = np.random.default_rng(1)
    return Stars(
        np.log(flux) + rng.normal(0, 0.2, flux.shape),
        xy + rng.normal(0, 0.2, xy.shape),
        np.zeros((2, 3)),
        np.full((len(xy), 3), np.nan),
    )


@pytest.fixture(scope="module")
def prior(scene, start):
    return Prior(first_locus(scene), start.xy + 0.1, np.full(len(start), 0.5))


@pytest.fixture(scope="module")
def fitted(scene, start):
    return improve(scene, start, Prior(first_locus(scene)), 20)


def _along(stars, step, length):
    return replace(
        stars,
        log_flux=stars.log_flux + length * step.log_flux,
        xy=stars.xy + length * step.xy,
        planes=stars.planes + length * step.planes,
    )


def test_gradient_is_that_of_finite_differences(scene, start, prior):
    rng = np.random.default_rng(2)
    far = far_light(scene, start)
    model = linearise(scene, start, far)
    system = _System(scene, start, model, prior)
    assert (prior.locus.coefficients[:, 1:] == 0).all()  # the gradient leaves out the slope of the locus
    for _ in range(3):
        step = _Step(rng.normal(size=(25, 2)), rng.normal(size=(25, 2)), rng.normal(size=(2, 3)))
        costs = []
        for length in (-1e-5, 1e-5):
            moved = _along(start, step, length)
            costs.append(0.5 * linearise(scene, moved, far).chi2(model.weight) + prior.cost(moved))
        assert -(costs[1] - costs[0]) / 2e-5 == pytest.approx(system.gradient.dot(step), rel=1e-4)


def test_products_are_symmetric_and_the_step_solves_the_system(scene, start, prior):
    rng = np.random.default_rng(3)
    model = linearise(scene, start, far_light(scene, start))
    system = _System(scene, start, model, prior)
    one, two = (
        _Step(rng.normal(size=(25, 2)), rng.normal(size=(25, 2)), rng.normal(size=(2, 3))) for _ in range(2)
    )
    assert one.dot(system.product(two)) == pytest.approx(two.dot(system.product(one)), rel=1e-10)
    step = system.solve(damping=1e-3)
    left = system.gradient.add(-1.0, system.product(step))
    assert left.dot(left) < 0.05 * system.gradient.dot(system.gradient)


def test_known_stars_are_recovered(scene, truth, fitted):
    xy, flux = truth
    stars, model = fitted
    sd, xy_sd = standard_deviations(scene, stars, model, Prior(first_locus(scene)))
    pull = np.concatenate([((stars.log_flux - np.log(flux)) / sd).ravel(), ((stars.xy - xy) / xy_sd).ravel()])
    assert np.sqrt(np.mean(pull**2)) == pytest.approx(1, abs=0.25)
    assert model.chi2() / (2 * 40 * 40) == pytest.approx(1, abs=0.06)


def test_score_and_significance_predict_the_change_of_chi2(scene, truth, fitted):
    stars, model = fitted
    prior = Prior(first_locus(scene))
    significance = significances(scene, stars, model)
    faint = int(np.argmin(significance))
    without, thinner = improve(scene, stars.take(np.arange(len(stars)) != faint), prior, 20)
    rise = thinner.chi2(model.weight) - model.chi2()
    assert rise == pytest.approx(significance[faint], rel=0.5)
    places, levels, gains = births(scene, without, thinner, prior.locus, 30.0)
    nearest = int(np.hypot(*(places - stars.xy[faint]).T).argmin())
    assert np.hypot(*(places[nearest] - stars.xy[faint])) < 0.7
    assert gains[nearest] == pytest.approx(rise, rel=0.5)
    assert levels[nearest] == pytest.approx(truth[1][faint, 1], rel=0.4)


def test_candidates_that_neighbours_absorb_are_not_born(scene, monkeypatch):
    """Rounding can leave a candidate on a bright star less than no information, whatever its score."""
    stars = Stars(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((2, 3)), np.zeros((0, 3)))
    counts = tuple(sky + 1e4 * (count - sky) for count, sky in zip(scene.counts, scene.sky, strict=True))
    bright = replace(scene, counts=counts)
    model, locus = linearise(bright, stars, far_light(bright, stars)), first_locus(bright)
    assert len(births(bright, stars, model, locus, 30.0)[0])
    monkeypatch.setattr(births_module, "_absorbed", lambda *arguments: np.full(len(arguments[-1]), 1e30))
    assert not len(births(bright, stars, model, locus, 30.0)[0])


def test_only_the_weakest_of_rivals_dies():
    xy = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0], [9.5, 0.0]])
    assert weakest(xy, np.array([5.0, 4.0, 6.0, 3.0, 50.0]), 10.0).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert not weakest(xy, np.full(5, 20.0), 10.0).any()
    assert weakest(xy[:2], np.full(2, 1.0), 10.0).sum() == 1  # a tie


def test_colours_are_learned(scene):
    rng = np.random.default_rng(4)
    level = rng.uniform(0, 5, 300)
    ratio = -0.5 + 0.1 * level + rng.normal(0, 0.2, 300)
    ratio[:15] += 3.0  # outliers
    flux = np.column_stack([level + ratio, level])
    locus = learn_locus(first_locus(scene), flux, np.full((300, 2), 0.05))
    assert locus.ratio(np.array([1.0, 4.0]))[:, 0] == pytest.approx([-0.4, -0.1], abs=0.06)
    assert locus.scatter[0] == pytest.approx(0.2, abs=0.05)
    assert (locus.ratio(np.array([1.0]))[:, 1] == 0).all()
    few = learn_locus(first_locus(scene), flux[:3], np.full((3, 2), 0.05))
    assert (few.coefficients == first_locus(scene).coefficients).all()
