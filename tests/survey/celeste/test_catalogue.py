"""The catalogue of a fitted field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.diagnostics.scoring import asinh_magnitude, coverage, score
from astrozoo.survey.celeste.catalogue import FLAGS, catalogue, measured_bands
from astrozoo.survey.celeste.fit import FieldFit

Fake = tuple[FieldFit, Table]


def test_medians_and_deviations_are_those_of_the_draws(fake_fit: Fake) -> None:
    fit, truth = fake_fit
    table = catalogue(fit)
    assert table["p_star"][0] == 0.75
    flux = np.exp(fit.draws["log_flux"])
    np.testing.assert_allclose(table["flux_r"], np.median(flux, 1), rtol=1e-3)
    np.testing.assert_allclose(table["log_flux_r"], np.log(table["flux_r"]))
    np.testing.assert_allclose(table["flux_r_sd"], flux.std(1))
    r_minus_i = 2.5 / np.log(10) * fit.draws["colour"][..., 2]
    np.testing.assert_allclose(table["colour_ri"], np.median(r_minus_i, 1), atol=1e-3)
    np.testing.assert_allclose(table["colour_ri_sd"], r_minus_i.std(1))
    # the upper of two middle fluxes is the lower of two magnitudes
    np.testing.assert_allclose(table["mag_r"], asinh_magnitude(table["flux_r"], "r"), atol=1e-3)
    np.testing.assert_allclose(table["mag_r"], 22.5 - 2.5 * np.log10(truth["flux_r"]), atol=0.01)
    np.testing.assert_allclose(table["ra_sd"], 10, rtol=0.2)
    np.testing.assert_allclose(table["dec_sd"], 20, rtol=0.2)
    east = 1e3 * fit.draws["offset"][..., 0]
    north = 1e3 * fit.draws["offset"][..., 1]
    expected = [np.cov(e, n, bias=True)[0, 1] for e, n in zip(east, north, strict=True)]
    np.testing.assert_allclose(table["ra_dec_cov"], expected)


def test_positions_are_those_of_the_sky(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    east = np.full_like(fit.draws["offset"], [3.6, 0.0])
    high = fit.detections.copy()
    high["dec"], high["ra"] = 60.0, 359.999
    table = catalogue(replace(fit, detections=high, draws=fit.draws | {"offset": east}))
    np.testing.assert_allclose(table["ra"], 0.001, atol=1e-9)  # 3.6 arcsec east are 7.2 in ra at a dec of 60
    np.testing.assert_allclose(table["dec"], 60)


def test_shapes_are_of_the_draws_that_are_galaxies(fake_fit: Fake) -> None:
    fit, truth = fake_fit
    table = catalogue(fit)
    star = np.asarray(truth["is_star"], bool)
    assert np.isnan(table["radius"][1:][star[1:]]).all()
    assert np.isfinite(table["radius"][0])
    assert np.isfinite(table["radius"][~star]).all()
    galaxy = fit.draws["is_star"][0] < 0.5
    radius = np.exp(fit.draws["log_radius"][0, galaxy])
    assert table["radius"][0] == pytest.approx(np.median(radius), rel=0.02)
    assert table["radius_sd"][0] == pytest.approx(radius.std())
    assert table["log_radius_sd"][1] == pytest.approx(0.1, rel=0.2)
    assert table["axis_ratio"][1] == pytest.approx(0.5, abs=0.01)


def test_an_angle_is_the_median_of_its_draws(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    skewed = np.random.default_rng(0).exponential(1.0, 512).clip(max=3.0)  # [rad] twice the angle
    draws = dict(fit.draws)
    eta = np.array(draws["ellipticity"])
    eta[1] = np.column_stack((np.cos(skewed), np.sin(skewed)))[: eta.shape[1]]
    draws["ellipticity"] = eta
    table = catalogue(replace(fit, draws=draws))
    assert table["angle"][1] == pytest.approx(np.rad2deg(np.median(skewed[: eta.shape[1]])) / 2, abs=0.1)


def test_angles_are_averaged_on_the_circle(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    table = catalogue(fit)
    # about 179 degrees, with draws on both sides of 180; SD of the angle is .1 / |eta| / 2
    assert abs((table["angle"][1] - 179 + 90) % 180 - 90) < 1
    assert table["angle_sd"][1] == pytest.approx(np.rad2deg(0.1 / np.log(2) / 2), rel=0.15)
    unknown = np.random.default_rng(0).standard_normal(fit.draws["ellipticity"].shape)
    of_unknown = catalogue(replace(fit, draws=fit.draws | {"ellipticity": unknown}))
    assert 45 < of_unknown["angle_sd"][1] <= 180 / np.sqrt(12)


def test_flags_as_columns_and_bits(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    table = catalogue(fit)
    assert table["edge"][2]
    assert table["flags"][2] == 2
    assert table["flags"][3] == 16 + 32
    for k, name in enumerate(FLAGS):
        np.testing.assert_array_equal(table[name], table["flags"] & 2**k > 0)
    unknown = replace(fit, k_hat=np.full(len(table), np.nan))
    assert catalogue(unknown)["poor_posterior"].all()
    sampled = replace(unknown, r_hat=np.full(len(table), 1.002))
    assert not catalogue(sampled)["poor_posterior"].any()
    mixing_badly = replace(fit, r_hat=np.full(len(table), 1.3))
    assert list(catalogue(mixing_badly)["poor_posterior"]) == list(fit.k_hat > 0.7)


def test_shapes_of_few_draws_have_no_error(fake_fit: Fake) -> None:
    """A star of one draw as a galaxy had standard deviations of exactly 0."""
    fit, _ = fake_fit
    is_star = np.ones_like(fit.draws["is_star"])
    is_star[:, 0] = 0
    table = catalogue(replace(fit, draws={**fit.draws, "is_star": is_star}))
    shapes = ("radius", "log_radius", "dev_fraction", "axis_ratio", "angle")
    for name in shapes:
        assert np.isnan(table[f"{name}_sd"]).all()
    for name in (name for name in table.colnames if name.endswith("_sd")):
        assert not (np.asarray(table[name]) == 0).any()


def test_a_field_without_some_bands_has_no_columns_for_them(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    some = Field(tuple(image for image in fit.field if image.band in "gi"))
    part = replace(fit, field=some, chi2=fit.chi2[:, :2])
    assert measured_bands(part) == ["g", "i"]
    names = catalogue(part).colnames
    assert {"flux_g", "flux_i", "colour_gi"} <= set(names)
    assert not {"flux_r", "mag_u", "colour_gr", "chi2_r"} & set(names)


def test_no_source_gives_no_rows(fake_fit: Fake) -> None:
    fit, _ = fake_fit
    empty = replace(
        fit,
        detections=fit.detections[:0],
        draws={k: v[:0] for k, v in fit.draws.items()},
        p_star=fit.p_star[:0],
        k_hat=fit.k_hat[:0],
        r_hat=fit.r_hat[:0],
        ess=fit.ess[:0],
        converged=fit.converged[:0],
        chi2=fit.chi2[:0],
        n_pixels=fit.n_pixels[:0],
        flags={k: v[:0] for k, v in fit.flags.items()},
    )
    table = catalogue(empty)
    assert len(table) == 0
    assert table.colnames == catalogue(fit).colnames


def test_the_scoring_understands_it(fake_fit: Fake) -> None:
    fit, truth = fake_fit
    table = catalogue(fit)
    scores = {row["quantity"]: row["error"] for row in score(truth, table)}
    assert scores["position"] < 0.01
    assert scores["r"] < 0.01
    assert scores["star AUC"] == 1
    assert set(coverage(truth, table)["n"]) == {len(truth), int((~truth["is_star"]).sum())}
