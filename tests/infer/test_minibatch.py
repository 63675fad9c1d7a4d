"""Gradients of random parts of the data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from astrozoo._minibatch import Minibatches
from astrozoo.density import elbo
from astrozoo.errors import CaptureError, InputError
from astrozoo.guides.auto import mean_field
from astrozoo.infer.svi import svi
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
    assert result.stats["minibatch_counts"]["gradient"] == 8 * result.stats["iterations"]


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
        (Problem(line_model, line().args), 5, InputError, "a problem with one"),
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
