"""The prior of an image: a Gaussian field, and optionally a learned energy.

    white ~ N(0, 1)
    image = mean + the field of that white noise with a given power spectrum
    p(image) is multiplied by exp(-E(image - mean))                (with a learned energy)

``denoise`` uses these priors. A prior is called inside a Pyro model, samples its latents and
returns the image. A learned energy is that of :class:`astrozoo.nets.score.ScalarEnergy`: a number for each
image, so that the product is a density and a Metropolis test is exact.

References:
    Remy et al. 2022, A&A 672, A51 (Gaussian prior with a learned residual).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.nets.score import ScalarEnergy
from astrozoo.physics import fourier

__all__ = ["Field", "ImagePrior", "PointPrior"]


class Field(NamedTuple):
    """The Gaussian field of a prior.

    Args:
        mean: of the image; one number, or one for each coordinate of a point.
        root: from white noise to the field: the root of the power of each mode of ``rfft2``, or the SD of a
            point.
    """

    mean: Float[Tensor, "*c"]
    root: Float[Tensor, "*modes"]


@dataclass(frozen=True, eq=False)
class ImagePrior:
    """The prior of an image.

    Args:
        energy: of the image minus its mean; None for the Gaussian field alone.
        level: noise level at which the energy is evaluated, in the unit of the image.
    """

    energy: ScalarEnergy | None = None
    level: float = 0.0

    def __call__(self, blank: Float[Tensor, "y x"], field: Field) -> Float[Tensor, "y x"]:
        """Sample the site ``white`` and return the image.

        Args:
            blank: an image, for its shape and dtype.
        """
        white = pyro.sample("white", dist.Normal(torch.zeros_like(blank), 1.0).to_event(2))
        image = self.image(white, field)
        _weigh(self.energy, self.level, (image - field.mean)[None, None])
        return image

    def image(self, white: Float[Tensor, "*b y x"], field: Field) -> Float[Tensor, "*b y x"]:
        """The image of given white noise."""
        return field.mean + fourier.filtered(white, field.root)


@dataclass(frozen=True, eq=False)
class PointPrior:
    """The prior of independent points: each is an image of one pixel with as many channels as coordinates.

    Args:
        energy, level: as :class:`ImagePrior`.
    """

    energy: ScalarEnergy | None = None
    level: float = 0.0

    def __call__(self, blank: Float[Tensor, "point c"], field: Field) -> Float[Tensor, "point c"]:
        """Sample the site ``white`` and return the points."""
        white = pyro.sample("white", dist.Normal(torch.zeros_like(blank), 1.0).to_event(2))
        points = self.image(white, field)
        _weigh(self.energy, self.level, (points - field.mean)[..., None, None])
        return points

    def image(self, white: Float[Tensor, "*b point c"], field: Field) -> Float[Tensor, "*b point c"]:
        """The points of given white noise."""
        return field.mean + field.root * white


def _weigh(energy: ScalarEnergy | None, level: float, images: Float[Tensor, "b c y x"]) -> None:
    """Multiply the density by ``exp(-E)`` of each image."""
    if energy is None:
        return
    pyro.factor("energy", -energy(images, images.new_full((len(images),), level)).sum())
