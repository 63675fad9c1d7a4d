"""Images as sums of Gaussians: rendering, and derivatives at little more than the price of rendering.

A source is a sum of concentric Gaussian *rings* (a profile: amplitudes ``c_j``, variances ``v_j`` in units
of the squared half-light radius), seen through a PSF that is a sum of Gaussians (``w_k``, ``m_k``, ``P_k``).
Its image is ``G(p) = sum_jk c_j w_k N(p; mu + m_k, P_k + v_j Q)`` with one shared covariance ``Q``.
Derivatives in ``mu`` and ``Q`` are polynomials in the pixel offset times the same Gaussians, so every
exponential is evaluated once and the rest are small matrix products.

All pixel coordinates are (x, y), ordered so in every matrix. Covariances are passed as ``(xx, xy, yy)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["MixtureJet", "MixturePsf", "curvature", "jet", "render"]


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
    """Images and their first derivatives, one image per group of rings.

    Attributes:
        images: one per group of rings, ``[..., group, pixel]``.
        slopes: derivative in (mu_x, mu_y, Q_xx, Q_xy, Q_yy), ``[..., group, 5, pixel]``.
    """

    images: Tensor
    slopes: Tensor


class _Rings(NamedTuple):
    values: Tensor  # [..., k, j, pixel] every Gaussian, with the PSF's weights but not the rings' amplitudes
    inverse: Tensor  # [..., k, j, 3] inverse covariances
    offsets: Tensor  # [..., k, 2, pixel]


def _rings(
    pixels: Float[Tensor, "*b 2 p"],
    mu: Float[Tensor, "*b 2"],
    q: Float[Tensor, "*b 3"],
    variances: Float[Tensor, "j"],
    psf: MixturePsf,
) -> _Rings:
    offsets = pixels[..., None, :, :] - (mu[..., None, :] + psf.means)[..., None]  # [..., k, 2, p]
    s = psf.covariances[..., :, None, :] + variances[:, None] * q[..., None, None, :]  # [..., k, j, 3]
    xx, xy, yy = s.unbind(-1)
    det = xx * yy - xy * xy
    inverse = torch.stack((yy, -xy, xx), -1) / det[..., None]
    x, y = offsets.unbind(-2)
    squares = torch.stack((x * x, 2 * x * y, y * y), -2)  # [..., k, 3, p]
    norm = psf.weights[..., None] / (2 * torch.pi * det.sqrt())
    values = torch.exp(-0.5 * (inverse @ squares)) * norm[..., None]
    return _Rings(values, inverse, offsets)


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
    values = _rings(pixels, mu, q, variances, psf).values  # [..., k, j, p]
    k, j = values.shape[-3:-1]
    shares = amplitudes[..., None, :].expand(*amplitudes.shape[:-1], k, j).flatten(-2)
    return (shares[..., None, :] @ values.flatten(-3, -2)).squeeze(-2)


def jet(
    pixels: Float[Tensor, "*b 2 p"],
    mu: Float[Tensor, "*b 2"],
    q: Float[Tensor, "*b 3"],
    groups: Float[Tensor, "g j"],
    variances: Float[Tensor, "j"],
    psf: MixturePsf,
) -> tuple[MixtureJet, _Rings]:
    """Images and first derivatives of each group of rings (``groups`` holds their amplitudes).

    Returns:
        the jet, and the Gaussians themselves for :func:`curvature`.
    """
    rings = _rings(pixels, mu, q, variances, psf)
    a, b, c = rings.inverse.unbind(-1)  # [..., k, j]: the inverse covariance is [[a, b], [b, c]]
    one = torch.ones_like(a)
    v = variances
    columns = torch.stack(
        (one, a, b, c, *(v * t for t in (a, b, c, a * a, a * b, b * b, a * c, b * c, c * c))), -2
    )  # [..., k, 13, j]
    weighted = groups[:, None, :] * columns[..., None, :, :]  # [..., k, g, 13, j]
    n_groups = groups.shape[0]
    sums = weighted.flatten(-3, -2) @ rings.values  # [..., k, g * 13, p]
    sums = sums.unflatten(-2, (n_groups, 13))
    s1, sa, sb, sc, va, vb, vc, vaa, vab, vbb, vac, vbc, vcc = sums.unbind(-2)  # [..., k, g, p]
    x, y = (t[..., None, :] for t in rings.offsets.unbind(-2))  # [..., k, 1, p]
    xx, xy, yy = x * x, x * y, y * y
    slopes = torch.stack(
        (
            sa * x + sb * y,
            sb * x + sc * y,
            0.5 * (vaa * xx + 2 * vab * xy + vbb * yy - va),
            vab * xx + (vac + vbb) * xy + vbc * yy - vb,
            0.5 * (vbb * xx + 2 * vbc * xy + vcc * yy - vc),
        ),
        -2,
    )  # [..., k, g, 5, p]
    return MixtureJet(s1.sum(-3), slopes.sum(-4)), rings


def curvature(
    rings: _Rings,
    groups: Float[Tensor, "g j"],
    variances: Float[Tensor, "j"],
    weights: Float[Tensor, "*b p"],
) -> tuple[Float[Tensor, "*b g 5"], Float[Tensor, "*b g 5 5"]]:
    """Gradient and Hessian in (mu, Q) of ``sum_p weights_p G_g(p)``, at the price of a few moments.

    With ``u = S^-1 (p - mu)``, the derivatives of a Gaussian are ``N u`` (mean), ``N/2 (u u' - S^-1)``
    (covariance), and their products.
    """
    x, y = rings.offsets.unbind(-2)  # [..., k, p]
    one = torch.ones_like(x)
    xx, xy, yy = x * x, x * y, y * y
    cubic = (xx * x, xx * y, x * yy, y * yy)
    quartic = (xx * xx, xx * xy, xy * xy, xy * yy, yy * yy)
    monomials = torch.stack((one, x, y, xx, xy, yy, *cubic, *quartic), -1)  # [..., k, p, 15]
    moments = rings.values @ (weights[..., None, :, None] * monomials)  # [..., k, j, 15]
    t = _whiten(moments, rings.inverse)  # moments of u instead of the offset
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
    v2 = v * v
    gradient = torch.stack((m10, m01, 0.5 * v * h20, v * h11, 0.5 * v * h02), -1)
    hessian = torch.stack(
        (
            torch.stack((h20, h11, 0.5 * v * h30, v * h21, 0.5 * v * h12), -1),
            torch.stack((h11, h02, 0.5 * v * h21, v * h12, 0.5 * v * h03), -1),
            torch.stack((0.5 * v * h30, 0.5 * v * h21, 0.25 * v2 * h40, 0.5 * v2 * h31, 0.25 * v2 * h22), -1),
            torch.stack((v * h21, v * h12, 0.5 * v2 * h31, v2 * h22, 0.5 * v2 * h13), -1),
            torch.stack((0.5 * v * h12, 0.5 * v * h03, 0.25 * v2 * h22, 0.5 * v2 * h13, 0.25 * v2 * h04), -1),
        ),
        -2,
    )  # [..., k, j, 5, 5]
    return (
        torch.einsum("...kjd,gj->...gd", gradient, groups),
        torch.einsum("...kjde,gj->...gde", hessian, groups),
    )


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
