"""Guides of galaxies seen through a PSF: amortised ones, and ones for single images that start from them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.data.noisy_stamps import Stamp
from astrozoo.nets.galaxy import GalaxyDecoder, MomentEncoder
from astrozoo.physics.convolved_gaussians import convolved_image, transfer_function

__all__ = ["Amortised", "corrected", "first_guess", "score"]


def score(
    decoder: GalaxyDecoder, z: Float[Tensor, "n z"], signal: Float[Tensor, "n y x"], psf: Float[Tensor, "n k l"]
) -> Float[Tensor, "n z"]:
    """Gradient of the log posterior of the latents of white noise of unit variance."""
    with torch.enable_grad():
        shape = (signal.shape[-2], signal.shape[-1])
        z = z.detach().requires_grad_()
        residual = signal - convolved_image(decoder(z), transfer_function(psf, shape), shape)
        density = -0.5 * (residual.square().sum() + z.square().sum())
        return torch.autograd.grad(density, z)[0]


class Amortised(nn.Module):
    """q(latent | image, PSF, noise) of many galaxies: independent normals from the encoder.

    Args:
        decoder: of the model; its weights are not the guide's.
        correct: whether the first guess is corrected by the gradient of the log posterior.
    """

    def __init__(self, decoder: GalaxyDecoder, correct: bool) -> None:
        super().__init__()
        self.encoder = MomentEncoder()
        self.correct = correct
        self._decoder = (decoder,)  # in a tuple, so that its weights are not the guide's

    def moments(self, signal: Float[Tensor, "n y x"], psf: Float[Tensor, "n k l"]) -> tuple[Tensor, Tensor]:
        """Means and SDs, in the units of each stamp."""
        mean, log_variance, features = self.encoder(signal, psf)
        if self.correct:
            gradient = score(self._decoder[0], mean, signal, psf)
            mean, log_variance = self.encoder.correct(mean, log_variance, features, gradient)
        return mean, (log_variance / 2).exp()

    def forward(self, stamp: Stamp) -> None:
        mean, sd = self.moments(stamp.image, stamp.psf)
        with pyro.plate("galaxy", len(mean)):
            pyro.sample("latent", dist.Normal(mean, sd, validate_args=False).to_event(1))


def first_guess(problem: Any) -> Amortised:
    """The encoder without its correction, for a problem of :mod:`astrozoo.models.galaxy_population`."""
    return Amortised(problem.model.decoder, correct=False)


def corrected(problem: Any) -> Amortised:
    """The encoder with its correction, for a problem of :mod:`astrozoo.models.galaxy_population`."""
    return Amortised(problem.model.decoder, correct=True)
