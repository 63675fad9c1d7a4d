"""Parameters of models: found, fitted, fixed, and refused where there is nothing to be done with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

import astrozoo
from astrozoo import Problem
from astrozoo.density import elbo, log_density
from astrozoo.errors import CaptureError, InputError
from astrozoo.guides.auto import mean_field, point

F64 = torch.float64
QUIET: dict[str, Any] = {"seed": 0, "progress": False, "compile": "never"}


def normal_means(y: Tensor) -> None:
    """Marginally each datum is N(0, tau^2 + 1): the best tau^2 is the mean of y^2, less 1."""
    tau = pyro.param("tau", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def data(n: int = 40, scale: float = 2.3, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def best_tau(y: Tensor) -> Tensor:
    return (y.square().mean(-1) - 1).sqrt()


@pytest.mark.parametrize(("method", "tolerance"), [("trust_region", 1e-4), ("svi", 0.01)])
def test_prior_scale_reaches_the_maximum_of_the_marginal_likelihood(method: str, tolerance: float) -> None:
    y = data()
    options = {} if method == "trust_region" else {"budget": 4000}
    result = astrozoo.infer(Problem(normal_means, (y,)), method, draws=100, **QUIET, **options)
    np.testing.assert_allclose(result.parameters["tau"], best_tau(y), rtol=tolerance)


def test_independent_problems_have_parameters_of_their_own(tmp_path: Any) -> None:
    y = torch.stack([data(seed=1), data(scale=4.0, seed=2), data(seed=3)])
    problem = Problem(normal_means, (y,), batch=3)
    result = astrozoo.infer(problem, "trust_region", draws=20, **QUIET)
    np.testing.assert_allclose(result.parameters["tau"], best_tau(y), rtol=1e-4)
    assert result.take(1).parameters["tau"] == result.parameters["tau"][1]
    with_groups = astrozoo.predictive(problem, result)
    with_groups.save(tmp_path / "r.nc")
    np.testing.assert_array_equal(
        astrozoo.load(tmp_path / "r.nc").parameters["tau"], result.parameters["tau"]
    )
    fixed = problem.fix(result)
    z = torch.zeros(3, 40, dtype=F64)
    expected = [
        dist.Normal(0.0, t).log_prob(torch.zeros(40)).sum() + dist.Normal(0.0, 1.0).log_prob(row).sum()
        for t, row in zip(result.parameters["tau"], y, strict=True)
    ]
    torch.testing.assert_close(log_density(fixed).values(z)[:, 0], torch.stack(expected).to(F64))


@pytest.mark.parametrize("method", ["hmc", "nuts", "nutpie", "laplace", "el2o", "auto"])
def test_methods_without_a_guide_refuse_parameters_by_name(method: str) -> None:
    with pytest.raises(InputError, match=r"tau.*problem\.fix"):
        astrozoo.infer(Problem(normal_means, (data(),)), method, seed=0, progress=False)


@pytest.mark.parametrize("method", ["svi", "hmc"])
def test_search_refuses_parameters_by_name(method: str) -> None:
    with pytest.raises(InputError, match=r"tau.*problem\.fix"):
        astrozoo.infer(Problem(normal_means, (data(),)), method, start="search", progress=False)


def test_a_fixed_problem_is_the_model_with_the_constant() -> None:
    y = data(5)

    def constant(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    fixed = Problem(normal_means, (y,)).fix({"tau": 2.0})
    runs = [
        astrozoo.infer(p, "hmc", draws=20, chains=2, warmup=50, **QUIET)
        for p in (fixed, Problem(constant, (y,)))
    ]
    np.testing.assert_allclose(runs[0].draws["theta"], runs[1].draws["theta"], rtol=1e-9)
    digests = {Problem(normal_means, (y,)).digest, fixed.digest, Problem(normal_means, (y,)).fix().digest}
    assert len(digests) == 3


def test_fix_checks_names_shapes_and_ranges() -> None:
    problem = Problem(normal_means, (data(),))
    for bad in ({"sigma": 1.0}, {"tau": torch.ones(2)}, {"tau": -1.0}, {}):
        with pytest.raises(InputError):
            problem.fix(bad)


def test_pyros_store_is_neither_read_nor_written() -> None:
    pyro.clear_param_store()
    pyro.param("tau", torch.tensor(50.0), constraint=constraints.positive)
    pyro.param("other", torch.tensor(3.0))
    problem = Problem(normal_means, (data(),))
    assert elbo(problem, mean_field).model_parameters(elbo(problem, mean_field).initial())["tau"] == 1.0
    astrozoo.infer(problem, "svi", budget=100, draws=5, **QUIET)
    store = pyro.get_param_store()
    assert set(store.keys()) == {"tau", "other"}
    assert float(store["tau"].detach()) == pytest.approx(50.0)
    pyro.clear_param_store()


class Regression(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1, dtype=F64)
        self.plain = nn.Linear(2, 1, dtype=F64).requires_grad_(False)
        self.noise = PyroParam(torch.tensor(1.0, dtype=F64), constraint=constraints.positive)
        self.offset = PyroSample(dist.Normal(0.0, 1e-3))
        self.register_buffer("shift", torch.tensor(0.5, dtype=F64))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x)[:, 0] + self.offset + self.shift + 0 * self.plain(x)[:, 0]
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def regression_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=F64)
    return x, 1.0 + x @ torch.tensor([2.0, -1.0], dtype=F64) + 0.3 * torch.randn(60, generator=generator)


@pytest.mark.parametrize("method", ["svi", "trust_region"])
def test_a_pyro_module_is_fitted_and_stays_as_it_was(method: str) -> None:
    x, y = regression_data()
    torch.manual_seed(0)
    module = Regression()
    before = copy.deepcopy(module.state_dict())
    result = astrozoo.infer(Problem(module, (x, y)), method, draws=20, **QUIET)
    assert set(result.parameters) == {"linear.weight", "linear.bias", "noise"}
    design = torch.cat((x, torch.ones(60, 1, dtype=F64)), 1)
    best = torch.linalg.lstsq(design, y - 0.5).solution
    np.testing.assert_allclose(result.parameters["linear.weight"][0], best[:2], atol=2e-3)
    np.testing.assert_allclose(result.parameters["linear.bias"][0], best[2], atol=2e-3)
    residual = y - 0.5 - design @ best
    np.testing.assert_allclose(result.parameters["noise"], residual.square().mean().sqrt(), rtol=5e-3)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.plain.parameters()] == [False, False]


@dataclass(frozen=True)
class NetworkModel:
    net: nn.Module

    def __call__(self, x: Tensor, y: Tensor) -> None:
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.net(x)[:, 0] + bias, 0.5), obs=y)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1, bias=False)).to(F64)


def test_a_network_reaches_a_mode_that_plain_torch_cannot_better() -> None:
    x, y = regression_data()
    net = network()
    result = astrozoo.infer(Problem(NetworkModel(net), (x, y)), "trust_region", guide=point, draws=1, **QUIET)
    bias = torch.tensor(float(result.draws["bias"][0, 0]), dtype=F64, requires_grad=True)
    fitted = copy.deepcopy(net)
    state = {name.removeprefix("net."): torch.as_tensor(x) for name, x in result.parameters.items()}
    fitted.load_state_dict(state)
    optimiser = torch.optim.LBFGS([*fitted.parameters(), bias], max_iter=2000, line_search_fn="strong_wolfe")

    def potential() -> Tensor:
        optimiser.zero_grad()
        value = ((y - fitted(x)[:, 0] - bias) / 0.5).square().sum() / 2 + bias.square() / 2
        value.backward()
        return value.detach()

    reached = float(potential())
    target = elbo(Problem(NetworkModel(net), (x, y)), point)
    start = -float(target.values(torch.zeros(1, target.dim, dtype=F64))[0])
    assert reached < 0.5 * start
    optimiser.step(potential)
    assert float(potential()) == pytest.approx(reached, rel=1e-3)


def closure_of(net: nn.Module) -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        NetworkModel(net)(x, y)

    return model


def registered(net: nn.Module) -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("registered", net)
        NetworkModel(net)(x, y)

    return model


@pytest.mark.parametrize(
    ("make", "prefix"), [(NetworkModel, "net"), (closure_of, "net"), (registered, "registered")]
)
def test_modules_are_found_wherever_the_model_keeps_them(make: Any, prefix: str) -> None:
    x, y = regression_data()
    net = network()
    target = elbo(Problem(make(net), (x, y)), mean_field)
    w = target.initial()
    found = target.model_parameters(w)
    assert list(found) == [f"{prefix}.{name}" for name, _ in net.named_parameters()]
    for name, value in net.named_parameters():
        assert torch.equal(found[f"{prefix}.{name}"][0], value)
    gradient = target.value_and_grad(w, torch.zeros(1, target.noise_dim, dtype=F64))[1]
    assert (gradient[:, target.guide_dim :] != 0).all()


def test_gradients_are_those_of_autograd() -> None:
    x, y = regression_data()
    net = network()
    target = elbo(Problem(NetworkModel(net), (x, y)), mean_field)
    gradient = target.value_and_grad(target.initial(), torch.zeros(1, target.noise_dim, dtype=F64))[1]
    dist.Normal(net(x)[:, 0], 0.5).log_prob(y).sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(gradient[0, target.guide_dim :], expected)


def test_a_frozen_module_is_constant() -> None:
    x, y = regression_data()
    net = network().requires_grad_(False)
    problem = Problem(NetworkModel(net), (x, y))
    assert not elbo(problem, mean_field).model.parameters
    assert log_density(problem).dim == 1
    assert problem.fix() is problem


def test_a_module_in_training_mode_is_refused_before_it_changes() -> None:
    x, y = regression_data()
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).to(F64)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CaptureError, match=r"net\.1\.num_batches_tracked.*eval"):
        elbo(Problem(NetworkModel(net), (x, y)), mean_field)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert set(elbo(Problem(NetworkModel(net.eval()), (x, y)), mean_field).model.parameters.names) == {
        "net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias",
    }  # fmt: skip


CONSTRAINTS = [
    (constraints.positive, torch.tensor([0.3, 2.0])),
    (constraints.unit_interval, torch.tensor([0.3, 0.6])),
    (constraints.simplex, torch.tensor([0.2, 0.3, 0.5])),
    (constraints.lower_cholesky, torch.tensor([[1.0, 0.0], [0.4, 2.0]])),
    (constraints.positive_definite, torch.tensor([[1.0, 0.2], [0.2, 2.0]])),
    (constraints.interval(-1.0, 3.0), torch.tensor(2.0)),
]


@pytest.mark.parametrize(("constraint", "value"), CONSTRAINTS, ids=str)
def test_initial_values_come_back_through_their_transform(constraint: Any, value: Tensor) -> None:
    def model() -> None:
        p = pyro.param("p", lambda: value.to(F64), constraint=constraint)
        pyro.sample("z", dist.Normal(p.sum(), 1.0))

    target = elbo(Problem(model), mean_field)
    w = target.initial()
    torch.testing.assert_close(target.model_parameters(w)["p"][0], value.to(F64))
    fixed = Problem(model).fix({"p": value})
    torch.testing.assert_close(
        log_density(fixed).values(torch.zeros(1, 1, dtype=F64)),
        dist.Normal(value.to(F64).sum(), 1.0).log_prob(torch.zeros(1, 1, dtype=F64)),
    )


def test_one_name_is_one_parameter_in_model_and_guide() -> None:
    def model(y: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.0)) + pyro.param("a", torch.tensor(7.0))
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    class Guide(nn.Module):
        def forward(self, y: Tensor) -> None:
            scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(pyro.param("a") + pyro.param("shift", torch.tensor(0.0)), scale))

    y = torch.tensor(3.0, dtype=F64)
    target = elbo(Problem(model, (y,)), lambda problem: Guide())
    assert (list(target.shapes), target.model.parameters.names) == (["scale", "shift"], ["a"])
    result = astrozoo.infer(
        Problem(model, (y,)), "trust_region", lambda problem: Guide(), mode="stochastic", **QUIET
    )
    assert float(result.parameters["a"]) == pytest.approx(1.5, abs=0.02)  # y ~ N(2 a, 2)
    assert result.draws["z"].mean() == pytest.approx(3.0, abs=0.1)
    assert result.draws["z"].std() == pytest.approx(0.5**0.5, abs=0.05)


def test_what_cannot_be_a_parameter_is_refused_by_name() -> None:
    outside = (network()[0].weight * 2).sum()

    def computed() -> None:
        pyro.sample("z", dist.Normal(outside, 1.0))

    def without_value() -> None:
        pyro.sample("z", dist.Normal(pyro.param("nowhere"), 1.0))

    def on_the_edge() -> None:
        pyro.sample("z", dist.Normal(pyro.param("edge", torch.tensor(0.0), constraints.positive), 1.0))

    def support() -> None:
        top = pyro.param("top", torch.tensor(2.0), constraints.positive)
        pyro.sample("within", dist.Uniform(0.0, top))

    for model, match in [
        (computed, "outside of it"),
        (without_value, "nowhere"),
        (on_the_edge, "edge"),
        (support, "within"),
    ]:
        with pytest.raises((CaptureError, InputError), match=match):
            elbo(Problem(model), mean_field)


def test_gradients_of_minibatches_average_to_that_of_all_data() -> None:
    from astrozoo._minibatch import Minibatches
    from astrozoo.infer.randomness import generator_for

    x, y = regression_data()
    problem = Problem(NetworkModel(network()), (x, y), data_plates=("data",))
    parts = Minibatches(problem, mean_field, 20)
    target = elbo(problem, mean_field)
    w, noise = target.initial(), torch.zeros(1, target.noise_dim, dtype=F64)
    draws = [
        parts.draw(torch.tensor([0]), generator_for(0, i)).value_and_grad(w, noise)[1] for i in range(400)
    ]
    stacked = torch.stack(draws)[:, 0]
    error = stacked.std(0) / len(draws) ** 0.5
    z = (stacked.mean(0) - target.value_and_grad(w, noise)[1][0]) / error.clamp_min(1e-9)
    assert z[target.guide_dim :].abs().max() < 4


def test_a_large_network_runs_under_svi(tmp_path: Any) -> None:
    x, y = regression_data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 1)).to(
        F64
    )
    result = astrozoo.infer(Problem(registered(net), (x, y)), "svi", budget=100, draws=10, **QUIET)
    assert result.parameters["registered.2.weight"].shape == (300, 300)
    result.save(tmp_path / "r.nc")
    loaded = astrozoo.load(tmp_path / "r.nc").parameters
    assert all(np.array_equal(loaded[name], value) for name, value in result.parameters.items())
