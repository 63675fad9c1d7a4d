"""The capture against Pyro itself: potentials, ELBOs, enumeration, derivatives, and what it refuses."""

from __future__ import annotations

import itertools
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from pyro.infer.mcmc.util import initialize_model
from torch import nn
from torch.distributions import constraints

from astrozoo import _graph, _pure_function
from astrozoo.density import LogDensity, PureFunction, elbo, log_density
from astrozoo.errors import CaptureError, InputError
from astrozoo.guides import auto
from astrozoo.types import Problem

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
S = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _float64():
    """Pyro, run beside the capture, takes its Python numbers in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(before)


def eight_schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def supports(x):
    pyro.sample("real", dist.Normal(x[0], 1.3))
    pyro.sample("vector", dist.MultivariateNormal(x[:2], scale_tril=torch.tensor([[1.0, 0.0], [0.4, 0.7]])))
    pyro.sample("matrix", dist.Normal(x[0], 2.0).expand([2, 3]).to_event(2))
    pyro.sample("positive", dist.Gamma(2.0, 3.0))
    pyro.sample("unit", dist.Beta(2.0, 3.0))
    pyro.sample("interval", dist.Uniform(-1.0, 2.5))
    pyro.sample("half", dist.HalfNormal(2.0))
    pyro.sample("pareto", dist.Pareto(1.5, 2.0))  # greater than 1.5
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("group", 3):
        pyro.sample("student", dist.StudentT(4.0, 0.5, 2.0))
        pyro.sample("simplices", dist.Dirichlet(torch.tensor([1.0, 2.0])))


def orders(x):
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    pyro.sample("ordered", dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()]))
    pyro.sample("improper", dist.ImproperUniform(constraints.positive, (), (2,)))
    pyro.sample("rising", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (3,)))
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    pyro.sample("obs", dist.MultivariateNormal(torch.zeros(3), scale_tril=corr), obs=x)


def transformed(x):
    pyro.sample("log_normal", dist.LogNormal(0.3, 0.7))
    pyro.sample(
        "affine", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.SigmoidTransform()])
    )
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    twice = pyro.deterministic("twice", 2 * loc)
    pyro.factor("penalty", -(twice**4))
    with poutine.scale(scale=0.3), pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1):
        pyro.sample("cell", dist.Normal(loc, 1.0), obs=x)
    with poutine.mask(mask=x > 0):
        pyro.sample("masked", dist.Normal(twice, 2.0).expand([2, 3]), obs=x)


ZOO = {
    "eight schools": (eight_schools, (Y, S)),
    "supports": (supports, (torch.tensor([0.3, -0.2], dtype=torch.float64),)),
    "orders": (orders, (torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64),)),
    "transformed": (transformed, (torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3),)),
}


def points(dim, rows=3, seed=0):
    return torch.rand(rows, dim, generator=torch.Generator().manual_seed(seed)) * 3 - 1.5


def by_site(density, z):
    """Unconstrained values as Pyro's potential takes them."""
    return {s.name: z[s.start : s.stop].reshape(s.unconstrained_shape) for s in density.layout.sites}


@pytest.mark.parametrize("name", ZOO)
def test_log_density_is_minus_pyros_potential(name):
    model, args = ZOO[name]
    density = log_density(Problem(model, args), compile="never")
    z = points(density.dim)
    got, grad = density.value_and_grad(z)
    start = density.layout.constrain(z[0])
    init = autoguide.init_to_value(values=start)
    with pyro.validation_enabled(False):
        potential = initialize_model(model, args, init_strategy=init, max_plate_nesting=2)[1]
        for i, row in enumerate(z):
            leaf = row.clone().requires_grad_()
            value = -potential(by_site(density, leaf))
            torch.testing.assert_close(got[i], value.detach(), **EXACT)
            torch.testing.assert_close(grad[i], torch.autograd.grad(value, leaf)[0], **EXACT)


@pytest.mark.parametrize("name", ZOO)
def test_layout_inverts(name):
    layout = log_density(Problem(*ZOO[name]), compile="never").layout
    z = points(layout.dim, 6).reshape(2, 3, -1)
    values = layout.constrain(z)
    assert all(values[s.name].shape == (2, 3, *s.shape) for s in layout.sites)
    assert all(s.support.check(values[s.name]).all() for s in layout.sites)
    torch.testing.assert_close(layout.unconstrain(values), z)


def test_lower_cholesky_is_a_bijection():
    def model():
        pyro.sample("l", dist.ImproperUniform(constraints.lower_cholesky, (), (3, 3)))

    density = log_density(Problem(model), compile="never")
    assert density.dim == 6
    z = points(6)
    rows, columns = torch.tril_indices(3, 3)

    def lower(x):
        return density.layout.constrain(x)["l"][rows, columns]

    expected = torch.stack([torch.linalg.slogdet(torch.func.jacrev(lower)(row))[1] for row in z])
    torch.testing.assert_close(density.values(z)[:, 0], expected, **EXACT)
    torch.testing.assert_close(density.layout.unconstrain(density.layout.constrain(z)), z)


def hand_written(problem):
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([0.1, 0.2]))
            self.log_scale = nn.Parameter(torch.full((10,), -1.0))

        def forward(self, y, s):
            scale = self.log_scale.exp()
            mu = pyro.sample("mu", dist.Normal(self.loc[0], scale[0]))
            pyro.sample("tau", dist.LogNormal(self.loc[1], scale[1]))
            with pyro.plate("school", 8):
                pyro.sample("theta", dist.Normal(mu, scale[2:]))

    return Guide()


def iaf(problem):
    return autoguide.AutoIAFNormal(problem.model, hidden_dim=[12])


def diagonal(problem):
    return autoguide.AutoDiagonalNormal(problem.model)


GUIDES = {
    "hand-written": hand_written,
    "mean field": auto.mean_field,
    "full rank": auto.full_rank,
    "low rank": auto.low_rank,
    "point": auto.point,
    "diagonal": diagonal,
    "flow": iaf,
}


@pytest.mark.parametrize("name", GUIDES)
def test_elbo_is_pyros_on_the_same_draws(name):
    problem = Problem(eight_schools, (Y, S))
    target = elbo(problem, GUIDES[name], compile="never")
    generator = torch.Generator().manual_seed(3)
    w = target.initial() + 0.1 * torch.randn(2, target.dim, generator=generator)
    noise = torch.randn(3, target.noise_dim, generator=generator) if target.noise_dim else None
    got = target.values(w, noise)
    draws = target.sample(w, noise)
    pyro_elbo = Trace_ELBO()
    for i, j in itertools.product(range(2), range(got.shape[1])):
        with torch.no_grad():
            for parameter, value in zip(
                target.module.parameters(), target.parameters(w[i]).values(), strict=True
            ):
                parameter.copy_(value)
        feed = iter([] if noise is None else noise[j])

        def normals(shape, dtype, device, feed=feed):
            return torch.stack([next(feed) for _ in range(math.prod(shape))]).reshape(shape)

        with pytest.MonkeyPatch.context() as patch:
            for module in ("normal", "multivariate_normal", "lowrank_multivariate_normal"):
                patch.setattr(f"torch.distributions.{module}._standard_normal", normals)
            pyro.clear_param_store()
            expected = -pyro_elbo.loss(eight_schools, target.module, Y, S)
        torch.testing.assert_close(got[i, j].item(), expected, **EXACT)
    torch.testing.assert_close(target.log_ratio(w, noise), got, **EXACT)
    assert draws["theta"].shape == (2, got.shape[1], 8)
    assert target.unconstrained(w, noise).shape == (2, got.shape[1], 10)


@pytest.mark.parametrize("guide", [auto.mean_field, auto.full_rank, auto.low_rank, auto.point])
def test_stock_guides_start_where_they_are_told(guide):
    target = elbo(Problem(eight_schools, (Y, S)), guide, compile="never")
    z0 = points(10, 2)
    noise = None if target.noise_dim == 0 else torch.zeros(1, target.noise_dim)
    torch.testing.assert_close(target.unconstrained(target.initial(z0), noise)[:, 0], z0, **EXACT)


@pytest.mark.parametrize("guide", [auto.mean_field, auto.full_rank, auto.low_rank, auto.point])
def test_stock_guides_of_a_batch_start_where_each_problem_says(guide):
    start = {"mu": torch.tensor([1.0, -2.0, 4.0]), "tau": torch.tensor([1.0, 2.0, 3.0])}
    problem = Problem(eight_schools, (Y.expand(3, 8), S.expand(3, 8)), batch=3, start=start)
    target = elbo(problem, guide, compile="never")
    noise = None if target.noise_dim == 0 else torch.zeros(1, target.noise_dim)
    for rows, part in ((torch.arange(3), target), (torch.tensor([2, 0]), target.take(torch.tensor([2, 0])))):
        sites = part.sample(part.initial(), noise)
        for name, value in start.items():
            torch.testing.assert_close(sites[name][:, 0], value[rows], **EXACT)
        assert sites["theta"].isfinite().all()


@pytest.mark.parametrize("noisy", [False, True])
def test_derivatives_against_autograd(noisy):
    problem = Problem(eight_schools, (Y, S))
    target = (
        elbo(problem, auto.mean_field, compile="never") if noisy else log_density(problem, compile="never")
    )
    w = points(target.dim, 3)
    noise = torch.randn(4, target.noise_dim) if noisy else None
    value, grad, hessian = target.value_grad_hessian(w, noise)
    torch.testing.assert_close(value, target.values(w, noise).mean(-1), **EXACT)
    torch.testing.assert_close(grad, target.value_and_grad(w, noise)[1], **EXACT)
    v = points(target.dim, 3, seed=1)
    torch.testing.assert_close(target.hvp(w, noise, v), (hessian @ v[..., None])[..., 0], **EXACT)

    def eager(x):
        if not noisy:
            return target.f(x, Y, S)
        return torch.stack([target.f(x, e, Y, S) for e in noise]).mean()

    torch.testing.assert_close(grad[0], torch.autograd.functional.jacobian(eager, w[0]), **EXACT)
    torch.testing.assert_close(hessian[0], torch.autograd.functional.hessian(eager, w[0]), **EXACT)
    step = 1e-5 * torch.eye(target.dim)[0]
    slope = (target.value_and_grad(w + step, noise)[1] - target.value_and_grad(w - step, noise)[1]) / 2e-5
    torch.testing.assert_close(hessian[:, 0], slope, rtol=1e-5, atol=1e-6)
    assert target.counts["hessian"] == 3 * (4 if noisy else 1)


def test_a_batch_is_a_loop_over_its_rows():
    y, s = Y + torch.arange(5.0)[:, None], S.expand(5, 8).contiguous()
    start = {"mu": torch.arange(5.0)}
    density = log_density(Problem(eight_schools, (y, s), batch=5, start=start), compile="never")
    z = density.initial(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(density.layout.constrain(z)["mu"], start["mu"])
    got = density.value_grad_hessian(z)
    alone = [log_density(Problem(eight_schools, (y[i], s[i])), compile="never") for i in range(5)]
    for i, one in enumerate(alone):
        for a, e in zip(got, one.value_grad_hessian(z[i : i + 1]), strict=True):
            torch.testing.assert_close(a[i : i + 1], e, **EXACT)
    rows = torch.tensor([4, 1, 2])
    taken = density.take(rows)
    for a, e in zip(taken.value_grad_hessian(z[rows]), got, strict=True):
        torch.testing.assert_close(a, e[rows], **EXACT)
    torch.testing.assert_close(taken.layout.constrain(taken.initial(3))["mu"], start["mu"][rows])
    assert taken.counts is density.counts
    assert density.counts["hessian"] == 8
    with pytest.raises(InputError, match="shape"):
        density.values(z[:2])
    target = elbo(Problem(eight_schools, (y, s), batch=5), auto.mean_field, compile="never")
    w, noise = target.initial(z), torch.randn(2, target.noise_dim)
    one = elbo(Problem(eight_schools, (y[3], s[3])), auto.mean_field, compile="never")
    torch.testing.assert_close(target.values(w, noise)[3:4], one.values(w[3:4], noise), **EXACT)
    torch.testing.assert_close(
        target.take(rows).log_ratio(w[rows], noise), target.log_ratio(w, noise)[rows], **EXACT
    )


def test_float32_follows_the_data():
    density = log_density(Problem(eight_schools, (Y.float(), S.float())), compile="never")
    exact = log_density(Problem(eight_schools, (Y, S)), compile="never")
    z = points(10)
    value, grad = density.value_and_grad(z.float())
    assert value.dtype == grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), exact.value_and_grad(z)[1], rtol=1e-4, atol=1e-4)
    assert torch.get_default_dtype() == torch.float64
    with pytest.raises(InputError, match="float64"):
        density.values(z)


def test_the_surroundings_are_left_alone():
    state = torch.get_rng_state()
    elbo(Problem(eight_schools, (Y, S)), auto.full_rank, compile="never")
    assert torch.equal(state, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0
    with pytest.raises(ValueError, match="constraint"):
        dist.Normal(0.0, -1.0)


# discrete sites


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[kind], 1.0), obs=x)


def coupled(x):
    """Elements of the plate see one another through a site outside it: only joint sums are exact."""
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("source", 3):
        on = pyro.sample("on", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])))
    pyro.sample("x", dist.Normal(loc * on.sum() + on[0], 1.0), obs=x)


def test_mixtures_are_summed_locally():
    x = torch.linspace(-3, 4, 12)
    density = log_density(Problem(mixture, (x,)), compile="never")
    assert [d.name for d in density.model.plan.local] == ["kind"]
    z = points(density.dim)
    got = density.values(z)[:, 0]
    for i, row in enumerate(z):
        values, jacobian = density.layout.constrain_with_jacobian(row)
        weights, loc = values["weights"], values["loc"]
        prior = dist.Dirichlet(torch.ones(3)).log_prob(weights) + dist.Normal(0.0, 3.0).log_prob(loc).sum()
        each = torch.logsumexp(weights.log() + dist.Normal(loc, 1.0).log_prob(x[:, None]), -1)
        torch.testing.assert_close(got[i], prior + each.sum() + jacobian, **EXACT)


def test_coupled_elements_are_summed_jointly():
    x = torch.tensor(0.8)
    density = log_density(Problem(coupled, (x,)), compile="never")
    assert [d.name for d in density.model.plan.joint] == ["on"]
    z = points(1)
    got = density.values(z)[:, 0]
    terms = []
    for on in itertools.product((0.0, 1.0), repeat=3):
        on = torch.tensor(on)
        prior = dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])).log_prob(on).sum()
        terms.append(prior + dist.Normal(z[:, 0] * on.sum() + on[0], 1.0).log_prob(x))
    expected = torch.logsumexp(torch.stack(terms), 0) + dist.Normal(0.0, 3.0).log_prob(z[:, 0])
    torch.testing.assert_close(got, expected, **EXACT)


class Typed(nn.Module):
    """A guide with the discrete site, and a continuous one that depends on it."""

    def __init__(self, logits, names):
        super().__init__()
        self.logits, self.names = nn.Parameter(logits), names
        self.loc = nn.Parameter(torch.tensor([0.3, -0.4]))

    def forward(self, x):
        plate, site = self.names
        with pyro.plate(plate, self.logits.shape[0]):
            on = pyro.sample(site, dist.Bernoulli(logits=self.logits))
            pyro.sample("size", dist.Normal(torch.where(on > 0.5, self.loc[0], self.loc[1]), 0.7))


def sources(x):
    with pyro.plate("source", len(x)):
        on = pyro.sample("on", dist.Bernoulli(0.3))
        size = pyro.sample("size", dist.Normal(on, 1.5))
        pyro.sample("x", dist.Normal(size * (1 + on), 1.0), obs=x)


def blended(x):
    with pyro.plate("source", 2):
        on = pyro.sample("on", dist.Bernoulli(0.3))
        size = pyro.sample("size", dist.Normal(on, 1.5))
    pyro.sample("x", dist.Normal((size * (1 + on)).sum(), 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize(("model", "n", "locally"), [(sources, 2, True), (blended, 2, False)])
def test_a_guides_discrete_sites_are_averaged_exactly(model, n, locally):
    x = torch.linspace(0.5, 1.5, n)
    target = elbo(
        Problem(model, (x,)), lambda p: Typed(torch.linspace(-1, 1, n), ("source", "on")), compile="never"
    )
    assert bool(target.plan.local) is locally
    w = target.initial() + 0.1 * points(target.dim, 1)
    logits, loc = w[0, :n], w[0, n:]
    noise = torch.randn(1, target.noise_dim)
    eps = noise[0].reshape(2, n)[1]  # one normal of each element draws its type, the next its size
    expected = torch.zeros(())
    for on in itertools.product((0.0, 1.0), repeat=n):
        on = torch.tensor(on)
        size = torch.where(on > 0.5, loc[0], loc[1]) + 0.7 * eps
        q_on = dist.Bernoulli(logits=logits).log_prob(on).sum()
        log_q = q_on + dist.Normal(0.0, 1.0).log_prob(eps).sum() - n * math.log(0.7)
        values = {"on": on, "size": size}
        log_p = poutine.trace(poutine.condition(model, values)).get_trace(x).log_prob_sum()
        expected = expected + q_on.exp() * (log_p - log_q)
    torch.testing.assert_close(target.values(w, noise)[0, 0], expected, **EXACT)
    many = torch.randn(20000, target.noise_dim, generator=torch.Generator().manual_seed(0))
    draws = target.sample(w, many)["on"][0]
    spread = 4 * 0.5 / 20000**0.5
    assert (draws.mean(0) - logits.sigmoid()).abs().max() < spread
    ratio = target.log_ratio(w, many)[0]
    assert abs(ratio.mean() - target.values(w, many).mean()) < 5 * ratio.std() / 20000**0.5


def test_auto_guides_sum_discrete_sites_out_of_the_model():
    x = torch.linspace(-3, 4, 12)
    problem = Problem(mixture, (x,))
    target, density = elbo(problem, auto.mean_field, compile="never"), log_density(problem, compile="never")
    w, noise = target.initial(points(density.dim, 2)), torch.randn(3, target.noise_dim)
    z = target.unconstrained(w, noise)
    scale = nn.functional.softplus(target.parameters(w)["scale"])
    log_q = (-noise.pow(2) / 2 - math.log(2 * math.pi) / 2).sum(-1) - scale.log().sum(-1)[:, None]
    expected = density.values(z.reshape(6, -1)).reshape(2, 3) - log_q
    torch.testing.assert_close(target.values(w, noise), expected, **EXACT)


# pure functions, starts, compilation


def quartic(w, noise, data):
    return -((w - data["at"]) ** 4).sum() + (noise * w).sum()


def test_any_pure_function():
    data = {"at": torch.randn(6, 2), "unused": "text"}
    f = PureFunction(quartic, 2, args=(data,), noise_dim=2, batch=6, compile="never")
    w, noise = torch.randn(6, 2), torch.randn(3, 2)
    value, grad, hessian = f.value_grad_hessian(w, noise)
    off = w - data["at"]
    torch.testing.assert_close(value, -(off**4).sum(-1) + (w @ noise.T).mean(-1), **EXACT)
    torch.testing.assert_close(grad, -4 * off**3 + noise.mean(0), **EXACT)
    torch.testing.assert_close(hessian, torch.diag_embed(-12 * off**2), **EXACT)
    with pytest.raises(InputError, match="noise"):
        f.values(w)
    with pytest.raises(InputError, match="compile"):
        PureFunction(quartic, 2, compile="sometimes")


def test_few_graphs_serve_many_sizes():
    density = log_density(Problem(eight_schools, (Y, S)), compile="never")
    z = points(10, 24)
    expected = density.value_and_grad(z)[1]
    for b in (23, 17, 12, 7, 5, 3):
        torch.testing.assert_close(density.value_and_grad(z[:b])[1], expected[:b], **EXACT)
    assert sorted(density._graphs["gradient", None]) == [4, 8, 24]


def test_starts_have_finite_densities():
    density = log_density(Problem(eight_schools, (Y, S), start={"tau": torch.tensor(3.0)}), compile="never")
    z = density.initial(4, torch.Generator().manual_seed(1))
    assert z.shape == (4, 10)
    torch.testing.assert_close(density.layout.constrain(z)["tau"], torch.full((4,), 3.0))
    assert torch.equal(z, density.initial(4, torch.Generator().manual_seed(1)))


def test_a_compiled_function_is_the_eager_one():
    problem = Problem(eight_schools, (Y, S))
    eager, compiled = (log_density(problem, compile=c) for c in ("never", "always"))
    z = points(10, 4)
    for a, e in zip(compiled.value_and_grad(z), eager.value_and_grad(z), strict=True):
        torch.testing.assert_close(a, e, **EXACT)
    other = (z + 0.1).T.contiguous().T  # of other strides
    for a, e in zip(compiled.value_and_grad(other), eager.value_and_grad(other), strict=True):
        torch.testing.assert_close(a, e, **EXACT)
    assert compiled.notes == []
    assert compiled.compile_seconds > 0


def test_a_constant_that_is_folded_in_one_place_is_still_read_in_another():
    shift = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def f(w):
        return (w * shift).sum() + (w - (shift + 1)).square().sum()

    eager, compiled = (PureFunction(f, 2, compile=c) for c in ("never", "always"))
    for _ in range(2):
        for a, e in zip(
            compiled.value_and_grad(points(2, 3)), eager.value_and_grad(points(2, 3)), strict=True
        ):
            torch.testing.assert_close(a, e, **EXACT)
    assert compiled.notes == []


@pytest.mark.slow
def test_compiled_hessians_of_an_elbo():
    problem = Problem(eight_schools, (Y, S))
    eager, compiled = (elbo(problem, auto.mean_field, compile=c) for c in ("never", "always"))
    w = eager.initial(points(10, 2))
    for seed in (0, 1):
        noise = torch.randn(3, eager.noise_dim, generator=torch.Generator().manual_seed(seed))
        for a, e in zip(
            compiled.value_grad_hessian(w, noise), eager.value_grad_hessian(w, noise), strict=True
        ):
            torch.testing.assert_close(a, e, **EXACT)
        torch.testing.assert_close(compiled.hvp(w, noise, w), eager.hvp(w, noise, w), **EXACT)
    assert compiled.notes == []


def test_auto_compiles_when_it_pays_and_says_why_it_did_not(monkeypatch):
    monkeypatch.setattr(_pure_function, "COMPILE_AFTER", 0.0)

    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.standalone_compile", broken)
    density = log_density(Problem(eight_schools, (Y, S)))
    z = points(10)
    first, second, third = (density.values(z) for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert len(density.notes) == 1
    assert "no compiler here" in density.notes[0]
    assert re.search(r"after \d+\.\d s", density.notes[0])


def factored(shift):
    z = pyro.sample("z", dist.Normal(torch.zeros_like(shift), 1.0))
    covariance = torch.eye(2, dtype=torch.float64) * (z + shift)  # a covariance where z + shift > 0
    pyro.sample(
        "y",
        dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance),
        obs=torch.ones(2, dtype=torch.float64),
    )


@pytest.mark.parametrize("z", [[[0.5]], [[0.5], [-2.0]]])
def test_a_short_run_makes_no_graph_and_has_the_same_bits(monkeypatch, z):
    """Unless a factor of some row fails: then a graph, in which that row alone is undefined, takes over."""
    made = []
    trace = _graph.trace_graph
    monkeypatch.setattr(_graph, "trace_graph", lambda *a: made.append(a) or trace(*a))
    z = torch.tensor(z, dtype=torch.float64)
    problem = Problem(factored, (torch.tensor(1.0, dtype=torch.float64),))

    def found():
        density = log_density(problem, compile="never")
        target = elbo(problem, auto.mean_field, compile="never")
        w, e = target.initial(z), torch.tensor([[0.3], [-0.3]], dtype=torch.float64)
        return [
            density.values(z), *density.value_and_grad(z), *density.value_grad_hessian(z),
            *target.value_and_grad(w, e), target.hvp(w, e, w),
        ]  # fmt: skip

    short = found()
    assert bool(made) == (len(z) > 1)
    monkeypatch.setattr(_graph, "UNCAPTURED", 0.0)
    for a, b in zip(short, found(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert a[0].isfinite().all()
    assert made


# what is refused


def test_a_bad_start_names_its_site():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a * x, 1.0), obs=x)

    density = log_density(Problem(model, (torch.tensor(math.nan),)), compile="never")
    with pytest.raises(InputError, match="site 'b'"):
        density.initial(1)
    with pytest.raises(InputError, match="start of 'a'"):
        log_density(
            Problem(model, (torch.ones(()),), start={"a": torch.zeros(2, 3)}), compile="never"
        ).initial(1)


def endless(x):
    n = pyro.sample("n", dist.Poisson(3.0))
    pyro.sample("x", dist.Normal(n, 1.0), obs=x)


def too_many(x):
    on = pyro.sample("on", dist.Bernoulli(0.5 * torch.ones(14)).to_event(1))
    pyro.sample("x", dist.Normal(on.sum(), 1.0), obs=x)


def steps(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if a > 0:
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def items(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a.item(), 1.0), obs=x)


def moving(x):
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, a))


def subsampled(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as index:
        pyro.sample("x", dist.Normal(a, 1.0), obs=x + index)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (endless, "'n'.*not finite"),
        (too_many, "16384 joint"),
        (steps, "control flow"),
        (items, "item"),
        (moving, "'b'.*depends on other sites"),
        (subsampled, "'data'.*subsample"),
    ],
)
def test_models_that_cannot_be_captured(model, says):
    with pytest.raises(CaptureError, match=says):
        log_density(Problem(model, (torch.tensor(1.0),)))


class Wrong(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.sites = forward

    def forward(self, y, s):
        self.sites(self.loc)


def misses(loc):
    pyro.sample("mu", dist.Normal(loc, 1.0))


def adds(loc):
    misses(loc)
    pyro.sample("tau", dist.LogNormal(loc, 1.0))
    pyro.sample("theta", dist.Normal(loc, 1.0).expand([8]).to_event(1))
    pyro.sample("eta", dist.Normal(loc, 1.0))


def gamma(loc):
    pyro.sample("tau", dist.Gamma(loc.exp(), 1.0))


def flat(loc):
    misses(loc)
    pyro.sample("tau", dist.LogNormal(loc, 1.0))
    pyro.sample("theta", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        (misses, "missing .*'tau', 'theta'"),
        (adds, "not in the model .*'eta'"),
        (gamma, "'tau': Gamma draws from other noise"),
        (flat, "'theta': got shape"),
    ],
)
def test_guides_that_do_not_fit(sites, says):
    with pytest.raises(CaptureError, match=says):
        elbo(Problem(eight_schools, (Y, S)), lambda p: Wrong(sites))


def test_a_function_is_no_guide():
    with pytest.raises(InputError, match="torch modules"):
        elbo(Problem(eight_schools, (Y, S)), lambda p: misses)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", ["never", "always"])
def test_on_a_gpu(compile):
    problem = Problem(eight_schools, (Y, S))
    there = problem.to(device="cuda")
    z = points(10, 4)
    density = log_density(there, compile=compile)
    assert isinstance(density, LogDensity)
    for a, e in zip(density.value_and_grad(z.cuda()), log_density(problem).value_and_grad(z), strict=True):
        torch.testing.assert_close(a.cpu(), e, **EXACT)
    here, target = elbo(problem, auto.full_rank), elbo(there, auto.full_rank, compile=compile)
    w, noise = here.initial(z), torch.randn(3, here.noise_dim)
    got = target.value_and_grad(w.cuda(), noise.cuda())
    for a, e in zip(got, here.value_and_grad(w, noise), strict=True):
        torch.testing.assert_close(a.cpu(), e, **EXACT)
    assert target.notes == []
