"""The amortised guides of :mod:`astrozoo.models.galaxy_population`."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.data.noisy_stamps import Stamp
from astrozoo.models.galaxy_encoder import moments
from astrozoo.nets.galaxy import Networks

__all__ = ["Amortised", "corrected", "first_guess"]


class Amortised(nn.Module):
    """q(latent | image, PSF, noise) of many galaxies: independent normals from the encoder.

    Args:
        networks: the encoder's weights are the guide's, and the decoder's are the model's.
        correct: whether the first guess is corrected by the gradient of the log posterior.
    """

    def __init__(self, networks: Networks, correct: bool) -> None:
        super().__init__()
        self.encoder = networks.encoder
        self.correct = correct
        self._decoder = (networks.decoder,)  # in a tuple, so that its weights are not the guide's

    def moments(self, signal: Float[Tensor, "n y x"], psf: Float[Tensor, "n k l"]) -> tuple[Tensor, Tensor]:
        """Means and SDs, in the units of each stamp."""
        return moments(Networks(self._decoder[0], self.encoder), signal, psf, self.correct)

    def forward(self, stamp: Stamp) -> None:
        mean, sd = self.moments(stamp.image, stamp.psf)
        with pyro.plate("galaxy", len(mean)):
            pyro.sample("latent", dist.Normal(mean, sd, validate_args=False).to_event(1))


def first_guess(problem: Any) -> Amortised:
    """The encoder without its correction, for a problem of :mod:`astrozoo.models.galaxy_population`."""
    return Amortised(problem.model.networks, correct=False)


def corrected(problem: Any) -> Amortised:
    """The encoder with its correction, for a problem of :mod:`astrozoo.models.galaxy_population`."""
    return Amortised(problem.model.networks, correct=True)
