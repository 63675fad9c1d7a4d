"""Errors of fluxes where the light of a source does not follow the model's profile."""

import numpy as np
import pytest
import torch

from astrozoo.models.celeste import load_prior, log_band_flux, simulate, star_images
from astrozoo.survey.celeste.profile_error import profile_error, sky_error, with_flux_error


@pytest.fixture(scope="module")
def star():
    """A patch of 41x41 px around a bright star without noise, and the star's light."""
    patch, truth = simulate(seed=1, sources=1, size=41)
    patch = type(patch)(*(part[None] for part in patch))
    prior = load_prior()
    flux = log_band_flux(torch.tensor(6.0), truth["colour"][0], prior.reference).exp()[patch.band[0]]
    image = star_images(patch, torch.zeros(1, 2, dtype=torch.float64))
    light = (patch.calibration[0] * flux)[None, :, None] * image
    return patch._replace(counts=patch.background + light, mask=torch.ones_like(patch.mask)), light


def test_the_right_profile_has_no_error(star):
    patch, light = star
    generator = torch.Generator().manual_seed(0)
    noisy = patch._replace(counts=torch.poisson(patch.counts, generator))
    torch.testing.assert_close(profile_error(noisy, light, 5), torch.zeros(1, 5, dtype=torch.float64))


def test_light_that_is_wrong_beyond_a_radius_has_the_scatter_of_its_rings(star):
    patch, light = star
    outside = torch.hypot(patch.pixels[:, :, 0], patch.pixels[:, :, 1]) >= 3
    wrong = patch._replace(counts=patch.counts + torch.where(outside, 0.1, -0.1) * light)
    error = profile_error(wrong, light, 5)
    bright = error[0, 1:4]
    assert ((bright > 0.09) & (bright < 0.11)).all()
    assert (error > 0.05).all()  # u and z are faint, and share the error of the others


def test_an_error_of_the_sky_is_what_a_shift_of_the_sky_does_to_the_flux(star):
    patch, light = star
    level = 0.02 * patch.background.median(-1).values.sqrt()  # [electron per pixel], by image
    rate = patch.background + light
    change = (light / rate * level[..., None]).sum(-1) / (light**2 / rate).sum(-1)
    torch.testing.assert_close(sky_error(patch, light, 5)[0, patch.band[0]], change[0])


def test_the_error_of_each_band_is_added_to_its_flux():
    draws = with_flux_error(np.zeros((1, 20_000, 11), np.float32), np.array([[0.1, 0, 0.3, 0.2, 0]]), 2, 0)
    assert draws.dtype == np.float32
    assert not draws[..., :6].any()
    flux = np.cumsum(draws[0, :, 7:], 1)
    bands = np.column_stack((np.zeros(len(flux)), flux))
    bands += draws[0, :, 6:7] - bands[:, 2:3]
    np.testing.assert_allclose(bands.std(0), [0.1, 0, 0.3, 0.2, 0], atol=0.01)
