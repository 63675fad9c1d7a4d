from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from backends import el2o, laplace, svi, trust_region
from problems import banana, gaussian, gaussians, poisson_gamma

from astrozoo.density import elbo
from astrozoo.errors import InferenceError, InputError
from astrozoo.guides.auto import full_rank, low_rank, mean_field
from astrozoo.infer import approximation
from astrozoo.infer.adam import AdamDirection
from astrozoo.infer.approximation import noise_per_latent
from astrozoo.types import Status

QUIET = {"compile": "never", "progress": False}


def test_laplace_is_exact_on_a_gaussian():
    problem, mean, covariance = gaussian(4)
    result = laplace(problem, **QUIET)
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.location[0], mean, atol=1e-4)
    np.testing.assert_allclose(result.covariance[0], covariance, rtol=1e-6)
    # Draws: 1000, so a mean within 4.5 standard errors.
    z = (result.draws["z"][0].mean(0) - mean.numpy()) / np.sqrt(np.diag(covariance) / 1000)
    assert np.abs(z).max() < 4.5


def test_laplace_knows_the_mode_and_the_curvature_of_a_gamma():
    """In log rate the posterior Gamma(a, b) has its mode at log(a / b) and the curvature a."""
    problem, posterior = poisson_gamma()
    result = laplace(problem, **QUIET)
    a, b = posterior.concentration.item(), posterior.rate.item()
    np.testing.assert_allclose(result.location[0, 0], np.log(a / b), atol=1e-5)
    np.testing.assert_allclose(result.covariance[0, 0, 0], 1 / a, rtol=1e-4)


def test_trust_region_full_rank_recovers_a_gaussian():
    problem, mean, covariance = gaussian(3)
    result = trust_region(problem, full_rank, particles=128, **QUIET)
    assert result.status is Status.CONVERGED
    # Antithetic draws: the location's gradient is noiseless under a Gaussian. 1024 draws at the end: the
    # covariance is good to a few times sqrt(2 / 512).
    np.testing.assert_allclose(result.location[0], mean, atol=1e-3)
    np.testing.assert_allclose(result.covariance[0], covariance, atol=0.15)
    assert result.stats["counts"]["hvp"] > 0
    assert (np.diff(result.trace["seconds"][:, 0]) > 0).all()
    assert result.trace["elbo_fresh_draws"].shape == (result.stats["iterations"], 1)


def test_mean_field_has_the_precision_s_diagonal_and_linear_response_mends_it():
    problem, mean, covariance = gaussian(3)
    common = {"mode": "fixed", "particles": 200, **QUIET}
    plain = trust_region(problem, mean_field, **common)
    linear = trust_region(problem, mean_field, covariance="linear_response", **common)
    narrow = 1 / torch.linalg.inv(covariance).diagonal()
    # Draws with the moments of a normal, but for chance correlations between latents of 1 / sqrt(100).
    np.testing.assert_allclose(np.diag(plain.covariance[0]), narrow, rtol=0.3)
    np.testing.assert_allclose(linear.covariance[0], covariance, rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(plain.location[0], mean, atol=1e-3)


@pytest.mark.parametrize("guide", [full_rank, low_rank])
def test_fixed_draws_too_few_for_the_guide_are_refused(guide):
    problem, _, _ = gaussian(6)
    with pytest.raises(InputError, match="grows without bound"):
        trust_region(problem, guide, mode="fixed", particles=3, **QUIET)


@pytest.mark.parametrize(("guide", "mode"), [(mean_field, "fixed"), (full_rank, "stochastic")])
def test_draws_are_fixed_for_a_mean_field_unless_told_otherwise(guide, mode):
    problem, _, _ = gaussian(3)
    assert trust_region(problem, guide, budget=2, draws=5, **QUIET).stats["mode"] == mode


def test_svi_recovers_a_gaussian():
    """The ELBO falls short of its maximum by KL(q, p), and SVI stops at gains of a thousandth of a nat."""
    problem, mean, covariance = gaussian(2)
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    for seed in range(3):
        result = svi(problem, full_rank, seed=seed, learning_rate=0.1, particles=16, **QUIET)
        assert result.status is Status.CONVERGED
        fitted = (torch.as_tensor(x[0]) for x in (result.location, result.covariance))
        shortfall = torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(*fitted), exact)
        assert shortfall < 5e-3  # a few times the tolerance
        assert result.draws["z"].shape == (1, 1000, 2)


STOCHASTIC = partial(trust_region, mode="stochastic")


@pytest.mark.parametrize("method", [svi, trust_region, STOCHASTIC])
def test_batched_rows_equal_the_same_rows_alone(method):
    problem, _, _ = gaussians(3)
    options = {"seed": 4, "draws": 20, "chains": 2, "particles": 8, "budget": 120, **QUIET}
    together = method(problem, mean_field, **options)
    assert together.draws["z"].shape == (2, 20, 3, 2)
    assert len(together.statuses) == 3
    alone = type(problem)(problem.model, tuple(a[1:2] for a in problem.args), name="gaussians", batch=1)
    row = method(alone, mean_field, **options)
    np.testing.assert_allclose(row.location[0], together.location[1], rtol=1e-9)
    np.testing.assert_allclose(row.draws["z"][:, :, 0], together.draws["z"][:, :, 1], rtol=1e-9)


@pytest.mark.parametrize("method", [svi, trust_region, STOCHASTIC])
def test_stopped_run_resumes_to_the_same_answer(method, tmp_path):
    problem = banana()
    options = {"seed": 1, "draws": 5, **QUIET}
    budgets = (150, 400) if method is svi else (3, 200)
    whole = method(problem, mean_field, budget=budgets[1], **options)
    part = method(problem, mean_field, budget=budgets[0], checkpoint=tmp_path / "c.npz", **options)
    assert part.status is Status.BUDGET_SPENT
    rest = method(problem, mean_field, budget=budgets[1], checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.draws["y"], whole.draws["y"])
    np.testing.assert_array_equal(rest.trace["elbo_fresh_draws"], whole.trace["elbo_fresh_draws"])
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    with pytest.raises(InputError, match="seed 1, expected seed 2"):
        method(problem, mean_field, checkpoint=tmp_path / "c.npz", **options | {"seed": 2})


def _edited(width):
    def guide(problem):
        fitted = mean_field(problem)
        fitted.scale.data += width
        return fitted

    return guide


def _objective(power):
    def objective(problem, guide):
        return lambda w, *args: -(w**power).sum()

    return objective


@pytest.mark.parametrize("method", [svi, trust_region])
def test_an_edited_guide_of_the_same_name_is_not_continued(method, tmp_path):
    problem, _, _ = gaussian(2)
    options = {"budget": 3, "draws": 5, "checkpoint": tmp_path / "c.npz", **QUIET}
    method(problem, _edited(0.0), **options)
    method(problem, _edited(0.0), **options)
    with pytest.raises(InputError, match="content of the guide"):
        method(problem, _edited(0.1), **options)


@pytest.mark.parametrize("method", [svi, trust_region])
def test_an_edited_objective_of_the_same_name_is_not_continued(method, tmp_path):
    problem, _, _ = gaussian(2)
    options = {"budget": 3, "draws": 5, "objective": "mine", "checkpoint": tmp_path / "c.npz", **QUIET}
    first, second = (replace(problem, objectives={"mine": _objective(power)}) for power in (2, 4))
    method(first, mean_field, **options)
    method(first, mean_field, **options)
    with pytest.raises(InputError, match="content of the objective"):
        method(second, mean_field, **options)


def test_a_guide_that_cannot_be_hashed_says_how_to_proceed(tmp_path):
    problem, _, _ = gaussian(2)
    lock = threading.Lock()

    def guide(problem):
        with lock:
            return mean_field(problem)

    options = {"budget": 3, "draws": 5, **QUIET}
    svi(problem, guide, **options)
    with pytest.raises(InputError, match=r"guide: got .*lock.*without checkpoint="):
        svi(problem, guide, checkpoint=tmp_path / "c.npz", **options)


def test_a_guide_around_a_result_is_known_by_the_result_s_numbers(tmp_path):
    problem, _, _ = gaussian(2)
    options = {"budget": 3, "draws": 5, "checkpoint": tmp_path / "c.npz", **QUIET}
    mode = laplace(problem, **QUIET)
    svi(problem, partial(full_rank, around=mode), **options)
    slower = replace(mode, stats={**mode.stats, "run_seconds": 1e3})
    svi(problem, partial(full_rank, around=slower), **options)
    wider = replace(mode, covariance=2 * mode.covariance)
    with pytest.raises(InputError, match="content of the guide"):
        svi(problem, partial(full_rank, around=wider), **options)


@pytest.mark.parametrize("method", [svi, el2o])
def test_a_guide_around_a_search_is_continued(method, tmp_path):
    problem, _, _ = gaussian(2)
    options = {"budget": 3, "draws": 5, "start": "search", "checkpoint": tmp_path / "c.npz", **QUIET}
    first, second = (method(problem, "full_rank", **options) for _ in range(2))
    np.testing.assert_array_equal(first.location, second.location)


def test_same_seed_same_draws_and_another_seed_others():
    problem, _, _ = gaussian(2)
    a, b, c = (
        trust_region(problem, mean_field, seed=s, draws=5, particles=8, budget=5, **QUIET).draws["z"]
        for s in (0, 0, 1)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_throw_and_a_bad_start():
    problem, _, _ = gaussian(2)
    with pytest.raises(InferenceError, match="budget spent"):
        trust_region(banana(), mean_field, budget=1, throw=True, **QUIET)
    with pytest.raises(InputError, match=r"start: got shape \(3,\)"):
        laplace(problem, start=[0.0, 0.0, 0.0], **QUIET)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("guide", [mean_field, low_rank, full_rank])
def test_how_many_noise_coordinates_a_latent_depends_on(guide, many, monkeypatch):
    if many:
        monkeypatch.setattr(approximation, "PROBED", 3)
    problem, _, _ = gaussian(7)
    target = elbo(problem, guide, compile="never")
    w = target.initial(None)
    exact = {mean_field: 1, low_rank: target.noise_dim - 7 + 1, full_rank: 7}[guide]
    # Of many coordinates, any guide but a mean field is taken to depend on all.
    expected = target.noise_dim if many and exact > 1 else exact
    assert noise_per_latent(target, w) == expected


def test_the_direction_of_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimiser = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.95), eps=1e-12)
    direction, moved = AdamDirection(beta2=0.95), torch.zeros(2, 3, dtype=torch.float64)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
        moved -= direction(gradient)
    torch.testing.assert_close(moved, parameter.detach())
