"""Parametric galaxies against GalSim, and their starts."""

from __future__ import annotations

import math

import galsim
import pytest
import torch

from astrozoo.physics.galaxy_profiles import INDEX, KINDS, profile_image, profile_start

F64 = torch.float64
SIZE = 41


def logit(index: float) -> float:
    return math.log((index - INDEX[0]) / (INDEX[1] - index))


def drawn(profile: galsim.GSObject, q: float, degrees: float, x: float, y: float) -> torch.Tensor:
    sheared = profile.shear(q=q, beta=degrees * galsim.degrees).shift(x, y)
    return torch.from_numpy(sheared.drawImage(nx=SIZE, ny=SIZE, scale=1.0, dtype=float).array)


def ellipticity(q: float, degrees: float) -> list[float]:
    angle = math.radians(2 * degrees)
    return [-math.log(q) * math.cos(angle), -math.log(q) * math.sin(angle)]


def test_a_gaussian_is_that_of_galsim():
    q, degrees = 0.6, 25.0
    theta = torch.tensor([3.0, 0.7, -1.2, math.log(4.0), *ellipticity(q, degrees)], dtype=F64)
    expected = drawn(galsim.Gaussian(half_light_radius=4.0, flux=3.0), q, degrees, 0.7, -1.2)
    got = profile_image("gaussian", theta, SIZE, supersample=5)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * float(expected.max()))


@pytest.mark.parametrize("index", [0.7, 1.0, 2.5])
def test_a_sersic_profile_is_that_of_galsim(index):
    q, degrees = 0.5, 115.0
    theta = torch.tensor([2.0, 0.3, 0.4, math.log(5.0), *ellipticity(q, degrees), logit(index)], dtype=F64)
    expected = drawn(galsim.Sersic(index, half_light_radius=5.0, flux=2.0), q, degrees, 0.3, 0.4)
    got = profile_image("sersic", theta, SIZE, supersample=9)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * float(expected.max()))


def test_a_bulge_with_a_disc_is_convolved_with_the_psf():
    psf = galsim.Gaussian(sigma=1.5)
    kernel = torch.from_numpy(psf.drawImage(nx=15, ny=15, scale=1.0, method="no_pixel", dtype=float).array)
    theta = [0.4, 0.6, 0.5, -0.5, math.log(2.0), math.log(5.0), *ellipticity(0.9, 0), *ellipticity(0.5, 60)]
    got = profile_image("bulge_disc", torch.tensor(theta, dtype=F64), SIZE, kernel, supersample=9)
    bulge = galsim.DeVaucouleurs(half_light_radius=2.0, flux=0.4).shear(q=0.9, beta=0 * galsim.degrees)
    disc = galsim.Exponential(half_light_radius=5.0, flux=0.6).shear(q=0.5, beta=60 * galsim.degrees)
    both = galsim.Convolve((bulge + disc).shift(0.5, -0.5), psf)
    expected = torch.from_numpy(both.drawImage(nx=SIZE, ny=SIZE, scale=1.0, dtype=float).array)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03 * float(expected.max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_near_the_galaxy(kind):
    image = drawn(galsim.Exponential(half_light_radius=4.0, flux=3.0), 0.6, 20.0, 1.0, -1.0)[None]
    start = profile_start(kind, image)[0]
    got = profile_image(kind, start, SIZE)
    assert float((got - image[0]).square().sum()) < 0.5 * float(image.square().sum())
    assert start.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_of_noise_is_finite(kind):
    noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=F64)
    start = profile_start(kind, noise - 5)
    assert start.isfinite().all()
