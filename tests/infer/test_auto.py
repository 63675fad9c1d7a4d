"""The chain of methods on posteriors whose answers are known."""

from __future__ import annotations

import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import astrozoo
from astrozoo import registry
from astrozoo.errors import InputError
from astrozoo.types import Problem, Status

SMALL = {
    "seed": 0,
    "chains": 16,
    "draws": 200,
    "starts": 16,
    "steps": 60,
    "progress": False,
    "compile": "never",
}


def two_modes(y: torch.Tensor) -> None:
    """Modes at 2 and -1.9, the second, nearer to the middle of the prior, a little higher."""
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 2.0).to_event(1))
    seen = torch.stack((z[0] ** 2 - 0.1 * z[0], z[1]), -1)
    pyro.sample("y", dist.Normal(seen, 0.1).to_event(1), obs=y)


@pytest.fixture(scope="module")
def problem():
    return Problem(two_modes, (torch.tensor([3.8, 0.5], dtype=torch.float64),))


def test_it_finds_the_higher_mode_and_its_moments(problem):
    result = astrozoo.infer(problem, "auto", **SMALL)
    assert result.status.ok
    assert result.method == "auto"
    assert result.digest == problem.digest
    z = result.draws["z"].reshape(-1, 2)
    # the second coordinate is conjugate: variance 1 / (1 / 4 + 100)
    sd = (1 / 100.25) ** 0.5
    assert z[:, 1].mean() == pytest.approx(0.5 * 100 * sd**2, abs=5 * sd / 1000**0.5)
    assert z[:, 1].std() == pytest.approx(sd, rel=5 / 1000**0.5)
    assert len(set(np.sign(z[:, 0]))) == 1
    assert set(result.stats["stage_seconds"]) == {"search", "laplace", "hmc"}
    assert result.stats["run_seconds"] == sum(result.stats["stage_seconds"].values())
    assert 1 <= result.stats["modes"]["at_best"][0] <= 16


def test_a_search_that_ends_at_a_saddle_has_diverged_although_its_budget_was_spent(problem, monkeypatch):
    start = [0.01, 0.5]
    options = {"start": start, "seed": 0, "progress": False, "compile": "never"}
    mode = astrozoo.infer(problem, "laplace", budget=1, **options)
    assert mode.status is Status.DIVERGED
    assert np.isnan(mode.covariance).all()
    monkeypatch.setitem(registry.METHODS["laplace"].defaults, "budget", 1)
    result = astrozoo.infer(problem, "auto", **SMALL | {"start": start})
    assert result.stats["laplace"] == "diverged"
    assert any("(diverged) has no covariance" in note for note in result.stats["notes"])
    assert np.isfinite(result.draws["z"]).all()


@pytest.mark.parametrize("method", ["laplace", "svi"])
def test_other_methods_start_where_the_search_ends(problem, method):
    settings = {"progress": False, "compile": "never", "seed": 0}
    found = astrozoo.infer(problem, method, start="search", **settings)
    assert found.status.ok
    assert found.draws["z"][..., 0].mean() == pytest.approx(-1.9, abs=0.02)  # the higher mode
    assert found.stats["counts"]["gradient"] >= 48 * 300
    assert found.stats["modes"]["starts"] == 48


def narrow(y: torch.Tensor) -> None:
    """Two that are known to a thousandth, and their sum to a hundred thousandth."""
    z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.stack((z[0], z.sum())), y.new_tensor([1e-3, 1e-5])).to_event(1), obs=y)


@pytest.mark.parametrize("method", ["svi", "trust_region"])
def test_a_full_rank_guide_works_in_coordinates_of_the_mode_found(method):
    problem = Problem(narrow, (torch.tensor([0.3, 0.7], dtype=torch.float64),))
    settings = {"progress": False, "compile": "never", "seed": 0}
    found = astrozoo.infer(problem, method, "full_rank", start="search", **settings)
    assert found.status.ok
    assert found.stats["modes"]["laplace"] == "converged"
    slope = torch.tensor([[1e3, 0.0], [1e5, 1e5]], dtype=torch.float64)
    exact = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + slope.mT @ slope)
    mean = exact @ slope.mT @ torch.tensor([0.3e3, 0.7e5], dtype=torch.float64)
    location, covariance = (torch.from_numpy(x[0]) for x in (found.location, found.covariance))
    fitted = torch.distributions.MultivariateNormal(location, covariance)
    posterior = torch.distributions.MultivariateNormal(mean, exact)
    assert torch.distributions.kl_divergence(fitted, posterior) < 1e-3  # a gain at which svi stops


def test_asked_to_start_by_a_search_it_does_what_it_always_does(problem):
    asked, plain = (astrozoo.infer(problem, "auto", **SMALL, **more) for more in ({"start": "search"}, {}))
    np.testing.assert_array_equal(asked.draws["z"], plain.draws["z"])


def test_a_start_by_another_word_is_refused(problem):
    with pytest.raises(InputError, match="search"):
        astrozoo.infer(problem, "laplace", start="best")


def test_compiling_is_apart_from_the_stages(problem):
    began = time.monotonic()
    result = astrozoo.infer(problem, "auto", **SMALL | {"compile": "always"})
    whole = time.monotonic() - began
    compiling, stages = result.stats["compile_seconds"], result.stats["stage_seconds"]
    assert compiling > 0
    compiled = result.stats["compiled"]  # hmc's gradient and laplace's gradient and Hessian, at least
    assert compiled["fresh"] + compiled["cached"] >= 3
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) + compiling <= whole


def test_single_precision_agrees_and_a_start_takes_the_place_of_the_search(problem):
    found = astrozoo.infer(problem, "auto", **SMALL)
    again = astrozoo.infer(problem, "auto", start=found, precision="single", **SMALL)
    assert set(again.stats["stage_seconds"]) == {"laplace", "hmc"}
    for name, draws in found.draws.items():
        error = 5 * draws.std((0, 1)) * (2 / 1000) ** 0.5
        assert (np.abs(draws.mean((0, 1)) - again.draws[name].mean((0, 1))) < error).all()


def test_a_checkpoint_gives_the_same_draws(problem, tmp_path):
    path = tmp_path / "run.npz"
    first = astrozoo.infer(problem, "auto", checkpoint=path, **SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {"run.search.npz", "run.laplace.npz", "run.hmc.npz"}
    again = astrozoo.infer(problem, "auto", checkpoint=path, **SMALL)
    np.testing.assert_array_equal(first.draws["z"], again.draws["z"])


def test_a_batch_is_searched_problem_by_problem():
    y = torch.tensor([[3.8, 0.5], [0.8, -1.0]], dtype=torch.float64)
    result = astrozoo.infer(Problem(two_modes, (y,), batch=2), "auto", **SMALL)
    assert result.draws["z"].shape == (16, 200, 2, 2)
    np.testing.assert_allclose(result.draws["z"].mean((0, 1))[:, 1], y[:, 1] * 100 / 100.25, atol=0.02)
