"""Discrete sites under the samplers: summed out and recovered, or drawn by Gibbs beyond the cap."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import hmc, laplace, nuts, svi

from astrozoo.density import log_density
from astrozoo.errors import CaptureError
from astrozoo.guides.auto import mean_field
from astrozoo.infer import hmc as hmc_module
from astrozoo.types import Problem, Status

F64 = torch.float64
QUIET = {"compile": "never", "progress": False}
WIDTH, NOISE = 2.0, 1.0


def blend_model(y, design):
    """Sources that are on or off, each seen in all pixels: their types depend on one another."""
    n = design.shape[1]
    with pyro.plate("source", n):
        on = pyro.sample("on", dist.Bernoulli(y.new_tensor(0.4)))
        flux = pyro.sample("flux", dist.Normal(y.new_zeros(n), WIDTH))
    with pyro.plate("pixel", len(y)):
        pyro.sample("y", dist.Normal(design @ (on * flux), NOISE), obs=y)


def blend(n=3, seed=0, batch=None):
    """The problem, and exact p(on) [n] and E[flux] [n] by summing Gaussian evidences."""
    generator = torch.Generator().manual_seed(seed)
    design = torch.rand(n + 2, n, generator=generator, dtype=F64)
    y = design @ torch.randn(n, generator=generator, dtype=F64) + torch.randn(
        n + 2, generator=generator, dtype=F64
    )
    weights, means = [], []
    assignments = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=F64)
    for on in assignments:
        seen = design * on
        covariance = WIDTH**2 * seen @ seen.T + NOISE**2 * torch.eye(n + 2, dtype=F64)
        prior = dist.Bernoulli(torch.tensor(0.4, dtype=F64)).log_prob(on).sum()
        weights.append(prior + dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))
        means.append(WIDTH**2 * seen.T @ torch.linalg.solve(covariance, y))
    weights = torch.softmax(torch.stack(weights), 0)
    exact = (weights @ assignments).numpy(), (weights @ torch.stack(means)).numpy()
    return Problem(blend_model, (y, design), name="blend"), *exact


def mixture_model(y, separation):
    """A plate of independent types inside, one joint type outside."""
    near = pyro.sample("near", dist.Bernoulli(y.new_tensor(0.3)))
    centre = pyro.sample("centre", dist.Normal(y.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Categorical(y.new_tensor([0.2, 0.5, 0.3])))
        mean = centre + separation * (kind - 1) * torch.where(near > 0.5, 0.5, 1.0)
        pyro.sample("y", dist.Normal(mean, 0.7), obs=y)


MIXTURE_DATA = torch.tensor([-2.1, 0.3, 1.9, 0.4], dtype=F64)


def _mixture_exact(centre, y=MIXTURE_DATA, separation=2.0):
    """p(near | centre) and p(kind | centre) [data, 3]."""
    log_p = torch.tensor([0.2, 0.5, 0.3], dtype=F64).log()
    offset = torch.tensor([-1.0, 0.0, 1.0], dtype=F64) * separation
    terms = torch.stack(
        [dist.Normal(centre + offset * f, 0.7).log_prob(y[:, None]) + log_p for f in (1.0, 0.5)]
    )
    joint = torch.tensor([0.7, 0.3], dtype=F64).log() + torch.logsumexp(terms, -1).sum(-1)
    p_near = torch.softmax(joint, 0)
    return p_near[1], torch.einsum("n,ndk->dk", p_near, torch.softmax(terms, -1))


def _close(draws, expected, n):
    """Shares agree with probabilities within 4.5 binomial standard errors."""
    error = (expected * (1 - expected) / n) ** 0.5 + 1e-9
    return bool((abs(draws - expected) < 4.5 * error).all())


def test_draws_given_continuous_sites_follow_the_exact_conditional_jointly_and_locally():
    problem = Problem(mixture_model, (MIXTURE_DATA, torch.tensor(2.0, dtype=F64)))
    density = log_density(problem, compile="never")
    assert [d.name for d in density.model.plan.local] == ["kind"]
    z, m = torch.tensor([0.37], dtype=F64), 20_000
    drawn = density.discrete(z.expand(1, m, 1), torch.Generator().manual_seed(3))
    assert drawn["near"].shape == (1, m)
    assert drawn["kind"].shape == (1, m, 4)
    near, kind = _mixture_exact(z)
    assert _close(drawn["near"].mean(), near, m)
    shares = torch.stack([(drawn["kind"] == k).to(F64).mean(1)[0] for k in range(3)], -1)
    assert _close(shares, kind, m)


def test_draws_of_a_batch_are_of_their_own_problem():
    y = torch.stack([MIXTURE_DATA, -MIXTURE_DATA])
    problem = Problem(mixture_model, (y, torch.full((2,), 2.0, dtype=F64)), batch=2)
    density = log_density(problem, compile="never")
    m = 4000
    drawn = density.discrete(torch.full((2, m, 1), 0.2, dtype=F64), torch.Generator().manual_seed(1))
    for row in range(2):
        near, kind = _mixture_exact(torch.tensor([0.2], dtype=F64), y[row])
        assert _close(drawn["near"][row].mean(), near, m)
        assert _close((drawn["kind"][row] == 2).to(F64).mean(0), kind[:, 2], m)


@pytest.mark.parametrize("by_gibbs", [False, True])
def test_hmc_types_and_fluxes_of_a_blend(monkeypatch, by_gibbs):
    problem, p_on, flux = blend()
    monkeypatch.setattr(hmc_module, "ENUMERATED", 4 if by_gibbs else 8)
    result = hmc(problem, seed=1, chains=32, draws=250, warmup=100, **QUIET)
    assert result.status is Status.CONVERGED
    assert result.stats["discrete_by_gibbs" if by_gibbs else "discrete_summed_out"] == ["on"]
    on = result.draws["on"]
    assert on.shape == (32, 250, 3)
    assert set(np.unique(on)) == {0.0, 1.0}
    for drawn, exact in ((on, p_on), (result.draws["on"] * result.draws["flux"], flux)):
        by_chain = drawn.mean(1)  # chains are independent
        error = by_chain.std(0, ddof=1) / len(by_chain) ** 0.5
        assert (abs(by_chain.mean(0) - exact) < 4 * error).all()
        assert (error < 0.03).all()


def test_gibbs_goes_on_from_a_checkpoint_and_from_another_result(monkeypatch, tmp_path):
    problem, _, _ = blend()
    monkeypatch.setattr(hmc_module, "ENUMERATED", 1)
    options = {"chains": 4, "draws": 12, "warmup": 20, "seed": 2, **QUIET}
    whole = hmc(problem, **options)
    path = tmp_path / "state.npz"
    hmc(problem, checkpoint=path, budget=60, **options)
    again = hmc(problem, checkpoint=path, **options)
    np.testing.assert_array_equal(again.draws["on"], whole.draws["on"])
    np.testing.assert_array_equal(again.draws["flux"], whole.draws["flux"])
    onward = hmc(problem, precondition=whole, **options)
    assert onward.covariance.shape == (1, 3, 3)


def test_local_types_stay_summed_out_where_joint_ones_are_given():
    problem = Problem(mixture_model, (MIXTURE_DATA, torch.tensor(2.0, dtype=F64)))
    summed = log_density(problem, compile="never")
    given = log_density(problem, compile="never", most_assignments=1)
    assert given.choices == (2,)
    assert [d.name for d in given.model.plan.local] == ["kind"]
    z = torch.tensor([[0.4]], dtype=F64)
    parts = [given.values(torch.cat((z, torch.full_like(z, code)), 1)) for code in (0, 1)]
    torch.testing.assert_close(torch.logsumexp(torch.stack(parts), 0), summed.values(z))
    assert given.value_and_grad(torch.cat((z, torch.ones_like(z)), 1))[1][0, 1] == 0
    drawn = given.discrete(torch.tensor([[[0.4, 1.0]]], dtype=F64))
    assert drawn["near"].tolist() == [[1.0]]


def test_every_backend_recovers_the_types():
    problem, _, _ = blend()
    runs = [
        laplace(problem, draws=20, **QUIET),
        nuts(problem, chains=1, draws=10, warmup=10, **QUIET),
        svi(problem, mean_field, draws=20, budget=20, **QUIET),
    ]
    for result in runs:
        assert result.draws["on"].shape == result.draws["flux"].shape
        assert set(np.unique(result.draws["on"])) <= {0.0, 1.0}


def test_beyond_the_cap_other_backends_say_so_at_once():
    problem, _, _ = blend(2)
    y, design = torch.zeros(15, dtype=F64), torch.ones(15, 13, dtype=F64)
    with pytest.raises(CaptureError, match=r"'on'.*8192 joint assignments.*only hmc"):
        laplace(Problem(problem.model, (y, design)), **QUIET)
