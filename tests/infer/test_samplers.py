from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from problems import banana, gaussian, gaussians, poisson_gamma

from astrozoo.diagnostics.arviz import mcse
from astrozoo.errors import InputError
from astrozoo.infer import hmc as hmc_module
from astrozoo.infer.hmc import hmc
from astrozoo.infer.laplace import laplace
from astrozoo.infer.nuts import nuts
from astrozoo.types import Problem, Status

QUIET = {"compile": "never", "progress": False}


def _z_scores(draws, mean):
    """Of the mean of ``[chain, draw]`` values, by their Monte-Carlo standard error."""
    return (draws.mean() - mean) / float(mcse(draws))


@pytest.mark.parametrize(
    ("method", "options"),
    [(hmc, {"chains": 16, "draws": 200, "warmup": 150}), (nuts, {"chains": 2, "draws": 200, "warmup": 100})],
)
def test_conjugate_poisson_posterior(method, options):
    problem, posterior = poisson_gamma()
    result = method(problem, seed=2, **options, **QUIET)
    assert result.status is Status.CONVERGED
    rate = result.draws["rate"]
    assert rate.shape == (options["chains"], options["draws"])
    assert abs(_z_scores(rate, posterior.mean.item())) < 4
    squares = (rate - posterior.mean.item()) ** 2
    assert abs(_z_scores(squares, posterior.variance.item())) < 4


def test_hmc_recovers_a_gaussian_of_condition_1e6_and_the_whole_covariance():
    problem, mean, covariance = gaussian(5)
    mean, root = problem.args
    scale = np.logspace(-3, 0, 5)
    problem = Problem(problem.model, (mean, root * mean.new_tensor(scale)[:, None]))
    result = hmc(problem, chains=32, draws=150, **QUIET)
    assert result.status is Status.CONVERGED
    z = (result.draws["z"] - mean.numpy()) / scale
    assert max(abs(_z_scores(z[..., i], 0.0)) for i in range(5)) < 4
    for i in range(5):
        for j in range(i + 1):
            assert abs(_z_scores(z[..., i] * z[..., j], float(covariance[i, j]))) < 4.5
    assert not result.sample_stats["diverging"].any()
    assert 0.7 < result.sample_stats["acceptance_rate"].mean() < 0.95
    assert float(az.ess(z[..., 0])) > 1000


def test_hmc_banana():
    result = hmc(banana(), chains=32, draws=250, seed=1, **QUIET)
    x, y = result.draws["x"], result.draws["y"]
    for values, mean in ((x, 0.0), (y, 1.0), (x**2, 1.0), ((y - 1) ** 2, 2.25)):
        assert abs(_z_scores(values, mean)) < 4


def test_precondition_hands_on_mass_matrix_and_start():
    problem, mean, _ = gaussian(4)
    first = laplace(problem, **QUIET)
    result = hmc(problem, precondition=first, chains=16, draws=100, warmup=30, **QUIET)
    assert result.status is Status.CONVERGED
    assert max(abs(_z_scores(result.draws["z"][..., i], float(mean[i]))) for i in range(4)) < 4
    other, _, _ = gaussian(3)
    with pytest.raises(InputError, match="precondition"):
        hmc(other, precondition=first, **QUIET)


def test_hmc_rows_of_a_batch_equal_the_same_rows_alone():
    problem, _, _ = gaussians(3)
    options = {"start": [0.1, -0.2], "chains": 4, "draws": 10, "warmup": 40, **QUIET}
    together = hmc(problem, **options)
    assert together.draws["z"].shape == (4, 10, 3, 2)
    assert together.location.shape == (3, 2)
    alone = hmc(Problem(problem.model, tuple(a[2:] for a in problem.args), batch=1), **options)
    np.testing.assert_allclose(alone.draws["z"][:, :, 0], together.draws["z"][:, :, 2], rtol=1e-7)


@pytest.mark.parametrize("at", [25, 70])
def test_hmc_interrupted_keeps_its_draws_and_resumes_to_the_same_answer(at, tmp_path, monkeypatch):
    problem, _, _ = gaussian(2)
    options = {"chains": 4, "draws": 40, "warmup": 50, **QUIET}
    whole = hmc(problem, **options)
    advance = hmc_module._advance

    def interrupted(density, state, settings):
        if state.iteration == at:
            raise KeyboardInterrupt
        advance(density, state, settings)

    monkeypatch.setattr(hmc_module, "_advance", interrupted)
    part = hmc(problem, checkpoint=tmp_path / "c.npz", **options)
    assert part.status is Status.INTERRUPTED
    done = max(0, at - 50)
    assert part.draws["z"].shape == (4, done, 2)
    np.testing.assert_array_equal(part.draws["z"], whole.draws["z"][:, :done])
    monkeypatch.setattr(hmc_module, "_advance", advance)
    rest = hmc(problem, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.draws["z"], whole.draws["z"])
    for name, array in whole.sample_stats.items():
        np.testing.assert_array_equal(rest.sample_stats[name], array)


def test_budgets_are_kept():
    problem, _, _ = gaussian(2)
    result = hmc(problem, chains=4, draws=100, warmup=20, budget=80, **QUIET)
    assert result.status is Status.BUDGET_SPENT
    assert 0 < result.draws["z"].shape[1] < 100
    result = nuts(problem, chains=2, draws=100, warmup=50, budget=50, **QUIET)
    assert result.status is Status.BUDGET_SPENT
    assert result.draws["z"].shape == (0, 0, 2)


def test_nuts_keeps_complete_chains_and_is_reproducible(tmp_path):
    problem, _, _ = gaussian(2)
    options = {"draws": 20, "warmup": 20, **QUIET}
    both = nuts(problem, chains=2, **options)
    part = nuts(problem, chains=2, checkpoint=tmp_path / "c.npz", budget=200, **options)
    kept = part.draws["z"].shape[0]
    assert kept < 2
    rest = nuts(problem, chains=2, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.draws["z"], both.draws["z"])
    assert not np.array_equal(both.draws["z"][0], both.draws["z"][1])
