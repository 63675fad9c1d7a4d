"""Encoders and decoders of images: convolutional, residual and dense."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.errors import InputError

__all__ = [
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "DenseDecoder",
    "DenseEncoder",
    "ResidualDecoder",
    "ResidualEncoder",
]

_LOG_VARIANCE = (-12.0, 4.0)
"""Range of the log variances of an encoder: outside it a draw is either exact or noise alone, and gradients
of the other networks grow without bound."""


class _Gaussian(nn.Module):
    """A network whose output is split into means and log variances of latents."""

    network: nn.Module

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.network(x).chunk(2, -1)
        return mean, (log_variance.clamp(*_LOG_VARIANCE) / 2).exp()


class ConvolutionalEncoder(_Gaussian):
    """Images to the means and SDs of their latents, by convolutions that each halve the side.

    Args:
        size: side of the image [px], a multiple of ``2 ** len(channels)``.
        latent: length of the latent vector.
        channels: of each convolution.

    Raises:
        InputError: if the side cannot be halved so often.
    """

    def __init__(self, size: int, latent: int, channels: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        side = _halved(size, len(channels))
        layers: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 2 * latent))

    def forward(self, image: Float[Tensor, "b y x"]) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Means and SDs."""
        return self._moments(image[:, None])


class ConvolutionalDecoder(nn.Module):
    """Latents to images, by a dense layer and convolutions that each double the side.

    Activations are smooth, so that the gradients of a log density are.

    Args:
        size: side of the image [px], a multiple of 4.
        latent: length of the latent vector.
        channels: of the image of a quarter of the side, and of the one of half the side.
        hidden: width of the dense layer.

    Raises:
        InputError: if the side is not a multiple of 4.
    """

    def __init__(
        self, size: int, latent: int, channels: tuple[int, int] = (16, 8), hidden: int = 128
    ) -> None:
        super().__init__()
        if size % 4:
            raise InputError("size", size, "a multiple of 4")
        coarse, fine = channels
        self.latent, self.start = latent, (coarse, size // 4, size // 4)
        self.dense = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, coarse * (size // 4) ** 2), nn.SiLU()
        )
        self.convolutions = nn.Sequential(
            nn.Conv2d(coarse, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(fine, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(fine, 1, 3, padding=1),
        )

    def forward(self, z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b y x"]:
        """One channel, without a last activation."""
        image = self.convolutions(self.dense(z.reshape(-1, self.latent)).reshape(-1, *self.start))
        return image.reshape(*z.shape[:-1], *image.shape[-2:])


class _Residual(nn.Module):
    """``x`` plus two convolutions of it, with as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.change[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.change[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Same shape. An untrained block is the identity."""
        return x + self.change(x)


class ResidualEncoder(_Gaussian):
    """Images to the means and SDs of their latents, by levels of a strided convolution and residual blocks.

    Args:
        size: side of the image [px], a multiple of ``2 ** len(channels)``.
        latent: length of the latent vector.
        channels: of each level. Each level has half the side of the one before.
        blocks: residual blocks in a level.

    Raises:
        InputError: if the side cannot be halved so often.

    References:
        Lanusse et al. 2021, MNRAS 504, 5543, section 4.1 (seven levels of two blocks, 32 to 512 channels).
    """

    def __init__(
        self, size: int, latent: int, channels: Sequence[int] = (8, 16, 32, 32), blocks: int = 2
    ) -> None:
        super().__init__()
        side = _halved(size, len(channels))
        layers: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [_Residual(after) for _ in range(blocks)]
        flat = (nn.SiLU(), nn.Flatten(), nn.Linear(channels[-1] * side**2, 2 * latent))
        self.network = nn.Sequential(*layers, *flat)

    def forward(self, image: Float[Tensor, "b y x"]) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Means and SDs."""
        return self._moments(image[:, None])


class ResidualDecoder(nn.Module):
    """Latents to images, by a linear layer and levels of residual blocks that each double the side.

    Args:
        size: side of the image [px], a multiple of ``2 ** len(channels)``.
        latent: length of the latent vector.
        channels: of each level, the coarsest first.
        blocks: residual blocks in a level.

    Raises:
        InputError: if the side cannot be halved so often.

    References:
        Lanusse et al. 2021, MNRAS 504, 5543, section 4.1.
    """

    def __init__(
        self, size: int, latent: int, channels: Sequence[int] = (32, 32, 16, 8), blocks: int = 2
    ) -> None:
        super().__init__()
        side = _halved(size, len(channels))
        self.latent, self.start = latent, (channels[0], side, side)
        self.linear = nn.Linear(latent, channels[0] * side**2)
        layers: list[nn.Module] = []
        for before, after in zip(channels, (*channels[1:], channels[-1]), strict=True):
            layers += [_Residual(before) for _ in range(blocks)]
            layers += [nn.SiLU(), nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
        self.levels = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b y x"]:
        """One channel, without a last activation."""
        image = self.levels(self.linear(z.reshape(-1, self.latent)).reshape(-1, *self.start))
        return image.reshape(*z.shape[:-1], *image.shape[-2:])


def _halved(size: int, times: int) -> int:
    """Side after it is halved some times."""
    if size % 2**times:
        raise InputError("size", size, f"a multiple of {2**times}")
    return size // 2**times


class DenseEncoder(_Gaussian):
    """Vectors to the means and SDs of their latents.

    Args:
        size: length of the vector.
        latent: length of the latent vector.
        hidden: widths of the layers between.
    """

    def __init__(self, size: int, latent: int, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        self.network = _dense((size, *hidden, 2 * latent))

    def forward(self, x: Float[Tensor, "*b n"]) -> tuple[Float[Tensor, "*b z"], Float[Tensor, "*b z"]]:
        """Means and SDs."""
        return self._moments(x)


class DenseDecoder(nn.Module):
    """Latents to vectors.

    Args:
        size: length of the vector.
        latent: length of the latent vector.
        hidden: widths of the layers between.
    """

    def __init__(self, size: int, latent: int, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        self.network = _dense((latent, *hidden, size))

    def forward(self, z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b n"]:
        """Values without a last activation."""
        return self.network(z)


def _dense(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
