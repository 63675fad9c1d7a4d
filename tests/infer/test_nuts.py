from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from backends import nutpie, nuts
from problems import gaussian, poisson_gamma

from astrozoo.diagnostics.arviz import mcse
from astrozoo.errors import InputError
from astrozoo.types import Result, Status

QUIET = {"compile": "never", "progress": False}
both = pytest.mark.parametrize("method", [nuts, nutpie])


@both
def test_conjugate_poisson_posterior(method):
    problem, posterior = poisson_gamma()
    result = method(problem, seed=2, chains=2, draws=1500, warmup=100, **QUIET)
    assert result.status is Status.CONVERGED
    rate, mean = result.draws["rate"], posterior.mean.item()
    assert rate.shape == (2, 1500)
    assert abs(rate.mean() - mean) < 4 * mcse(rate)
    squares = (rate - mean) ** 2
    assert abs(squares.mean() - posterior.variance.item()) < 4 * mcse(squares)


@both
def test_complete_chains_are_kept_and_reproducible(method, tmp_path):
    problem, _, _ = gaussian(2)
    options = {"draws": 20, "warmup": 20, "compile": "never", "progress": False}
    whole = method(problem, chains=2, **options)
    part = method(problem, chains=2, checkpoint=tmp_path / "c.npz", budget=200, **options)
    assert part.status is Status.BUDGET_SPENT
    assert part.draws["z"].shape[0] < 2
    rest = method(problem, chains=2, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.draws["z"], whole.draws["z"])
    assert not np.array_equal(whole.draws["z"][0], whole.draws["z"][1])


@both
def test_a_budget_that_no_chain_can_end_in_leaves_no_draws(method):
    result = method(gaussian(2)[0], chains=2, draws=100, warmup=50, budget=50, **QUIET)
    assert result.status is Status.BUDGET_SPENT
    assert result.draws["z"].shape == (0, 0, 2)
    assert result.stats["counts"]["gradient"] <= 60  # and the start


@both
def test_a_mass_matrix_that_is_not_positive_definite_is_refused(method):
    bad = Result({}, Status.CONVERGED, 0, "m", "svi", location=np.zeros((1, 2)), covariance=-np.eye(2)[None])
    with pytest.raises(InputError, match=r"precondition: .*not positive definite"):
        method(gaussian(2)[0], precondition=bad, **QUIET)


@both
def test_a_run_of_one_draw_has_one_draw(method):
    """Pyro's diagnostics of a chain failed with fewer than four."""
    result = method(gaussian(2)[0], chains=1, draws=1, warmup=2, **QUIET)
    assert result.draws["z"].shape == (1, 1, 2)
    assert not result.status.ok


def test_nutpie_tells_what_its_trees_were():
    stats = nutpie(gaussian(2)[0], chains=2, draws=30, warmup=50, **QUIET).sample_stats
    assert {"diverging", "energy", "acceptance_rate", "n_steps", "tree_depth"} == stats.keys()
    assert all(column.shape == (2, 30) for column in stats.values())


def test_without_nutpie_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed.*pip install 'astrozoo\[nutpie\]'"):
        nutpie(gaussian(2)[0])
