"""Posteriors of galaxies from the encoder: q(latent | image, PSF, noise)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data.psf_stamps import PsfStamp
from astrozoo.nets.galaxy import GalaxyDecoder, Networks, Units, in_units, log_flux
from astrozoo.physics.convolved_gaussians import GaussianSum, convolved_image, transfer_function

__all__ = ["binning", "encode", "moments", "render", "score", "typical_noise"]

ENCODED_SIDE = 64
"""[px] Largest side of a stamp that is not binned for the encoder, which sees the middle 32 pixels. Galaxies
of such stamps are about as large, in pixels, as those that it was trained on."""


def render(
    decoder: GalaxyDecoder, z: Float[Tensor, "n z"], psf: Float[Tensor, "n k l"], shape: Sequence[int]
) -> Float[Tensor, "n y x"]:
    """Images in units of the noise, of latents in the units of their stamps."""
    stamp = (shape[0], shape[1])
    return convolved_image(GaussianSum(*decoder(z)), transfer_function(psf, stamp), stamp)


def score(
    decoder: GalaxyDecoder,
    z: Float[Tensor, "n z"],
    signal: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n k l"],
) -> Float[Tensor, "n z"]:
    """Gradient of the log posterior of the latents, for white noise of unit variance."""

    def density(z: Tensor) -> Tensor:
        residual = signal - render(decoder, z, psf, signal.shape[-2:])
        return -0.5 * (residual.square().sum() + z.square().sum())

    return torch.func.grad(density)(z.detach()).detach()


def moments(
    networks: Networks, signal: Float[Tensor, "n y x"], psf: Float[Tensor, "n k l"], correct: bool = True
) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n z"]]:
    """Means and SDs of the latents, in the units of each stamp.

    Args:
        signal: image divided by the noise of its pixels.
        correct: whether the first guess is corrected by the gradient of the log posterior.
    """
    encoder = networks.encoder
    mean, log_variance, features = encoder(signal, psf)
    if correct:
        gradient = score(networks.decoder, mean, signal, psf)
        mean, log_variance = encoder.correct(mean, log_variance, features, gradient)
    return mean, (log_variance / 2).exp()


def binning(stamp: PsfStamp) -> int:
    """Pixels along a side of what the encoder sees as one."""
    return math.ceil(max(stamp.shape) / ENCODED_SIDE)


def typical_noise(stamp: PsfStamp) -> float:
    """Noise of a pixel on the scale of a galaxy [unit]: correlated noise averages out more slowly."""
    noise, mask = np.asarray(stamp.noise), np.asarray(stamp.mask)
    excess = 1.0
    if stamp.correlation is not None:
        c = np.asarray(stamp.correlation)
        excess = max(float(c.sum() / c[c.shape[0] // 2, c.shape[1] // 2]), 1.0)
    return float(np.median(noise[mask])) * excess**0.5


@torch.no_grad()
def encode(
    networks: Networks, exposures: Sequence[PsfStamp], flux: Sequence[float], length: Sequence[float]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Means and SDs of the latents and of the log flux ratios, of one galaxy.

    The exposures are combined as independent measurements with one prior.

    Args:
        flux: unit of the latents' flux, in the unit of each image.
        length: unit of the latents' lengths, in pixels of each exposure.
    """
    means, variances = [], []
    for stamp, unit, pixels in zip(exposures, flux, length, strict=True):
        mean, sd = _encode_one(networks, stamp, unit, pixels)
        means.append(mean)
        variances.append(sd**2)
    mean, variance = torch.stack(means), torch.stack(variances)
    precision = torch.maximum((1 / variance).sum(0) - (len(mean) - 1), (1 / variance).amax(0))
    joint = (mean / variance).sum(0) / precision
    joint[0], precision[0] = mean[0, 0], 1 / variance[0, 0]  # of the first exposure alone
    ratios = log_flux(mean[1:, 0]) - log_flux(mean[0, 0])
    spread = (log_flux(mean[1:, 0] + variance[1:, 0].sqrt()) - log_flux(mean[1:, 0])).abs()
    return torch.cat((joint, ratios)), torch.cat((precision.rsqrt(), spread))


def _encode_one(
    networks: Networks, stamp: PsfStamp, flux: float, length: float
) -> tuple[Float[Tensor, "z"], Float[Tensor, "z"]]:
    """Means and SDs from one exposure, in the common units."""
    n, noise = binning(stamp), typical_noise(stamp)
    like = next(networks.encoder.parameters())
    sd = np.asarray(stamp.noise) * (noise / np.median(np.asarray(stamp.noise)[np.asarray(stamp.mask)]))
    signal = _binned(np.where(np.asarray(stamp.mask), stamp.image / sd, 0.0), n) / n
    psf = _binned(stamp.psf, n)
    seen, through = (torch.as_tensor(x)[None].to(like) for x in (signal, psf / psf.sum()))
    mean, deviation = moments(networks, seen, through)
    units = Units(*(torch.tensor([x]).to(like) for x in (flux / (noise * n), length / n)))
    return in_units(mean, units)[0], deviation[0]


def _binned(image: Float[np.ndarray, "y x"], n: int) -> Float[np.ndarray, "Y X"]:
    """Sums over n x n pixels, an odd number of them along each side, the middle one around the image's
    middle."""
    if n == 1:
        return image
    for axis in (0, 1):
        side = image.shape[axis]
        bins = math.ceil(side / n)
        spare = (bins + 1 - bins % 2) * n - side
        width = [(0, 0), (0, 0)]
        width[axis] = (spare // 2, spare - spare // 2)
        image = np.pad(image, width)
    return image.reshape(image.shape[0] // n, n, image.shape[1] // n, n).sum((1, 3))
