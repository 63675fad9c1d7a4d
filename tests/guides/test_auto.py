"""The flow guides: their capture against Pyro itself, where they start, and what they fit."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from astrozoo import infer
from astrozoo.density import elbo, log_density
from astrozoo.errors import InputError
from astrozoo.guides import auto
from astrozoo.registry import GUIDES, guide
from astrozoo.types import Problem

F64 = torch.float64
Y = torch.tensor([0.3, -0.4, 1.2], dtype=F64)
FLOWS = {"iaf": auto.iaf, "nsf": auto.nsf}
SMALL = {  # of few parameters, for tests that take second derivatives or fit
    "iaf": partial(auto.iaf, transforms=1, hidden=8),
    "nsf": partial(auto.nsf, transforms=1, hidden=8, bins=5),
}


@pytest.fixture
def float64():
    """Pyro, run beside the capture, takes its Python numbers in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def hierarchical(y):
    """Sites of several shapes and supports, one of them in a plate."""
    scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(()), 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(y.new_ones(3)))
    with pyro.plate("data", len(y)):
        x = pyro.sample("x", dist.Normal(weights[0] * y.new_ones(()), scale))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def one_rate(y):
    pyro.sample("rate", dist.Gamma(y.new_tensor(3.0), y.new_tensor(2.0)))


def banana(scale):
    """Normalised, so that an ELBO is minus the divergence from the posterior."""
    x = pyro.sample("x", dist.Normal(torch.zeros_like(scale), 1.0))
    pyro.sample("y", dist.Normal(x**2, scale))


def two_peaks(y):
    x = pyro.sample("x", dist.Normal(torch.zeros_like(y), 2.0))
    pyro.sample("y", dist.Normal(x**2, 0.5), obs=y)


@pytest.mark.parametrize("model", [hierarchical, one_rate])
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.usefixtures("float64")
def test_elbo_is_pyros_on_the_same_draws(name, model):
    target = elbo(Problem(model, (Y,)), FLOWS[name], compile="never")
    assert target.noise_dim == target.layout.dim
    generator = torch.Generator().manual_seed(3)
    w = target.initial() + 0.1 * torch.randn(2, target.dim, generator=generator)
    noise = torch.randn(3, target.noise_dim, generator=generator)
    got = target.values(w, noise)
    for i in range(2):
        parameters = target.parameters(w[i]).values()
        with torch.no_grad():
            for parameter, value in zip(target.module.parameters(), parameters, strict=True):
                parameter.copy_(value)
        for j in range(3):
            feed = iter(noise[j])

            def normals(shape, dtype, device, feed=feed):
                return torch.stack([next(feed) for _ in range(math.prod(shape))]).reshape(shape)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("torch.distributions.normal._standard_normal", normals)
                expected = -Trace_ELBO().loss(model, target.module, Y)
            assert got[i, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(target.log_ratio(w, noise), got, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FLOWS)
def test_second_derivatives_are_those_of_the_gradient(name):
    target = elbo(Problem(hierarchical, (Y,)), SMALL[name], compile="never")
    generator = torch.Generator().manual_seed(4)
    w = target.initial() + 0.1 * torch.randn(1, target.dim, generator=generator, dtype=F64)
    v = torch.randn(1, target.dim, generator=generator, dtype=F64)
    noise = torch.randn(2, target.noise_dim, generator=generator, dtype=F64)
    step = 1e-6 * v
    slope = (target.value_and_grad(w + step, noise)[1] - target.value_and_grad(w - step, noise)[1]) / 2e-6
    torch.testing.assert_close(target.hvp(w, noise, v), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_starts_as_independent_normals_where_it_is_told(name):
    problem = Problem(hierarchical, (Y,))
    flow, normal = (
        elbo(problem, SMALL[name], compile="never"),
        elbo(problem, auto.mean_field, compile="never"),
    )
    z0 = torch.linspace(-1, 1, flow.layout.dim, dtype=F64)[None]
    noise = torch.linspace(-2, 2, 4 * flow.noise_dim, dtype=F64).reshape(4, -1)
    torch.testing.assert_close(
        flow.values(flow.initial(z0), noise), normal.values(normal.initial(z0), noise), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", FLOWS)
def test_every_problem_of_a_batch_has_its_own_flow(name):
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    target = elbo(Problem(banana, (scales,), batch=3), SMALL[name], compile="never")
    w = target.initial() + 0.1 * torch.randn(
        3, target.dim, dtype=F64, generator=torch.Generator().manual_seed(5)
    )
    noise = torch.ones(2, 2, dtype=F64)
    for i, scale in enumerate(scales):
        alone = elbo(Problem(banana, (scale,)), SMALL[name], compile="never")
        torch.testing.assert_close(target.values(w, noise)[i : i + 1], alone.values(w[i : i + 1], noise))


def _elbo_of(problem, factory, parameters, draws=4000):
    """Mean of the ELBO on fresh noise, and its standard error."""
    target = elbo(problem, factory, compile="never")
    w = torch.tensor(parameters, dtype=F64)
    noise = torch.randn(draws, target.noise_dim, dtype=F64, generator=torch.Generator().manual_seed(99))
    values = target.values(w, noise)
    return values.mean().item(), values.std().item() / math.sqrt(draws)


def _fitted(problem, factory, seed=1):
    options = {"budget": 400, "learning_rate": 0.05, "progress": False, "compile": "never"}
    result = infer(problem, method="svi", guide=factory, seed=seed, **options)
    return _elbo_of(problem, factory, result.guide_parameters)


@pytest.mark.parametrize("name", FLOWS)
def test_svi_fits_a_banana_far_better_than_full_rank(name):
    problem = Problem(banana, (torch.tensor(0.5, dtype=F64),))
    flow, flow_error = _fitted(problem, SMALL[name])
    normal, normal_error = _fitted(problem, auto.full_rank)
    assert flow - normal > 5 * math.hypot(flow_error, normal_error)


def test_trust_region_with_fixed_noise_fits_a_banana():
    problem = Problem(banana, (torch.tensor(0.5, dtype=F64),))
    options = {"mode": "fixed", "seed": 2, "progress": False, "compile": "never"}
    small = partial(auto.iaf, transforms=1, hidden=6)
    result = infer(problem, method="trust_region", guide=small, particles=200, budget=40, **options)
    value, error = _elbo_of(problem, small, result.guide_parameters)
    normal = infer(problem, method="trust_region", guide="full_rank", particles=200, **options)
    best, best_error = _elbo_of(problem, auto.full_rank, normal.guide_parameters)
    assert value - best > 5 * math.hypot(error, best_error)
    with pytest.raises(InputError, match="fixed draws"):
        infer(problem, method="trust_region", guide=small, particles=2, **options)


def test_splines_have_two_peaks_where_an_affine_flow_has_one():
    """One of two equal, well-separated peaks is ln 2 short of the evidence."""
    problem = Problem(two_peaks, (torch.tensor(2.25, dtype=F64),))
    affine, affine_error = _fitted(problem, SMALL["iaf"])
    spline, spline_error = _fitted(problem, SMALL["nsf"])
    assert spline - affine > 5 * math.hypot(affine_error, spline_error)


@pytest.mark.parametrize("name", ["full_rank", *FLOWS])
def test_around_a_result_it_starts_as_its_normal(name):
    make = SMALL.get(name, auto.full_rank)
    problem = Problem(banana, (torch.tensor(0.5, dtype=F64),))
    mode = infer(problem, method="laplace", progress=False, compile="never")
    target = elbo(problem, partial(make, around=mode), compile="never")
    noise = torch.randn(5, target.noise_dim, dtype=F64, generator=torch.Generator().manual_seed(1))
    root = torch.linalg.cholesky(torch.from_numpy(mode.covariance[0]))
    z = torch.from_numpy(mode.location) + noise @ root.T
    start = target.initial(torch.from_numpy(mode.location))
    torch.testing.assert_close(target.unconstrained(start, noise)[0], z)
    normal = dist.MultivariateNormal(torch.from_numpy(mode.location[0]), scale_tril=root)
    expected = log_density(problem, compile="never").values(z)[:, 0] - normal.log_prob(z)
    torch.testing.assert_close(target.log_ratio(start, noise)[0], expected)
    with pytest.raises(InputError, match="around"):
        elbo(Problem(one_rate, (Y,)), partial(make, around=mode))


def test_flows_are_listed():
    for name, factory in FLOWS.items():
        assert name in GUIDES
        assert guide(name) is factory
