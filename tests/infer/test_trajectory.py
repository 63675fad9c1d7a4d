"""Trajectories are those of the method: reversible, of constant volume, exact on a normal, and unbiased."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import hmc
from problems import banana, gaussian

from astrozoo.density import log_density
from astrozoo.diagnostics.arviz import mcse
from astrozoo.infer._chart import Chart, bent, flat
from astrozoo.infer._metric import estimated, given
from astrozoo.infer._operators import LowRank
from astrozoo.infer._trajectory import Chains, trajectory
from astrozoo.types import Problem, Result, Status

F64 = torch.float64


def _dense():
    return flat(_normal())


def _normal():
    return given(torch.tensor([[0.3, 0.8]], dtype=F64), torch.tensor([[[0.9, 0.0], [0.4, 1.2]]], dtype=F64))


def _low_rank():
    basis = torch.tensor([[[0.6], [0.8]]], dtype=F64)
    metric = LowRank(
        *torch.tensor([[[0.3, 0.8]], [[0.7, 1.4]]], dtype=F64), basis, torch.full((1, 1), 1.5, dtype=F64)
    )
    return flat(metric)


def _bent():
    """Bent along the second of its coordinates."""
    metric = _normal()
    along = torch.tensor([[0.6, 0.8]], dtype=F64)
    across = torch.tensor([[[-0.4, 0.3]]], dtype=F64)
    return Chart(metric, metric.velocity(across)[:, 0], along, torch.tensor([0.2], dtype=F64))


CHARTS = pytest.mark.parametrize("chart", [_dense(), _low_rank(), _bent()], ids=["dense", "low rank", "bent"])


def _move(problem, chart, q, r, step, steps):
    """``[C, d]`` positions and momenta after a trajectory, and the energies before and after."""
    chains = Chains(log_density(problem, compile="never"), 1, len(q))
    value, g = chains(q[None])
    size = torch.full((1, len(q)), step, dtype=F64)
    end, r_end, end_value, _ = trajectory(chains, q[None], r[None], value, g, chart, size, [steps])
    energies = (r.square().sum(-1) / 2 - value[0], r_end[0].square().sum(-1) / 2 - end_value[0])
    return end[0], r_end[0], *energies


def _phase_points(n=20):
    return torch.randn(2, n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


@CHARTS
def test_with_the_momentum_reversed_it_goes_back(chart):
    q, r = _phase_points()
    end, r_end, _, _ = _move(banana(), chart, q, r, 0.1, 10)
    back, r_back, _, _ = _move(banana(), chart, end, -r_end, 0.1, 10)
    assert (end - q).abs().max() > 1
    torch.testing.assert_close(back, q, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-r_back, r, rtol=1e-9, atol=1e-9)


@CHARTS
def test_it_keeps_the_volume_of_phase_space(chart):
    q, r = (x[3] for x in _phase_points())
    h = 1e-5
    shifts = h * torch.cat((torch.eye(4, dtype=F64), -torch.eye(4, dtype=F64)))
    end, r_end, _, _ = _move(banana(), chart, q + shifts[:, :2], r + shifts[:, 2:], 0.3, 4)
    ends = torch.cat((end, r_end), 1)
    jacobian = (ends[:4] - ends[4:]) / (2 * h)
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1, abs=1e-6)
    assert (jacobian - torch.eye(4, dtype=F64)).abs().max() > 0.5


def test_a_normal_is_followed_exactly_by_steps_of_any_size():
    problem, mean, covariance = gaussian(2)
    metric = given(mean[None], torch.linalg.cholesky(covariance)[None])
    q, r = _phase_points()
    for step in (0.1, 1.5, 4.0):
        end, r_end, before, after = _move(problem, flat(metric), q, r, step, 3)
        z = metric.whiten((q - mean)[None])[0]
        torch.testing.assert_close(
            metric.whiten((end - mean)[None])[0], z * np.cos(3 * step) + r * np.sin(3 * step)
        )
        torch.testing.assert_close(r_end, r * np.cos(3 * step) - z * np.sin(3 * step))
        torch.testing.assert_close(after, before)


def test_its_energy_error_is_of_second_order_in_the_step():
    q, r = _phase_points()
    errors = []
    for halvings in (5, 6):
        _, _, before, after = _move(banana(), _dense(), q, r, 0.5**halvings, 2**halvings)
        errors.append((after - before).abs().mean())
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.05)


@CHARTS
def test_a_chart_is_invertible_and_its_force_a_gradient(chart):
    u = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()
    q = chart.position(u)
    torch.testing.assert_close(chart.coordinates(q), u)
    (expected,) = torch.autograd.grad((q.sin() + q**3).sum(), u)
    torch.testing.assert_close(chart.force(q.cos() + 3 * q**2, u), expected)


def test_a_banana_is_straightened_and_a_normal_stays_as_it_is():
    generator = torch.Generator().manual_seed(2)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))
    e = torch.randn(1, 1000, 4, generator=generator, dtype=F64)
    y = e.clone()
    y[..., 1] += e[..., 0] ** 2
    g = -e
    g[..., 0] += 2 * e[..., 0] * e[..., 1]
    x, g = y @ turn.T, g @ turn.T
    chart = bent(estimated(x, g), x, g)
    u, f = chart.coordinates(x), chart.force(g, chart.coordinates(x))
    assert float((u + f).square().mean()) < 0.01
    flat_metric = estimated(x, g)
    w, h = flat_metric.whiten(x - flat_metric.centre), flat_metric.force(g)
    assert float((w + h).square().mean()) > 0.3
    normal = bent(estimated(e, -e), e, -e)
    assert not normal.curve.any()


def _bent_model(y):
    a = pyro.sample("a", dist.Normal(torch.zeros_like(y), 1.0))
    b = pyro.sample("b", dist.StudentT(y.new_tensor(4.0), torch.sin(2 * a), 0.7))
    pyro.sample("y", dist.Laplace(a * b, 1.0), obs=y)


def test_draws_of_a_posterior_that_is_not_normal_have_the_moments_of_quadrature():
    """With a mass matrix and a centre that are both wrong, and nothing of them adapted."""
    problem = Problem(_bent_model, (torch.tensor(0.6, dtype=F64),))
    side = torch.linspace(-12, 12, 601, dtype=F64)
    at = torch.cartesian_prod(side, side)
    weight = log_density(problem, compile="never").values(at)[:, 0].softmax(0)
    location, covariance = np.array([[0.5, -0.5]]), np.array([[[0.8, 0.5], [0.5, 1.6]]])
    wrong = Result({}, Status.CONVERGED, 0, "m", "laplace", location=location, covariance=covariance)
    result = hmc(
        problem, seed=3, precondition=wrong, warmup=0, draws=1000, chains=64, compile="never", progress=False
    )
    accepted = result.sample_stats["acceptance_rate"].mean()
    assert 0.6 < accepted < 0.97
    a, b = result.draws["a"], result.draws["b"]
    A, B = at.T
    for drawn, exact in (
        (a, A), (b, B), (a**2, A**2), (a * b, A * B), (1.0 * (a > 0.5), A > 0.5), (1.0 * (b > 1), B > 1),
        (np.tanh(b) ** 2, B.tanh() ** 2),
    ):  # fmt: skip
        assert abs(drawn[:, 50:].mean() - float(weight @ exact.to(F64))) < 4 * float(mcse(drawn[:, 50:]))
