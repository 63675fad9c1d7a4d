from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import hmc, laplace
from problems import banana, gaussian, gaussians, poisson_gamma

from astrozoo.checkpoint import Checkpoint
from astrozoo.density import log_density
from astrozoo.diagnostics.arviz import ess, mcse
from astrozoo.diagnostics.metrics import diagnose
from astrozoo.errors import InputError
from astrozoo.infer import hmc as hmc_module
from astrozoo.infer._adaptation import begin_length, follow_length, rescued
from astrozoo.infer._chart import flat
from astrozoo.infer._hmc_state import HMCState
from astrozoo.infer._metric import DENSE_LIMIT, estimated, given, identity, updated
from astrozoo.infer._operators import Dense, LowRank
from astrozoo.infer._trajectory import Chains, trajectory
from astrozoo.infer.recorder import Recorder
from astrozoo.types import Problem, Result, Status

F64 = torch.float64
QUIET = {"compile": "never", "progress": False}
LEAST = np.pi / 2


def _z_score(draws, mean):
    """Of the mean of ``[chain, draw]`` values, by their Monte-Carlo standard error."""
    return abs(draws.mean() - mean) / float(mcse(draws))


def test_conjugate_poisson_posterior():
    problem, posterior = poisson_gamma()
    result = hmc(problem, seed=2, chains=16, draws=200, warmup=150, **QUIET)
    assert result.status is Status.CONVERGED
    rate = result.draws["rate"]
    assert rate.shape == (16, 200)
    assert _z_score(rate, posterior.mean.item()) < 4
    assert _z_score((rate - posterior.mean.item()) ** 2, posterior.variance.item()) < 4


def test_a_gaussian_of_condition_1e6_and_the_whole_covariance():
    problem, mean, covariance = gaussian(5)
    mean, root = problem.args
    scale = np.logspace(-3, 0, 5)
    problem = Problem(problem.model, (mean, root * mean.new_tensor(scale)[:, None]))
    result = hmc(problem, chains=32, draws=150, warmup=100, **QUIET)
    assert result.status is Status.CONVERGED
    z = (result.draws["z"] - mean.numpy()) / scale
    assert max(_z_score(z[..., i], 0.0) for i in range(5)) < 4
    for i in range(5):
        for j in range(i + 1):
            assert _z_score(z[..., i] * z[..., j], float(covariance[i, j])) < 4.5
    assert not result.sample_stats["diverging"].any()
    assert result.sample_stats["acceptance_rate"].mean() > 0.99  # a normal is followed exactly
    assert ess(z, "bulk").min() > 1000
    assert result.stats["e_bfmi"][0] == pytest.approx(diagnose(result)["smallest e-bfmi"])


def test_a_banana_is_straightened_to_need_no_longer_trajectories():
    result = hmc(banana(), chains=32, draws=100, warmup=120, seed=1, **QUIET)
    x, y = result.draws["x"], result.draws["y"]
    for values, mean in ((x, 0.0), (y, 1.0), (x**2, 1.0), ((y - 1) ** 2, 2.25)):
        assert _z_score(values, mean) < 4
    assert result.stats["length"][0] < 1.1 * LEAST
    assert result.sample_stats["n_steps"].max() <= 3


def test_precondition_hands_on_mass_matrix_and_start():
    problem, mean, _ = gaussian(4)
    first = laplace(problem, **QUIET)
    result = hmc(problem, precondition=first, chains=16, draws=100, warmup=30, **QUIET)
    assert result.status is Status.CONVERGED
    assert max(_z_score(result.draws["z"][..., i], float(mean[i])) for i in range(4)) < 4
    other, _, _ = gaussian(3)
    with pytest.raises(InputError, match=r"precondition: .*\(1, 4, 4\).*\(1, 3, 3\)"):
        hmc(other, precondition=first, **QUIET)


@pytest.mark.parametrize("covariance", [-np.eye(3), np.full((3, 3), np.nan), np.ones((3, 3))])
def test_a_mass_matrix_that_is_not_positive_definite_is_refused(covariance):
    bad = Result(
        {}, Status.CONVERGED, 0, "m", "laplace", location=np.zeros((1, 3)), covariance=covariance[None]
    )
    with pytest.raises(InputError, match=r"precondition: .*not positive definite"):
        hmc(gaussian(3)[0], precondition=bad, **QUIET)


def _undefined_model(y):
    a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.0))
    pyro.sample("b", dist.Normal(y.new_tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal((a - 5).sqrt(), 1.0).to_event(0), obs=y)


def test_a_start_of_undefined_density_names_the_site():
    problem = Problem(_undefined_model, (torch.tensor(1.0, dtype=F64),))
    for start in (None, [1.0, 2.0]):
        with pytest.raises(InputError, match=r"start: .*'y'"):
            hmc(problem, start=start, chains=3, **QUIET)
    with pytest.raises(InputError, match=r"start: .*not finite"):
        hmc(problem, start=[np.nan, 2.0], chains=3, **QUIET)


def test_rows_of_a_batch_equal_the_same_rows_alone():
    problem, _, _ = gaussians(3)
    options = {"start": [0.1, -0.2], "chains": 4, "draws": 10, "warmup": 40, **QUIET}
    together = hmc(problem, **options)
    assert together.draws["z"].shape == (4, 10, 3, 2)
    assert together.location.shape == (3, 2)
    alone = hmc(Problem(problem.model, tuple(a[2:] for a in problem.args), batch=1), **options)
    np.testing.assert_allclose(alone.draws["z"][:, :, 0], together.draws["z"][:, :, 2], rtol=1e-7)


def test_long_trajectories_go_on_without_the_short_ones_to_the_same_end():
    problem, means, covariances = gaussians(5)
    density = log_density(problem, compile="never")
    generator = torch.Generator().manual_seed(0)
    q, r = torch.randn(2, 5, 3, 2, generator=generator, dtype=F64)
    chart = flat(given(means, torch.linalg.cholesky(covariances)))
    step = torch.full((5, 3), 0.2, dtype=F64)
    chains = Chains(density, 5, 3)
    value, g = chains(q)
    steps = [3, 20, 4, 4, 9]
    before = density.counts["gradient"]
    together = trajectory(chains, q, r, value, g, chart, step, steps)
    assert density.counts["gradient"] - before == 3 * (4 * 5 + 5 * 2 + 11)
    for i, n in enumerate(steps):
        one = [i]
        alone = trajectory(
            chains.take(one), q[one], r[one], value[one], g[one], chart.take(one), step[one], [n]
        )
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[one], y, rtol=1e-12, atol=1e-12)


def test_chains_are_the_same_whatever_their_number_where_nothing_is_adapted():
    problem, _, _ = gaussian(3)
    options = {"precondition": laplace(problem, **QUIET), "draws": 5, "warmup": 0, **QUIET}
    few, many = (hmc(problem, chains=n, **options).draws["z"] for n in (8, 16))
    np.testing.assert_allclose(few, many[:8], rtol=1e-12)


@pytest.mark.parametrize("at", [25, 70])
def test_interrupted_it_keeps_its_draws_and_resumes_to_the_same_answer(at, tmp_path, monkeypatch):
    problem, _, _ = gaussian(2)
    options = {"chains": 4, "draws": 40, "warmup": 50, **QUIET}
    whole = hmc(problem, **options)
    advance = hmc_module._advance

    def interrupted(chains, state, settings):
        if state.iteration == at:
            raise KeyboardInterrupt
        advance(chains, state, settings)

    monkeypatch.setattr(hmc_module, "_advance", interrupted)
    part = hmc(problem, checkpoint=tmp_path / "c.npz", **options)
    assert part.status is Status.INTERRUPTED
    done = max(0, at - 50)
    assert part.draws["z"].shape == (4, done, 2)
    np.testing.assert_array_equal(part.draws["z"], whole.draws["z"][:, :done])
    monkeypatch.setattr(hmc_module, "_advance", advance)
    rest = hmc(problem, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.draws["z"], whole.draws["z"])
    for name, array in whole.sample_stats.items():
        np.testing.assert_array_equal(rest.sample_stats[name], array)


def test_a_finished_run_goes_on_to_more_draws_but_not_to_fewer(tmp_path):
    problem, _, _ = gaussian(2)
    options = {"chains": 4, "warmup": 20, **QUIET}
    whole = hmc(problem, draws=40, **options)
    first = hmc(problem, draws=25, checkpoint=tmp_path / "c.npz", **options)
    with pytest.raises(InputError, match="draws: got 10, expected at least the 25 of each chain"):
        hmc(problem, draws=10, checkpoint=tmp_path / "c.npz", **options)
    more = hmc(problem, draws=40, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(more.draws["z"], whole.draws["z"])
    np.testing.assert_array_equal(first.draws["z"], whole.draws["z"][:, :25])
    hmc(problem, draws=20, keep=("z",), checkpoint=tmp_path / "k.npz", **options)
    with pytest.raises(InputError, match="draws: got 40, expected 20, as in the checkpoint"):
        hmc(problem, draws=40, keep=("z",), checkpoint=tmp_path / "k.npz", **options)


def test_killed_after_any_iteration_it_goes_on_to_the_same_draws(monkeypatch):
    problem, _, _ = gaussian(2)
    states = []
    advance = hmc_module._advance

    def kept(chains, state, settings):
        advance(chains, state, settings)
        states.append({name: array.copy() for name, array in state.arrays().items()})

    monkeypatch.setattr(hmc_module, "_advance", kept)
    options = {"chains": 4, "draws": 3, "warmup": 15, **QUIET}
    whole = hmc(problem, **options)
    monkeypatch.setattr(hmc_module, "_advance", advance)
    for held in list(states):
        monkeypatch.setattr(Checkpoint, "load", lambda self, held=held: held)
        rest = hmc(problem, **options)
        np.testing.assert_array_equal(rest.draws["z"], whole.draws["z"])
        assert rest.stats["gradients_per_chain"] == whole.stats["gradients_per_chain"]


def test_a_budget_is_kept():
    problem, _, _ = gaussian(2)
    result = hmc(problem, chains=4, draws=100, warmup=20, budget=80, **QUIET)
    assert result.status is Status.BUDGET_SPENT
    assert 0 < result.draws["z"].shape[1] < 100
    assert result.stats["gradients_per_chain"] < 80 + hmc_module.EARLY_STEPS


def _spiked(d, generator):
    """A covariance of ten soft and ten stiff directions among others of unit variance, scaled."""
    basis, _ = torch.linalg.qr(torch.randn(d, 20, generator=generator, dtype=F64))
    values = torch.cat((torch.full((10,), 100.0, dtype=F64), torch.full((10,), 0.01, dtype=F64)))
    scale = torch.rand(d, generator=generator, dtype=F64) + 0.5
    inner = torch.eye(d, dtype=F64) + (basis * (values - 1)) @ basis.T
    return scale[:, None] * inner * scale


def _whitened_condition(metric, covariance):
    root = metric.velocity(torch.eye(len(covariance), dtype=F64)[None])[0].T
    values = torch.linalg.eigvalsh(root.T @ torch.linalg.inv(covariance) @ root)
    return float(values[-1] / values[0])


def test_the_mass_matrix_of_a_gaussian_is_exact_from_points_anywhere():
    _, mean, covariance = gaussian(6)
    x = mean + 3 + 10 * torch.rand(2, 400, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    metric = estimated(x, -(x - mean) @ torch.linalg.inv(covariance))
    assert isinstance(metric, Dense)
    torch.testing.assert_close(metric.root[1] @ metric.root[1].T, covariance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metric.centre, mean.expand(2, 6), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metric.whiten(metric.velocity(x)), x)
    torch.testing.assert_close((metric.force(x) * x).sum(-1), (x * metric.velocity(x)).sum(-1))


def test_in_many_dimensions_it_corrects_the_few_directions_that_stand_out():
    generator, d = torch.Generator().manual_seed(1), DENSE_LIMIT + 50
    covariance = _spiked(d, generator)
    root = torch.linalg.cholesky(covariance)
    x = torch.randn(1, 1000, d, generator=generator, dtype=F64) @ root.T
    metric = estimated(x, -torch.cholesky_solve(x[0].T, root).T[None])
    assert isinstance(metric, LowRank)
    assert _whitened_condition(identity(torch.zeros(1, d, dtype=F64)), covariance) > 1e4
    assert _whitened_condition(metric, covariance) < 20
    torch.testing.assert_close(metric.whiten(metric.velocity(x)), x)


def _ill_conditioned(d, generator):
    """A covariance with variances from 1e-6 to 1 in random directions, and its root."""
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))
    covariance = basis * torch.logspace(-6, 0, d, dtype=F64) @ basis.T
    return covariance, torch.linalg.cholesky(covariance)


def test_a_given_mass_matrix_of_many_dimensions_is_corrected_and_not_replaced():
    generator, d = torch.Generator().manual_seed(3), DENSE_LIMIT + 20
    covariance, root = _ill_conditioned(d, generator)
    off = torch.linalg.cholesky(_spiked(d, generator))
    root_given = torch.linalg.solve_triangular(off, root.mT, upper=False).mT  # off' off too great
    metric = given(torch.zeros(1, d, dtype=F64), root_given[None])
    before = _whitened_condition(metric, covariance)
    for x in torch.randn(2, 1, 1000, d, generator=generator, dtype=F64) @ root.T:
        g = -torch.cholesky_solve(x[0].T, root).T[None]
        metric = updated(metric, x, g)
    assert isinstance(metric, Dense)
    assert before > 1e4
    assert _whitened_condition(metric, covariance) < 20
    assert _whitened_condition(estimated(x, g), covariance) > 1e4
    torch.testing.assert_close(metric.whiten(metric.velocity(x)), x)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_few_draws_do_no_harm_where_nothing_stands_out(n):
    generator, d = torch.Generator().manual_seed(4), DENSE_LIMIT + 20
    slant = torch.randn(d, d, generator=generator, dtype=F64) / d**0.5
    slanted = torch.linalg.matrix_exp(0.2 * (slant + slant.T))
    for covariance in (torch.eye(d, dtype=F64), slanted):
        x = torch.randn(1, n // 2, d, generator=generator, dtype=F64) @ torch.linalg.cholesky(covariance).T
        x = torch.cat((x, x), 1)  # as after rejections
        metric = estimated(x, -torch.linalg.solve(covariance, x.mT).mT)
        best = _whitened_condition(identity(torch.zeros(1, d, dtype=F64)), covariance)
        assert _whitened_condition(metric, covariance) < 1.5 * best


def test_chains_in_many_dimensions_go_on_as_well_as_a_given_mass_matrix_lets_them():
    generator, d = torch.Generator().manual_seed(5), DENSE_LIMIT + 20
    _, root = _ill_conditioned(d, generator)
    slant = torch.linalg.matrix_exp(0.05 * torch.randn(d, d, generator=generator, dtype=F64) / d**0.5)
    near = root @ slant
    options = {"chains": 8, "draws": 200, "warmup": 60, **QUIET}
    steps = []
    for root_of_target, given_root in ((torch.eye(d, dtype=F64),) * 2, (root, near)):
        problem = Problem(gaussian(2)[0].model, (torch.zeros(d, dtype=F64), root_of_target))
        known = (given_root @ given_root.T).numpy()[None]
        first = Result({}, Status.CONVERGED, 0, "m", "laplace", location=np.zeros((1, d)), covariance=known)
        result = hmc(problem, precondition=first, **options)
        steps.append(result.stats["step_size"][0])
        assert result.status is Status.CONVERGED
    z = np.linalg.solve(root.numpy(), result.draws["z"].reshape(-1, d).T).T.reshape(8, -1, d)
    assert ess(z, "bulk").min() > 200
    assert steps[0] > 1.5
    assert steps[1] > 0.8


def test_more_dimensions_than_a_dense_mass_matrix_is_for():
    covariance = _spiked(DENSE_LIMIT + 20, torch.Generator().manual_seed(2))
    d = len(covariance)
    problem = Problem(gaussian(2)[0].model, (torch.zeros(d, dtype=F64), torch.linalg.cholesky(covariance)))
    result = hmc(problem, chains=16, draws=60, warmup=120, **QUIET)
    z = result.draws["z"] / covariance.diagonal().sqrt().numpy()
    scores = z.mean((0, 1)) / mcse(z)
    assert abs(scores).max() < 5  # of 220
    assert 0.8 < scores.std() < 1.25
    assert result.stats["gradients_per_chain"] < 4000


def test_stranded_chains_go_on_from_others():
    value = torch.tensor([[0.0, -1e5, -3.0, -130.0, -2.0], [0.0, 1.0, 2.0, 3.0, -130.0]])
    chosen = rescued(value, 5, torch.tensor([0.9, 0.5, 0.1, 0.99, 0.0]))
    assert chosen.tolist() == [[0, 2, 2, 4, 4], [0, 1, 2, 3, 0]]


def test_the_length_follows_the_rate_of_chees_up_and_down():
    generator = torch.Generator().manual_seed(0)

    def after(t, steps=40):
        length = begin_length(1, LEAST, torch.zeros(1, dtype=F64)) + torch.tensor(
            [[1.0], [0], [0], [0]], dtype=F64
        )
        began = length[0].clone()
        for _ in range(steps):
            u, r = torch.randn(2, 1, 64, 10, generator=generator, dtype=F64)
            end, momentum = u * np.cos(t) + r * np.sin(t), r * np.cos(t) - u * np.sin(t)
            ones, travelled = torch.ones(1, 64, dtype=F64), torch.tensor([t], dtype=F64)
            length = follow_length(length, u, end, momentum, ones, travelled, LEAST)
        return float(length[0] - began)

    assert after(0.8) > 0.5  # below the optimum, tan t = 2 t
    assert after(1.5) < -0.5


def _covariance_model(y):
    sigma = pyro.sample("sigma", dist.Normal(y.new_tensor(1.0), 1.0))
    covariance = torch.eye(2, dtype=y.dtype) + sigma * (1 - torch.eye(2, dtype=y.dtype))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def test_where_a_matrix_has_no_cholesky_factor_only_that_row_is_undefined():
    density = log_density(Problem(_covariance_model, (torch.ones(2, dtype=F64),)), compile="never")
    for rows in ([[0.5], [3.0]], [[3.0], [0.5], [-0.5]]):  # the first size and a further one
        z = torch.tensor(rows, dtype=F64)
        value, gradient = density.value_and_grad(z)
        assert (value.isfinite() == (z[:, 0].abs() < 1)).all()
        assert (gradient.isfinite().all(1) == value.isfinite()).all()
        alone, _ = density.value_and_grad(z[z[:, 0].abs() < 1])
        torch.testing.assert_close(alone, value[value.isfinite()])


def test_a_state_comes_back_from_its_arrays():
    q = torch.randn(1, 32, DENSE_LIMIT + 1, dtype=F64)
    metric = estimated(q, q**3)
    step = torch.ones(1, 32, dtype=F64)
    recorder, fresh = (Recorder(lambda z, first: {"z": z}, 1, 32, 3, q.shape[2], False) for _ in range(2))
    averaging, length = step.expand(4, 1, 32), begin_length(1, LEAST, step)
    state = HMCState(q, step, q, flat(metric), recorder, step, averaging, length)
    state.window.append((q, q))
    recorder.add(q)
    back = HMCState.restored(state.arrays(), torch.device("cpu"), fresh)
    np.testing.assert_array_equal(back.recorder.finished(q)["draws"]["z"], q.movedim(1, 0))
    torch.testing.assert_close(back.chart.position(q), flat(metric).position(q))
    assert len(back.window) == 1
