"""The density of two stars against autograd through the model's own rendering."""

import torch

from astrozoo.models.celeste import load_prior, log_band_flux, simulate, star_images
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.models.celeste_pair import TwoStars


def test_gradient_and_hessian_are_exact():
    prior = load_prior()
    patch, truth = simulate(seed=1, sources=1, size=15)
    batch = type(patch)(*(part[None] for part in patch))
    batch = batch._replace(anchor=torch.zeros(1, 1, 2, dtype=torch.float64))
    density = TwoStars(batch, prior)
    one = torch.cat((torch.tensor([0.1, 0.2]), truth["log_flux"], truth["colour"][0])).double()
    two = torch.cat((torch.tensor([-0.4, 0.3]), truth["log_flux"] - 1, truth["colour"][0])).double()
    u = torch.cat((one, two))
    star = TypedDensity(batch, prior, star=True)

    def value(flat):
        rate = batch.background
        for part in flat.chunk(2):
            flux = log_band_flux(part[2], part[3:], prior.reference).exp()[batch.band[0]]
            rate = rate + (batch.calibration[0] * flux)[:, None] * star_images(batch, part[None, :2])
        pixels = batch.mask * (batch.counts * rate.log() - rate - torch.lgamma(batch.counts + 1))
        return pixels.sum() + sum(star.log_prior(part[None])[0] for part in flat.chunk(2))

    got, gradient, hessian = density.value_grad_hessian(u[None])
    torch.testing.assert_close(got[0], value(u), rtol=1e-9, atol=1e-4)
    torch.testing.assert_close(density.values(u[None])[:, 0], got)
    expected = torch.autograd.functional.jacobian(value, u)
    # images are in single precision
    torch.testing.assert_close(gradient[0], expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(density.value_and_grad(u[None])[1], gradient)
    expected = torch.autograd.functional.hessian(value, u)
    scale = expected.diagonal().abs().sqrt()
    assert ((hessian[0] - expected) / (scale[:, None] * scale)).abs().max() < 1e-3
