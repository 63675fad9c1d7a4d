import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from astrozoo.diagnostics.scoring import (
    PUBLISHED,
    QUANTITIES,
    asinh_magnitude,
    coverage,
    errors,
    match,
    paired_differences,
    score,
)
from astrozoo.errors import InputError

_PX = 0.396 / 3600


def _truth(n: int = 60, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    star = np.arange(n) % 3 == 0
    shapes = {
        "dev_fraction": rng.choice([0.01, 0.99, 0.5], n),
        "radius": rng.uniform(0.5, 2.0, n),
        "axis_ratio": rng.uniform(0.2, 0.9, n),
        "angle": rng.uniform(0, 180, n),
    }
    table = Table({"ra": (np.arange(n) * 20 * _PX) % 360, "dec": np.full(n, 60.0), "is_star": star})
    for j, band in enumerate("ugriz"):
        table[f"flux_{band}"] = 2.0 * (j + 1) * rng.uniform(0.5, 2, n)
    for name, values in shapes.items():
        table[name] = np.where(star, np.nan, values)
    return table


def _found(truth: Table) -> Table:
    table = truth.copy()
    table["p_star"] = np.where(truth["is_star"], 0.9, 0.1)
    return table


def _value(table: Table, quantity: str, column: str = "error") -> float:
    return float(table[column][list(table["quantity"]).index(quantity)])


def test_asinh_magnitude() -> None:
    assert asinh_magnitude(np.array(100.0), "r") == pytest.approx(17.5, abs=1e-5)
    assert asinh_magnitude(np.array(0.0), "r") == pytest.approx(-2.5 * np.log10(1.2e-10))
    with pytest.raises(InputError):
        asinh_magnitude(np.array(1.0), "y")


def test_perfect_catalogue_has_no_errors() -> None:
    truth = _truth()
    table = score(truth, _found(truth))
    assert list(table["quantity"]) == [*QUANTITIES, "star AUC"]
    assert np.abs(table["error"][:-1]).max() < 1e-6
    assert _value(table, "star AUC") == 1.0
    assert _value(table, "position", "n") == 60
    assert _value(table, "missed stars", "n") == 20


def test_known_errors_are_measured() -> None:
    truth = _truth()
    found = _found(truth)
    found["ra"] = (
        found["ra"] - 0.5 * _PX / np.cos(np.deg2rad(60))
    ) % 360  # across the meridian for the first
    for band in "riz":
        found[f"flux_{band}"] *= 1.1
    found["radius"] += 0.396
    found["angle"] = (found["angle"] + 175.0) % 180
    found["p_star"][0] = 0.4
    table = score(truth, found)
    assert _value(table, "position") == pytest.approx(0.5, abs=1e-4)
    assert _value(table, "r") == pytest.approx(2.5 * np.log10(1.1), rel=1e-3)
    assert _value(table, "g-r") == pytest.approx(2.5 * np.log10(1.1))
    assert _value(table, "u-g") == pytest.approx(0.0, abs=1e-12)
    assert _value(table, "radius") == pytest.approx(1.0)
    assert _value(table, "angle") == pytest.approx(5.0)
    assert _value(table, "missed stars") == pytest.approx(1 / 20)
    assert _value(table, "missed stars", "standard_error") == pytest.approx(1 / 20)
    assert _value(table, "missed galaxies") == 0.0


def test_rules_of_what_counts() -> None:
    truth = _truth()
    galaxy = ~truth["is_star"]
    truth["radius"][1] = 30 * 0.396
    each = errors(truth, _found(truth))
    mixed = truth["dev_fraction"] == 0.5
    assert np.isnan(each["position"][1])
    assert np.isfinite(each["position"]).sum() == 59
    assert np.isnan(each["radius"][mixed | ~galaxy]).all()
    assert np.isnan(each["angle"][truth["axis_ratio"] > 0.6]).all()
    kept = galaxy & ~mixed
    kept[1] = False
    assert np.isfinite(each["axis ratio"]).sum() == kept.sum()


def test_match_is_mutual_and_within_a_pixel() -> None:
    truth = Table({"ra": [0.0, 0.8 * _PX, 100 * _PX], "dec": [0.0, 0.0, 0.0]})
    found = Table({"ra": [0.5 * _PX, 101.5 * _PX], "dec": [0.0, 0.0]})
    rows, partners = match(truth, found)
    assert (rows.tolist(), partners.tolist()) == ([1], [0])
    assert len(match(truth, found, tolerance_px=2.0)[0]) == 2
    assert len(match(truth, found[:0])[0]) == 0
    with pytest.raises(InputError, match="dec"):
        match(truth, Table({"ra": [0.0]}))


def test_missing_and_masked_values_are_not_scored() -> None:
    truth = _truth()
    found = truth["ra", "dec", "flux_g", "flux_r"]
    found["flux_r"] = MaskedColumn(found["flux_r"], mask=np.arange(60) < 10)
    found["flux_g"][20] = -1.0
    table = score(truth, found)
    assert _value(table, "r", "n") == 50
    assert _value(table, "g-r", "n") == 49
    for name in ("u-g", "radius", "missed stars", "star AUC"):
        assert np.isnan(_value(table, name))


def test_auc_of_overlapping_scores() -> None:
    truth = _truth(6)  # stars are rows 0 and 3
    found = _found(truth)
    found["p_star"] = [0.9, 0.5, 0.1, 0.5, 0.6, 0.2]
    assert _value(score(truth, found), "star AUC") == pytest.approx((4 + 2.5) / 8)


def test_paired_differences_use_shared_sources() -> None:
    truth = _truth()
    a, b = _found(truth), _found(truth)
    a["flux_r"] *= 1.2
    b["flux_r"] *= 1.1
    table = paired_differences(truth, a[:40], b[10:])
    assert _value(table, "r", "difference") == pytest.approx(2.5 * np.log10(1.2 / 1.1), rel=1e-3)
    assert _value(table, "r", "n") == 30
    assert _value(table, "r", "standard_error") < 1e-4


def test_coverage_of_calibrated_and_of_overconfident_errors() -> None:
    rng = np.random.default_rng(7)
    truth = _truth(6000)
    found = _found(truth)
    for band in "ugriz":
        found[f"log_flux_{band}"] = np.log(truth[f"flux_{band}"]) + rng.normal(0, 0.1, 6000)
        found[f"log_flux_{band}_sd"] = 0.1 if band != "z" else 0.05
    found["colour_gr"] = -2.5 * np.log10(truth["flux_g"] / truth["flux_r"]) + rng.normal(0, 0.2, 6000)
    found["colour_gr_sd"] = 0.2
    found["dec"] += rng.normal(0, 30, 6000) / 3.6e6
    found["dec_sd"] = 30.0
    found["radius"] *= np.exp(rng.normal(0, 0.3, 6000))
    found["log_radius_sd"] = 0.3
    table = coverage(truth, found)
    expected = [
        "log flux u",
        "log flux g",
        "log flux r",
        "log flux i",
        "log flux z",
        "g-r",
        "dec",
        "log radius",
    ]
    assert list(table["quantity"]) == expected
    for row in table:
        nominal = (0.383, 0.683, 0.866) if row["quantity"] == "log flux z" else (0.683, 0.954, 0.997)
        for k, share in zip((1, 2, 3), nominal, strict=True):
            assert abs(row[f"within_{k}"] - share) < 4.5 * row[f"standard_error_{k}"]
    assert _value(table, "log radius", "n") == 4000
    assert len(coverage(truth, found, ["g-r"])) == 1
    with pytest.raises(InputError, match="log flux y"):
        coverage(truth, found, ["log flux y"])


def test_coverage_without_matches_is_not_a_number() -> None:
    truth = _truth()
    found = _found(truth)
    found["dec"] += 1.0
    found["log_flux_r"], found["log_flux_r_sd"] = 0.0, 1.0
    table = coverage(truth, found)
    assert table["n"].tolist() == [0]
    assert np.isnan(table["within_1"][0])


def test_published_figures() -> None:
    assert set(PUBLISHED) == {*QUANTITIES, "star AUC"}
    assert PUBLISHED["r"]["MCMC synthetic"] == 0.108
    assert PUBLISHED["angle"]["Photo"] == 15.0
