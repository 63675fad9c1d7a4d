"""Gradients of random parts of the data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import svi

import astrozoo
from astrozoo import registry
from astrozoo._checked_cut import checked_cut
from astrozoo._minibatch import Minibatches
from astrozoo.density import elbo
from astrozoo.errors import CaptureError, InputError
from astrozoo.guides.auto import mean_field
from astrozoo.infer.adam import TEST_SHARE, VALUE_COST
from astrozoo.types import Problem

F64 = torch.float64
QUIET = {"compile": "never", "progress": False}


def line_model(x, y):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope[0] + slope[1] * x, 0.5), obs=y)


def line(n=40, batch=None):
    generator = torch.Generator().manual_seed(0)
    shape = (n,) if batch is None else (batch, n)
    x = torch.randn(shape, generator=generator, dtype=F64)
    y = 1 + 2 * x + 0.5 * torch.randn(shape, generator=generator, dtype=F64)
    return Problem(line_model, (x, y), name="line", batch=batch, data_plates=("data",))


@pytest.mark.parametrize("batch", [None, 3])
def test_parts_that_make_up_the_data_average_to_the_gradient_of_all(batch, monkeypatch):
    problem = line(batch=batch)
    rows = torch.arange(batch or 1)
    whole, parts = (
        elbo(problem, mean_field, compile="never"),
        Minibatches(problem, mean_field, 10, compile="never"),
    )
    w = torch.linspace(-1, 1, len(rows) * 4, dtype=F64).reshape(-1, 4)
    noise = torch.randn(6, whole.noise_dim, generator=torch.Generator().manual_seed(1), dtype=F64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found = []
    for k in range(4):
        monkeypatch.setattr(torch, "randperm", lambda n, k=k, **_: order.roll(-10 * k))
        found.append(parts.draw(rows, torch.Generator()).value_and_grad(w, noise))
    value, gradient = (torch.stack(column).mean(0) for column in zip(*found, strict=True))
    expected = whole.value_and_grad(w, noise)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])


def test_svi_on_parts_of_the_data_finds_the_posterior():
    problem = line(200)
    result = svi(problem, mean_field, minibatch=50, learning_rate=0.05, seed=1, **QUIET)
    x, y = problem.args
    design = torch.stack((torch.ones_like(x), x), 1)
    precision = design.T @ design / 0.25 + torch.eye(2, dtype=F64) / 9
    mean, sd = torch.linalg.solve(precision, design.T @ y) / 0.25, precision.diagonal().rsqrt()
    assert result.status.ok
    assert np.abs((result.location[0] - mean.numpy()) / sd.numpy()).max() < 0.15
    np.testing.assert_allclose(np.sqrt(np.diag(result.covariance[0])), sd, rtol=0.1)
    counts = result.stats["minibatch_counts"]
    assert counts["gradient"] == 8 * result.stats["iterations"]
    assert VALUE_COST * counts["value"] < 1.2 * TEST_SHARE * counts["gradient"]


def local_model(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def prior_model(y, prior_mean):
    z = pyro.sample("z", dist.Normal(prior_mean.sum(), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("problem", "size", "error", "message"),
    [
        (line(), 41, InputError, "minibatch: got 41, expected 1 to the 40 elements"),
        (Problem(line_model, line().args), 5, InputError, "declares data_plates"),
        (Problem(line_model, line().args, data_plates=("pixels",)), 5, CaptureError, "no site in data plate"),
        (Problem(local_model, (torch.zeros(4),), data_plates=("data",)), 2, CaptureError, "latent sites"),
        (
            Problem(prior_model, (torch.zeros(4), torch.ones(4)), data_plates=("data",)),
            2, CaptureError, "do not add up",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(problem, size, error, message):
    with pytest.raises(error, match=message):
        svi(problem, mean_field, minibatch=size, **QUIET)


def crossed_model(y, row_offset):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("row", y.shape[0], dim=-2), pyro.plate("column", y.shape[1], dim=-1):
        pyro.sample("y", dist.Normal(mean + row_offset[:, None], 1.0), obs=y)


CROSSED = {"row": {"y": 0, "row_offset": 0}, "column": {"y": -1}}


def test_crossed_plates_average_to_the_gradient_of_all(monkeypatch):
    """Also of a square array, where lengths do not tell the axes apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(6, 6, generator=generator, dtype=F64)
    problem = Problem(crossed_model, (y, torch.linspace(0, 1, 6, dtype=F64)), data_plates=CROSSED)
    whole = elbo(problem, mean_field, compile="never")
    parts = Minibatches(problem, mean_field, {"row": 2, "column": 3}, compile="never")
    w = torch.tensor([[0.3, -0.5]], dtype=F64)
    noise = torch.randn(4, whole.noise_dim, generator=generator, dtype=F64)
    got = []
    for row in range(3):
        for column in range(2):
            orders = iter((torch.arange(6).roll(-2 * row), torch.arange(6).roll(-3 * column)))
            monkeypatch.setattr(torch, "randperm", lambda n, orders=orders, **_: next(orders))
            got.append(parts.draw(torch.arange(1), torch.Generator()).value_and_grad(w, noise))
    value, gradient = (torch.stack(column).mean(0) for column in zip(*got, strict=True))
    expected = whole.value_and_grad(w, noise)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])


class Rows(torch.utils.data.Dataset):
    """Pairs (x, y) by number."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def paired_model(pair):
    line_model(*pair)


def test_svi_reads_a_dataset_in_parts_to_the_same_answer():
    problem = line(200)
    options = {"minibatch": 50, "learning_rate": 0.05, "seed": 1, "budget": 300, **QUIET}
    expected = svi(problem, mean_field, **options)
    data = Problem(paired_model, (Rows(*problem.args),), data_plates={"data": {"pair": 0}})
    got = svi(data, mean_field, **options)
    np.testing.assert_allclose(got.location, expected.location)


class Amortised(torch.nn.Module):
    """q(z | y) = N(a y + b, s), the same a, b and s for all elements."""

    def __init__(self, problem):
        super().__init__()
        self.a, self.b, self.log_s = (torch.nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(self.a * y + self.b, self.log_s.exp().expand(y.shape)))


def test_local_latents_with_an_amortised_guide():
    """z ~ N(0, 1), y ~ N(z, 1): the posterior is N(y / 2, 1 / sqrt 2)."""
    y = torch.randn(300, generator=torch.Generator().manual_seed(3), dtype=F64) * 2**0.5
    problem = Problem(local_model, (y,), data_plates={"data": {"y": 0}})
    result = svi(problem, Amortised, minibatch=30, seed=0, draws=1000, **QUIET)
    z = result.draws["z"][0]
    assert z.shape == (1000, 300)
    slope, intercept = np.polyfit(y.numpy(), z.mean(0), 1)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert intercept == pytest.approx(0, abs=0.03)
    assert z.std(0).mean() == pytest.approx(0.5**0.5, rel=0.03)


def fixed_model(y):
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def discrete_model(y):
    k = pyro.sample("k", dist.Bernoulli(y.new_tensor(0.5)))
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z + k, 1.0), obs=y)


SQUARE = (torch.zeros(6, 6, dtype=F64), torch.zeros(6, dtype=F64))


def declared(plates, model=crossed_model, args=SQUARE):
    return lambda: Problem(model, args, data_plates=plates)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (declared(("row",)), InputError, "2 axes of length 6"),
        (declared(("row", "column")), InputError, "of the same length 6"),
        (declared({"row": {"z": 0}}), InputError, "'z', no argument of the model"),
        (declared({"row": {"y": 2}}), InputError, "axis 2 of 'y'"),
        (declared({"row": {"y": 0.5}}), InputError, "number of an axis"),
        (declared({"row": {}}), InputError, "an axis of each tensor"),
        (declared(CROSSED | {"galaxy": {"y": 1}}), InputError, "which 'column' cuts too"),
        (declared({"row": {"y": 1, "row_offset": 0}}), CaptureError, "cannot be cut"),
        (declared({"row": {"y": 0}}), CaptureError, "cannot be cut"),
        (declared("row"), InputError, "a tuple"),
        (declared({"data": {"y": 0}}, fixed_model, (torch.zeros(8),)), CaptureError, "size is fixed"),
        (declared(("data",), discrete_model, (torch.zeros(8),)), CaptureError, "discrete"),
        (declared(("data",), paired_model, (Rows([], []),)), InputError, "an empty Rows"),
    ],
)  # fmt: skip
def test_bad_declarations_say_how_to_declare(make, error, message):
    def fit():
        problem = make()
        svi(problem, mean_field, minibatch=dict.fromkeys(problem.data_plates, 2), **QUIET)

    with pytest.raises(error, match=message):
        fit()


def test_the_cut_that_celeste_declares_is_one():
    """Crossed plates of images and pixels, with the tensors that each cuts."""
    entry = registry.get("celeste")
    problem = entry.problem(entry.simulate(0)[0])
    assert set(checked_cut(problem, ("image", "pixel")).cut.lengths) == {"image", "pixel"}


def test_other_methods_refuse_a_dataset():
    data = Problem(paired_model, (Rows(*line().args),), data_plates={"data": {"pair": 0}})
    with pytest.raises(InputError, match="only `train` and svi"):
        astrozoo.infer(data, "hmc", progress=False)
