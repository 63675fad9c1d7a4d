"""Galaxies from priors of latents: units, flux and size, conditions, and GalSim objects."""

from __future__ import annotations

import math

import galsim
import numpy as np
import pytest
import torch

from astrozoo import GalSimGalaxy
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.errors import InputError
from astrozoo.models import galaxy_population, latent_flow, latent_galaxies
from astrozoo.models.latent_flow import LatentPrior
from astrozoo.nets.galaxy import LATENT

GIVEN = {"half_light_radius": 0.3, "magnitude": 22.0, "redshift": 0.7}


@pytest.fixture(scope="module")
def galaxies():
    return latent_galaxies.load(dtype=torch.float64)


def test_images_are_those_of_galsim(galaxies):
    """The sum of Gaussians in arcsec and flux, through a PSF, against GalSim's."""
    z = galaxies.sample(2, GIVEN, seed=1)
    psf = galsim.Gaussian(fwhm=0.5)  # its transfer function ends below the Nyquist frequency
    pixels = psf.drawImage(nx=47, ny=47, scale=0.1, dtype=float).array
    images = galaxies.images(z, torch.from_numpy(pixels / pixels.sum()), 0.1, 48)
    light = galaxies.light(z)
    for k, image in enumerate(images):
        parts = []
        for flux, (x, y), (xx, xy, yy) in zip(*(column[k].tolist() for column in light), strict=True):
            size = (xx * yy - xy**2) ** 0.25
            trace, determinant = xx + yy, xx * yy - xy**2
            g = (complex(xx - yy, 2 * xy)) / (trace + 2 * math.sqrt(determinant))
            parts.append(galsim.Gaussian(sigma=size, flux=flux).shear(g1=g.real, g2=g.imag).shift(x, y))
        seen = galsim.Convolve(galsim.Add(parts), psf).drawImage(nx=48, ny=48, scale=0.1, dtype=float).array
        assert np.abs(image.numpy() - seen).max() < 1e-4 * seen.max()


def test_flux_and_size_follow_the_conditions(galaxies):
    z = galaxies.sample(200, GIVEN, seed=0)
    flux = galaxies.flux(z) / 10 ** (0.4 * (25 - 22.0))
    assert flux.median().item() == pytest.approx(1.0, abs=0.06)
    radius = galaxies.half_light_radius(z[:60])
    assert radius.median().item() == pytest.approx(0.3, rel=0.1)
    fainter = galaxies.sample(200, GIVEN | {"magnitude": torch.full((200,), 22.5)}, seed=0)
    ratio = galaxies.flux(fainter).median() / galaxies.flux(z).median()
    assert ratio.item() == pytest.approx(10**-0.2, rel=0.1)


def test_the_half_light_radius_is_that_of_the_circle_of_equal_area(galaxies):
    """Of a decoder's galaxy with one dominant shape, by GalSim on a fine grid."""
    z = torch.zeros(1, LATENT, dtype=torch.float64)
    z[0, 3], z[0, 4] = -1.0, 0.8
    light = galaxies.light(z)
    scale = 0.02
    axis = (torch.arange(301, dtype=torch.float64) - 150) * scale
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    values = latent_galaxies.surface_brightness(light, x, y)[0].flatten().sort(descending=True).values
    area = (values.cumsum(0) < values.sum() / 2).sum() * scale**2
    exact = (area / math.pi).sqrt().item()
    # a stamp's pixels and the smoothing of .035 arcsec widen it by about 1 %
    assert galaxies.half_light_radius(z).item() == pytest.approx(exact, rel=0.03)


def test_the_table_has_the_units_of_the_galaxies():
    """The latents of simulated galaxies decode to their fluxes, at any pixel scale."""
    networks = galaxy_population.load(dtype=torch.float32)
    decoded = latent_galaxies.LatentGalaxies(networks.decoder, None)
    for scale in (0.1, 0.08):
        survey = GalaxySurvey(size=48, pixel_scale=scale, psf=PsfRange("moffat", (0.25, 0.35)))
        stamps = simulate_galaxies(survey, 10, seed=5, progress=False)
        table = latent_galaxies.table_of(networks, stamps, survey)
        assert table.names == latent_galaxies.CONDITIONS
        error = decoded.flux(table.mean) / stamps.flux - 1
        assert abs(error.median().item()) < 0.05
        z = table.draw(torch.Generator().manual_seed(0))
        images = decoded.images(z, stamps.psf, scale, 48)
        error = (images - stamps.noiseless).square().sum((1, 2)) / stamps.noiseless.square().sum((1, 2))
        assert error.median().item() < LATENT / 50**2  # what 16 free parameters leave at the lowest S/N


def test_galsim_draws_them():
    galaxy, same = (GalSimGalaxy("latent_galaxies", galsim.BaseDeviate(3), **GIVEN) for _ in range(2))
    assert np.array_equal(galaxy.image.array, same.image.array)
    assert galaxy.flux == pytest.approx(10 ** (0.4 * (25 - 22.0)), rel=0.5)
    image = galsim.Convolve(galaxy, galsim.Moffat(beta=3, fwhm=0.3)).drawImage(nx=96, ny=96, scale=0.1)
    assert image.array.sum(dtype=float) == pytest.approx(galaxy.flux, rel=0.01)  # wings of the PSF
    assert image.array.min() > -1e-3 * image.array.max()
    free = latent_galaxies.load(prior="latent_flow_unconditional", size=64, pixel_scale=0.1)
    assert GalSimGalaxy(free, galsim.BaseDeviate(3)).stamp_size == 64


def test_conditions_that_are_missing_or_outside_the_trained_range(galaxies):
    low, high = galaxies.inputs["magnitude"]
    with pytest.raises(InputError, match=rf"no magnitude.*magnitude of {low:.4g} to {high:.4g}"):
        galaxies.sample(2, {name: GIVEN[name] for name in ("half_light_radius", "redshift")}, seed=0)
    with pytest.warns(UserWarning, match=rf"magnitude 16 is outside the trained range, {low:.4g} to"):
        galaxies.sample(2, GIVEN | {"magnitude": 16.0}, seed=0)
    with pytest.raises(InputError, match=r"got half_light_radius.*half_light_radius \(0\."):
        GalSimGalaxy("latent_galaxies", galsim.BaseDeviate(3), half_light_radius=0.3)
    normal = latent_galaxies.load(prior=None)
    with pytest.raises(InputError, match="N\\(0, I\\)"):
        normal.sample(2, GIVEN, seed=0)
    assert normal.sample(2, seed=0).shape == (2, LATENT)
    with pytest.raises(InputError, match="8 latents"):
        latent_galaxies.load(prior=LatentPrior(8))
    vamp = latent_galaxies.load(prior=LatentPrior(LATENT, "vamp", components=4))
    assert vamp.sample(5, seed=0).shape == (5, LATENT)


def test_the_shipped_priors_differ(galaxies):
    free = latent_flow.load(weights="latent_flow_unconditional")
    assert free.conditions == ()
    assert galaxies.prior.conditions == latent_galaxies.CONDITIONS
