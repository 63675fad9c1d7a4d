"""Shear of ellipticities, and galaxies in Fourier space.

The ellipticity ``eta`` of a galaxy is a vector of length ``-ln(axis ratio)`` in the direction ``2 phi``,
where ``phi`` is the position angle of the major axis from +x through +y. The reduced-shear ellipticity is
``tanh(|eta| / 2)`` in the same direction. A galaxy of half-light radius ``r`` has elliptical isophotes whose
matrix is ``r^2 exp(eta_1 sigma_3 + eta_2 sigma_1)``. An area-preserving shear leaves ``r`` alone.

References:
    Bernstein & Jarvis 2002, AJ 123, 583 (section 2.2: conformal shear).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SERSIC_INDICES", "profile_transform", "quadratic_form", "to_ellipticity", "to_eta", "unshear"]

_ROUND = 1e-6
"""Added to |eta|^2, so that derivatives of its root exist for round galaxies. It changes values by less than
2e-7."""
SERSIC_INDICES = (0.5, 1.0)
"""Sersic indices whose profile has a Fourier transform in closed form: Gaussian and exponential."""
_EXPONENTIAL = 1.6783469900166605
"""Half-light radius of an exponential profile, in scale lengths."""


def unshear(
    eta: Float[Tensor, "*b 2"], shear: Float[Tensor, "*b 2"]
) -> tuple[Float[Tensor, "*b 2"], Float[Tensor, "*b"]]:
    """The intrinsic ellipticity of a galaxy that is seen with ``eta``, and ``ln |d intrinsic / d eta|``.

    A shear is a boost of ``(cosh |eta|, sinh |eta| eta / |eta|)``, as it multiplies the isophote's matrix
    from both sides. It preserves the area ``sinh |eta| d|eta| dphi``, which gives the Jacobian.

    Args:
        eta: ellipticity as seen.
        shear: reduced shear (g1, g2), of modulus below 1.
    """
    square = (eta * eta).sum(-1)
    size = torch.sqrt(square + _ROUND)
    growth = torch.sinh(size) / size
    time, space = torch.cosh(size), growth[..., None] * eta
    g2 = (shear * shear).sum(-1)
    boost = 2 * shear / (1 - g2)[..., None]
    along = (boost * space).sum(-1)
    factor = along * (1 - g2) / 2 - time  # (C + 1) = 2 / (1 - g^2)
    moved = space + factor[..., None] * boost
    length = torch.sqrt((moved * moved).sum(-1) + _ROUND)
    intrinsic = torch.asinh(length)
    return moved * (intrinsic / length)[..., None], growth.log() - (length / intrinsic).log()


def to_ellipticity(eta: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 2"]:
    """The reduced-shear ellipticity, (1 - q) / (1 + q) in modulus."""
    size = torch.sqrt((eta * eta).sum(-1, keepdim=True) + _ROUND)
    return eta * torch.tanh(size / 2) / size


def to_eta(ellipticity: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 2"]:
    """The inverse of :func:`to_ellipticity`."""
    size = torch.sqrt((ellipticity * ellipticity).sum(-1, keepdim=True) + _ROUND**2)
    return ellipticity * 2 * torch.atanh(size) / size


def quadratic_form(
    kx: Float[Tensor, "*k"], ky: Float[Tensor, "*k"], eta: Float[Tensor, "2"]
) -> Float[Tensor, "*k"]:
    """``k' exp(eta_1 sigma_3 + eta_2 sigma_1) k``: the squared frequency in the frame of a round galaxy."""
    size = torch.sqrt((eta * eta).sum(-1) + _ROUND)
    cosh, sinhc = torch.cosh(size), torch.sinh(size) / size
    return cosh * (kx * kx + ky * ky) + sinhc * (eta[0] * (kx * kx - ky * ky) + 2 * eta[1] * kx * ky)


def profile_transform(square: Float[Tensor, "*k"], index: float) -> Float[Tensor, "*k"]:
    """Fourier transform of a round Sersic profile of unit flux.

    Args:
        square: ``(k r)^2``, of the angular frequency and the half-light radius.
        index: one of :data:`SERSIC_INDICES`.
    """
    if index == 0.5:
        return torch.exp(-square / (4 * math.log(2)))
    base = 1 + square / _EXPONENTIAL**2
    return 1 / (base * torch.sqrt(base))
