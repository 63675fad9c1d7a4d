"""Least-squares fits of profiles to stamps."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from astrozoo.data.stamps import Pixels, standardise
from astrozoo.errors import InputError
from astrozoo.galaxies.fits import fit_profiles
from astrozoo.physics.galaxy_profiles import KINDS

SIZE, SIGMA = 31, 0.0004


def stamps(count: int = 6) -> Pixels:
    """Sersic galaxies of several indices."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        profile = galsim.Sersic(1 + 0.3 * i, half_light_radius=4.0).shear(q=0.6, beta=i * galsim.radians)
        image = (
            galsim.Convolve(profile, galsim.Gaussian(sigma=1.2)).drawImage(nx=SIZE, ny=SIZE, scale=1.0).array
        )
        images.append(image + SIGMA * rng.standard_normal(image.shape))
    return standardise(images, SIZE, SIGMA).pixels


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_are_those_of_the_images_that_are_returned(kind):
    pixels = stamps()
    fits = fit_profiles(pixels, kind)
    residual = (pixels.image.double() - fits.image) / pixels.noise[:, None, None]
    torch.testing.assert_close(
        (residual.square() * pixels.used).sum((1, 2)), fits.fit.chi2, rtol=1e-5, atol=0
    )


def test_richer_profiles_fit_better():
    pixels = stamps()
    gaussian, sersic = (fit_profiles(pixels, kind).fit.chi2 for kind in ("gaussian", "sersic"))
    assert (sersic < gaussian).all()
    assert (gaussian > 1.02 * SIZE**2).all()


def test_with_the_psf_the_profile_is_recovered():
    pixels = stamps()
    kernel = (
        galsim.Gaussian(sigma=1.2).drawImage(nx=15, ny=15, scale=1.0, method="no_pixel", dtype=float).array
    )
    psf = torch.from_numpy(kernel).expand(len(pixels.image), 15, 15)
    fits = fit_profiles(pixels, "sersic", psf, supersample=3)
    used = pixels.used.sum((1, 2))
    assert ((fits.fit.chi2 / used - 1).abs() < 5 * (2 / used).sqrt()).all()
    np.testing.assert_allclose(fits.fit.parameters[:, 3].exp().numpy(), 4.0, rtol=0.08)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="one of gaussian, sersic, bulge_disc"):
        fit_profiles(stamps(1), "moffat")  # type: ignore[arg-type]
