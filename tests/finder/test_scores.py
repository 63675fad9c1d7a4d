"""Scores of a finder against counting, and against the statistics of known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from astrozoo.errors import InputError
from astrozoo.finder.scores import (
    auroc,
    auroc_interval,
    calibration_error,
    calibration_table,
    true_positive_rate,
    wilson,
)


def test_auroc_is_the_fraction_of_ordered_pairs():
    rng = np.random.default_rng(0)
    score, lens = rng.integers(0, 6, 80).astype(float), rng.uniform(size=80) < 0.4
    pairs = score[lens][:, None] - score[~lens]
    assert auroc(score, lens) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)
    assert auroc(score, lens) == pytest.approx(
        stats.mannwhitneyu(score[lens], score[~lens]).statistic / pairs.size, abs=1e-12
    )


def test_intervals_contain_what_normal_scores_have():
    rng = np.random.default_rng(1)
    lens = np.arange(4000) < 2000
    score = rng.normal(size=4000) + 2 * lens
    low, high = auroc_interval(score, lens, level=0.999)
    assert low < stats.norm.cdf(2 / 2**0.5) < high
    rate, low, high = true_positive_rate(score, lens)
    assert low < rate < high
    expected = stats.norm.sf(stats.norm.isf(0.01) - 2)
    assert abs(rate - expected) < 4 * (high - low) / 3.92


def test_calibrated_probabilities_have_a_small_error_and_others_theirs():
    rng = np.random.default_rng(2)
    probability = rng.uniform(size=20_000)
    lens = rng.uniform(size=20_000) < probability
    assert calibration_error(probability, lens) < 4 * 0.5 / 2000**0.5
    assert calibration_error(np.full(1000, 0.9), np.arange(1000) < 500) == pytest.approx(0.4)
    rows = calibration_table(probability, lens)
    assert sum(row["stamps"] for row in rows) == 20_000
    assert all(row["low"] < row["lenses"] < row["high"] for row in rows)


def test_wilson_is_that_of_scipy():
    for k, n in ((0, 5), (3, 10), (99, 100)):
        expected = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_labels_of_one_kind_are_refused():
    with pytest.raises(InputError, match="3 lenses of 3 stamps"):
        auroc(np.arange(3.0), np.ones(3, bool))
