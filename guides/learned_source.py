"""The amortised guide of the learned source: an encoder of galaxies."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.models.learned_source import LATENT, SIZE
from astrozoo.nets.autoencoder import ConvolutionalEncoder

__all__ = ["Encoder", "encoder"]


class Encoder(nn.Module):
    """q(latent | image): independent normals, whose means and SDs come from a convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ConvolutionalEncoder(SIZE, LATENT)

    def moments(self, images: Float[Tensor, "b y x"]) -> tuple[Tensor, Tensor]:
        """Means and SDs. The network's input is a square root, which enhances the faint parts of a galaxy."""
        return self.encoder((images * SIZE**2).sqrt())

    def forward(self, images: Float[Tensor, "b y x"]) -> None:
        mean, sd = self.moments(images)
        with pyro.plate("galaxy", len(images)):
            pyro.sample("latent", dist.Normal(mean, sd).to_event(1))


def encoder(problem: Any) -> Encoder:
    """The guide for a problem of :func:`astrozoo.models.learned_source.problem`."""
    return Encoder()
