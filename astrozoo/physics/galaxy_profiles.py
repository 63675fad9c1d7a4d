"""Images of parametric galaxies in pixels: a bivariate Gaussian, a Sersic profile, and a bulge with a disc.

The parameters of a profile are a vector without bounds, for fits by least squares:

* flux, of the whole profile;
* x and y of the centre, from the middle of the stamp [px];
* ln of the half-light radius of the circle of equal area [px];
* the ellipticity ``eta = -ln(q) (cos 2 phi, sin 2 phi)`` with the axis ratio ``q`` and the angle ``phi`` of
  the major axis from x towards y;
* of the Sersic profile, the logit of the index between the bounds :data:`INDEX`.

A bulge (index 4) and a disc (index 1) share the centre: ``flux, flux, x, y, ln radius, ln radius, eta, eta``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.physics.imaging import convolve, downsample

__all__ = ["INDEX", "KINDS", "Kind", "profile_image", "profile_start"]

Kind = Literal["gaussian", "sersic", "bulge_disc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Names of the profiles."""
INDEX = (0.3, 8.0)
"""Bounds of the Sersic index: beyond them the profile is a top hat, or a point with wings that no image
sees."""
_SOFTENING = 0.02
"""[px] Added in quadrature to radii. It keeps the derivatives at the centre finite."""


def profile_image(
    kind: Kind,
    parameters: Float[Tensor, "p"],
    size: int,
    psf: Float[Tensor, "k k"] | None = None,
    *,
    supersample: int = 1,
) -> Float[Tensor, "y x"]:
    """Flux in each pixel, ``[size, size]``.

    Args:
        psf: PSF of odd side and unit sum, which the profile is convolved with; None: nothing.
        supersample: points per pixel and axis at which the profile is averaged. A half-light radius of a
            pixel or less needs 3 or more.
    """
    axis = (torch.arange(size * supersample).to(parameters) + 0.5) / supersample - size / 2
    if kind == "gaussian":
        flux, x0, y0, log_radius, e1, e2 = parameters
        image = flux * _gaussian(axis - x0, axis - y0, log_radius, e1, e2)
    elif kind == "sersic":
        flux, x0, y0, log_radius, e1, e2, logit = parameters
        index = INDEX[0] + (INDEX[1] - INDEX[0]) * torch.sigmoid(logit)
        image = flux * _sersic(axis - x0, axis - y0, log_radius, e1, e2, index)
    else:
        bulge, disc, x0, y0, r_bulge, r_disc, b1, b2, d1, d2 = parameters
        four, one = parameters.new_tensor(4.0), parameters.new_tensor(1.0)
        image = bulge * _sersic(axis - x0, axis - y0, r_bulge, b1, b2, four)
        image = image + disc * _sersic(axis - x0, axis - y0, r_disc, d1, d2, one)
    image = downsample(image, supersample)
    return image if psf is None else convolve(image, psf)


def profile_start(kind: Kind, image: Float[Tensor, "b y x"]) -> Float[Tensor, "b p"]:
    """Rough parameters from the moments of the brighter pixels of sky-subtracted stamps around their
    middle."""
    b, size = len(image), image.shape[-1]
    axis = torch.arange(size).to(image) - (size - 1) / 2
    x, y = axis[None, None, :], axis[None, :, None]
    window = torch.exp(-0.5 * (x.square() + y.square()) / (0.15 * size) ** 2)
    light = image.clamp_min(0.0) * window
    total = light.sum((1, 2)).clamp_min(1e-12)

    def mean(values: Tensor) -> Tensor:
        return (light * values).sum((1, 2)) / total

    x0, y0 = mean(x), mean(y)
    xx, yy, xy = mean(x.square()) - x0**2, mean(y.square()) - y0**2, mean(x * y) - x0 * y0
    area = (xx * yy - xy.square()).clamp_min(0.25).sqrt()
    log_radius = 0.5 * torch.log(2 * math.log(2.0) * area)
    trace = (xx + yy).clamp_min(1e-6)
    e1, e2 = (2 * ((xx - yy) / trace).clamp(-0.4, 0.4), 2 * (2 * xy / trace).clamp(-0.4, 0.4))
    flux = image.sum((1, 2)).clamp_min(0.0)
    flux = torch.maximum(flux, light.sum((1, 2)))
    if kind == "bulge_disc":
        columns = [flux / 4, 0.75 * flux, x0, y0, log_radius, log_radius, e1 / 2, e2 / 2, e1, e2]
    else:
        columns = [flux, x0, y0, log_radius, e1, e2]
        if kind == "sersic":
            columns.append(torch.full((b,), math.log((1.5 - INDEX[0]) / (INDEX[1] - 1.5))).to(flux))
    return torch.stack(columns, 1)


def _square(x: Tensor, y: Tensor, log_radius: Tensor, e1: Tensor, e2: Tensor) -> Float[Tensor, "Y X"]:
    """Squared elliptical radius, in units of the half-light radius."""
    h = (e1.square() + e2.square() + 1e-12).sqrt()
    cosh, sinhc = torch.cosh(h), torch.sinh(h) / h
    xx, yy, xy = cosh - sinhc * e1, cosh + sinhc * e1, -sinhc * e2
    scale = torch.exp(-2 * log_radius)
    across = (x * x * xx)[None, :] + (y * y * yy)[:, None] + 2 * xy * (y[:, None] * x[None, :])
    return scale * (across + _SOFTENING**2)


def _gaussian(x: Tensor, y: Tensor, log_radius: Tensor, e1: Tensor, e2: Tensor) -> Float[Tensor, "Y X"]:
    """A Gaussian of unit flux."""
    square = _square(x, y, log_radius, e1, e2)
    # within a radius of 1, half of the light: 1 - exp(-ln 2)
    ln2 = math.log(2.0)
    return ln2 / math.pi * torch.exp(-2 * log_radius - ln2 * square)


def _sersic(
    x: Tensor, y: Tensor, log_radius: Tensor, e1: Tensor, e2: Tensor, index: Tensor
) -> Float[Tensor, "Y X"]:
    """A Sersic profile of unit flux.

    References:
        Ciotti & Bertin 1999, A&A 352, 447 (b_n); Graham & Driver 2005, PASA 22, 118 (flux).
    """
    log_square = _square(x, y, log_radius, e1, e2).log()
    b = 2 * index - 1 / 3 + 4 / (405 * index) + 46 / (25515 * index**2)
    log_flux = math.log(2 * math.pi) + index.log() + torch.lgamma(2 * index) - 2 * index * b.log()
    return torch.exp(-b * torch.exp(log_square / (2 * index)) - log_flux - 2 * log_radius)
