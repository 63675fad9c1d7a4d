"""The decoder's light and the encoder's frames and units."""

from __future__ import annotations

import pytest
import torch

from astrozoo.nets.galaxy import (
    LATENT,
    GalaxyDecoder,
    MomentEncoder,
    Units,
    flux_latent,
    framed,
    in_units,
    log_flux,
    sheared,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def decoder() -> GalaxyDecoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GalaxyDecoder().double()


def draws(count: int = 5) -> torch.Tensor:
    return torch.randn(count, LATENT, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_light_is_positive_and_has_the_flux_of_its_latent(decoder):
    z = draws()
    flux, _, covariance = decoder(z)
    assert (flux > 0).all()
    xx, xy, yy = covariance.unbind(-1)
    assert (xx * yy > xy**2).all()
    torch.testing.assert_close(flux.sum(-1), log_flux(z[:, 0]).exp())
    torch.testing.assert_close(flux_latent(log_flux(z[:, 0])), z[:, 0])


def test_flux_centre_and_size_change_nothing_else(decoder):
    z = draws()
    moved = z.clone()
    moved[:, :4] += torch.tensor([0.7, -0.3, 0.4, 0.5], dtype=F64)
    (flux, mean, covariance), (flux_2, mean_2, covariance_2) = decoder(z), decoder(moved)
    ratio = flux_2 / flux
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    growth = covariance_2 / covariance
    torch.testing.assert_close(growth, growth[:, :1, :1].expand_as(growth))
    inside, inside_2 = (m - m[:, :1] for m in (mean, mean_2))
    torch.testing.assert_close(inside_2, inside * growth[:, :1, :1].sqrt())


def test_a_shear_keeps_the_area_and_has_its_axis_ratio():
    matrix = sheared(torch.tensor(0.3, dtype=F64), torch.tensor(-0.4, dtype=F64))
    xx, xy, yy = matrix
    full = torch.stack((torch.stack((xx, xy)), torch.stack((xy, yy))))
    low, high = torch.linalg.eigvalsh(full)
    torch.testing.assert_close(low * high, torch.ones((), dtype=F64), rtol=3e-6, atol=0)
    torch.testing.assert_close((low / high).log(), torch.tensor(-2 * 0.5, dtype=F64), rtol=1e-5, atol=0)
    round_ = sheared(torch.zeros((), dtype=F64), torch.zeros((), dtype=F64))
    torch.testing.assert_close(round_, torch.tensor([1.0, 0.0, 1.0], dtype=F64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (9, 12), (33, 47), (64, 20)])
def test_the_encoder_takes_stamps_of_any_size(shape):
    signal = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    mean, log_variance, features = MomentEncoder()(signal, torch.ones(2, 7, 8) / 56)
    assert mean.shape == log_variance.shape == (2, LATENT)
    assert torch.cat((mean, log_variance, features), 1).isfinite().all()


def test_a_frame_keeps_the_middle():
    image = torch.zeros(1, 7, 40)
    image[0, 3, 19] = 1.0
    image[0, 3, 20] = 2.0
    cut = framed(image, 16)
    assert cut.shape == (1, 16, 16)
    assert cut.sum() == 3
    assert (cut[0, 7, 7], cut[0, 7, 8]) == (1.0, 2.0)


def test_the_correction_is_none_before_it_is_trained():
    encoder = MomentEncoder()
    mean, log_variance, features = encoder(torch.randn(2, 32, 32), torch.ones(2, 5, 5) / 25)
    corrected = encoder.correct(mean, log_variance, features, torch.randn(2, LATENT))
    torch.testing.assert_close(corrected, (mean, log_variance))


def test_latents_in_other_units_are_the_same_light(decoder):
    z = draws()
    units = Units(torch.full((5,), 3.0, dtype=F64), torch.full((5,), 0.5, dtype=F64))
    (flux, mean, covariance), (flux_2, mean_2, covariance_2) = decoder(z), decoder(in_units(z, units))
    torch.testing.assert_close(3.0 * flux_2, flux)
    torch.testing.assert_close(0.5 * mean_2, mean)
    torch.testing.assert_close(0.25 * covariance_2, covariance)
