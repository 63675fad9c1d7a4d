"""What the decoder of :mod:`astrozoo.models.psf_vae` cannot reproduce of a galaxy: arms, clumps, companions.

Without noise, a pixel is ``N(m, (f m)^2)``, where ``m`` is the decoder's light in it. The discrepancy ``f``,
a fraction of the light, is a latent of the galaxy. Pixels are independent. Beside noise of standard
deviation ``sd``, the data then have the variance ``sd^2 + (f m)^2``. Given the latents and the data, the
noiseless pixel has the mean ``m + w (x - m)`` and the variance ``w sd^2``, with
``w = (f m)^2 / (sd^2 + (f m)^2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.physics.correlated_noise import log_density

__all__ = ["LOG_FRACTION", "SITE", "noiseless", "start", "total_sd"]

SITE = "log_discrepancy"
"""Name of the latent site, a vector of length 1: log f."""
LOG_FRACTION = (-2.6, 0.7)
"""Mean and SD of log f."""
_GRID = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)
"""Values of log f among which a start is sought, in prior SDs from the prior mean."""


def total_sd(
    sd: Float[Tensor, "*b y x"], light: Float[Tensor, "*b y x"], log_fraction: Float[Tensor, "*b"]
) -> Float[Tensor, "*b y x"]:
    """Standard deviation of the data about the decoder's light [unit of the image]."""
    return (sd**2 + (log_fraction.exp()[..., None, None] * light) ** 2).sqrt()


def noiseless(
    image: Float[Tensor, "y x"],
    sd: Float[Tensor, "y x"],
    mask: Bool[Tensor, "y x"],
    light: Float[Tensor, "*b y x"],
    log_fraction: Float[Tensor, "*b"],
) -> tuple[Float[Tensor, "*b y x"], Float[Tensor, "*b y x"]]:
    """Mean and SD of the pixels without noise, given the data and each draw of the latents.

    Args:
        image, sd, mask: of an exposure. Pixels that are not used have no data.
        light: the decoder's, for each draw.
        log_fraction: of each draw.
    """
    own = (log_fraction.exp()[..., None, None] * light) ** 2
    weight = torch.where(mask, own / (own + sd**2), 0.0)
    variance = torch.where(mask, weight * sd**2, own)
    return light + weight * torch.where(mask, image - light, 0.0), variance.sqrt()


def start(
    exposures: Sequence[Any], images: Sequence[Float[Tensor, "y x"]]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and SD of log f given the decoder's images of all exposures, on a grid of log f.

    Args:
        exposures: each with ``image``, ``sd`` and ``mask``.
    """
    mean, prior_sd = LOG_FRACTION
    values = mean + prior_sd * _GRID
    log_weight = -0.5 * _GRID**2
    for exposure, light in zip(exposures, images, strict=True):
        each = log_density(exposure.image - light, total_sd(exposure.sd, light, values))
        log_weight = log_weight + torch.where(exposure.mask, each, 0.0).sum((-2, -1))
    weight = log_weight.softmax(0)
    centre = (weight * values).sum()
    spread = (weight * (values - centre) ** 2).sum().sqrt()
    return centre, spread.clamp_min(prior_sd * float(_GRID[1] - _GRID[0]) / math.sqrt(12))
