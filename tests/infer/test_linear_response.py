from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import trust_region
from problems import gaussian, gaussians, poisson_gamma

from astrozoo.density import elbo
from astrozoo.errors import InferenceError
from astrozoo.guides.auto import full_rank, mean_field
from astrozoo.infer.linear_response import Response
from astrozoo.infer.randomness import noise_for
from astrozoo.infer.subproblem import solve
from astrozoo.types import Problem

F64 = torch.float64
FIXED = {"mode": "fixed", "covariance": "linear_response", "compile": "never", "progress": False}


def test_solve_is_the_inverse_and_marks_what_is_not_positive_definite():
    A = torch.diag(torch.tensor([1e4, 1.0, 2.0], dtype=F64)) + 0.3
    right = torch.eye(3, dtype=F64)
    found = solve(lambda v: v @ A, right, 1 / A.diagonal(), tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.inv(A), rtol=1e-9, atol=1e-12)
    A[1, 1] = -5.0
    assert solve(lambda v: v @ A, right, torch.ones(3, dtype=F64)).isnan().any(1).all()


@pytest.mark.parametrize("batch", [None, 2])
def test_products_alone_give_what_the_dense_hessian_gives(batch):
    problem = gaussian(4)[0] if batch is None else gaussians(batch, 3)[0]
    target = elbo(problem, mean_field, compile="never")
    noise = noise_for(3, 0, draws=20, like=target, matched=True)
    d = target.layout.dim
    w = torch.cat((torch.zeros(batch or 1, d), torch.full((batch or 1, d), -1.0)), 1).to(F64)
    dense = Response(target, w, target.value_grad_hessian(w, noise)[2]).covariance()
    products = Response(target, w, None, noise).covariance()
    torch.testing.assert_close(products, dense, rtol=1e-5, atol=1e-8)


def test_draws_are_of_the_corrected_normal():
    problem, _, covariance = gaussian(3)
    result = trust_region(problem, mean_field, particles=100, draws=4000, **FIXED)
    z = result.draws["z"][0]
    # Chance correlations of 50 pairs: the correction is good to about 1 / 50; 4000 draws to 1 / sqrt(2000).
    np.testing.assert_allclose(np.cov(z.T), covariance, rtol=0.15, atol=0.05)
    assert result.sample_stats["log_ratio"].std() < 0.05  # a perfect match is constant
    assert result.stats["particles"] == 100


def two_modes(separation):
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("modes", torch.logaddexp(-((z - separation) ** 2) / 2, -((z + separation) ** 2) / 2))


def test_a_saddle_has_no_covariance():
    problem = Problem(two_modes, (torch.tensor(4.0, dtype=F64),))
    with pytest.raises(InferenceError, match="not negative definite"):  # a mean field would start at a mode
        trust_region(problem, full_rank, budget=1, radius=1e-3, start=[0.0], **FIXED)


def test_the_sd_of_a_function_is_by_the_response_of_its_own_mean():
    """Of a log-normal guide's mean exp(m + s^2 / 2) that is exact to the first order in the spread."""
    problem, posterior = poisson_gamma()
    result = trust_region(problem, mean_field, particles=64, **FIXED)
    # Gamma(23, 10): SD / mean is 1 / sqrt(23), its square 4%: the size of what the response neglects.
    told = result.stats["linear-response sd"]["rate"][0]
    np.testing.assert_allclose(told, posterior.stddev.item(), rtol=0.04)


def test_the_sd_of_a_linear_function_is_that_of_the_covariance():
    problem, _, _ = gaussian(3)
    target = elbo(problem, mean_field, compile="never")
    w = target.initial(None)
    hessian = target.value_grad_hessian(w, noise_for(3, 0, draws=200, like=target, matched=True))[2]
    response = Response(target, w, -hessian.abs().diagonal(dim1=1, dim2=2).diag_embed() - 0.1)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    found = response.sd(lambda sites: {"sum": sites["z"] @ weights})["sum"]
    torch.testing.assert_close(
        found, (weights @ response.covariance()[0] @ weights).sqrt()[None], rtol=1e-5, atol=0
    )
