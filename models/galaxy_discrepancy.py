"""What the decoder of :mod:`astrozoo.models.psf_vae` cannot reproduce of a galaxy: arms, clumps, companions.

Without noise, a pixel is ``N(m, v)`` with ``v = f^2 m b``. Here ``m`` is the decoder's light in the pixel,
and ``b`` is the galaxy's typical brightness: the mean of ``m`` over the light. The discrepancy ``f`` is a
latent of the galaxy. Pixels are independent. Beside noise of standard deviation ``sd``, the data then have
the variance ``sd^2 + v``. Given the latents and the data ``x``, the noiseless pixel has the mean
``m + w (x - m)`` and the variance ``w sd^2``, with ``w = v / (sd^2 + v)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.physics.correlated_noise import log_density

__all__ = ["LOG_FRACTION", "SITE", "noiseless", "start", "total_sd", "variance"]

SITE = "log_discrepancy"
"""Name of the latent site, a vector of length 1: log f."""
LOG_FRACTION = (-4.0, 1.7)
"""Mean and SD of log f, fitted to 32 simulated galaxies under the shipped weights (seed 555, signal-to-noise
ratios above 20). As a power of ``m``, the variance is fitted best by 0.6: by 5 nats per galaxy better than by
1, which is used because its density is smooth where there is no light. 2 is worse by 20 to 40 nats."""
_GRID = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)
"""Values of log f among which a start is sought, in prior SDs from the prior mean."""


def variance(light: Float[Tensor, "*b y x"], log_fraction: Float[Tensor, "*b"]) -> Float[Tensor, "*b y x"]:
    """Variance of the noiseless pixels about the decoder's light [unit of the image, squared]."""
    light = light.clamp_min(0)
    total = light.sum((-2, -1), keepdim=True)
    brightness = light.square().sum((-2, -1), keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return (2 * log_fraction).exp()[..., None, None] * light * brightness


def total_sd(
    sd: Float[Tensor, "*b y x"], light: Float[Tensor, "*b y x"], log_fraction: Float[Tensor, "*b"]
) -> Float[Tensor, "*b y x"]:
    """Standard deviation of the data about the decoder's light [unit of the image]."""
    return (sd**2 + variance(light, log_fraction)).sqrt()


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
    unseen = variance(light, log_fraction)
    weight = torch.where(mask, unseen / (unseen + sd**2), 0.0)
    left = torch.where(mask, weight * sd**2, unseen)
    return light + weight * torch.where(mask, image - light, 0.0), left.sqrt()


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
