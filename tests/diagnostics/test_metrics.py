from __future__ import annotations

import numpy as np
import pytest

from astrozoo.diagnostics import arviz as stats
from astrozoo.diagnostics import metrics
from astrozoo.diagnostics.metrics import (
    compare,
    diagnose,
    el2o_value,
    is_chain,
    scalars,
    summary,
    z_scores,
)
from astrozoo.errors import InputError
from astrozoo.types import Result, Status


def make(seed=0, *, chain=True, shift=0.0, **fields) -> Result:
    rng = np.random.default_rng(seed)
    chains, draws = 4, 500
    defaults = {
        "draws": {
            "mu": 2 + shift + rng.normal(size=(chains, draws)),
            "colour": 3 * rng.normal(size=(chains, draws, 2)),
        },
        "status": Status.CONVERGED,
        "seed": seed,
        "model": "m",
        "method": "hmc" if chain else "svi",
        "digest": "d",
        "dims": {"colour": ("band",)},
        "coords": {"band": ["g", "r"]},
    }
    if chain:
        flat = rng.normal(size=(chains, draws))
        defaults["sample_stats"] = {"energy": flat, "diverging": flat > 3, "acceptance_rate": 0 * flat + 0.9}
    return Result(**defaults | fields)


def test_labels_name_coordinates():
    held = scalars(make())
    assert held.labels == ["mu", "colour[band=g]", "colour[band=r]"]
    assert held.draws.shape == (4, 500, 3)
    np.testing.assert_array_equal(held.draws[..., 2], make().draws["colour"][..., 1])


def test_many_parameters_are_thinned_by_site():
    draws = {"a": np.zeros((1, 5, 3000)), "b": np.zeros((1, 5))}
    held = scalars(make(chain=False, draws=draws), most=40)
    assert len(held) == 21
    assert "b" in held.labels


def test_summary_of_known_draws():
    rows = {row["parameter"]: row for row in summary(make())}
    assert rows["mu"]["mean"] == pytest.approx(2, abs=0.1)
    assert rows["colour[band=r]"]["sd"] == pytest.approx(3, rel=0.05)
    assert rows["mu"]["mcse"] == pytest.approx(1 / np.sqrt(2000), rel=0.2)
    assert rows["mu"]["ess bulk"] == pytest.approx(2000, rel=0.2)
    assert rows["mu"]["r-hat"] == pytest.approx(1, abs=0.01)
    assert "r-hat" not in summary(make(chain=False))[0]


def test_chains_that_disagree_are_seen():
    result = make()
    result.draws["mu"][0] += 3
    found = diagnose(result)
    assert found["largest r-hat"] > 1.2
    assert found["smallest bulk ess"] < 50
    assert found["mean acceptance"] == pytest.approx(0.9)
    assert found["divergences"] == int(result.sample_stats["diverging"].sum())
    assert found["smallest e-bfmi"] == pytest.approx(2, rel=0.2)  # of independent energies


def test_an_approximation_is_judged_by_its_importance_ratios():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4000))
    narrow = x**2 / 2 - np.abs(x) ** 1  # the target's tails are heavier than the guide's
    close = 0.01 * rng.normal(size=(1, 4000))
    assert diagnose(make(chain=False, sample_stats={"log_ratio": narrow}))["largest k-hat"] > 0.7
    assert diagnose(make(chain=False, sample_stats={"log_ratio": close}))["largest k-hat"] < 0.5
    both = np.stack((close, narrow), -1)  # [chain, draw, problem]
    batched = make(
        chain=False,
        draws={"mu": both},
        sample_stats={"log_ratio": both},
        statuses=(Status.CONVERGED,) * 2,
    )
    assert not is_chain(batched)
    assert diagnose(batched)["largest k-hat"] > 0.7


def test_k_hat_of_exact_pareto_tails():
    u = np.random.default_rng(1).uniform(size=20000)
    for shape in (0.3, 0.9):  # fitted to the 424 largest: its standard error is (1 + shape) / sqrt(424)
        assert stats.k_hat(-shape * np.log(u)) == pytest.approx(shape, abs=3 * (1 + shape) / np.sqrt(424))


def test_weights_of_hopelessly_heavy_tails_are_finite_and_silent():
    log_ratio = -1e5 * np.exp(3 * np.random.default_rng(0).normal(size=1000))
    log_weight, shape = stats.psis(log_ratio)
    assert np.exp(log_weight).sum() == pytest.approx(1)
    assert shape > 100


def test_an_exact_approximation_leaves_no_doubt():
    exact = make(
        chain=False, sample_stats={"log_ratio": 3 + 1e-12 * np.random.default_rng(0).normal(size=(1, 500))}
    )
    found = diagnose(exact)
    assert found["largest k-hat"] == 0
    assert found["largest el2o value"] < 1e-20


def test_the_el2o_value_is_twice_the_divergence_while_small():
    """Of N(0, 1) from N(m, 1): ln p - ln q = m z - m^2 / 2 has variance m^2, and KL is m^2 / 2."""
    z = np.random.default_rng(0).normal(size=(3, 4000))
    m = np.array([0.1, 0.3, 1.0])[:, None]
    np.testing.assert_allclose(el2o_value(m * z), m[:, 0] ** 2, rtol=4 * np.sqrt(2 / 4000))


def test_constant_and_short_draws_give_nan_quietly():
    assert np.isnan(stats.r_hat(np.ones((1, 50, 2)))).all()
    assert stats.ess(np.ones((2, 50)), "bulk").shape == ()
    assert np.isnan(stats.ess(np.random.default_rng(0).normal(size=(1, 2)), "bulk"))


def test_z_scores_are_in_posterior_sds():
    found = z_scores(make(), {"mu": 1.0, "colour": [0.0, 6.0], "other": 3})
    assert found["mu"] == pytest.approx(1, abs=0.15)
    np.testing.assert_allclose(found["colour"], [0, -2], atol=0.15)
    assert "other" not in found
    with pytest.raises(InputError, match="truth of 'colour'"):
        z_scores(make(), {"colour": 1.0})


def test_compare_takes_chains_as_the_reference():
    rows = compare({"svi": make(1, chain=False, shift=1.0), "hmc": make(2)})
    svi = {row["parameter"]: row for row in rows if row["method"] == "svi"}
    assert svi["mu"]["shift"] == pytest.approx(1, abs=0.1)
    assert svi["mu"]["z"] > 20
    assert abs(svi["colour[band=g]"]["z"]) < 4
    assert svi["mu"]["sd ratio"] == pytest.approx(1, abs=0.1)
    assert all(np.isnan(row["z"]) for row in rows if row["method"] == "hmc")
    with pytest.raises(InputError, match="one problem"):
        compare({"a": make(), "b": make(digest="another")})
    with pytest.raises(InputError, match="one or more"):
        compare({})


def test_tables_of_very_many_parameters_are_of_some_of_them(monkeypatch):
    x = np.random.default_rng(0).normal(size=(2, 50, 300, 400))
    many = make(draws={"image": x}, dims={}, coords={}, sample_stats={})
    held = scalars(many, 100, evenly=True)
    assert len(held) == 100
    assert held.labels[-1] == "image[image_dim_0=299, image_dim_1=399]"
    np.testing.assert_array_equal(held.draws[..., -1], x[..., -1, -1])
    np.testing.assert_array_equal(held.draws[..., 50], x.reshape(2, 50, -1)[..., round(119_999 * 50 / 99)])
    monkeypatch.setattr(metrics, "MOST_COMPARED", 20)
    assert len(compare({"a": many, "b": many})) == 40
