from __future__ import annotations

import arviz
import numpy as np
import pytest
import torch
from problems import F64, banana, gaussian, gaussians, poisson_gamma

import astrozoo
from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.infer import _chart, _metric
from astrozoo.infer._microcanonical import _kick, microcanonical
from astrozoo.infer._trajectory import Chains
from astrozoo.types import Status


def run(problem, **options):
    settings = {"chains": 32, "draws": 60, "warmup": 60, "seed": 1, "compile": "never", "progress": False}
    return astrozoo.infer(problem, "mclmc", **settings | options)


def check(draws, mean, sd, sigmas=4.5):
    for i in range(len(mean)):
        x = draws[..., i]
        ess = min(float(arviz.ess(x)), x.size)
        assert abs(x.mean() - mean[i]) < sigmas * sd[i] / ess**0.5
        assert abs(x.var() / sd[i] ** 2 - 1) < sigmas * (2 / min(ess, float(arviz.ess(x**2)))) ** 0.5 + 0.02


@pytest.mark.parametrize("d", [1, 2, 3, 12])
def test_a_normal_of_any_dimension(d):
    problem, mean, covariance = gaussian(d)
    result = run(problem)
    check(result.draws["z"], mean.numpy(), covariance.diagonal().sqrt().numpy())
    assert "acceptance_rate" in result.sample_stats
    assert "energy" not in result.sample_stats
    assert result.method == "mclmc"


def test_a_curved_posterior():
    result = run(banana(), draws=250)
    y = result.draws["y"]
    assert abs(y.mean() - 1) < 4.5 * 1.5 / float(arviz.ess(y)) ** 0.5
    assert abs(result.draws["x"].var() - 1) < 0.15


def test_a_constrained_site():
    problem, posterior = poisson_gamma()
    rate = run(problem).draws["rate"]
    assert (
        abs(rate.mean() - float(posterior.mean))
        < 4.5 * float(posterior.stddev) / float(arviz.ess(rate)) ** 0.5
    )


def test_problems_of_a_batch_do_not_depend_on_their_neighbours():
    problem, means, _ = gaussians(3)
    together = run(problem, draws=10).draws["z"]
    assert together.shape == (32, 10, 3, 2)
    assert np.abs(together.mean((0, 1)) - means.numpy()).max() < 1


def test_without_a_test_the_energy_error_is_limited_and_the_bias_small():
    problem, mean, covariance = gaussian(30)
    loose, tight = (run(problem, adjusted=False, energy_error=e, draws=100) for e in (0.05, 5e-4))
    assert tight.stats["step_size"][0] < loose.stats["step_size"][0]
    assert "acceptance_rate" not in tight.sample_stats
    check(tight.draws["z"], mean.numpy(), covariance.diagonal().sqrt().numpy())


def quartic(d):
    """Not normal, and of many dimensions: independent exp(-x^4 / 4)."""
    import pyro
    import pyro.distributions as dist

    def model(zero):
        x = pyro.sample("x", dist.Normal(zero, 10.0).to_event(1))
        pyro.factor("quartic", (x**2 / 200 - x**4 / 4).sum())

    return astrozoo.Problem(model, (torch.zeros(d, dtype=F64),))


def test_many_dimensions_that_are_not_normal():
    x = run(quartic(100), draws=100).draws["x"]
    second = 2 * 0.3379891200336424  # E x^2 = sqrt(4) Gamma(3/4) / Gamma(1/4)
    assert (x**2).mean() == pytest.approx(second, abs=0.01)


def test_a_small_step_conserves_energy_to_third_order_and_reverses():
    problem, _, _ = gaussian(6)
    density = log_density(problem, compile="never")
    chains = Chains(density, 1, 4)
    generator = torch.Generator().manual_seed(0)
    q, r = (torch.randn(1, 4, 6, generator=generator, dtype=F64) for _ in range(2))
    chart = _chart.flat(_metric.identity(torch.zeros(1, 6, dtype=F64), _metric.DEFAULT))
    value, g = chains(q)

    def moved(step, steps, start=(q, r, value, g)):
        return microcanonical(chains, *start, chart, torch.full((1, 4), step, dtype=F64), [steps], 0, 0)

    errors = [moved(0.1 / n, 4 * n)[4].abs().max() for n in (1, 2, 4)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    end = moved(0.05, 10)
    assert end[4].abs().max() < 0.1
    back = moved(0.05, 10, (end[0], -end[1], end[2], end[3]))
    torch.testing.assert_close(back[0], q, atol=1e-10, rtol=0)
    torch.testing.assert_close(back[4], -end[4], atol=1e-10, rtol=0)


def test_a_kick_in_parts_is_the_whole_kick():
    generator = torch.Generator().manual_seed(0)
    n, g = (torch.randn(1, 3, 5, generator=generator, dtype=F64) for _ in range(2))
    n = n / n.norm(dim=-1, keepdim=True)
    far = torch.full((1, 3, 1), 40.0, dtype=F64)
    whole, work = _kick(n, g, far, 5)
    half, first = _kick(n, g, far / 2, 5)
    again, second = _kick(half, g, far / 2, 5)
    torch.testing.assert_close(again, whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(first + second, work)
    torch.testing.assert_close(whole, g / g.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)


def test_a_run_resumes_and_settings_are_checked(tmp_path):
    problem, _, _ = gaussian(4)
    path = tmp_path / "c.npz"
    part = run(problem, draws=20, budget=150, checkpoint=path)
    assert part.status is Status.BUDGET_SPENT
    whole = run(problem, draws=20, checkpoint=path)
    np.testing.assert_array_equal(whole.draws["z"], run(problem, draws=20).draws["z"])
    with pytest.raises(InputError, match="energy_error"):
        run(problem, energy_error=0.0)
