from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import F64, banana, gaussian, gaussians, poisson_gamma

import astrozoo
from astrozoo import Problem, Status
from astrozoo.errors import InputError
from astrozoo.physics.fourier import filtered, frequencies
from astrozoo.types import DENSE_COVARIANCE, stack


def run(problem, **options):
    return astrozoo.infer(problem, "wiener", seed=0, compile="never", progress=False, **options)


def field_model(data, noise, root):
    white = pyro.sample("white", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    field = pyro.deterministic("field", filtered(white, root))
    pyro.sample("y", dist.Normal(field, noise).to_event(2), obs=data)


def field(side, seed=0):
    """A smooth field under uneven noise with a gap, and its exact mean and SD by dense algebra."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(side, side, generator=generator, dtype=F64)
    noise = 0.3 + torch.rand(side, side, generator=generator, dtype=F64)
    noise[: side // 4, : side // 3] = 1e3
    ky, kx = frequencies((side, side), data)
    root = 2 / (1 + (kx**2 + ky**2) / 0.1**2)
    return Problem(field_model, (data, noise, root), name="field"), (data, noise, root)


def dense_answer(data, noise, root):
    """Mean and SD of the field."""
    n = data.numel()
    eye = torch.eye(n, dtype=F64).view(n, *data.shape)
    prior = filtered(filtered(eye, root), root).flatten(1)
    gain = prior @ torch.linalg.inv(prior + torch.diag(noise.flatten() ** 2))
    mean = (gain @ data.flatten()).view_as(data)
    return mean, (prior - gain @ prior).diagonal().sqrt().view_as(data)


def test_a_normal_is_exact():
    problem, mean, covariance = gaussian(5)
    result = run(problem, draws=4000)
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.location[0], mean, rtol=1e-5)
    np.testing.assert_allclose(result.covariance[0], covariance, rtol=1e-9)
    draws = result.draws["z"][0]
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.15)
    ratio = result.sample_stats["log_ratio"]
    np.testing.assert_allclose(ratio, 0, atol=1e-8)  # log p is normalised


def test_problems_of_a_batch_are_independent():
    problem, means, covariances = gaussians(3)
    result = run(problem, draws=50)
    np.testing.assert_allclose(result.location, means, rtol=1e-5)
    np.testing.assert_allclose(result.covariance, covariances, rtol=1e-9)


@pytest.mark.parametrize(("side", "metric"), [(16, None), (45, {"white": "fourier"})])
def test_a_masked_field_agrees_with_dense_algebra(side, metric):
    problem, args = field(side)
    assert (side**2 > DENSE_COVARIANCE) is (side == 45)
    mean, sd = dense_answer(*args)
    result = run(problem, draws=120, metric=metric, tolerance=1e-9)
    assert result.status is Status.CONVERGED
    white = torch.as_tensor(result.location[0]).view(side, side)
    torch.testing.assert_close(filtered(white, args[2]), mean, atol=1e-6, rtol=0)
    draws = torch.as_tensor(result.draws["field"][0])
    z = (draws.mean(0) - mean) / (sd / 120**0.5)
    assert z.abs().max() < 5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.3)
    ratio = draws.std(0) / sd
    assert (ratio - 1).abs().max() < 5 * (2 * 120) ** -0.5
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    spread = np.ptp(result.sample_stats["log_ratio"])
    assert spread < (1e-6 if side == 16 else 0.02)
    assert max(result.stats["products for the mean"]) < 120


def test_the_seed_decides_the_draws_but_not_the_mean():
    problem, _ = field(16)
    first, again = run(problem, draws=3), run(problem, draws=3)
    np.testing.assert_array_equal(first.draws["field"], again.draws["field"])
    other = astrozoo.infer(
        problem, "wiener", seed=1, compile="never", progress=False, draws=3, tolerance=1e-9
    )
    np.testing.assert_allclose(other.location, first.location, atol=1e-4)
    assert not np.allclose(other.draws["field"], first.draws["field"])


def logistic_model(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def logistic():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return Problem(logistic_model, (x, (x[:, 0] > 0).to(F64)))


@pytest.mark.parametrize(
    ("problem", "site"), [(banana(), "x|y"), (poisson_gamma()[0], "rate"), (logistic(), "weight")]
)
def test_a_density_that_is_not_quadratic_is_refused_with_its_site(problem, site):
    with pytest.raises(InputError, match=f"not quadratic in site '({site})'"):
        run(problem)


def mixture_model(y):
    k = pyro.sample("kind", dist.Categorical(torch.ones(2, dtype=y.dtype)))
    x = pyro.sample("x", dist.Normal(k.to(y.dtype), 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_discrete_sites_are_refused_by_name():
    with pytest.raises(InputError, match="discrete sites: 'kind'"):
        run(Problem(mixture_model, (torch.tensor(0.3, dtype=F64),)))


def improper_model(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=y.dtype), 1.0).to_event(1).mask(False))
    pyro.sample("y", dist.Normal(x[0] + x[1], 1.0), obs=y)


def test_an_improper_posterior_has_diverged():
    result = run(Problem(improper_model, (torch.tensor(0.3, dtype=F64),)), draws=5)
    assert result.status is Status.DIVERGED


def test_too_small_a_budget_shows_in_the_status():
    problem, _ = field(16)
    assert run(problem, draws=2, budget=2).status is Status.BUDGET_SPENT


def test_a_stack_gives_the_same_means():
    parts = [field(12, seed)[0] for seed in (0, 1)]
    result = run(stack(parts), draws=2, tolerance=1e-9)
    for i, part in enumerate(parts):
        alone = run(part, draws=2, tolerance=1e-9).location
        np.testing.assert_allclose(result.location[i], alone[0], atol=1e-6)
