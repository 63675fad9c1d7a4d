from __future__ import annotations

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import F64, gaussians, poisson_gamma

import astrozoo
from astrozoo import Problem
from astrozoo._prior import prior_density
from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.models import mass_map
from astrozoo.physics.fourier import binned_power
from astrozoo.types import Status

QUIET = {"compile": "never", "progress": False}


def run(problem, **options):
    settings = {"chains": 32, "draws": 40, "warmup": 40, "seed": 1, "levels": 4, "trajectories": 4}
    return astrozoo.infer(problem, "annealed", **settings | QUIET | options)


def test_with_a_gaussian_prior_independent_chains_are_draws_of_the_exact_posterior():
    """One draw of each chain at level 0, without warm-up there: what the levels alone give."""
    maps, _ = mass_map.simulate(0, prior="gaussian")
    problem = mass_map.problem(maps, prior="gaussian")
    exact = astrozoo.infer(problem, "wiener", draws=2000, seed=0, **QUIET).draws["kappa"][0]
    chains = 96
    ours = run(problem, chains=chains, draws=1, warmup=0, noise=4.0, keep=["kappa"]).draws["kappa"][:, 0]
    sd = exact.std(0)
    z = (ours.mean(0) - exact.mean(0)) / (sd * (1 / chains + 1 / 2000) ** 0.5)
    free = sd.size / 3  # pixels are correlated: about so many are independent
    assert abs(np.mean(z**2) - 1) < 4 * (2 / free) ** 0.5
    assert np.abs(z).max() < 5
    scatter = (1 / (2 * chains) / free) ** 0.5
    assert abs(np.mean(ours.std(0, ddof=1) / sd) - 1) < 4 * scatter + 1 / (4 * chains)
    (_, found), (_, expected) = (binned_power(torch.as_tensor(x), 5) for x in (ours, exact))
    error = ((found.var(0) / chains) + expected.var(0) / 2000).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs()[1:] < 4.5 * error[1:]).all()


def test_a_constrained_site_and_the_costs_of_the_levels():
    problem, posterior = poisson_gamma()
    result = run(problem)
    rate = result.draws["rate"]
    error = float(posterior.stddev) / float(arviz.ess(rate)) ** 0.5
    assert abs(rate.mean() - float(posterior.mean)) < 4.5 * error
    assert result.method == "annealed"
    levels = result.stats["levels"]
    assert [row["noise"] for row in levels] == [8.0, 4.0, 2.0, 1.0]
    spent = sum(row["gradients"] for row in levels)
    assert result.stats["gradients_per_chain"] > result.stats["warmup_gradients"] > spent


def two_modes(y):
    x = pyro.sample("x", dist.Normal(y.new_zeros(()), 3.0))
    pyro.sample("y", dist.Normal(x**2 + x / 2, 0.5), obs=y)


def test_chains_reach_both_modes_by_their_weights():
    """At level 0 they do not communicate: the draws of a chain stay in its mode."""
    y = torch.tensor(6.0, dtype=F64)
    grid = torch.linspace(-12, 12, 40_001, dtype=F64)
    log_p = -(grid**2) / 18 - (grid**2 + grid / 2 - y) ** 2 / 0.5
    p = log_p.exp() / log_p.exp().sum()
    weight = float(p[grid > 0].sum())
    chains = 200
    draws = run(Problem(two_modes, (y,)), chains=chains, draws=10, levels=8, trajectories=8).draws["x"]
    positive = draws > 0
    assert (positive == positive[:, :1]).all()
    share = positive[:, 0].mean()
    assert abs(share - weight) < 4 * (weight * (1 - weight) / chains) ** 0.5


def with_discrete(y):
    x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.5 * y.new_ones(())))
        pyro.sample("y", dist.Normal(x + 4 * k, 1.0), obs=y)


@pytest.mark.parametrize("sites", [3, 8])  # summed out, and drawn by Gibbs steps
def test_discrete_sites(sites):
    y = torch.linspace(-1, 5, sites, dtype=F64)
    grid = torch.linspace(-5, 5, 2001, dtype=F64)
    each = torch.stack([-((y - grid[:, None] - 4 * k) ** 2) / 2 for k in (0, 1)]).logsumexp(0).sum(1)
    p = torch.softmax(each - grid**2 / 2, 0)
    mean = float((p * grid).sum())
    sd = float((p * grid**2).sum() - mean**2) ** 0.5
    x = run(Problem(with_discrete, (y,))).draws["x"]
    assert abs(x.mean() - mean) < 4.5 * sd / float(arviz.ess(x)) ** 0.5


def with_factor(y):
    x = pyro.sample("x", dist.LogNormal(y.new_zeros(()), 1.0))
    pyro.factor("f", -x)
    pyro.sample("y", dist.Normal(x, 0.1), obs=y)


def test_the_density_of_the_prior_leaves_out_the_data_alone():
    problem = Problem(with_factor, (torch.tensor(1.0, dtype=F64),))
    z = torch.tensor([[0.3], [-1.0]], dtype=F64)
    x = z.exp()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z) - x
    torch.testing.assert_close(prior_density(problem, compile="never").values(z), expected)
    whole = log_density(problem, compile="never").values(z)
    likelihood = torch.distributions.Normal(x, 0.1).log_prob(torch.ones_like(x))
    torch.testing.assert_close(whole, expected + likelihood)


def test_problems_of_a_batch_do_not_depend_on_their_neighbours():
    problem, means, _ = gaussians(3)
    found = run(problem, draws=10).draws["z"]
    assert found.shape == (32, 10, 3, 2)
    assert np.abs(found.mean((0, 1)) - means.numpy()).max() < 1


def test_a_run_resumes(tmp_path):
    problem, _ = poisson_gamma()
    path = tmp_path / "c.npz"
    whole = run(problem, draws=20)
    budget = whole.stats["gradients_per_chain"] - 10
    part = run(problem, draws=20, budget=budget, checkpoint=path)
    assert part.status is Status.BUDGET_SPENT
    assert {p.name for p in tmp_path.iterdir()} == {"c.levels.npz", "c.hmc.npz"}
    assert part.draws["rate"].shape[1] < 20
    resumed = run(problem, draws=20, checkpoint=path)
    np.testing.assert_array_equal(resumed.draws["rate"], whole.draws["rate"])
    assert resumed.stats["levels"] == whole.stats["levels"]
    with pytest.raises(InputError, match=r"got noise 8.0, expected noise 2.0"):
        run(problem, draws=20, checkpoint=path, noise=2.0)


def test_settings_are_checked():
    problem, _ = poisson_gamma()
    result = astrozoo.infer(problem, "laplace", draws=2, **QUIET)
    with pytest.raises(InputError, match="precondition: got a Result"):
        run(problem, precondition=result)
    with pytest.raises(InputError, match="levels: got 0"):
        run(problem, levels=0)
