"""The flows of zuko as distributions: densities, draws, pickles, and every method of the zoo."""

from __future__ import annotations

import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import astrozoo
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.nets.flow import (
    KINDS,
    FlowDistribution,
    StandardisedFlow,
    flow_distribution,
    inverted,
    make_flow,
    start_as_identity,
)
from astrozoo.types import Problem

F64 = torch.float64
CONDITION = torch.tensor([0.3], dtype=F64)
SMALL = {
    "trust_region": {"guide": "mean_field", "budget": 1, "draws": 20, "particles": 4},
    "svi": {"guide": "iaf", "budget": 4, "draws": 20, "particles": 2},
    "el2o": {"guide": "full_rank", "budget": 1, "draws": 20, "particles": 2},
    "laplace": {"budget": 3, "draws": 20},
    "hmc": {"draws": 4, "chains": 2, "warmup": 6, "max_steps": 3},
    "nuts": {"draws": 4, "chains": 1, "warmup": 4, "max_tree_depth": 2},
    "auto": {"draws": 4, "chains": 2, "warmup": 6, "starts": 2, "steps": 3},
}
QUICK = {"svi", "hmc"}
PAIRS = [
    pytest.param(kind, method, marks=() if method in QUICK or kind == "realnvp" else pytest.mark.slow)
    for kind in KINDS
    for method in SMALL
]


def flow_of(kind: str, features: int = 2, context: int = 1, **settings):
    settings = {"transforms": 2, "hidden": (8, 8)} | ({"bins": 4} if kind == "nsf" else {}) | settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_flow(kind, features, context, **settings).to(F64).requires_grad_(False)


def grid(half: float = 9.0, n: int = 300):
    x = torch.linspace(-half, half, n, dtype=F64)
    return torch.stack(torch.meshgrid(x, x, indexing="ij"), -1), float(x[1] - x[0]) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one_and_is_that_of_zuko(kind):
    flow = flow_of(kind)
    z, area = grid(n=200)
    density = flow_distribution(flow, CONDITION).log_prob(z)
    assert density.exp().sum().item() * area == pytest.approx(1, abs=3e-4)
    torch.testing.assert_close(density, flow(CONDITION).log_prob(z))
    other = flow_distribution(flow, CONDITION + 1).log_prob(z)
    assert (other - density).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_density(kind):
    """The inverse of a draw is its noise, and the Jacobian that of automatic differentiation."""
    given = flow_distribution(flow_of(kind, features=3), CONDITION)
    noise = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    z, log_jacobian = given.push_with_jacobian(noise)
    torch.testing.assert_close(z, given.push(noise))
    torch.testing.assert_close(given.transform(z), noise)
    expected = given.noise.log_prob(noise) - log_jacobian
    torch.testing.assert_close(given.log_prob(z), expected)
    jacobian = torch.autograd.functional.jacobian(given.push, noise[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_jacobian[0])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_with_and_without_conditions(kind):
    flow = flow_of(kind, features=3, context=2)
    given = flow_distribution(flow, torch.zeros(4, 2, dtype=F64))
    assert (given.batch_shape, given.event_shape) == ((4,), (3,))
    wide = given.expand((5, 4))
    assert isinstance(wide, FlowDistribution)
    assert wide.rsample((2,)).shape == (2, 5, 4, 3)
    assert wide.log_prob(wide.sample()).shape == (5, 4)
    alone = flow_distribution(flow_of(kind, features=3, context=0))
    assert alone.rsample((6,)).shape == (6, 3)
    assert flow_distribution(flow_of(kind, features=1, context=0)).rsample((2,)).shape == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pickled_and_its_weights_are_loaded(kind):
    flow = flow_of(kind)
    given = flow_distribution(flow, CONDITION)
    z = given.sample((3,))
    again = pickle.loads(pickle.dumps(given))
    torch.testing.assert_close(again.log_prob(z), given.log_prob(z), rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    other = make_flow(kind, 2, 1, transforms=2, hidden=(8, 8), bins=4 if kind == "nsf" else None).to(F64)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(flow_distribution(other, CONDITION).log_prob(z), given.log_prob(z))


@pytest.mark.parametrize("kind", KINDS)
def test_traced_over_a_batch_with_gradients(kind):
    flow = flow_of(kind, transforms=1)

    def f(z):
        given = flow_distribution(flow, CONDITION)
        return given.log_prob(z) + given.push(z).sum()

    both = vmap(grad_and_value(f))
    with pyro.validation_enabled(False):  # as in the library's capture: checks of values cannot be traced
        graph = make_fx(both)(torch.zeros(3, 2, dtype=F64))
    z = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    for got, expected in zip(graph(z), both(z), strict=True):
        torch.testing.assert_close(got, expected)
    step = 1e-6 * torch.eye(2, dtype=F64)[1]
    slope = (f(z[0] + step) - f(z[0] - step)) / 2e-6
    assert graph(z)[0][0, 1].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_every_flow_under_every_method(kind, method):
    """As a prior whose density is used, and as one whose noise is sampled and pushed through."""
    flow = flow_of(kind, transforms=1)

    def model(y):
        z = pyro.sample("z", flow_distribution(flow, CONDITION))
        given = flow_distribution(flow, CONDITION)
        pushed = pyro.deterministic("pushed", given.push(pyro.sample("noise", given.noise)))
        pyro.sample("y", dist.Normal(z + pushed, 0.5).to_event(1), obs=y)

    problem = Problem(model, (torch.tensor([0.2, -0.3], dtype=F64),))
    result = astrozoo.infer(problem, method, seed=0, progress=False, compile="never", **SMALL[method])
    assert {"z", "noise", "pushed"} == set(result.draws)
    noise, pushed = (torch.from_numpy(result.draws[name]) for name in ("noise", "pushed"))
    assert torch.from_numpy(result.draws["z"]).isfinite().all()
    torch.testing.assert_close(flow_distribution(flow, CONDITION).push(noise), pushed)


@pytest.mark.parametrize("kind", ["realnvp", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:3])])
def test_hmc_with_pushed_noise_samples_the_posterior_of_the_density(kind):
    """Both forms have the posterior that a grid gives."""
    flow, y = flow_of(kind, transforms=1), torch.tensor([0.8, -0.4], dtype=F64)

    def model(y):
        given = flow_distribution(flow, CONDITION)
        z = pyro.deterministic("z", given.push(pyro.sample("noise", given.noise)))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    z, _ = grid(4.0, 160)
    density = flow_distribution(flow, CONDITION).log_prob(z) + dist.Normal(z, 0.5).log_prob(y).sum(-1)
    weight = density.flatten().softmax(0)
    mean = weight @ z.reshape(-1, 2)
    sd = (weight @ (z.reshape(-1, 2) - mean).square()).sqrt()
    settings = {"draws": 100, "chains": 16, "seed": 1, "progress": False, "compile": "never"}
    draws = torch.from_numpy(astrozoo.infer(Problem(model, (y,)), "hmc", **settings).draws["z"])
    error = (draws.mean((0, 1)) - mean) / sd
    assert error.abs().max() < 0.15
    assert ((draws.std((0, 1)) / sd).log().abs() < 0.1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_pyros_own_guide_and_svi_take_it(kind):
    flow = flow_of(kind, transforms=1)

    def model():
        pyro.sample("z", flow_distribution(flow, CONDITION.float()))

    flow.float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pyro.clear_param_store()
        guide = AutoNormal(model)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        losses = [svi.step() for _ in range(3)]
        pyro.clear_param_store()
    assert all(math.isfinite(loss) for loss in losses)


def test_an_inverted_flow_exchanges_the_directions():
    flow = flow_of("nsf")
    noise = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    z = flow_distribution(flow, CONDITION).push(noise)
    torch.testing.assert_close(flow_distribution(inverted(flow), CONDITION).push(z), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_standardised_flow_starts_as_the_normal_of_its_set(kind):
    mean = torch.tensor([2.0, -1.0, 30.0], dtype=F64)
    root = torch.tensor([[1.0, 0, 0], [0.9, 0.2, 0], [5.0, 1.0, 3.0]], dtype=F64)
    context = torch.tensor([[1.0, 0.1], [2.0, 0.4], [4.0, 0.3]], dtype=F64)
    flow = StandardisedFlow(make_flow(kind, 3, 2), (True, False)).to(F64)
    flow.standardise(mean, root @ root.T, context)
    z = mean + torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) @ root.T
    given = flow(context[:1])
    expected = dist.MultivariateNormal(mean, scale_tril=root).log_prob(z)
    torch.testing.assert_close(given.log_prob(z), expected)
    torch.testing.assert_close(flow.context_centre[0], context[:, 0].log().mean())
    torch.testing.assert_close(flow.context_range, torch.tensor([[1.0, 0.1], [4.0, 0.4]], dtype=F64))
    assert given.rsample((2,)).shape == (2, 1, 3)


def test_identity_flows_are_identities():
    for kind in KINDS:
        flow = make_flow(kind, 4).to(F64)
        start_as_identity(flow)
        z = torch.linspace(-2, 2, 8, dtype=F64).reshape(2, 4)
        torch.testing.assert_close(flow.transform()(z), z)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("maf", {"transforms": 0}, "transforms"),
        ("maf", {"hidden": ()}, "hidden"),
        ("maf", {"bins": 8}, "bins"),
        ("realnvp", {"passes": 2}, "passes"),
        ("nsf", {"passes": 9}, "passes"),
    ],
)
def test_settings_that_are_not_of_a_kind_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        make_flow(kind, 3, **settings)


def test_unknown_kinds_and_bad_sets_are_refused():
    with pytest.raises(UnknownNameError, match="realnvp"):
        make_flow("real_nvp", 3)
    flow = StandardisedFlow(make_flow("maf", 2, 1), (True,))
    one, constant = torch.ones(2), torch.ones(3, 1)
    with pytest.raises(InputError, match="positive definite"):
        flow.standardise(one, torch.ones(2, 2), constant)
    with pytest.raises(InputError, match="constant"):
        flow.standardise(one, torch.eye(2), constant)
    with pytest.raises(InputError, match="logarithmic"):
        flow.standardise(one, torch.eye(2), torch.tensor([[1.0], [-1.0]]))
    with pytest.raises(InputError, match="conditions"):
        flow()
