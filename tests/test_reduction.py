"""Every result of a captured function passes one method, which can add the partial sums of processes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from astrozoo.density import Elbo, LogDensity, PureFunction
from astrozoo.guides.auto import mean_field
from astrozoo.types import Problem


def _doubled(part):
    return tuple(2 * x for x in part) if isinstance(part, tuple) else 2 * part


class HalfOfTheData(PureFunction):
    """One of two processes whose data are equal: the sum over both is twice its own."""

    def reduced(self, part, entry, *state):
        return _doubled(part)


def test_partial_sums_are_added_to_every_result():
    data = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)

    def f(w, y):
        return -((y[:, None] - w) ** 4).sum()

    half = HalfOfTheData(f, 2, args=(data,), compile="never")
    whole = PureFunction(f, 2, args=(torch.cat((data, data)),), compile="never")
    w = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, more in (("values", ()), ("value_and_grad", ()), ("value_grad_hessian", ()), ("hvp", (w,))):
        arguments = (w, None, *more)
        torch.testing.assert_close(getattr(half, name)(*arguments), getattr(whole, name)(*arguments))
        taken = half.take(torch.arange(3))
        torch.testing.assert_close(getattr(taken, name)(*arguments), getattr(whole, name)(*arguments))


def _model(y):
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(1), obs=y)


def test_densities_and_elbos_reduce_there_too(monkeypatch):
    problem = Problem(_model, (torch.zeros(3, dtype=torch.float64),))
    density, elbo = LogDensity(problem, "never"), Elbo(problem, mean_field, compile="never")
    z, w = torch.full((1, 1), 0.3, dtype=torch.float64), elbo.initial(None)
    noise = torch.ones(2, 1, dtype=torch.float64)
    before = density.value_and_grad(z)[1], elbo.log_ratio(w, noise), elbo.values(w, noise)
    monkeypatch.setattr(PureFunction, "reduced", lambda self, part, *state: _doubled(part))
    after = density.value_and_grad(z)[1], elbo.log_ratio(w, noise), elbo.values(w, noise)
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(2 * x, y)


def test_derivatives_that_an_objective_brings_reduce_there_too(monkeypatch):
    def factory(problem, module):
        def f(w, y):
            return -(w**2).sum()

        f.derivatives = lambda w, y: (f(w, y), -2 * w, -2 * torch.eye(len(w), dtype=w.dtype))
        return f

    problem = Problem(_model, (torch.zeros(3, dtype=torch.float64),), objectives={"own": factory})
    elbo = Elbo(problem, mean_field, "own", compile="never")
    w = elbo.initial(None)
    before = elbo.value_grad_hessian(w)
    monkeypatch.setattr(PureFunction, "reduced", lambda self, part, *state: _doubled(part))
    for x, y in zip(before, elbo.value_grad_hessian(w), strict=True):
        torch.testing.assert_close(2 * x, y)
