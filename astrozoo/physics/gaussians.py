"""Images as sums of Gaussians: rendering, and derivatives at little more than the price of rendering.

A source is a sum of concentric Gaussian *rings* (a profile: amplitudes ``c_j``, variances ``v_j`` in units
of the squared half-light radius), seen through a PSF that is a sum of Gaussians (``w_k``, ``m_k``, ``P_k``).
Its image is ``G(p) = sum_jk c_j w_k N(p; mu + m_k, P_k + v_j Q)`` with one shared covariance ``Q``.
Exponents, and derivatives in ``mu`` and ``Q``, are polynomials in the pixels' coordinates, so every
exponential is evaluated once, and all else are matrix products with the monomials. Coordinates are best given
from near the source: far from their origin the polynomials cancel.

All pixel coordinates are (x, y), ordered so in every matrix. Covariances are passed as ``(xx, xy, yy)``.

Images have the precision of the pixels' coordinates; what is done once per Gaussian has that of the rest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

__all__ = ["MixtureJet", "MixturePsf", "curvature", "jet", "render"]

_LEAST = -80.0
"""Least exponent. Smaller ones give subnormal numbers in single precision, whose arithmetic is slow."""
_POWERS = [(order - i, i) for order in range(5) for i in range(order + 1)]
"""Powers of x and of y in the monomials up to the fourth order."""
_SYMMETRIC = [[0, 1, 2, 3, 4], [1, 5, 6, 7, 8], [2, 6, 9, 10, 11], [3, 7, 10, 12, 13], [4, 8, 11, 13, 14]]
"""Where the elements of a symmetric 5 x 5 matrix are in a list of the 15 different ones."""


class MixturePsf(NamedTuple):
    """A PSF as a sum of Gaussians, for any leading batch of images.

    Attributes:
        weights: sum to 1.
        means: (x, y) [px].
        covariances: (xx, xy, yy) [px^2].
    """

    weights: Float[Tensor, "*b k"]
    means: Float[Tensor, "*b k 2"]
    covariances: Float[Tensor, "*b k 3"]


class MixtureJet(NamedTuple):
    """Images of each group of rings, and first derivatives of their mixture.

    Attributes:
        images: one per group of rings, ``[..., group, pixel]``.
        slopes: of the mixture, in (mu_x, mu_y, Q_xx, Q_xy, Q_yy), ``[..., 5, pixel]``.
    """

    images: Tensor
    slopes: Tensor


class _Rings(NamedTuple):
    values: Tensor  # [..., k * j, pixel] the exponentials
    norm: Tensor  # [..., k, j] what they are to be multiplied by, the rings' amplitudes apart
    inverse: Tensor  # [..., k, j, 3] inverse covariances
    centre: Tensor  # [..., k, 2]
    monomials: Tensor  # [..., 6, pixel] 1, x, y, xx, xy, yy

    def weighted(self, amplitudes: Float[Tensor, "*b g j"]) -> Float[Tensor, "*b g k*j"]:
        """What the exponentials are to be multiplied by for each set of amplitudes."""
        return (amplitudes[..., :, None, :] * self.norm[..., None, :, :]).flatten(-2)

    def total(self, factors: Float[Tensor, "*b n k*j"]) -> Float[Tensor, "*b n p"]:
        """Sums of the exponentials, in the pixels' precision."""
        return factors.to(self.values) @ self.values


def _rings(
    pixels: Float[Tensor, "*b 2 p"],
    mu: Float[Tensor, "*b 2"],
    q: Float[Tensor, "*b 3"],
    variances: Float[Tensor, "j"],
    psf: MixturePsf,
) -> _Rings:
    centre = mu[..., None, :] + psf.means  # [..., k, 2]
    s = psf.covariances[..., :, None, :] + variances[:, None] * q[..., None, None, :]  # [..., k, j, 3]
    xx, xy, yy = s.unbind(-1)
    det = xx * yy - xy * xy
    inverse = torch.stack((yy, -xy, xx), -1) / det[..., None]
    a, b, c = inverse.unbind(-1)
    mx, my = (m[..., None] for m in centre.unbind(-1))
    e, f = a * mx + b * my, b * mx + c * my
    terms = torch.broadcast_tensors(-0.5 * (e * mx + f * my), e, f, -0.5 * a, -b, -0.5 * c)
    exponent = torch.stack(terms, -1).to(pixels)
    x, y = pixels.unbind(-2)
    monomials = torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y), -2)
    # in place: new memory of this size costs more than what is done to it
    values = threshold(exponent.flatten(-3, -2) @ monomials, _LEAST, _LEAST, inplace=True).exp_()
    return _Rings(values, psf.weights[..., None] / (2 * torch.pi * det.sqrt()), inverse, centre, monomials)


def render(
    pixels: Float[Tensor, "*b 2 p"],
    mu: Float[Tensor, "*b 2"],
    q: Float[Tensor, "*b 3"],
    amplitudes: Float[Tensor, "*b j"],
    variances: Float[Tensor, "j"],
    psf: MixturePsf,
) -> Float[Tensor, "*b p"]:
    """The image of a source of unit flux.

    Args:
        pixels: centres of the pixels [px].
        mu: the source's position [px].
        q: covariance (xx, xy, yy) of a ring of unit variance [px^2]; zero for a star.
        amplitudes: of the rings; sum to 1.
        variances: of the rings, in units of ``q``.
        psf: includes the pixel response.
    """
    rings = _rings(pixels, mu, q, variances, psf)
    return rings.total(rings.weighted(amplitudes[..., None, :])).squeeze(-2)


def jet(
    pixels: Float[Tensor, "*b 2 p"],
    mu: Float[Tensor, "*b 2"],
    q: Float[Tensor, "*b 3"],
    groups: Float[Tensor, "g j"],
    mix: Float[Tensor, "*b g"],
    variances: Float[Tensor, "j"],
    psf: MixturePsf,
) -> tuple[MixtureJet, _Rings]:
    """Images of each group of rings (``groups`` holds their amplitudes), and slopes of their mixture.

    Returns:
        the jet, and the Gaussians themselves for :func:`curvature`.
    """
    rings = _rings(pixels, mu, q, variances, psf)
    a, b, c = rings.inverse.unbind(-1)  # [..., k, j]: the inverse covariance is [[a, b], [b, c]]
    mx, my = (m[..., None] for m in rings.centre.unbind(-1))
    e, f = -a * mx - b * my, -b * mx - c * my  # u = S^-1 (p - centre) = (a x + b y + e, b x + c y + f)
    v, half = variances, 0.5 * variances
    coefficients = torch.stack(
        (
            *(e, a, b),
            *(f, b, c),
            *(half * (e * e - a), 2 * half * e * a, 2 * half * e * b, half * a * a, v * a * b, half * b * b),
            *(
                v * (e * f - b),
                v * (e * b + f * a),
                v * (e * c + f * b),
                v * a * b,
                v * (a * c + b * b),
                v * b * c,
            ),
            *(half * (f * f - c), v * f * b, v * f * c, half * b * b, v * b * c, half * c * c),
        ),
        -3,
    )  # [..., 24, k, j]
    mixed = rings.weighted(mix[..., None, :] @ groups)
    sums = rings.total(coefficients.flatten(-2) * mixed)  # [..., 24, p]
    shift = (sums[..., :6, :].unflatten(-2, (2, 3)) * rings.monomials[..., None, :3, :]).sum(-2)
    bend = (sums[..., 6:, :].unflatten(-2, (3, 6)) * rings.monomials[..., None, :, :]).sum(-2)
    return MixtureJet(rings.total(rings.weighted(groups)), torch.cat((shift, bend), -2)), rings


def curvature(
    rings: _Rings,
    groups: Float[Tensor, "g j"],
    mix: Float[Tensor, "*b g"],
    variances: Float[Tensor, "j"],
    weights: Float[Tensor, "*b p"],
) -> tuple[Float[Tensor, "*b g 5"], Float[Tensor, "*b 5 5"]]:
    """Derivatives in (mu, Q) of ``sum_p weights_p G(p)``, at the price of a few moments.

    With ``u = S^-1 (p - mu)``, the derivatives of a Gaussian are ``N u`` (mean), ``N/2 (u u' - S^-1)``
    (covariance), and their products.

    Returns:
        the gradient for each group of rings, and the Hessian of their mixture.
    """
    t = _whiten(_central_moments(rings, weights), rings.inverse)  # moments of u instead of the offset
    m0, m10, m01, m20, m11, m02, m30, m21, m12, m03, m40, m31, m22, m13, m04 = t.unbind(-1)
    a, b, c = rings.inverse.unbind(-1)
    v = variances
    # Hermite combinations: H_abc... is the derivative of N in mu_a, mu_b, mu_c ... over N
    h20, h11, h02 = m20 - a * m0, m11 - b * m0, m02 - c * m0
    h30, h21 = m30 - 3 * a * m10, m21 - 2 * b * m10 - a * m01
    h12, h03 = m12 - 2 * b * m01 - c * m10, m03 - 3 * c * m01
    h40 = m40 - 6 * a * m20 + 3 * a * a * m0
    h31 = m31 - 3 * b * m20 - 3 * a * m11 + 3 * a * b * m0
    h22 = m22 - a * m02 - c * m20 - 4 * b * m11 + (a * c + 2 * b * b) * m0
    h13 = m13 - 3 * b * m02 - 3 * c * m11 + 3 * b * c * m0
    h04 = m04 - 6 * c * m02 + 3 * c * c * m0
    # heat equation: d/dS_xx = 1/2 d2/dmu_x2, d/dS_xy = d2/dmu_x dmu_y, d/dS_yy = 1/2 d2/dmu_y2
    half, v2 = 0.5 * v, v * v
    gradient = torch.stack((m10, m01, half * h20, v * h11, half * h02), -1)
    distinct = torch.stack(
        (
            *(h20, h11, half * h30, v * h21, half * h12),
            *(h02, half * h21, v * h12, half * h03),
            *(0.25 * v2 * h40, 0.5 * v2 * h31, 0.25 * v2 * h22),
            *(v2 * h22, 0.5 * v2 * h13),
            0.25 * v2 * h04,
        ),
        -1,
    )  # [..., k, j, 15]
    hessian = (rings.weighted(mix[..., None, :] @ groups) @ distinct.flatten(-3, -2)).squeeze(-2)
    return rings.weighted(groups) @ gradient.flatten(-3, -2), hessian[..., _SYMMETRIC]


def _central_moments(rings: _Rings, weights: Float[Tensor, "*b p"]) -> Float[Tensor, "*b k j 15"]:
    """``sum_p weights_p N(p) d_x^i d_y^j`` to fourth order, of the offset from each Gaussian's own centre."""
    one, x, y, xx, xy, yy = rings.monomials.unbind(-2)
    higher = (xx * x, xx * y, x * yy, yy * y, xx * xx, xx * xy, xx * yy, xy * yy, yy * yy)
    monomials = torch.stack((one, x, y, xx, xy, yy, *higher), -1)  # [..., p, 15]
    raw = rings.values @ (weights[..., None].to(monomials) * monomials)  # [..., k * j, 15], from the origin
    raw = raw.to(rings.norm).unflatten(-2, rings.norm.shape[-2:])
    power = torch.tensor(_POWERS, device=raw.device)
    grid = raw.new_zeros(*raw.shape[:-1], 5, 5)
    grid[..., power[:, 0], power[:, 1]] = raw
    order = torch.arange(5, device=raw.device)
    fewer = (order[:, None] - order).clamp(min=0)
    binomial = raw.new_tensor([[math.comb(n, i) for i in range(5)] for n in range(5)])
    by_x, by_y = (binomial * (-m[..., None, None, None]) ** fewer for m in rings.centre.unbind(-1))
    return (by_x @ grid @ by_y.mT)[..., power[:, 0], power[:, 1]]


def _whiten(moments: Float[Tensor, "*b 15"], inverse: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 15"]:
    """Moments of ``u = S^-1 d`` to fourth order from those of ``d``."""
    a, b, c = inverse.unbind(-1)
    m0, x, y, xx, xy, yy, x3, x2y, xy2, y3, x4, x3y, x2y2, xy3, y4 = moments.unbind(-1)

    def form(p: Tensor, q: Tensor, r: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        # coefficients of (p x + q y)(r x + s y) in (xx, xy, yy)
        return p * r, p * s + q * r, q * s

    u, w = (a, b), (b, c)
    uu, uw, ww = form(*u, *u), form(*u, *w), form(*w, *w)

    def second(f: tuple[Tensor, ...]) -> Tensor:
        return f[0] * xx + f[1] * xy + f[2] * yy

    def third(f: tuple[Tensor, ...], g: tuple[Tensor, Tensor]) -> Tensor:
        p, q = g
        return f[0] * p * x3 + (f[0] * q + f[1] * p) * x2y + (f[1] * q + f[2] * p) * xy2 + f[2] * q * y3

    def fourth(f: tuple[Tensor, ...], g: tuple[Tensor, ...]) -> Tensor:
        return (
            f[0] * g[0] * x4
            + (f[0] * g[1] + f[1] * g[0]) * x3y
            + (f[0] * g[2] + f[1] * g[1] + f[2] * g[0]) * x2y2
            + (f[1] * g[2] + f[2] * g[1]) * xy3
            + f[2] * g[2] * y4
        )

    return torch.stack(
        (
            m0,
            a * x + b * y,
            b * x + c * y,
            second(uu),
            second(uw),
            second(ww),
            third(uu, u),
            third(uu, w),
            third(ww, u),
            third(ww, w),
            fourth(uu, uu),
            fourth(uu, uw),
            fourth(uw, uw),
            fourth(ww, uw),
            fourth(ww, ww),
        ),
        -1,
    )
