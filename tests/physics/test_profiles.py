"""Shapes against GalSim and automatic differentiation."""

import galsim
import numpy as np
import pytest
import torch
from scipy.special import gammainc, gammaincinv

from astrozoo.physics.gaussians import MixturePsf, render
from astrozoo.physics.profiles import (
    DEV_RINGS,
    EXP_RINGS,
    axis_ratio_and_angle,
    galaxy_rings,
    ring_covariance,
    sky_covariance_jet,
)

FLOAT = torch.float64


@pytest.mark.parametrize(("rings", "index", "tolerance"), [(DEV_RINGS, 4, 2.4e-3), (EXP_RINGS, 1, 4e-4)])
def test_the_rings_hold_the_profiles_light_at_every_radius(rings, index, tolerance):
    amplitudes, variances = map(np.asarray, rings)
    r = np.geomspace(0.02, 20.0, 60)[:, None]
    inside = (amplitudes * -np.expm1(-(r**2) / (2 * variances))).sum(1)
    b = gammaincinv(2 * index, 0.5)
    np.testing.assert_allclose(inside, gammainc(2 * index, b * r[:, 0] ** (1 / index)), atol=tolerance)
    assert amplitudes.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("eta", [(0.0, 0.0), (1e-4, -2e-4), (0.2, 0.2), (0.25, 0.2), (-0.9, 0.4)])
def test_the_covariance_jet_equals_autodiff(eta):
    u = torch.tensor([0.3, *eta], dtype=FLOAT)

    def covariance(u):
        return ring_covariance(u[0], u[1:], torch.eye(2, dtype=FLOAT))

    value, first, second = sky_covariance_jet(u[0], u[1:])
    torch.testing.assert_close(value, covariance(u), rtol=1e-13, atol=1e-14)
    jacobian = torch.func.jacrev(covariance)
    torch.testing.assert_close(first, jacobian(u), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(second, torch.func.jacrev(jacobian)(u), rtol=1e-8, atol=1e-8)


def test_axis_ratio_and_angle_are_those_of_the_covariance():
    for rho, angle in [(0.3, 20.0), (0.8, 110.0), (0.55, 179.0)]:
        phi = np.deg2rad(angle)
        eta = -np.log(rho) * torch.tensor([np.cos(2 * phi), np.sin(2 * phi)], dtype=FLOAT)
        got_rho, got_angle = axis_ratio_and_angle(eta)
        assert float(got_rho) == pytest.approx(rho)
        assert float(got_angle) == pytest.approx(angle)
        ee, en, nn = ring_covariance(torch.tensor(0.0, dtype=FLOAT), eta, torch.eye(2, dtype=FLOAT))
        east, north = np.sin(phi), np.cos(phi)
        along = ee * east**2 + 2 * en * east * north + nn * north**2
        assert float(along) == pytest.approx(1 / rho)


@pytest.mark.parametrize(("row", "profile"), [(0, galsim.DeVaucouleurs), (1, galsim.Exponential)])
def test_a_galaxy_looks_like_galsims(row, profile):
    radius, rho, angle, scale = 1.6, 0.6, 35.0, 0.396
    psf_sigma = 0.55
    n = 61
    # GalSim: x to the right (west here, so that the sky is not mirrored), angle counter-clockwise from x
    shape = profile(half_light_radius=radius).shear(q=rho, beta=(90.0 + angle) * galsim.degrees)
    image = galsim.Convolve(shape, galsim.Gaussian(sigma=psf_sigma)).drawImage(nx=n, ny=n, scale=scale).array
    phi = np.deg2rad(angle)
    eta = -np.log(rho) * torch.tensor([np.cos(2 * phi), np.sin(2 * phi)], dtype=FLOAT)
    jacobian = torch.tensor([[-1 / scale, 0.0], [0.0, 1 / scale]], dtype=FLOAT)
    q = ring_covariance(torch.tensor(np.log(radius), dtype=FLOAT), eta, jacobian)
    groups, variances = galaxy_rings(FLOAT)
    variance = (psf_sigma / scale) ** 2 + 1 / 12  # Gaussian PSF and, to second order, the pixel
    psf = MixturePsf(
        torch.ones(1, dtype=FLOAT),
        torch.zeros(1, 2, dtype=FLOAT),
        torch.tensor([[variance, 0, variance]], dtype=FLOAT),
    )
    yy, xx = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    pixels = torch.stack((xx.flatten(), yy.flatten())).to(FLOAT)
    centre = torch.full((2,), (n - 1) / 2, dtype=FLOAT)
    got = render(pixels, centre, q, groups[row], variances, psf).reshape(n, n).numpy()
    assert np.abs(got - image).max() < 2e-3 * image.max()
    assert np.abs(got - image).sum() < 0.01
