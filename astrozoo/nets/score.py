"""Scores of images with noise, ``grad log p(y)`` at a noise level: networks, and how they are fitted.

An image ``y = x + sigma u``, ``u ~ N(0, 1)``, has the best estimate of ``x`` of Tweedie's formula, ``y +
sigma^2 grad log p(y; sigma)``. A network that removes noise is therefore one of the score, and is fitted by
:func:`denoising_loss`.

* :class:`Denoiser`: an image to an image. Its score is the gradient of no density.
* :class:`ScalarEnergy`: an image to a number. The score is minus its gradient. ``exp(-energy)`` is a density
  up to a constant, so that samplers with a Metropolis test may have it as a prior.

Both are built on :class:`ResidualUNet`, whose activations are smooth. :class:`PointNetwork` takes its place
for points, which are images of one pixel with a channel for each coordinate.

References:
    Vincent 2011, Neural Comput. 23, 1661 (denoising score matching); Salimans & Ho 2021 (energies); Karras et
    al. 2022, arXiv 2206.00364 (scaling of inputs and outputs); Remy et al. 2022, A&A 672, A51 (residuals).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle, silu

from astrozoo.errors import InputError

__all__ = ["Denoiser", "PointNetwork", "ResidualUNet", "ScalarEnergy", "denoising_loss"]

Score = Callable[[Tensor, Tensor], Tensor]
"""Called with noisy images ``[b, c, y, x]`` and their noise levels ``[b]``."""
Padding = Literal["circular", "zeros"]
_WAVES = 8
"""Sines and cosines of log sigma that the network is given."""
_RANGE = 12.0
"""Range of log sigma in which they differ: half a period of the slowest is 12, noise levels of 1 to 1e5."""


def _per_image(values: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    return values[:, None, None, None]


class _Level(nn.Module):
    """Noise levels to feature vectors."""

    waves: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        waves = torch.arange(1, _WAVES + 1) * math.pi / _RANGE
        self.register_buffer("waves", waves)
        self.network = nn.Sequential(nn.Linear(2 * _WAVES, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())

    def forward(self, sigma: Float[Tensor, "b"]) -> Float[Tensor, "b size"]:
        phase = sigma.log()[:, None] * self.waves
        return self.network(torch.cat((phase.sin(), phase.cos()), 1))


class _Block(nn.Module):
    """``h + conv(silu(scale conv(silu(h)) + shift))``, scale and shift by the noise level."""

    def __init__(self, channels: int, level: int, padding: Padding) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, padding)
        self.second = _convolution(channels, channels, padding)
        self.modulate = nn.Linear(level, 2 * channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, h: Float[Tensor, "b c y x"], level: Float[Tensor, "b l"]) -> Float[Tensor, "b c y x"]:
        scale, shift = self.modulate(level)[..., None, None].chunk(2, 1)
        return h + self.second(silu((1 + scale) * self.first(silu(h)) + shift))


def _convolution(inputs: int, outputs: int, padding: Padding) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)


class ResidualUNet(nn.Module):
    """A small U-Net of residual blocks, which knows the noise level. Before training its output is 0.

    Args:
        inputs, outputs: channels of images.
        channels: of the features, at full resolution, half, a quarter ...
        block: side of blocks of pixels that are stacked as channels first. With 2, the cost is a quarter.
        periodic: opposite edges of an image are neighbours. Otherwise it is 0 beyond them.
    """

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        *,
        channels: Sequence[int] = (24, 32, 48),
        block: int = 1,
        periodic: bool = False,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1 or block < 1:
            raise InputError("channels and block", (*channels, block), "numbers of 1 or more")
        padding: Padding = "circular" if periodic else "zeros"
        size = 4 * channels[0]
        self.block = block
        self.level = _Level(size)
        self.stem = _convolution(inputs * block**2, channels[0], padding)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.narrow, self.widen = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(channels):
            self.down.append(_Block(fine, size, padding))
            self.up.append(_Block(fine, size, padding))
            self.widen.append(nn.Conv2d(fine, coarse, 1))
            self.narrow.append(nn.Conv2d(coarse, fine, 1))
        self.middle = _Block(channels[-1], size, padding)
        self.head = _convolution(channels[0], outputs * block**2, padding)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        """Sides of images are multiples of this [px]."""
        return self.block * 2 ** len(self.down)

    def forward(
        self, images: Float[Tensor, "b i y x"], sigma: Float[Tensor, "b"]
    ) -> Float[Tensor, "b o y x"]:
        """The output at noise levels ``sigma``.

        Raises:
            InputError: sides that are no multiples of :attr:`multiple`.
        """
        if any(side % self.multiple for side in images.shape[-2:]):
            raise InputError(
                "image", tuple(images.shape[-2:]), f"sides that are multiples of {self.multiple}"
            )
        level = self.level(sigma)
        h = self.stem(pixel_unshuffle(images, self.block))
        skipped = []
        for block, widen in zip(self.down, self.widen, strict=True):
            h = block(h, level)
            skipped.append(h)
            h = widen(avg_pool2d(h, 2))
        h = self.middle(h, level)
        for block, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            h = block(skipped.pop() + interpolate(narrow(h), scale_factor=2), level)
        return pixel_shuffle(self.head(silu(h)), self.block)


class PointNetwork(nn.Module):
    """Fully connected layers, which know the noise level, for images of one pixel. Before training it is 0.

    Args:
        inputs: coordinates of a point.
        width: features of a layer.
        layers: residual layers.
    """

    def __init__(self, inputs: int, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.level = _Level(width)
        self.stem = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, points: Float[Tensor, "b i 1 1"], sigma: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 1 1 1"]:
        """One number for each point, at noise levels ``sigma``."""
        level = self.level(sigma)
        h = self.stem(points[..., 0, 0])
        for layer, modulate in zip(self.layers, self.modulate, strict=True):
            scale, shift = modulate(level).chunk(2, -1)
            h = h + silu((1 + scale) * layer(silu(h)) + shift)
        return self.head(silu(h))[..., None, None]


class Denoiser(nn.Module):
    """The best estimate of images without noise.

    Before training it shrinks images as the Wiener filter of white images does.

    Args:
        network: with as many outputs as inputs.
        sd: of the pixels of images without noise.
    """

    def __init__(self, network: ResidualUNet, sd: float = 1.0) -> None:
        super().__init__()
        self.network, self.sd = network, _positive("sd", sd)

    def forward(self, noisy: Float[Tensor, "b c y x"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b c y x"]:
        total = _per_image(sigma**2 + self.sd**2)
        shrunk = self.sd**2 / total * noisy
        return shrunk + _per_image(sigma) * self.sd / total.sqrt() * self.network(noisy / total.sqrt(), sigma)

    def score(self, noisy: Float[Tensor, "b c y x"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b c y x"]:
        """Gradient of the log density of noisy images, by Tweedie's formula."""
        return (self(noisy, sigma) - noisy) / _per_image(sigma**2)


class ScalarEnergy(nn.Module):
    """Minus the log density of noisy images, up to a constant, beyond that of a base density.

    Before training it is 0.

    Args:
        network: its outputs are summed over the image.
        sd: of the pixels of images without noise.
    """

    def __init__(self, network: ResidualUNet | PointNetwork, sd: float = 1.0) -> None:
        super().__init__()
        self.network, self.sd = network, _positive("sd", sd)

    def forward(self, noisy: Float[Tensor, "b c y x"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        scaled = noisy / _per_image(sigma**2 + self.sd**2).sqrt()
        return self.network(scaled, sigma).sum((1, 2, 3))

    def score(self, noisy: Float[Tensor, "b c y x"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b c y x"]:
        """Minus the gradient of the energy, differentiable in the weights where gradients are computed."""
        return -torch.func.grad(lambda at: self(at, sigma).sum())(noisy)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise InputError(name, value, "a number above 0")
    return float(value)


def denoising_loss(
    score: Score,
    clean: Float[Tensor, "b c y x"],
    sigma: Float[Tensor, "b"],
    noise: Float[Tensor, "b c y x"],
) -> Float[Tensor, "b"]:
    """Mean over pixels of ``(u + sigma s(x + sigma u; sigma))^2``, which the score of noisy images minimises.

    Args:
        noise: u, of SD 1.
    """
    found = score(clean + _per_image(sigma) * noise, sigma)
    return (noise + _per_image(sigma) * found).square().mean((1, 2, 3))
