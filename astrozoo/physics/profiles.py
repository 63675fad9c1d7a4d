"""Galaxy light profiles as Gaussian rings, and the shape parameters every model of the zoo uses.

A galaxy's **radius** is the half-light radius of the circle of equal area: semi-axes ``r / sqrt(rho)`` and
``r sqrt(rho)`` with axis ratio ``rho``; it is what GalSim's area-preserving shear leaves alone. The
**ellipticity** is a vector ``eta = -ln(rho) (cos 2 phi, sin 2 phi)``, where ``phi`` is the position angle
of the major axis, east of north. The covariance of a ring of unit variance is then
``r^2 exp(eta_1 sigma_3 + eta_2 sigma_1)``: smooth everywhere, round galaxies included.

Sky offsets are (east, north) in arcsec, in the tangent plane.

The rings are fitted to uncut Sersic profiles of index 1 and 4 by ``experiments/fit_profile_rings.py``:
enclosed light within 4e-4 (exponential) and 2.3e-3 (de Vaucouleurs) at every radius, surface brightness
through a blur of a quarter radius within 3e-4 and 7e-4 of its peak. (The mixtures "lux" and "luv" of Hogg &
Lang 2013, PASP 125, 719, which Celeste used, are cut at 4 and 8 radii and hold half their light within
.986 and .916 of the stated radius.)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "DEV_RINGS",
    "EXP_RINGS",
    "axis_ratio_and_angle",
    "galaxy_rings",
    "ring_covariance",
    "sky_covariance_jet",
    "sky_to_pixel",
]

DEV_RINGS = (
    (0.025047532, 0.089352634, 0.18272077, 0.24821114, 0.23510297, 0.16624907, 0.053315883),
    (0.00072098972, 0.011134418, 0.086853127, 0.51296184, 2.5967791, 13.684807, 106.87753),
)
"""(amplitudes, variances) of the de Vaucouleurs profile, for a half-light radius of 1."""
EXP_RINGS = (
    (0.02075677, 0.15171083, 0.39929029, 0.35105774, 0.077184373),
    (0.028794533, 0.17245832, 0.59240074, 1.5302083, 3.4066596),
)
"""(amplitudes, variances) of the exponential profile, for a half-light radius of 1."""


_SERIES = [
    [2**k * math.factorial(n + k) / (math.factorial(n) * math.factorial(2 * (n + k))) for k in range(4)]
    for n in range(9)
]
"""Coefficients of s^n of cosh h, S, T and U of :func:`_hyperbolic`: each 2 d/ds of the one before."""


def galaxy_rings(
    dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "2 12"], Float[Tensor, "12"]]:
    """Amplitudes of the two profiles (row 0 de Vaucouleurs, row 1 exponential) over one set of rings."""
    n_dev, n_exp = len(DEV_RINGS[0]), len(EXP_RINGS[0])
    groups = torch.zeros(2, n_dev + n_exp, dtype=dtype, device=device)
    dev, exp = (torch.tensor(rings[0], dtype=dtype, device=device) for rings in (DEV_RINGS, EXP_RINGS))
    groups[0, :n_dev], groups[1, n_dev:] = dev / dev.sum(), exp / exp.sum()
    return groups, torch.tensor(DEV_RINGS[1] + EXP_RINGS[1], dtype=dtype, device=device)


def ring_covariance(
    log_radius: Float[Tensor, "*b"], ellipticity: Float[Tensor, "*b 2"], jacobian: Float[Tensor, "*b 2 2"]
) -> Float[Tensor, "*b 3"]:
    """Covariance (xx, xy, yy) [px^2] of a ring of unit variance.

    Args:
        log_radius: ln of the half-light radius [arcsec].
        ellipticity: eta, see the module's docstring.
        jacobian: d(x, y) [px] / d(east, north) [arcsec].
    """
    eta1, eta2 = ellipticity.unbind(-1)
    cosh, sinhc, _, _ = _hyperbolic(eta1 * eta1 + eta2 * eta2)
    # the position angle runs from north to east, so the major axis of eta = (1, 0) points north
    sky = torch.stack((cosh - sinhc * eta1, sinhc * eta2, cosh + sinhc * eta1), -1)
    sky = torch.exp(2 * log_radius)[..., None] * sky
    return (sky_to_pixel(jacobian) @ sky[..., None]).squeeze(-1)


def sky_to_pixel(jacobian: Float[Tensor, "*b 2 2"]) -> Float[Tensor, "*b 3 3"]:
    """The matrix that takes a covariance (ee, en, nn) [arcsec^2] to (xx, xy, yy) [px^2]."""
    (xe, xn), (ye, yn) = (row.unbind(-1) for row in jacobian.unbind(-2))
    rows = (
        torch.stack((xe * xe, 2 * xe * xn, xn * xn), -1),
        torch.stack((xe * ye, xe * yn + xn * ye, xn * yn), -1),
        torch.stack((ye * ye, 2 * ye * yn, yn * yn), -1),
    )
    return torch.stack(rows, -2)


def sky_covariance_jet(
    log_radius: Float[Tensor, "*b"], ellipticity: Float[Tensor, "*b 2"]
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3 3 3"]]:
    """Covariance (ee, en, nn) [arcsec^2] with first and second derivatives in (log_radius, eta_1, eta_2)."""
    cosh, sinhc, t, u = _hyperbolic((ellipticity * ellipticity).sum(-1))
    eye = torch.eye(2, dtype=ellipticity.dtype, device=ellipticity.device)
    e = ellipticity
    outer = e[..., :, None] * e[..., None, :]

    def scalar(s: Tensor, n: int) -> Tensor:
        return s.reshape(s.shape + (1,) * n)

    c1 = scalar(sinhc, 1) * e
    c2 = scalar(sinhc, 2) * eye + scalar(t, 2) * outer
    f = scalar(sinhc, 1) * e  # [*b, component]
    f1 = scalar(t, 2) * outer + scalar(sinhc, 2) * eye  # [*b, component, i]
    mixed = e[..., :, None, None] * eye
    mixed = mixed + e[..., None, :, None] * eye[:, None, :] + e[..., None, None, :] * eye[:, :, None]
    f2 = scalar(u, 3) * outer[..., :, :, None] * e[..., None, None, :] + scalar(t, 3) * mixed
    parts = ((cosh, c1, c2, -1.0, 0), (0 * cosh, 0 * c1, 0 * c2, 1.0, 1), (cosh, c1, c2, 1.0, 0))
    value = torch.stack([c + sign * f[..., k] for c, _, _, sign, k in parts], -1)
    slope = torch.stack([c + sign * f1[..., k, :] for _, c, _, sign, k in parts], -2)
    bend = torch.stack([c + sign * f2[..., k, :, :] for _, _, c, sign, k in parts], -3)
    scale = torch.exp(2 * log_radius)[..., None]
    first = torch.cat((2 * value[..., None], slope), -1)
    top = torch.cat((4 * value[..., None, None], 2 * slope[..., None, :]), -1)
    second = torch.cat((top, torch.cat((2 * slope[..., :, None], bend), -1)), -2)
    return scale * value, scale[..., None] * first, scale[..., None, None] * second


def _hyperbolic(square: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smooth functions of s = h^2: cosh h, S = sinh(h)/h, T = (cosh h - S)/s, U = (S - 3 T)/s.

    They obey d cosh/ds = S/2, dS/ds = T/2, dT/ds = U/2. Below s = 0.1, series: the quotients cancel.
    """
    small = square < 0.1
    s = torch.where(small, torch.ones_like(square), square)
    h = s.sqrt()
    cosh, sinhc = torch.cosh(h), torch.sinh(h) / h
    t = (cosh - sinhc) / s
    u = (sinhc - 3 * t) / s

    series = square.new_zeros(()).expand(*square.shape, 4)
    for coefficients in reversed(_SERIES):
        series = series * square[..., None] + square.new_tensor(coefficients)
    exact = (cosh, sinhc, t, u)
    return tuple(torch.where(small, near, far) for near, far in zip(series.unbind(-1), exact, strict=True))  # type: ignore[return-value]


def axis_ratio_and_angle(
    ellipticity: Float[Tensor, "*b 2"],
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Axis ratio and position angle [deg, 0 to 180, east of north]."""
    eta1, eta2 = ellipticity.unbind(-1)
    angle = torch.rad2deg(0.5 * torch.atan2(eta2, eta1))
    return torch.exp(-torch.hypot(eta1, eta2)), torch.remainder(angle, 180.0)
