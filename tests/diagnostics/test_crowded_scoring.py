import numpy as np
import pytest
from astropy.table import Table

from astrozoo.diagnostics.crowded_scoring import (
    detection,
    flux_coverage,
    one_to_one,
    pair_up,
    reliability,
    score_crowded,
)
from astrozoo.errors import InputError

_SHAPE = (60, 80)


def _table(x: list[float], y: list[float], r: list[float]) -> Table:
    flux = 10 ** (0.4 * (22.5 - np.array(r)))
    return Table({"x": x, "y": y, "flux_r": flux, "is_star": np.ones(len(x), bool)})


def test_the_published_rule() -> None:
    truth = _table([20, 30, 40, 50, 2], [20, 30, 40, 30, 30], [18, 19, 20, 22.5, 18])
    catalogue = _table([20.4, 30.6, 40, 2], [19.6, 30, 40, 30], [18, 19, 20.6, 18])
    # The first agrees in both axes. The second is .6 px off, the third .6 mag, the last outside the border.
    scores = detection(truth, catalogue, _SHAPE)
    assert scores["true positive rate"] == pytest.approx(1 / 3)  # the fourth is beyond the limit
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["F1"] == pytest.approx(1 / 3)
    assert (scores["true sources"], scores["catalogued"]) == (3, 3)
    assert detection(truth, catalogue, _SHAPE, magnitude=1)["precision"] == pytest.approx(2 / 3)


def test_a_source_just_beyond_the_limit_is_no_false_detection() -> None:
    truth, catalogue = _table([20], [20], [22.35]), _table([20], [20], [22.25])
    scores = detection(truth, catalogue, _SHAPE)
    assert scores["precision"] == 1
    assert scores["true sources"] == 0


def test_a_split_star_counts_once_in_one_to_one() -> None:
    truth = _table([20, 40], [20, 20], [17, 19])
    catalogue = _table([19.8, 20.3, 40], [20, 20, 20], [17.3, 18, 19])
    assert detection(truth, catalogue, _SHAPE, limit=20)["precision"] == pytest.approx(2 / 3)
    assert one_to_one(truth, catalogue, _SHAPE)["precision"] == pytest.approx(2 / 3)
    assert one_to_one(truth, catalogue, _SHAPE)["true positive rate"] == 1
    i, j = pair_up(truth, catalogue)
    assert i.tolist() == [0, 1]
    assert j.tolist() == [0, 2]  # of the two halves, the one of nearly the right flux


def test_as_many_pairs_as_possible() -> None:
    truth = _table([20, 20.9], [20, 20], [19, 19])
    catalogue = _table([20.8, 21.8], [20, 20], [19, 19])
    i, j = pair_up(truth, catalogue)
    assert (i.tolist(), j.tolist()) == ([0, 1], [0, 1])  # the nearest pair alone would leave two without one


def test_nothing_in_the_catalogue_or_in_the_truth() -> None:
    truth, nothing = _table([20], [20], [19]), _table([], [], [])
    assert detection(truth, nothing, _SHAPE)["F1"] == 0
    assert detection(nothing, truth, _SHAPE)["precision"] == 0
    assert one_to_one(truth, nothing, _SHAPE)["true positive rate"] == 0


def test_coverage_of_intervals() -> None:
    rng = np.random.default_rng(0)
    n = 400
    truth = Table({"flux_r": np.full(n, 10.0)})
    mean = rng.normal(10, 1, n)
    spread = {"q16": -0.994, "q84": 0.994, "q025": -1.96, "q975": 1.96}
    catalogue = Table({f"flux_r_{name}": mean + z for name, z in spread.items()})
    rows = np.arange(n)
    (row,) = flux_coverage(truth, catalogue, (rows, rows), "r")
    assert row["68%"] == pytest.approx(0.68, abs=0.07)
    assert row["95%"] == pytest.approx(0.95, abs=0.03)
    with pytest.raises(InputError, match="flux_g_q16"):
        flux_coverage(truth, catalogue, (rows, rows), "g")


def test_reliability_has_the_fraction_that_is_true() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(4000)
    rows = reliability(p, rng.random(4000) < p, (0, 0.5, 1))
    assert [row["n"] for row in rows] == [(p < 0.5).sum(), (p >= 0.5).sum()]
    for row in rows:
        assert row["found"] == pytest.approx(row["stated"], abs=4 * row["standard error"])
    assert "found" not in reliability(p[:0], p[:0] > 0, (0, 1))[0]


def test_all_scores_of_a_good_catalogue() -> None:
    rng = np.random.default_rng(2)
    n = 60
    truth = _table(
        rng.uniform(6, 73, n).tolist(), rng.uniform(6, 53, n).tolist(), rng.uniform(16, 22, n).tolist()
    )
    catalogue = truth.copy()
    catalogue["p_star"] = np.where(np.arange(n) == np.argmin(truth["flux_r"]), 1.0, 0.9)
    catalogue["p_star"][np.argmax(truth["flux_r"])] = 0.2
    catalogue["p_exists"] = 0.95
    for name, factor in {"q16": 0.9, "q84": 1.1, "q025": 0.8, "q975": 1.2}.items():
        catalogue[f"flux_r_{name}"] = factor * truth["flux_r"]
    scores = score_crowded(truth, catalogue, _SHAPE)
    assert scores["published rule"]["F1"] == scores["1 px"]["F1"] == scores["bright"]["precision"] == 1
    to_21 = (22.5 - 2.5 * np.log10(truth["flux_r"]) < 21).sum()
    assert scores["stars called galaxies"] == pytest.approx(1 / to_21)
    assert scores["coverage"] == [{"band": "r", "n": n, "68%": 1.0, "95%": 1.0}]
    assert scores["reliability"][-1]["found"] == 1
