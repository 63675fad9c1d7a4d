from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import astrozoo
from astrozoo import _predictive
from astrozoo._predictive import predictive
from astrozoo.diagnostics import arviz as plain
from astrozoo.errors import InputError
from astrozoo.types import Problem, load

F64 = torch.float64


def model(x, counts):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    on = pyro.sample("on", dist.Bernoulli(x.new_tensor(0.5)))
    pyro.factor("push", -0.1 * slope.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("counts", dist.Poisson((slope[0] + slope[1] * x + 0.1 * on).exp()), obs=counts)


def make(batch=None):
    generator = torch.Generator().manual_seed(0)
    shape = (30,) if batch is None else (batch, 30)
    x = torch.rand(shape, generator=generator, dtype=F64)
    counts = torch.poisson((1 + x).exp(), generator=generator)
    return Problem(model, (x, counts), name="counts", batch=batch, dims={"counts": ("day",)})


def fit(problem, **options):
    return astrozoo.infer(problem, "laplace", progress=False, compile="never", draws=150, chains=2, **options)


def test_groups_are_those_of_scipy_and_named(tmp_path):
    problem = make()
    result = predictive(problem, fit(problem), seed=1)
    x, counts = (a.numpy() for a in problem.args)
    slope, on = result.draws["slope"], result.draws["on"]
    rate = np.exp(slope[..., :1] + slope[..., 1:] * x + 0.1 * on[..., None])
    np.testing.assert_allclose(result.log_likelihood["counts"], stats.poisson(rate).logpmf(counts))
    np.testing.assert_allclose(result.log_likelihood["push"], -0.1 * slope.sum(-1))
    np.testing.assert_allclose(result.log_prior["slope"], stats.norm(0, 3).logpdf(slope).sum(-1))
    np.testing.assert_array_equal(result.observed["counts"], counts)
    assert set(result.predictive) == {"counts"}
    z = (result.predictive["counts"] - rate) / np.sqrt(rate)  # 9000 independent replicates of unit variance
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt((2 + (1 / rate).mean()) / z.size)
    groups = result.to_arviz()
    assert groups["posterior_predictive"]["counts"].dims == ("chain", "draw", "day")
    assert groups["observed_data"]["counts"].dims == ("day",)
    back = load(result.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(back.predictive["counts"], result.predictive["counts"])
    np.testing.assert_array_equal(back.log_prior["on"], result.log_prior["on"])


def test_a_batch_has_one_axis_more_and_draws_can_be_fewer():
    problem = make(batch=3)
    result = predictive(problem, fit(problem), most=40)
    assert result.log_likelihood["counts"].shape == (2, 20, 3, 30)
    assert result.predictive["counts"].shape == (2, 20, 3, 30)
    assert result.observed["counts"].shape == (3, 30)
    assert result.groups()["posterior_predictive"]["counts"].dims == ("chain", "draw", "problem", "day")
    kept = np.linspace(0, 149, 20).round().astype(int)
    alone = fit(make())  # other data: only the shapes of its draws matter here
    assert alone.draws["slope"][:, kept].shape == (2, 20, 2)


def test_leave_one_out_is_the_exact_one_of_a_normal_mean():
    """y ~ N(mu, 1), flat prior: leaving out y_i, y_i ~ N(mean of the others, 1 + 1 / (n - 1))."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=20)
    mu = y.mean() + rng.normal(size=(4, 5000)) / np.sqrt(20)
    found = plain.loo(stats.norm(mu[..., None], 1).logpdf(y))
    others = (y.sum() - y) / 19
    exact = stats.norm(others, np.sqrt(1 + 1 / 19)).logpdf(y)
    np.testing.assert_allclose(found["pointwise"], exact, atol=0.02)
    assert found["elpd"] == pytest.approx(exact.sum(), abs=0.1)
    assert found["k_hat"].max() < 0.5
    assert found["p"] == pytest.approx(1.0, abs=0.3)


def test_results_of_another_problem_or_without_a_site_are_refused():
    problem = make()
    result = fit(problem)
    other = Problem(model, tuple(a + 1 for a in problem.args), name="counts")
    with pytest.raises(InputError, match="result: got one of problem"):
        predictive(other, result)
    del result.draws["on"]
    with pytest.raises(InputError, match=r"none of \['on'\]"):
        predictive(problem, result)


def test_memory_is_limited(monkeypatch):
    """A draw has 30 log likelihoods, 30 replicated counts, and three other log probabilities: 63 numbers."""
    problem = make()
    result = fit(problem)
    whole = predictive(problem, result)
    assert whole.predictive["counts"].shape == (2, 150, 30)
    monkeypatch.setattr(_predictive, "NUMBERS_AT_ONCE", 63 * 7)
    parts = predictive(problem, result)
    np.testing.assert_array_equal(parts.log_likelihood["counts"], whole.log_likelihood["counts"])
    monkeypatch.setattr(_predictive, "MAX_NUMBERS", 63 * 41)
    fewer = predictive(problem, result)
    assert fewer.predictive["counts"].shape == (2, 20, 30)
    assert fewer.stats["notes"][-1].startswith("log likelihoods and replicated data are of 40 draws only")
    monkeypatch.setattr(_predictive, "MAX_NUMBERS", 63)
    omitted = predictive(problem, result)
    assert omitted.predictive == omitted.log_likelihood == omitted.log_prior == {}
    assert "omitted" in omitted.stats["notes"][-1]
    np.testing.assert_array_equal(omitted.observed["counts"], whole.observed["counts"])
