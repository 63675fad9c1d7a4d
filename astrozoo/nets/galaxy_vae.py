"""Networks of the pixel-variance autoencoder of galaxies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.nets.autoencoder import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DenseDecoder,
    DenseEncoder,
    ResidualDecoder,
    ResidualEncoder,
)

__all__ = ["HIDDEN", "LATENT", "SIZE", "Decoder", "Encoder", "Kind", "Nets"]

LATENT = 8
"""Length of the latent vector, as in Regier et al. 2015."""
SIZE = 69
"""[px] Side of a stamp, as in Regier et al. 2015."""
HIDDEN = (128, 128)
"""Widths of the hidden layers, as in Regier et al. 2015."""
_FIRST_SD = 0.3
"""f_sigma of untrained networks, in units of the rms of a galaxy's light."""
_BLOCK = 3
"""[px] Side of the blocks of pixels that the dense encoder averages: about the width of the PSF."""
_WHOLE = 32
"""Width of the hidden layer of the network for the variance of a whole galaxy."""
_LOG_RANGE = (-12.0, 6.0)
"""Range of the logarithms of the decoder's outputs. It keeps their exponentials finite in single precision.
The brightest pixel of a galaxy is about e^4 in units of its rms."""

Kind = Literal["dense", "convolutional", "residual"]


def _padded(size: int) -> int:
    """Side of the image that a convolutional or residual network has for a stamp: a multiple of 16."""
    return -(-size // 16) * 16


class Decoder(nn.Module):
    """f_mu and f_sigma^2: latents to the mean of each pixel and its variance beside that of the noise.

    Args:
        size: side of a stamp [px].
        latent: length of the latent vector.
        hidden: widths of the hidden layers of dense networks.
        kind: of the networks.
        per_pixel: whether the variance differs between pixels. Otherwise a galaxy has one.
    """

    def __init__(
        self,
        size: int = SIZE,
        latent: int = LATENT,
        hidden: Sequence[int] = HIDDEN,
        kind: Kind = "dense",
        per_pixel: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.latent, self.kind, self.per_pixel = size, latent, kind, per_pixel
        self.mean, self.variance = (self._network(hidden) for _ in range(2))
        self.whole_variance = DenseDecoder(1, latent, (_WHOLE,))
        self.log_mean = nn.Parameter(torch.zeros(size, size))
        self.log_variance = nn.Parameter(torch.zeros(size, size))
        with torch.no_grad():
            self.whole_variance.network[-1].bias.fill_(2 * math.log(_FIRST_SD))  # type: ignore[operator,union-attr]

    def _network(self, hidden: Sequence[int]) -> nn.Module:
        if self.kind == "dense":
            return DenseDecoder(self.size**2, self.latent, hidden)
        network = ConvolutionalDecoder if self.kind == "convolutional" else ResidualDecoder
        return network(_padded(self.size), self.latent)

    def _image(self, network: nn.Module, z: Tensor) -> Tensor:
        if self.kind == "dense":
            return network(z).reshape(*z.shape[:-1], self.size, self.size)
        edge = (_padded(self.size) - self.size) // 2
        return network(z)[..., edge : edge + self.size, edge : edge + self.size]

    def forward(
        self, z: Float[Tensor, "*b latent"]
    ) -> tuple[Float[Tensor, "*b y x"], Float[Tensor, "*b y x"]]:
        """Mean, and variance without that of the noise."""
        mean = (self.log_mean + self._image(self.mean, z)).clamp(*_LOG_RANGE)
        variance = self.whole_variance(z)[..., None]
        if self.per_pixel:
            variance = variance + self.log_variance + self._image(self.variance, z)
        return mean.exp(), variance.clamp(*_LOG_RANGE).exp()


class Encoder(nn.Module):
    """A stamp and its noise to the mean and SD of each latent in q(z | x).

    The input of a dense network is the middle of the stamp, the whole stamp in blocks of 3 x 3 pixels, and
    the logarithm of the noise. The blocks are a third of all pixels and fewer weights, so that the network
    learns the noise of the training set less. An arcsinh compresses bright pixels.

    Args:
        size, latent, hidden, kind: as those of :class:`Decoder`.
    """

    def __init__(
        self,
        size: int = SIZE,
        latent: int = LATENT,
        hidden: Sequence[int] = HIDDEN,
        kind: Kind = "dense",
    ) -> None:
        super().__init__()
        self.size, self.kind = size, kind
        self.edge = size // 4
        if kind == "dense":
            inputs = (size - 2 * self.edge) ** 2 + (-(-size // _BLOCK)) ** 2 + 1
            self.network: nn.Module = DenseEncoder(inputs, latent, hidden)
        else:
            network = ConvolutionalEncoder if kind == "convolutional" else ResidualEncoder
            self.network = network(_padded(size), latent)

    def forward(
        self, image: Float[Tensor, "b y x"], noise: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Means and SDs."""
        if self.kind != "dense":
            before = (_padded(self.size) - self.size) // 2
            after = _padded(self.size) - self.size - before
            return self.network(nn.functional.pad(_compressed(image), (before, after, before, after)))
        inside = slice(self.edge, self.size - self.edge)
        missing = -self.size % _BLOCK
        blocks = nn.functional.avg_pool2d(nn.functional.pad(image, (0, missing, 0, missing))[:, None], _BLOCK)
        parts = (_compressed(image[:, inside, inside]), _compressed(3 * blocks[:, 0]), noise.log())
        return self.network(torch.cat([part.reshape(len(image), -1) for part in parts], 1))


def _compressed(image: Tensor) -> Tensor:
    return (image / 2).asinh()


@dataclass(frozen=True, eq=False)
class Nets:
    """The networks of a trained model.

    Args:
        decoder: f_mu and f_sigma^2.
        encoder: q(z | x).
    """

    decoder: Decoder
    encoder: Encoder

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Nets:
        """The networks, converted in place."""
        for module in (self.decoder, self.encoder):
            module.to(dtype=dtype, device=device)
        return self
