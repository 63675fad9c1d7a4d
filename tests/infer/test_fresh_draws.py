"""The fixed-draw trust region stops when neither means nor widths depend on the choice of the draws."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import svi, trust_region
from problems import gaussian, poisson_gamma

from astrozoo.guides.auto import mean_field
from astrozoo.infer import trust_region as backend
from astrozoo.infer._fresh_draws import SETS, error_of_site
from astrozoo.types import Problem, Status

QUIET = {"compile": "never", "progress": False}
OPTIMAL_SD = 3**-0.25
"""Of a normal against ``exp(-z^4 / 4)``: the derivative of the ELBO in log s is ``1 - 3 s^4``."""
OPTIMAL_ELBO = -0.25 + math.log(OPTIMAL_SD) + 0.5 * math.log(2 * math.pi * math.e)


def quartic(scale):
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("density", -((z / scale) ** 4) / 4)


def problem(scale=1.0):
    return Problem(quartic, (torch.tensor(scale, dtype=torch.float64),))


@pytest.mark.parametrize("particles", [None, 4])
def test_the_width_of_a_light_tailed_posterior(particles):
    """Widths from few fixed draws were 1.01 to 1.30 times the optimum, and reported as converged."""
    runs = [
        trust_region(problem(), mean_field, seed=seed, particles=particles, **QUIET) for seed in range(12)
    ]
    ratios = np.array([math.sqrt(run.covariance[0, 0, 0]) / OPTIMAL_SD for run in runs])
    assert all(run.status is Status.CONVERGED for run in runs)
    # WIDTH_ERROR is one SD of each: 12 are within 2.5 of them, their mean within 3 / sqrt(12) of zero.
    assert np.abs(np.log(ratios)).max() < 2.5 * backend.WIDTH_ERROR
    assert abs(np.log(ratios).mean()) < 3 / 12**0.5 * backend.WIDTH_ERROR


@pytest.mark.parametrize("method", [trust_region, svi])
def test_the_reported_elbo_is_on_fresh_draws(method):
    runs = [method(problem(), mean_field, seed=seed, **QUIET) for seed in range(4)]
    for run in runs:
        error = run.stats["elbo_se"][0]
        assert 0 < error < 0.05
        # No guide of the family exceeds the optimum; a width off by WIDTH_ERROR costs 2 WIDTH_ERROR^2.
        assert -4 * error - 0.03 < run.stats["elbo"][0] - OPTIMAL_ELBO < 4 * error


def test_the_trace_says_which_draws_an_elbo_is_on():
    fixed = trust_region(problem(), mean_field, seed=1, particles=4, **QUIET)
    rounds = np.isfinite(fixed.trace["elbo_fresh_draws"][:, 0])
    assert rounds[-1]
    assert 1 < rounds.sum() < len(rounds)
    in_sample = fixed.trace["elbo_fixed_draws"][:, 0]
    last = in_sample[np.isfinite(in_sample)][-1]
    assert last == pytest.approx(fixed.stats["elbo_fixed_draws"][0], abs=1e-6)
    stochastic = trust_region(problem(), mean_field, mode="stochastic", **QUIET)
    assert "elbo_fixed_draws" not in stochastic.trace
    assert np.isfinite(stochastic.trace["elbo_fresh_draws"]).all()


def test_a_gaussian_needs_no_more_draws():
    """Matched draws give the ELBO of a normal posterior exactly: no choice of them matters."""
    run = trust_region(gaussian(3)[0], mean_field, particles=16, **QUIET)
    assert run.stats["particles"] == 16
    assert run.stats["relative error of sds by choice of draws"][0] < 1e-4


def test_the_errors_predict_the_scatter_of_repeated_runs():
    skewed, _ = poisson_gamma()
    options = {"mode": "fixed", "particles": 16, "draws": 5} | QUIET
    runs = [trust_region(skewed, mean_field, seed=seed, **options) for seed in range(8)]
    means = np.array([run.location[0, 0] for run in runs])
    log_sds = np.log([run.covariance[0, 0, 0] for run in runs]) / 2
    predicted = {
        name: np.sqrt(np.mean([run.stats[name][0] ** 2 for run in runs]))
        for name in ("error of means by choice of draws [sd]", "relative error of sds by choice of draws")
    }
    # Eight runs give an SD within a factor of two (chi squared of 7, 99 %).
    spread = (means.std(ddof=1) / np.exp(log_sds.mean()), log_sds.std(ddof=1))
    for observed, expected in zip(spread, predicted.values(), strict=True):
        assert 0.5 < observed / expected < 2


def test_a_problem_for_which_the_draws_never_suffice_has_not_converged(monkeypatch):
    monkeypatch.setattr(backend, "TOP", 32)
    monkeypatch.setattr(backend, "WIDTH_ERROR", 1e-9)
    run = trust_region(problem(), mean_field, particles=16, **QUIET)
    assert run.stats["particles"] == 32
    assert run.status is Status.BUDGET_SPENT


def powers(power):
    """The problems ``log p = -|z|^power / power`` as one batch."""

    def model(power):
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("density", -(z.square() ** (power / 2)) / power)

    return Problem(model, (torch.tensor(power, dtype=torch.float64),), batch=len(power))


def test_rows_of_a_batch_that_have_ended_are_not_evaluated_again(monkeypatch):
    """A normal needs no more draws than four, the others do."""
    rounds, evaluate = [], backend.on_fresh_draws

    def watched(target, w, *arguments, **options):
        rounds.append(w)
        return evaluate(target, w, *arguments, **options)

    monkeypatch.setattr(backend, "on_fresh_draws", watched)
    options = {"particles": 4, "mode": "fixed", "draws": 5, **QUIET}
    together = trust_region(powers([2.0, 4.0, 2.0]), mean_field, **options)
    assert together.status is Status.CONVERGED
    assert len(rounds) > 1
    assert [len(w) for w in rounds] == [3] + [1] * (len(rounds) - 1)
    alone = trust_region(powers([4.0]), mean_field, **options)
    for name in ("error of means by choice of draws [sd]", "relative error of sds by choice of draws"):
        assert together.stats[name][1] == pytest.approx(alone.stats[name][0], rel=1e-6)
        assert together.stats[name][0] < 1e-3
    np.testing.assert_allclose(together.guide_parameters[1], alone.guide_parameters[0], rtol=1e-9)


def test_a_batch_that_was_stopped_between_rounds_goes_on_to_the_same_errors(tmp_path):
    options = {"particles": 4, "mode": "fixed", "draws": 5, **QUIET}
    problems = powers([2.0, 4.0])
    whole = trust_region(problems, mean_field, **options)
    spent = trust_region(problems, mean_field, checkpoint=tmp_path / "c.npz", budget=3, **options)
    assert Status.BUDGET_SPENT in spent.statuses
    for _ in range(2):  # the second time it has ended already
        rest = trust_region(problems, mean_field, checkpoint=tmp_path / "c.npz", **options)
        np.testing.assert_array_equal(rest.guide_parameters, whole.guide_parameters)
        for name in ("error of means by choice of draws [sd]", "relative error of sds by choice of draws"):
            assert rest.stats[name] == whole.stats[name]


def test_the_error_of_a_site_does_not_grow_with_its_size_by_chance():
    generator = torch.Generator().manual_seed(0)

    def estimated(size):
        shifts = torch.randn(SETS, 1, size, generator=generator, dtype=torch.float64)
        return error_of_site(shifts.square().mean(0).sqrt()).item()

    # The 99 % quantile of the root mean square of three unit normals is 1.94.
    assert estimated(1000) == pytest.approx(1.94, rel=0.1)
    assert estimated(100_000) == pytest.approx(1.94, rel=0.02)


def test_of_a_small_site_the_worst_element_decides():
    errors = torch.full((2, 100), 0.1)
    errors[0, 7], errors[1, 3] = 0.5, torch.nan
    assert error_of_site(errors)[0] == 0.5
    assert error_of_site(errors)[1].isnan()
    assert error_of_site(torch.tensor([[0.3]])) == 0.3


def test_one_bad_scalar_is_not_hidden_by_a_large_site():
    """The width of ``z`` needs more draws; the 500 pixels of ``x``, whose posterior is normal, do not."""

    def model(data):
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("density", -(z**4) / 4)
        x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=data)

    data = torch.zeros(500, dtype=torch.float64)
    run = trust_region(Problem(model, (data,)), mean_field, particles=4, budget=400, **QUIET)
    assert run.stats["particles"] > 4
