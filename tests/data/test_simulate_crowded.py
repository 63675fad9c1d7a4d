"""Simulated clusters have the density, the colours and the PSF that they are meant to have."""

from __future__ import annotations

import numpy as np
import pytest

from astrozoo.data.simulate_crowded import DENSITY, blurred_psf, cluster_sources, simulate_cluster
from astrozoo.errors import InputError


def test_density_luminosity_function_and_colours() -> None:
    table = cluster_sources((200, 300), np.random.default_rng(0), faintest=24.0)
    r = 22.5 - 2.5 * np.log10(table["flux_r"])
    area = 224 * 324
    stars = np.asarray(table["is_star"])
    assert (stars & (r < 22.3)).sum() / area == pytest.approx(DENSITY, rel=0.05)
    assert r.max() == pytest.approx(24, abs=0.05)
    assert (stars & (r < 18)).sum() / (stars & (r < 22.3)).sum() == pytest.approx(0.07, abs=0.03)
    g_r = -2.5 * np.log10(table["flux_g"] / table["flux_r"])
    turn_off = stars & (np.abs(r - 19.5) < 0.2)
    assert np.median(g_r[turn_off]) == pytest.approx(0.27, abs=0.03)
    assert 10 < (~stars).sum() < 150
    assert np.isnan(table["radius"][stars]).all()
    assert (table["radius"][~stars] > 0).all()
    with pytest.raises(InputError, match="20 to 25"):
        cluster_sources((20, 20), np.random.default_rng(0), faintest=30.0)


def test_a_cluster_is_rendered_with_a_psf_that_a_wrong_one_can_be_told_from() -> None:
    images, truth = simulate_cluster(seed=1, shape=(24, 20), bands="r")
    (image,) = images
    assert image.shape == (24, 20)
    inside = (truth["x"] > -0.5) & (truth["x"] < 19.5) & (truth["y"] > -0.5) & (truth["y"] < 23.5)
    light = float(((image.counts - image.sky) / image.calibration).sum())
    assert light == pytest.approx(truth["flux_r"][inside].sum(), rel=0.5)
    stamp = image.psf.stamp(0, 0)
    assert stamp.sum() == pytest.approx(1)
    assert 14 < 1 / (stamp**2).sum() < 20  # SDSS's PSF on M2: 17.8
    (wrong,) = blurred_psf(images)
    assert wrong.psf.stamp(0, 0).max() == pytest.approx(0.92 * stamp.max(), rel=0.05)
    assert wrong.psf.stamp(0, 0)[32, 50] == 0 < stamp[32, 50]
