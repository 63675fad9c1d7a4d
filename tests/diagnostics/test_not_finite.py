"""Draws that are NaN or infinite break no report; a note names their sites and their number."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from astrozoo._files import write_json
from astrozoo.diagnostics.metrics import compare, diagnose, not_finite, summary, z_scores
from astrozoo.diagnostics.report import comparison_report, report, write_comparison
from astrozoo.diagnostics.runs import runs
from astrozoo.types import Result, Status


def make(bad: float = 0.0, where: str = "nowhere", *, chain: bool = True) -> Result:
    rng = np.random.default_rng(0)
    mu, tau = rng.normal(size=(4, 100)), rng.gamma(2, size=(4, 100, 3))
    stats = {"energy": rng.normal(size=(4, 100)), "acceptance_rate": rng.uniform(size=(4, 100))}
    if not chain:
        stats = {"log_ratio": rng.normal(size=(4, 100))}
    trace = np.ones((20, 1))
    if where != "nowhere":
        trace[3] = bad
        for values in stats.values():
            values[0, 3] = bad
    if where == "a few draws":
        mu[0, 3] = tau[1, 2, 1] = tau[1, 2, 2] = tau[2, 5, 0] = bad
    if where in ("a site", "all sites"):
        mu[:] = bad
    if where == "all sites":
        tau[:] = bad
    return Result(
        {"mu": mu, "tau": tau},
        Status.CONVERGED,
        0,
        "m",
        "hmc" if chain else "svi",
        sample_stats=stats,
        digest="d",
        trace={"elbo_fresh_draws": trace},
        stats={"counts": {"gradient": 3}, "run_seconds": 1.0},
    )


@pytest.mark.parametrize(
    ("bad", "where", "chain"),
    [
        (np.nan, "a few draws", True),
        (np.inf, "a few draws", False),
        (-np.inf, "a site", True),
        (np.nan, "all sites", False),
    ],
)
def test_reports_of_draws_that_are_not_finite(bad, where, chain, tmp_path):
    result = make(bad, where, chain=chain)
    html = report(result, tmp_path / "r.html").read_text()
    count = 1 if where == "a few draws" else 400
    assert f"Values are NaN or infinite at mu ({count} of 400 draws)" in html
    found = diagnose(result)
    assert found["draws that are not finite"].startswith(f"mu: {count}")
    write_json(found, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["draws that are not finite"]
    results = {"good": make(), "bad": result}
    comparison_report(results, tmp_path / "c.html")
    write_comparison({"bad": result, "good": make()}, tmp_path / "c.csv")
    assert len(runs(results, {"mu": 0.0})) == 2


def test_the_draws_that_are_not_finite_are_left_out():
    result = make(np.inf, "a few draws")
    assert not_finite(result) == {"mu": 1, "tau": 2}
    assert not_finite(make()) == {}
    rest = result.draws["mu"][np.isfinite(result.draws["mu"])]
    assert len(rest) == 399
    row = summary(result)[0]
    assert row["mean"] == pytest.approx(rest.mean())
    assert row["sd"] == pytest.approx(rest.std())
    assert z_scores(result, {"mu": 0.0})["mu"] == pytest.approx(rest.mean() / rest.std())
    rows = {r["method"]: r for r in compare({"good": make(), "bad": result}) if r["parameter"] == "mu"}
    assert rows["bad"]["mean"] == pytest.approx(rest.mean())


def test_a_ratio_that_is_not_finite_leaves_k_hat_unknown():
    assert math.isnan(diagnose(make(np.nan, "a site", chain=False))["largest k-hat"])
