"""A residual network that classifies stamps of several bands, after CMU DeepLens, in polar coordinates.

Units are pre-activation bottlenecks with ELU, as in CMU DeepLens. Three things differ. The network sees a
stamp in polar coordinates around its middle, where a lens is: arcs become strips along the azimuth, what is
round can be subtracted, and a rotation is a shift. Normalisation is over groups of channels of one stamp and
not over a minibatch, so that a stamp has the same features alone and in any minibatch. The pooled
channels are mapped to a few features, on which a Bayesian logistic regression is cheap.

References:
    Lanusse et al. 2018, MNRAS 473, 3895; He et al. 2016, arXiv 1603.05027; Wu & He 2018, arXiv 1803.08494.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, grid_sample, pad

__all__ = ["CHANNELS", "FEATURES", "Classifier", "polar", "turned_copies"]

CHANNELS = (32, 64, 128)
"""Channels of the stages. Each stage has half the side of the one before."""
FEATURES = 32
"""Features of a stamp: the latent dimension of the logistic regression on them, minus one."""
_UNITS = 2
"""Residual units of a stage. CMU DeepLens has three; the third costs a third of the time."""
_GROUPS = 8
"""Most groups of channels, each of which is normalised together."""
_SOFTENING = 3.0
"""[SD of the noise] Brightness at which the network's input becomes logarithmic: the noise keeps its shape,
and the centre of a galaxy is about 5."""
_QUANTILES = (0.001, 0.02, 0.5, 0.9, 0.99, 1.0)
"""Of the pixels of a band, among the statistics."""
_LAGS = (1, 2, 4)
"""[px] Distances of pixels whose differences are among the statistics."""


class _Convolution(nn.Module):
    """A convolution whose image is periodic in the last axis, the azimuth."""

    def __init__(self, before: int, after: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.margin = side // 2
        self.inner = nn.Conv2d(before, after, side, stride, padding=(self.margin, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(pad(x, (self.margin, self.margin, 0, 0), mode="circular"))


class _Unit(nn.Module):
    """A pre-activation bottleneck: 1x1, 3x3 (which may halve the side), 1x1, added to its input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle = after // 2
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(_GROUPS, n), n) for n in (before, middle, middle))
        self.convolutions = nn.ModuleList(
            (
                nn.Conv2d(before, middle, 1, bias=False),
                _Convolution(middle, middle, 3, stride),
                nn.Conv2d(middle, after, 1, bias=False),
            )
        )
        changed = stride > 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        y = elu(self.norms[0](x))
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.convolutions[0](y)
        for norm, convolution in zip(list(self.norms)[1:], list(self.convolutions)[1:], strict=True):
            y = convolution(elu(norm(y)))
        return kept + y


class Classifier(nn.Module):
    """Square stamps to a few features, and to the logit of one class.

    Args:
        bands: of a stamp.
        channels: see :data:`CHANNELS`.
        features: see :data:`FEATURES`.
        stride: of the first convolution: 2 where the PSF is 3 pixels wide or more.
    """

    def __init__(
        self, bands: int, channels: Sequence[int] = CHANNELS, features: int = FEATURES, stride: int = 2
    ) -> None:
        super().__init__()
        self.bands, self.channels, self.stride = bands, tuple(channels), stride
        self.first = _Convolution(2 * bands + 1, channels[0], 5, stride)
        stages, before = [], channels[0]
        for i, after in enumerate(channels):
            units: list[nn.Module] = []
            for k in range(_UNITS):
                units.append(_Unit(before, after, 2 if i > 0 and k == 0 else 1))
                before = after
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, before), before)
        self.neck = nn.Linear(2 * before, features)
        self.last = nn.Linear(features, 1)

    def forward(self, image: Float[Tensor, "b band y x"]) -> Float[Tensor, "b"]:
        """Logits.

        Args:
            image: in units of the SD of each band's noise; 0 where there are no data.
        """
        return self.last(self.features(image))[:, 0]

    def features(self, image: Float[Tensor, "b band y x"]) -> Float[Tensor, "b f"]:
        """Features, on which the logit is linear."""
        x = self.first(_inputs(image))
        for stage in self.stages:
            x = stage(x)
        return self._pooled(x)

    def described(
        self, image: Float[Tensor, "b band y x"]
    ) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b s"]]:
        """Features, and statistics that tell whether a stamp is like those of the training.

        The features discard what does not matter to the class, such as the noise's correlation, so that
        they do not tell. The statistics are the mean and the log SD of each channel of the first convolution
        and of each stage over the stamp, quantiles of the pixels of each band, and the spread of their
        differences.
        """
        x = self.first(_inputs(image))
        statistics = [*_moments(x), *_of_pixels(image)]
        for stage in self.stages:
            x = stage(x)
            statistics += _moments(x)
        return self._pooled(x), torch.cat(statistics, 1)

    def _pooled(self, x: Float[Tensor, "b c r a"]) -> Float[Tensor, "b f"]:
        x = elu(self.norm(x))
        return elu(self.neck(torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)))


def polar(image: Float[Tensor, "b c size size"]) -> Float[Tensor, "b c r a"]:
    """Square images on a grid of radius and azimuth, by bilinear interpolation.

    There are as many azimuths as pixels along a side, and half as many radii: 0.5, 1.5 ... pixels.
    """
    size = image.shape[-1]
    pixels = torch.arange(size, dtype=image.dtype, device=image.device)
    radius = (pixels[: size // 2] + 0.5)[:, None] * 2 / size
    angle = pixels * (2 * math.pi / size)
    grid = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    return grid_sample(image, grid.expand(len(image), -1, -1, -1), padding_mode="border", align_corners=False)


def _inputs(image: Float[Tensor, "b band y x"]) -> Float[Tensor, "b c r a"]:
    """In each band the image, and the image without what is round; and the radius."""
    whole = polar(image)
    uneven = whole - whole.median(-1, keepdim=True).values
    size = whole.shape[-2]
    radius = torch.linspace(-1, 1, size, dtype=image.dtype, device=image.device)
    radius = radius[:, None].expand(len(image), 1, -1, whole.shape[-1])
    return torch.cat(((whole / _SOFTENING).asinh(), (uneven / _SOFTENING).asinh(), radius), 1)


def _moments(x: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Mean and log SD of each channel."""
    variance, mean = torch.var_mean(x, (2, 3))
    return mean, (variance + 1e-8).log() / 2


def _of_pixels(image: Float[Tensor, "b band y x"]) -> list[Float[Tensor, "b k"]]:
    """Quantiles of each band's pixels, and the log median of their differences at some distances."""
    flat = image.flatten(2)
    quantiles = flat.sort(-1).values[..., [round(q * (flat.shape[-1] - 1)) for q in _QUANTILES]]
    found = [quantiles.asinh().flatten(1)]
    for lag in _LAGS:
        for axis in (-1, -2):
            n = image.shape[axis]
            change = image.narrow(axis, lag, n - lag) - image.narrow(axis, 0, n - lag)
            found.append((change.abs().flatten(2).median(-1).values + 1e-3).log())
    return found


def turned_copies(image: Float[Tensor, "b band y x"], orientation: int) -> Float[Tensor, "b band y x"]:
    """Square images in one of the eight orientations, 0 to 7; 0 leaves them as they are."""
    if orientation & 1:
        image = image.mT
    if orientation & 2:
        image = image.flip(-2)
    return image.flip(-2, -1) if orientation & 4 else image
