"""The lens finder's regression, its prior odds, its flag, and its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import astrozoo
from astrozoo._train_command import train_stages
from astrozoo.data.finder_files import LensStamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_survey import LensSurvey
from astrozoo.data.simulate_lens_stamps import simulate_lens_stamps
from astrozoo.errors import DataError, InputError
from astrozoo.finder.ranking import probabilities
from astrozoo.models import lens_finder, lens_finder_training
from astrozoo.models.lens_finder import Labelled, log_odds
from astrozoo.models.lens_finder_training import Examples
from astrozoo.models.lens_reference import FALSE_ALARMS, Described, Reference, load


def quadrature(data: Labelled, scale: float):
    """Mean and SD of the only weight and of the offset, on a grid."""
    grid = torch.linspace(-8, 8, 401, dtype=torch.float64)
    w, b = torch.meshgrid(grid, grid, indexing="ij")
    logit = b[..., None] + w[..., None] * data.features[:, 0]
    log = torch.where(
        data.label > 0, -torch.nn.functional.softplus(-logit), -torch.nn.functional.softplus(logit)
    )
    log = log.sum(-1) - (w**2 + b**2) / (2 * scale**2)
    p = (log - log.max()).exp()
    p = p / p.sum()
    return [(float((p * v).sum()), float(((p * v**2).sum() - (p * v).sum() ** 2).sqrt())) for v in (w, b)]


def test_hmc_samples_the_posterior_of_quadrature():
    data, _ = lens_finder.simulate(seed=1, stamps=40, features=1)
    result = astrozoo.infer(
        lens_finder.problem(data, scale=2.0),
        "hmc",
        seed=0,
        chains=16,
        draws=200,
        compile="never",
        progress=False,
    )
    for site, (mean, sd) in zip(("weight", "offset"), quadrature(data, 2.0), strict=True):
        draws = result.draws[site].ravel()
        assert abs(draws.mean() - mean) < 5 * sd / 1000**0.5  # 3,200 draws, of which at least 1,000 count
        assert draws.std() == pytest.approx(sd, rel=5 / 1000**0.5)


def test_minibatches_find_the_mode():
    data, truth = lens_finder.simulate(seed=2, stamps=600, features=3)
    problem = lens_finder.problem(data)
    mode = astrozoo.infer(problem, "laplace", seed=0, draws=200, compile="never", progress=False)
    fit = astrozoo.infer(
        problem, "svi", "mean_field", seed=0, minibatch=100, budget=600, learning_rate=0.03, draws=200,
        compile="never", progress=False,
    )  # fmt: skip
    for site in truth:
        sd = mode.draws[site].std((0, 1))
        assert (np.abs(fit.draws[site].mean((0, 1)) - mode.draws[site].mean((0, 1))) < sd).all()


def test_prior_odds_multiply_the_posterior_odds():
    data, _ = lens_finder.simulate(seed=3, stamps=100, features=2)
    result = astrozoo.infer(
        lens_finder.problem(data), "laplace", seed=0, draws=1, compile="never", progress=False
    )
    features = data.features[:5].numpy()
    even, rare = (probabilities(result, features, prevalence) for prevalence in (0.5, 0.001))
    odds = [p.mean / (1 - p.mean) for p in (even, rare)]
    np.testing.assert_allclose(odds[1], odds[0] / 999, rtol=1e-9)
    np.testing.assert_allclose(np.log(odds[0]), even.log_ratio, rtol=1e-6)
    assert log_odds(0.5) == 0
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(InputError, match="prevalence"):
            log_odds(bad)


def test_the_flag_has_its_rate_of_false_alarms_and_sees_another_distribution():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)

    def statistics(n, shift=0.0):
        return (torch.randn(n, 6, generator=generator) + shift) @ mixing

    features = torch.randn(500, 3, generator=generator)
    label = (torch.rand(500, generator=generator) < 0.5).float()
    reference = Reference.of(Described(features, statistics(500)), label, statistics(2000))
    alarms = float((reference.shift(statistics(4000)) > 1).float().mean())
    assert abs(alarms - FALSE_ALARMS) < 4 * (FALSE_ALARMS * 0.95 * (1 / 2000 + 1 / 4000)) ** 0.5
    assert (reference.shift(statistics(1000, 3.0)) > 1).float().mean() > 0.95
    torch.testing.assert_close(reference.features.std(0), torch.ones(3))


def test_bad_settings_are_refused():
    data, _ = lens_finder.simulate(0)
    with pytest.raises(InputError, match="scale"):
        lens_finder.problem(data, scale=0.0)
    with pytest.raises(InputError, match="labelled stamps"):
        lens_finder.problem(Labelled(data.features[:0], data.label[:0]))
    with pytest.raises(InputError, match="features"):
        lens_finder.simulate(0, features=0)


def test_weights_of_another_model_are_refused():
    with pytest.raises(DataError, match="no network with a reference"):
        load("galaxy_vae")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny network, trained for a few steps on tiny stamps."""
    survey = LensSurvey(size=16, einstein_radius=(0.8, 1.0), snr=(300.0, 300.0))
    drawn = simulate_lens_stamps(survey, 384, seed=0, kinds=["lens", "plain"])
    examples = Examples(prepare(drawn.image).image.half(), (drawn.truth.kind == 0).float())
    stages = lens_finder_training.stages(survey, examples, 128, passes=40.0, channels=(8, 16), features=4)
    return train_stages(stages, tmp_path_factory.mktemp("train"), seed=0, progress=False)


def test_training_gives_weights_that_can_be_loaded(trained, tmp_path):
    finder = load(trained.save(tmp_path / "weights.safetensors"))
    assert (finder.size, finder.bands, finder.pixel_scale) == (16, ("g", "r", "i"), (0.19, 0.27))
    assert trained.curve["held_out_elbo"][-1] > -0.4  # of a coin: -0.69
    features, label = finder.labelled()
    assert features.shape == (128, 4)
    assert set(label.tolist()) == {0.0, 1.0}
    stamps = LensStamps(torch.randn(3, 3, 21, 20), ("a", "b", "c"), ("g", "r", "i"))
    described = finder.describe(stamps)
    assert described.features.shape == (3, 4)
    problem = lens_finder.problem(stamps, weights=finder)
    assert problem.start["weight"].shape == (4,)


def test_an_orientation_does_not_matter(trained):
    finder = load(trained)
    image = torch.randn(2, 3, 16, 16)
    names, bands = ("a", "b"), ("g", "r", "i")
    first, second = (finder.describe(LensStamps(i, names, bands)) for i in (image, image.rot90(1, (-2, -1))))
    torch.testing.assert_close(first.features, second.features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 16, 16), "bands of the stamps: got 1"), ((2, 3, 12, 16), "12 x 16 px, expected 16 px or more")],
)
def test_stamps_that_do_not_fit_the_weights_are_refused(shape, message, trained):
    stamps = LensStamps(torch.randn(shape), ("a", "b"), tuple(map(str, range(shape[1]))))
    with pytest.raises(DataError, match=message):
        lens_finder.problem(stamps, weights=load(trained))


def test_training_needs_enough_labelled_stamps(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).normal(size=(20, 3, 16, 16)))
    for path, stamps, message in ((tmp_path / "a.npz", 400, "without labels"), (None, 50, "200 or more")):
        with pytest.raises(InputError, match=message):
            lens_finder_training.training(out=tmp_path, path=path, seed=0, stamps=stamps)
