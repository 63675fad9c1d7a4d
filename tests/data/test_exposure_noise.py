"""The noise of images: correlations of drizzled pixels, and gains that noise maps imply."""

import galsim
import numpy as np
import pytest
from scipy.ndimage import convolve

from astrozoo.data.exposure_noise import effective_gain, empty_scatter, noise_correlation, sky_level

KERNEL = np.outer([0.15, 0.7, 0.15], [0.15, 0.7, 0.15])
TRUTH = 1 / (KERNEL**2).sum()  # of the variance of sums, over that of independent pixels


@pytest.mark.parametrize("what", ["sky", "bright stars", "masked"])
def test_the_correlation_of_drizzled_noise_is_measured(what):
    rng = np.random.default_rng(4)
    z = convolve(rng.normal(size=(240, 250)), KERNEL) * np.sqrt(TRUTH)
    usable = np.ones(z.shape, bool)
    if what == "bright stars":  # whose wings reach far below the noise of a pixel
        star = galsim.Airy(lam_over_diam=1.4, obscuration=0.33)
        for x, y in rng.uniform(20, 220, (12, 2)):
            at = galsim.PositionD(x, y)
            z += 3e3 * star.drawImage(nx=250, ny=240, scale=1.0, center=at, method="no_pixel").array
    elif what == "masked":
        usable[100:140] = False
        z[100:140] = 1e3
    assert noise_correlation(z, usable) == pytest.approx(TRUTH, rel=0.15)


def test_independent_noise_has_no_correlation():
    z = np.random.default_rng(1).normal(size=(200, 200))
    assert noise_correlation(z, np.ones(z.shape, bool)) == pytest.approx(1, abs=0.15)
    assert noise_correlation(z[:20, :20], np.ones((20, 20), bool)) == 1  # too few pixels to measure it


def test_sky_and_scatter_of_tiny_and_constant_images():
    flat = np.full((7, 9), 3.0)
    usable = np.ones(flat.shape, bool)
    np.testing.assert_allclose(sky_level(flat, usable), 3, rtol=1e-6)
    assert (empty_scatter(flat - 3, usable) > 0).all()


def test_the_gain_of_a_noise_map_is_the_slope_of_its_variance():
    rng = np.random.default_rng(2)
    light = np.zeros((60, 60))
    light[20:40, 20:40] = rng.uniform(100, 1000, (20, 20))
    usable = np.ones(light.shape, bool)
    assert effective_gain(light, 25 + light / 4.0, usable) == pytest.approx(4, rel=0.02)
    neglected = effective_gain(light, np.full(light.shape, 25.0), usable)
    assert neglected**2 * 25 == pytest.approx(1e7)


def test_the_scatter_of_a_cut_out_full_of_light_is_that_of_its_noise():
    y, x = np.indices((58, 48))
    light = 20 * np.exp(-np.hypot(x - 20, y - 25) / 9) + 10 * np.exp(-np.hypot(x - 40, y - 45) / 7)
    noise = np.random.default_rng(3).normal(0, 0.5, light.shape)
    usable = np.ones(light.shape, bool)
    usable[:3] = False
    scatter = empty_scatter(np.where(usable, light + noise, 1e4), usable)
    assert np.median(scatter) == pytest.approx(0.5, rel=0.15)  # 2.1 by the mesh
