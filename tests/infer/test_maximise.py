from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import Double, banana, gaussian_elbo, quadratic

from astrozoo.errors import InputError
from astrozoo.infer.maximise import TrustRegionState, maximise
from astrozoo.types import Status

F64 = torch.float64


def _spd(d, condition, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))
    eigenvalues = torch.logspace(0, np.log10(condition), d, dtype=F64)
    return Q @ torch.diag(eigenvalues) @ Q.T


@pytest.mark.parametrize("dense_limit", [200, 1])
def test_quadratic_of_condition_1e4(dense_limit):
    mean = torch.linspace(-3, 3, 8, dtype=F64)
    objective = quadratic(mean, _spd(8, 1e4))
    found = maximise(objective, torch.zeros(1, 8, dtype=F64), dense_limit=dense_limit)
    assert found.statuses == (Status.CONVERGED,)
    torch.testing.assert_close(found.w[0], mean, atol=1e-4, rtol=0)
    assert found.iterations < 15


@pytest.mark.parametrize("dense_limit", [200, 1])
def test_banana_from_many_starts(dense_limit):
    starts = torch.tensor([[-1.2, 1.0], [2.0, -1.0], [0.0, 0.0], [-3.0, 4.0]], dtype=F64)
    found = maximise(banana(), starts, dense_limit=dense_limit, radius=0.5)
    assert set(found.statuses) == {Status.CONVERGED}
    torch.testing.assert_close(found.w, torch.ones(4, 2, dtype=F64), atol=1e-4, rtol=0)
    if dense_limit > 2:
        torch.testing.assert_close(
            found.hessian[0], torch.tensor([[-162.0, 80], [80, -40]], dtype=F64), atol=0.02, rtol=0
        )


def test_fixed_draws_are_exact_for_a_gaussian_of_one_dimension():
    """Antithetic and scaled draws have the first three moments of a normal."""
    objective = gaussian_elbo(torch.tensor([2.0], dtype=F64), torch.tensor([[9.0]], dtype=F64))
    found = maximise(objective, torch.zeros(1, 2, dtype=F64), mode="fixed", draws=10)
    assert found.statuses == (Status.CONVERGED,)
    expected = torch.tensor([2.0, -np.log(3.0)], dtype=F64)
    torch.testing.assert_close(found.w[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_stochastic_mode_reaches_its_noise_floor(seed):
    precision = _spd(4, 100.0)
    objective = gaussian_elbo(torch.arange(4.0, dtype=F64), precision)
    found = maximise(objective, torch.zeros(1, 8, dtype=F64), seed=seed)
    assert found.statuses == (Status.CONVERGED,)
    sd = precision.diagonal().rsqrt()
    # Antithetic draws leave the location without noise; 512 pairs at the end, 4 standard errors of a log SD.
    assert (found.w[0, :4] - torch.arange(4.0, dtype=F64)).abs().max() < 1e-6
    assert (found.w[0, 4:] - sd.log()).abs().max() < 4 / 512**0.5
    assert found.iterations < 60


def _poisson(b=6, d=3):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(b, 20, d, generator=generator, dtype=F64)
    y = torch.poisson(
        (x @ torch.randn(b, d, 1, generator=generator, dtype=F64))[..., 0].exp(), generator=generator
    )

    def f(w, e, x, y):
        z = w[:d] + w[d:].exp() * e
        rate = x @ z
        return (y * rate - rate.exp()).sum() - z @ z / 2 + w[d:].sum()

    return Double(f, 2 * d, noise_dim=d, args=(x, y), batch=b)


@pytest.mark.parametrize("mode", ["stochastic", "fixed"])
def test_rows_of_a_batch_equal_the_same_rows_alone(mode):
    objective = _poisson()
    w0 = torch.cat((torch.zeros(6, 3), torch.full((6, 3), -1.0)), 1).to(F64)
    together = maximise(objective, w0, mode=mode, draws=16, seed=3, doublings=1)
    for row in (0, 4):
        alone = maximise(
            objective.take(torch.tensor([row])), w0[row : row + 1], mode=mode, draws=16, seed=3, doublings=1
        )
        torch.testing.assert_close(alone.w[0], together.w[row], atol=1e-9, rtol=1e-9)
        assert alone.statuses[0] is together.statuses[row]


def test_finished_rows_take_no_work():
    objective = _poisson()
    w0 = torch.cat((torch.zeros(6, 3), torch.full((6, 3), -1.0)), 1).to(F64)
    found = maximise(objective, w0, mode="fixed", draws=8)
    running = np.isfinite(found.trace["radius"]).sum(1)
    assert running[0] == 6
    assert running[-1] < 6
    assert objective.counts["hessian"] <= 8 * (running.sum() + 6)


class _Kill(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("mode", ["stochastic", "fixed"])
def test_interrupted_run_keeps_what_was_done_and_resumes_to_the_same_answer(mode):
    objective = _poisson()
    w0 = torch.cat((torch.zeros(6, 3), torch.full((6, 3), -1.0)), 1).to(F64)
    whole = maximise(objective, w0, mode=mode, draws=16, doublings=1)

    def kill(state):
        if state.iteration == 3:
            raise _Kill

    part = maximise(objective, w0, mode=mode, draws=16, doublings=1, callback=kill)
    assert part.iterations == 3
    assert Status.INTERRUPTED in part.statuses
    assert part.trace["value"].shape == (3, 6)
    state = TrustRegionState.restored(part.state.arrays(), torch.device("cpu"))
    rest = maximise(objective, w0, mode=mode, draws=16, doublings=1, state=state)
    assert torch.equal(rest.w, whole.w)
    np.testing.assert_array_equal(rest.trace["value"], whole.trace["value"])


def test_fixed_draws_begin_with_few_and_end_at_the_same_maximum():
    objective = _poisson()
    w0 = torch.cat((torch.zeros(6, 3), torch.full((6, 3), -1.0)), 1).to(F64)
    all_draws = maximise(objective, w0, mode="fixed", draws=16, dense_limit=0)
    spent = dict(objective.counts)
    found = maximise(objective, w0, mode="fixed", draws=16, coarse=4, dense_limit=0)
    torch.testing.assert_close(found.w, all_draws.w, atol=1e-4, rtol=0)
    assert objective.counts["hvp"] - spent["hvp"] < spent["hvp"]
    assert set(found.trace["draws"][0]) == {4}
    assert np.nanmin(found.trace["draws"][-2]) == 16


@pytest.mark.parametrize("dense_limit", [200, 0])
def test_each_sample_size_follows_its_own_standard_error(dense_limit):
    """A noisy slope wants draws of the gradient and of the tests alone: its curvature is without noise."""
    slope = Double(lambda w, e: -(w @ w) / 2 + (5 + e[0] ** 4 / 3) * w[0], 3, noise_dim=1)
    found = maximise(
        slope, torch.zeros(1, 3, dtype=F64), draws=8, dense_limit=dense_limit, doublings=4, radius=100.0
    )
    assert found.statuses == (Status.CONVERGED,)
    assert np.nanmax(found.trace["hessian draws"]) == 8
    assert np.nanmax(found.trace["test draws"]) == 8 * 2**4
    assert np.nanmax(found.trace["draws"]) > 8
    # 5 + E[e^4] / 3 = 6, where e^4 has SD sqrt(96), known from the pairs of the last gradient.
    pairs = found.trace["draws"][-1, 0] / 2
    assert abs(found.w[0, 0] - 6) < 4 / 3 * (96 / pairs) ** 0.5


def test_budget_and_divergence_are_statuses():
    spent = maximise(banana(), torch.tensor([[-1.2, 1.0]], dtype=F64), max_iterations=2)
    assert spent.statuses == (Status.BUDGET_SPENT,)
    hole = Double(lambda w, e: torch.log(w).sum(), 1)
    assert maximise(hole, torch.tensor([[-1.0]], dtype=F64)).statuses == (Status.DIVERGED,)


def test_bad_input_is_told():
    with pytest.raises(InputError, match=r"w0: got shape \(1, 3\)"):
        maximise(banana(), torch.zeros(1, 3, dtype=F64))
    with pytest.raises(InputError, match="mode"):
        maximise(banana(), torch.zeros(1, 2, dtype=F64), mode="guess")
    with pytest.raises(InputError, match="radius"):
        maximise(banana(), torch.zeros(1, 2, dtype=F64), radius=0.0)
