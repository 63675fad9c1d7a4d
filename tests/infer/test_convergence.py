"""The rule of convergence: false alarms and detections, for few long chains and for many short ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from astrozoo.diagnostics.arviz import ess, r_hat
from astrozoo.diagnostics.metrics import diagnose
from astrozoo.diagnostics.report import report
from astrozoo.infer.convergence import R_HAT, e_bfmi, ensemble_status, mixing, mixing_of
from astrozoo.types import Result, Status

RUNS, DIMS = 10, 5
ENSEMBLES = [(4, 1500, 0.0), (4, 4000, 0.8), (32, 250, 0.0), (32, 250, 0.7), (64, 400, 0.8)]
"""Chains, draws, and autocorrelation of neighbouring draws; all of more than 1,000 effective draws."""


def autoregressive(chains, draws, rho):
    """``[run, chain, draw, dim]`` of stationary chains with standard normal draws."""
    generator = torch.Generator().manual_seed(chains + draws)
    z = torch.randn(draws, RUNS, chains, DIMS, generator=generator, dtype=torch.float64)
    for t in range(1, draws):
        z[t] = rho * z[t - 1] + math.sqrt(1 - rho**2) * z[t]
    return z.permute(1, 2, 0, 3)


@pytest.mark.parametrize(("chains", "draws", "rho"), ENSEMBLES)
def test_good_ensembles_pass_and_bad_ones_fail(chains, draws, rho):
    z = autoregressive(chains, draws, rho)
    assert mixing(z).converged.all()
    off, modes, wide = z.clone(), z.clone(), z.clone()
    off[:, 0] += 3  # one chain elsewhere
    modes[:, : chains // 2, :, 0] += 6  # two modes, each chain in one
    wide[:, : chains // 2, :, 1] *= 3  # the same centre, another width: only the folded draws disagree
    for bad in (off, modes, wide):
        assert not mixing(bad).converged.any()


def test_chains_that_drift_together_fail():
    z = autoregressive(32, 250, 0.5)
    assert not mixing(z + torch.linspace(-1, 1, 250, dtype=z.dtype)[:, None]).converged.any()


def test_few_effective_draws_fail_however_alike_chains_are():
    assert not mixing(autoregressive(4, 60, 0.0)).converged.any()


def test_many_short_chains_exceed_1_01_by_chance_alone_but_not_their_limit():
    m = mixing(autoregressive(64, 400, 0.8))
    assert (m.r_hat > R_HAT).any(1).all()
    assert (m.r_hat <= m.r_hat_limit).all()


@pytest.mark.parametrize(("chains", "draws", "rho"), ENSEMBLES)
def test_numbers_are_those_of_arviz(chains, draws, rho):
    z = autoregressive(chains, draws, rho)[0]
    z[0, 3:9] = z[0, 2]  # equal draws, as rejections leave
    m, array = mixing(z[None]), z.numpy()
    np.testing.assert_allclose(m.r_hat[0], r_hat(array), rtol=1e-6)
    np.testing.assert_allclose(m.bulk_ess[0], ess(array, "bulk"), rtol=0.02)
    np.testing.assert_allclose(m.tail_ess[0], ess(array, "tail"), rtol=0.02)


def test_status_and_report_have_the_same_numbers(tmp_path):
    z = autoregressive(8, 300, 0.3)[:2].numpy()
    z[1, 0] += 2
    draws = {"a": z[..., :2].transpose(1, 2, 0, 3), "k": np.ones((8, 300, 2), int)}  # `k` is constant
    diverging = torch.zeros(2, 8, 300, dtype=torch.bool)
    statuses = ensemble_status(draws, True, diverging)
    assert statuses == [Status.CONVERGED, Status.BUDGET_SPENT]
    result = Result(
        draws, Status.BUDGET_SPENT, 0, "m", "hmc", statuses=tuple(statuses),
        sample_stats={"diverging": np.zeros((8, 300, 2), bool)},
    )  # fmt: skip
    found, measured = diagnose(result), mixing_of(draws, True)
    assert found["largest r-hat"] == float(measured.r_hat.nan_to_num(0).max()) > found["r-hat limit"]
    assert f"R-hat above {found['r-hat limit']:.3f}" in report(result, tmp_path / "r.html").read_text()


def test_runs_that_do_not_move_or_diverge_have_diverged():
    still = {"a": np.ones((4, 100))}
    fine = {"a": autoregressive(4, 500, 0.0)[0, ..., 0].numpy()}
    none = torch.zeros(1, 4, 100, dtype=torch.bool)
    assert ensemble_status(still, False, none) == [Status.DIVERGED]
    assert ensemble_status(fine, False, none) == [Status.CONVERGED]
    assert ensemble_status(fine, False, ~none) == [Status.DIVERGED]
    assert ensemble_status({"a": np.ones((4, 3))}, False, none[..., :3]) == [Status.BUDGET_SPENT]
    unseen = torch.tensor([[1.0, 1.2]])
    assert ensemble_status(fine, False, none, unseen) == [Status.BUDGET_SPENT]


def test_e_bfmi_of_independent_energies_is_two_and_of_a_random_walk_small():
    energy = autoregressive(4, 4000, 0.0)[0, ..., 0]
    assert e_bfmi(energy).numpy() == pytest.approx(2, rel=0.1)
    assert (e_bfmi(energy.cumsum(-1)) < 0.1).all()
