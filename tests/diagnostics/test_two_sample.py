from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from astrozoo.diagnostics.sbc import calibration, ecdf_band, ranks, sbc_figure
from astrozoo.diagnostics.two_sample import c2st, mmd, wasserstein
from astrozoo.errors import InputError


def test_wasserstein_of_shifted_and_stretched_normals():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 2)), rng.normal(size=(3000, 2))
    x = x * [1.0, 2.0] + [0.5, 0.0]
    # Shift: 0.5; twice the SD: E|z| = sqrt(2 / pi). Errors of quantile averages: about 2 / sqrt(3000).
    np.testing.assert_allclose(wasserstein(x, y), [0.5, np.sqrt(2 / np.pi)], atol=0.08)
    assert wasserstein(y, y).max() == 0


@pytest.mark.parametrize("test", [mmd, c2st])
def test_what_is_alike_lies_in_the_null_and_what_is_not_does_not(test):
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(20):
        found, limit = test(*rng.normal(size=(2, 150, 3)), seed)
        inside += found <= limit
    assert inside >= stats.binom.ppf(1e-4, 20, 0.95)
    x, y = rng.normal(size=(2, 150, 3))
    found, limit = test(x + np.array([1.0, 0, 0]), y)
    assert found > limit
    found, limit = test(x * 2, y)
    assert found > limit


def test_bad_draws_are_refused():
    with pytest.raises(InputError, match=r"shapes \(5, 2\) and \(5, 3\)"):
        mmd(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="not finite"):
        c2st(np.full((5, 2), np.nan), np.zeros((5, 2)))


def test_calibrated_ranks_pass_and_others_do_not():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 3))
    draws = rng.normal(size=(300, 99, 3)) * [1.0, 0.5, 1.0] + [0.0, 0.0, 0.6]  # right, narrow, shifted
    found = np.stack([ranks(d, t, seed) for seed, (d, t) in enumerate(zip(draws, truth, strict=True))])
    right, narrow, shifted = calibration(["right", "narrow", "shifted"], found, 99)
    assert min(right["p (ecdf)"], right["p (chi2)"]) > 0.001
    assert right["coverage of 80%"] == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / 300))
    covered = 2 * stats.norm.cdf(stats.norm.ppf(0.9) / 2) - 1
    assert narrow["coverage of 80%"] == pytest.approx(covered, abs=4 * np.sqrt(0.25 / 300))
    assert max(narrow["p (ecdf)"], shifted["p (ecdf)"]) < 0.01
    assert len(sbc_figure(["a", "b", "c"], found, 99).axes) == 6
    with pytest.raises(InputError, match="20 or more"):
        calibration(["a"], found[:5, :1], 99)


def test_the_band_holds_uniform_ecdfs_at_its_level():
    rng = np.random.default_rng(3)
    at, low, high = ecdf_band(100, 50)
    ranks_ = rng.integers(0, 51, (400, 100))
    ecdf = (ranks_[..., None] <= at * 51 - 1 + 1e-9).mean(1)
    inside = ((ecdf >= low - 1e-12) & (ecdf <= high + 1e-12)).all(1).mean()
    assert inside > stats.binom.ppf(1e-4, 400, 0.95) / 400


def test_ties_are_broken_evenly():
    found = [ranks(np.ones((9, 1)), np.ones(1), seed)[0] for seed in range(500)]
    assert stats.chisquare(np.bincount(found, minlength=10)).pvalue > 1e-4
