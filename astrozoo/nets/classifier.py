"""A residual network that classifies stamps of several bands, after CMU DeepLens.

Units are pre-activation bottlenecks with ELU, as in CMU DeepLens. Two things differ: normalisation is over
groups of channels of one stamp and not over a minibatch, so that a stamp has the same features alone, in any
minibatch and on any number of devices; and the pooled channels are mapped to a few features, on which a
Bayesian logistic regression is cheap.

References:
    Lanusse et al. 2018, MNRAS 473, 3895; He et al. 2016, arXiv 1603.05027; Wu & He 2018, arXiv 1803.08494.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

__all__ = ["CHANNELS", "FEATURES", "Classifier", "turned_copies"]

CHANNELS = (32, 64, 128)
"""Channels of the stages. Each stage has half the side of the one before."""
FEATURES = 32
"""Features of a stamp: the latent dimension of the logistic regression on them, minus one."""
_UNITS = 2
"""Residual units of a stage. CMU DeepLens has three; the third costs a third of the time."""
_GROUPS = 8
"""Groups of channels that are normalised together."""
_SOFTENING = 3.0
"""[SD of the noise] Brightness at which the network's input becomes logarithmic: the noise keeps its shape, and
the centre of a galaxy is about 5."""


class _Unit(nn.Module):
    """A pre-activation bottleneck: 1x1, 3x3 (which may halve the side), 1x1, added to its input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle = after // 2
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, n) for n in (before, middle, middle))
        self.convolutions = nn.ModuleList(
            (
                nn.Conv2d(before, middle, 1, bias=False),
                nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False),
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
    """Stamps to a few features, and to the logit of one class.

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
        self.first = nn.Conv2d(bands, channels[0], 7, stride=stride, padding=3, bias=False)
        stages, before = [], channels[0]
        for i, after in enumerate(channels):
            units: list[nn.Module] = []
            for k in range(_UNITS):
                units.append(_Unit(before, after, 2 if i > 0 and k == 0 else 1))
                before = after
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.GroupNorm(_GROUPS, before)
        self.neck = nn.Linear(before, features)
        self.last = nn.Linear(features, 1)

    def forward(self, image: Float[Tensor, "b band y x"]) -> Float[Tensor, "b"]:
        """Logits.

        Args:
            image: in units of the SD of each band's noise; 0 where there are no data.
        """
        return self.last(self.features(image))[:, 0]

    def features(self, image: Float[Tensor, "b band y x"]) -> Float[Tensor, "b f"]:
        """Features, on which the logit is linear."""
        return self.described(image)[0]

    def described(self, image: Float[Tensor, "b band y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b s"]]:
        """Features, and statistics of all layers that tell whether a stamp is like those of the training.

        The statistics are the mean and the log SD of each channel of the first convolution and of each stage
        over the stamp. The features discard what does not matter to the class, such as the noise's
        correlation. The first layers still have it.
        """
        x = self.first((image / _SOFTENING).asinh())
        statistics = [*_moments(x)]
        for stage in self.stages:
            x = stage(x)
            statistics += _moments(x)
        pooled = elu(self.norm(x)).mean((2, 3))
        return elu(self.neck(pooled)), torch.cat(statistics, 1)


def _moments(x: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Mean and log SD of each channel."""
    variance, mean = torch.var_mean(x, (2, 3))
    return mean, (variance + 1e-8).log() / 2


def turned_copies(image: Float[Tensor, "b band y x"], orientation: int) -> Float[Tensor, "b band y x"]:
    """Square images in one of the eight orientations, 0 to 7; 0 leaves them as they are."""
    if orientation & 1:
        image = image.mT
    if orientation & 2:
        image = image.flip(-2)
    return image.flip(-2, -1) if orientation & 4 else image
