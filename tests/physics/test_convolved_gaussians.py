"""Sums of Gaussians through a PSF against GalSim, and against the light without a PSF."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from astrozoo.physics.convolved_gaussians import (
    GaussianSum,
    convolved_image,
    frame_of,
    surface_brightness,
    transfer_function,
)

F64 = torch.float64


def mixture(seed: int = 0, parts: int = 4) -> tuple[GaussianSum, list[galsim.GSObject]]:
    """Gaussians of .2 to 3 pixels, sheared and displaced, for us and for GalSim."""
    rng = np.random.default_rng(seed)
    flux, mean, covariance, objects = [], [], [], []
    for sigma in np.geomspace(0.2, 3.0, parts):
        shear, at, f = rng.normal(0, 0.2, 2), rng.normal(0, 0.7, 2), rng.uniform(0.5, 2)
        gaussian = galsim.Gaussian(sigma=sigma, flux=f).shear(g1=shear[0], g2=shear[1])
        objects.append(gaussian.shift(*at))
        matrix = galsim.Shear(g1=shear[0], g2=shear[1]).getMatrix()
        c = sigma**2 * matrix @ matrix.T
        flux.append(f)
        mean.append(at)
        covariance.append((c[0, 0], c[0, 1], c[1, 1]))
    return GaussianSum(*(torch.tensor(np.array(part)) for part in (flux, mean, covariance))), objects


def drawn(thing: galsim.GSObject, nx: int, ny: int, method: str = "auto") -> torch.Tensor:
    return torch.tensor(thing.drawImage(nx=nx, ny=ny, scale=1.0, method=method, dtype=float).array)


@pytest.mark.parametrize(("stamp", "psf_side"), [((40, 40), 41), ((39, 44), 40)])
def test_the_image_is_that_of_galsim(stamp, psf_side):
    light, objects = mixture()
    accurate = galsim.GSParams(folding_threshold=1e-4, maxk_threshold=1e-5, kvalue_accuracy=1e-7)
    psf = galsim.Moffat(beta=4.5, fwhm=4.0, gsparams=accurate).shear(g1=0.05, g2=-0.08).shift(0.2, -0.1)
    want = drawn(galsim.Convolve(galsim.Add(objects), psf, gsparams=accurate), stamp[1], stamp[0])
    kernel = drawn(psf, psf_side, psf_side)
    got = convolved_image(light, transfer_function(kernel, stamp), stamp)
    assert (got - want).abs().max() < 1e-4 * want.max()


def test_without_a_psf_the_light_is_that_of_galsim_and_positive():
    light, objects = mixture(1)
    y, x = torch.meshgrid(torch.arange(9, dtype=F64) - 4, torch.arange(11, dtype=F64) - 5, indexing="ij")
    want = drawn(galsim.Add(objects), 11, 9, method="sb")
    got = surface_brightness(light, x, y)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
    assert (surface_brightness(light, 50 * x, 50 * y) > 0).all()


def test_batches_and_other_units_give_the_same_images():
    light, _ = mixture()
    stamp, kernel = (20, 21), torch.rand(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    transfer = transfer_function(kernel, stamp)
    assert transfer.shape == (2, frame_of(stamp, (5, 5))[0], frame_of(stamp, (5, 5))[1] // 2 + 1)
    want = convolved_image(light, transfer, stamp)
    factors = torch.tensor([2.0, 0.5], dtype=F64)
    units = light.scaled(1 / torch.tensor(3.0, dtype=F64), torch.tensor(2.0, dtype=F64))
    batch = GaussianSum(*(torch.stack((part, part)) for part in units)).scaled(
        3 * factors, 0.25 * 2 * factors**0
    )
    got = convolved_image(batch, torch.stack((transfer, transfer)), stamp)
    torch.testing.assert_close(got, factors[:, None, None] * want, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    light, _ = mixture(2, 2)
    transfer = transfer_function(torch.ones(3, 3, dtype=F64) / 9, (8, 8))

    def image(*parts):
        return convolved_image(GaussianSum(*parts), transfer, (8, 8))

    assert torch.autograd.gradcheck(image, tuple(part.requires_grad_() for part in light))
