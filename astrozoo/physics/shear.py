"""Weak lensing on a flat, periodic map: convergence and shear, E and B modes, aperture mass, peaks.

Maps are ``[y, x]`` with square pixels. Shear is ``[2, y, x]``, the components gamma_1 and gamma_2 in the
frame of the pixels: a wave of convergence along x has gamma_1 = +kappa, and one along the diagonal of x and y
has gamma_2 = +kappa. Shear around a mass is tangential.

Two kinds of modes are dropped in both directions. The mean (the mode k = 0) has no shear. At the highest
frequency of an axis of even length, the sign of k is undefined, and so is the sign of gamma_2. Without them,
:func:`kaiser_squires` inverts :func:`shear_of` exactly.

References:
    Kaiser & Squires 1993, ApJ 404, 441; Schneider 1996, MNRAS 283, 837 (aperture mass).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.physics import fourier

__all__ = [
    "Peaks",
    "aperture_mass",
    "kaiser_squires",
    "peaks",
    "reduced_shear",
    "shear_kernels",
    "shear_of",
    "smoothed",
]


def shear_kernels(shape: tuple[int, int], like: Tensor) -> Float[Tensor, "2 y h"]:
    """``(kx^2 - ky^2) / k^2`` and ``2 kx ky / k^2`` of the modes of ``rfft2``, 0 for the modes dropped."""
    ky, kx = fourier.frequencies(shape, like)
    square = kx**2 + ky**2
    kept = (square > 0) & (ky.abs() < 0.5) & (kx.abs() < 0.5)
    ratio = torch.where(kept, 1 / square.clamp_min(torch.finfo(like.dtype).tiny), 0.0)
    return torch.stack(((kx**2 - ky**2) * ratio, 2 * kx * ky * ratio))


def shear_of(
    convergence: Float[Tensor, "*b y x"], kernels: Float[Tensor, "2 y h"] | None = None
) -> Float[Tensor, "*b 2 y x"]:
    """The shear of a convergence map.

    Args:
        kernels: of :func:`shear_kernels`, which are made if they are not given.
    """
    if kernels is None:
        kernels = shear_kernels((convergence.shape[-2], convergence.shape[-1]), convergence)
    return fourier.filter_bank(convergence, kernels)


def kaiser_squires(
    shear: Float[Tensor, "*b 2 y x"],
) -> tuple[Float[Tensor, "*b y x"], Float[Tensor, "*b y x"]]:
    """The convergence of E modes and of B modes in a shear map.

    Lensing makes E modes only, so that the map of B modes shows noise and systematic errors.
    """
    first, second = shear_kernels((shear.shape[-2], shear.shape[-1]), shear)
    e = fourier.summed(shear, torch.stack((first, second)))
    b = fourier.summed(shear, torch.stack((-second, first)))
    return e, b


def reduced_shear(
    shear: Float[Tensor, "*b 2 y x"], convergence: Float[Tensor, "*b y x"]
) -> Float[Tensor, "*b 2 y x"]:
    """``gamma / (1 - kappa)``, of which mean ellipticities are an estimate where ``kappa < 1``."""
    return shear / (1 - convergence)[..., None, :, :]


def smoothed(
    field: Float[Tensor, "*b y x"], sigma: float, weight: Float[Tensor, "*c y x"] | None = None
) -> Float[Tensor, "*b y x"]:
    """A mean over a Gaussian of SD ``sigma`` [px] on the periodic map.

    Args:
        weight: of each pixel in the mean, 0 where there are no data. The mean is 0 where all weights that
            the Gaussian reaches are 0.
    """
    ky, kx = fourier.frequencies((field.shape[-2], field.shape[-1]), field)
    kernel = torch.exp(-2 * (math.pi * sigma) ** 2 * (kx**2 + ky**2))
    if weight is None:
        return fourier.filtered(field, kernel)
    total = fourier.filtered(weight.expand(field.shape), kernel)
    reached = total > 1e-6 * weight.max()  # below, the total is the rounding error of the transform
    mean = fourier.filtered(field * weight, kernel) / torch.where(reached, total, 1.0)
    return torch.where(reached, mean, 0.0)


def aperture_mass(
    shear: Float[Tensor, "2 y x"],
    radius: float,
    noise: Float[Tensor, "2 y x"],
    mask: Bool[Tensor, "y x"],
) -> tuple[Float[Tensor, "y x"], Float[Tensor, "y x"]]:
    """Aperture mass around each pixel, and its signal-to-noise ratio.

    The aperture mass is the sum of tangential shear times ``6 / (pi R^2) x^2 (1 - x^2)``, with ``x`` the
    distance over R, over the pixels of the aperture that have data. Beyond the edges there are no data. Where
    the aperture has no data both are 0.

    Args:
        radius: R, of the aperture [px].
        noise: SD of each component in each pixel.
        mask: pixels with data.
    """
    half = math.ceil(radius)
    step = torch.arange(-half, half + 1, dtype=shear.dtype, device=shear.device)
    y, x = step[:, None], step[None, :]
    square = (x**2 + y**2) / radius**2
    height = 6 / (math.pi * radius**2) * (1 - square).clamp_min(0)  # times x^2, which cancels below
    q = -torch.stack(((x**2 - y**2) / radius**2, 2 * x * y / radius**2)) * height
    data = torch.where(mask, shear, 0.0)
    variance = torch.where(mask, noise.square(), 0.0)
    mass = _correlated(data, q)
    sd = _correlated(variance, q.square()).clamp_min(0).sqrt()
    seen = sd > 1e-4 * sd.max()  # below, the sum is rounding error
    return torch.where(seen, mass, 0.0), torch.where(seen, mass / torch.where(seen, sd, 1.0), 0.0)


def _correlated(fields: Float[Tensor, "m y x"], kernels: Float[Tensor, "m k k"]) -> Float[Tensor, "y x"]:
    """The sum over m of fields, which are 0 outside, correlated with kernels of odd side."""
    (ny, nx), k = fields.shape[-2:], kernels.shape[-1]
    size = (ny + k - 1, nx + k - 1)
    waves = torch.fft.rfft2(fields, s=size) * torch.fft.rfft2(kernels, s=size).conj()
    full = torch.fft.irfft2(waves.sum(0), s=size)
    return torch.roll(full, (k // 2, k // 2), (0, 1))[:ny, :nx]


class Peaks(NamedTuple):
    """Local maxima of a map, the highest first: rows, columns, and values."""

    y: Int[Tensor, "n"]
    x: Int[Tensor, "n"]
    height: Float[Tensor, "n"]


def peaks(field: Float[Tensor, "y x"], threshold: float, mask: Bool[Tensor, "y x"] | None = None) -> Peaks:
    """Pixels that are higher than their eight neighbours and than a threshold.

    Args:
        mask: pixels that may be peaks; all if it is not given.
    """
    ranked = torch.nn.functional.pad(field, (1, 1, 1, 1), value=-torch.inf)
    windows = ranked.unfold(0, 3, 1).unfold(1, 3, 1).flatten(-2)
    others = torch.cat((windows[..., :4], windows[..., 5:]), -1).amax(-1)
    is_peak = (field > others) & (field > threshold)
    if mask is not None:
        is_peak &= mask
    y, x = is_peak.nonzero(as_tuple=True)
    order = field[y, x].argsort(descending=True)
    return Peaks(y[order], x[order], field[y, x][order])
