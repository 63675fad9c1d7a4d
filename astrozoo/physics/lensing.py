"""Gravitational lensing: reduced deflections of common mass profiles, several halos, several planes.

Angles are in arcsec, x to the right and y up; ``beta = theta - alpha``. An ellipticity is the vector
``e = (1 - q) / (1 + q) (cos 2 phi, sin 2 phi)``, with axis ratio ``q`` (minor over major) and ``phi`` the
angle of the major axis, counter-clockwise from +x. The Einstein radius is that of the intermediate axis:
``kappa = (3 - slope) / 2 (theta_E / r)^(slope - 1)`` with ``r^2 = q x'^2 + y'^2 / q``.

Nothing here divides by an ellipticity or takes its angle, so that everything is smooth where a lens is
round, and gradients are finite everywhere, its centre included. (The profiles of the package ``caustics``,
which the tests compare with, are not used for this reason: at the centre of a lens their gradients are NaN,
its SIE is off by 1.5e-7 where it is round, and complex numbers keep its EPL out of compiled code.)

Parameters are scalars (vectors of two for a centre, an ellipticity or a shear) of one lens; for many use
``torch.vmap`` or :func:`halos`.

References:
    Kormann et al. 1994, A&A 284, 285 (SIE); Tessore & Metcalf 2015, A&A 580, A79 (EPL);
    Wright & Brainerd 2000, ApJ 534, 34 (NFW); Schneider, Ehlers & Falco 1992, ch. 9 (several planes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Deflection",
    "elliptical_square",
    "ellipticity_of",
    "epl",
    "epl_convergence",
    "halos",
    "nfw",
    "nfw_convergence",
    "nfw_of_mass",
    "plane_scaling",
    "shear",
    "sie",
    "sie_convergence",
    "sis",
    "sis_convergence",
    "trace",
]

Deflection: TypeAlias = tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]
"""(x, y) components [arcsec]."""

_CENTRE = 1e-20
"""Squared radius [arcsec^2] below which a point is the centre of a lens."""
_KPC = 206.264806247
"""[arcsec Mpc / kpc] Angle of 1 kpc at a distance of 1 Mpc."""


def ellipticity_of(axis_ratio: Tensor, angle: Tensor) -> Float[Tensor, "*b 2"]:
    """The ellipticity of an axis ratio (minor over major) and an angle [rad, from +x]."""
    size = (1 - axis_ratio) / (1 + axis_ratio)
    return torch.stack((size * torch.cos(2 * angle), size * torch.sin(2 * angle)), -1)


def elliptical_square(
    x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"], ellipticity: Float[Tensor, "2"]
) -> Float[Tensor, "*grid"]:
    """``r^2 = q x'^2 + y'^2 / q`` [arcsec^2], x' along the major axis; (x, y) from the centre."""
    e1, e2 = ellipticity.unbind(-1)
    square = e1 * e1 + e2 * e2
    return ((1 + square) * (x * x + y * y) - 2 * (e1 * (x * x - y * y) + 2 * e2 * x * y)) / (1 - square)


def shear(x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"], reduced: Float[Tensor, "2"]) -> Deflection:
    """External shear ``(gamma_1, gamma_2)`` about the origin."""
    g1, g2 = reduced.unbind(-1)
    return g1 * x + g2 * y, g2 * x - g1 * y


def sis(
    x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"], einstein_radius: Tensor, centre: Float[Tensor, "2"]
) -> Deflection:
    """Singular isothermal sphere.

    Args:
        einstein_radius: [arcsec].
        centre: [arcsec].
    """
    x, y = _from(x, y, centre)
    scale = einstein_radius / _away(x * x + y * y).sqrt()
    return scale * x, scale * y


def sis_convergence(
    x: Float[Tensor, "*grid"], y: Float[Tensor, "*grid"], einstein_radius: Tensor, centre: Float[Tensor, "2"]
) -> Float[Tensor, "*grid"]:
    """Surface density over the critical one."""
    x, y = _from(x, y, centre)
    return einstein_radius / (2 * _away(x * x + y * y).sqrt())


def sie(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    einstein_radius: Tensor,
    ellipticity: Float[Tensor, "2"],
    centre: Float[Tensor, "2"],
    terms: int = 20,
) -> Deflection:
    """Singular isothermal ellipsoid: :func:`epl` of slope 2."""
    two = torch.full_like(einstein_radius, 2.0)
    return epl(x, y, einstein_radius, two, ellipticity, centre, terms)


def sie_convergence(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    einstein_radius: Tensor,
    ellipticity: Float[Tensor, "2"],
    centre: Float[Tensor, "2"],
) -> Float[Tensor, "*grid"]:
    """Surface density over the critical one."""
    return epl_convergence(x, y, einstein_radius, torch.full_like(einstein_radius, 2.0), ellipticity, centre)


def epl(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    einstein_radius: Tensor,
    slope: Tensor,
    ellipticity: Float[Tensor, "2"],
    centre: Float[Tensor, "2"],
    terms: int = 20,
) -> Deflection:
    """Elliptical power law, three-dimensional density ``r^-slope``.

    Tessore & Metcalf's deflection (eqs. 13 and 29) without angles: with ``z = x + i y``, ``w = z - e z*``,

        ``alpha = (theta_E / r)^(slope - 1) w sum_n c_n (-e* w / w*)^n``,  ``r^2 = |w|^2 / (1 - |e|^2)``.

    Args:
        einstein_radius: of the intermediate axis [arcsec].
        slope: between 1 and 3, isothermal at 2.
        centre: [arcsec].
        terms: of the sum; the relative error is about ``|e|^terms``, 1e-9 at q = 0.5 for 20, at q = 0.3 for
            34 (|e| is 1/3 and 0.54).
    """
    x, y = _from(x, y, centre)
    e1, e2 = ellipticity.unbind(-1)
    square = e1 * e1 + e2 * e2
    wx, wy = x - e1 * x - e2 * y, y + e1 * y - e2 * x
    length = _away(wx * wx + wy * wy)
    c, s = (wx * wx - wy * wy) / length, 2 * wx * wy / length  # w / w*
    px, py = -(e1 * c + e2 * s), e2 * c - e1 * s  # -e* w / w*
    t = slope - 1
    sx, sy = _Series.apply(px, py, square, t, terms, 0, 0)[0]
    scale = torch.exp(t / 2 * torch.log(einstein_radius**2 * (1 - square) / length))
    return scale * (wx * sx - wy * sy), scale * (wx * sy + wy * sx)


class _Series(torch.autograd.Function):
    """``s_jk``: ``sum_n c_n(t) p^n`` of :func:`epl`, derived ``j`` times in ``p`` and ``k`` times in ``t``.

    Returns ``s_jk`` and its two derivatives ``s_(j+1)k``, ``s_j(k+1)``, real and imaginary parts apart. They
    are series too, so that no derivative goes back through a sum. As ``p^n = p U_(n-1) - |p|^2 U_(n-2)``,
    with Chebyshev's ``U_(n+1) = 2 Re(p) U_n - |p|^2 U_(n-1)``, and ``square = |p|^2`` is the same in every
    pixel, all are real polynomials in ``2 Re(p)``: a pixel costs one multiplication a term and series.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        px: Tensor, py: Tensor, square: Tensor, t: Tensor, terms: int, j: int, k: int
    ) -> tuple[Float[Tensor, "2 *grid"], Float[Tensor, "4 *grid"]]:
        U = _chebyshev(square, terms)
        rows = []
        for c in _coefficients(t, terms, ((j, k), (j + 1, k), (j, k + 1))):
            b1, b2 = ((d[:, None] * U).sum(0) for d in (c[1:-1], c[2:]))
            real = torch.cat((c[:1] - square * b2[:1], b1[:-1] / 2 - square * b2[1:], b1[-1:] / 2))
            rows += [real, torch.nn.functional.pad(b1, (0, 1))]
        columns = torch.stack(rows).reshape(6, *[1] * px.ndim, -1).unbind(-1)  # power -> [6, 1, ...]
        sums, twice = columns[-1], 2 * px
        for column in reversed(columns[:-1]):
            sums = column + twice * sums
        real, imaginary = sums[::2], sums[1::2] * py
        return torch.stack((real[0], imaginary[0])), torch.stack((real[1:], imaginary[1:]), 1).flatten(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:4], output[1])
        ctx.order = inputs[4:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        px, py, square, t, slopes = ctx.saved_tensors
        terms, j, k = ctx.order
        parts = [] if g is None else [(g, slopes)]
        if g_slopes is not None:
            for cotangent, order in ((g_slopes[:2], (j + 1, k)), (g_slopes[2:], (j, k + 1))):
                parts.append((cotangent, _Series.apply(px, py, square, t, terms, *order)[1]))
        if not parts:
            return (None,) * 7
        gx = sum(c[0] * d[0] + c[1] * d[1] for c, d in parts)
        gy = sum(c[1] * d[0] - c[0] * d[1] for c, d in parts)
        gt = sum((c * d[2:]).sum() for c, d in parts)
        return gx, gy, None, gt, None, None, None


def _coefficients(t: Tensor, terms: int, orders: tuple[tuple[int, int], ...]) -> list[Float[Tensor, "n"]]:
    """Of the series' derivatives (``j`` times in ``p``, ``k`` times in ``t``) of :class:`_Series`, each
    ``terms + 2`` long: ``c_n = prod_(i <= n) (2 i - 2 + t) / (2 i + 2 - t)``.
    """
    most = terms + 2 + max(j for j, _ in orders)
    n = torch.arange(most, dtype=t.dtype, device=t.device)
    up, down = 2 * n[1:] - 2 + t, 2 * n[1:] + 2 - t
    below = torch.tril(torch.ones(most - 1, most - 1, dtype=t.dtype, device=t.device))

    def running(each: Tensor) -> Tensor:  # cumsum, in a form that compilers fuse with what is around it
        return torch.nn.functional.pad((below * each).sum(-1), (1, 0))

    powers = {0: torch.exp(running(torch.log(up / down)))}
    slope = running(1 / up + 1 / down)  # d ln c / dt
    powers[1] = powers[0] * slope
    if any(k == 2 for _, k in orders):
        powers[2] = powers[0] * (slope**2 + running(1 / down**2 - 1 / up**2))
    if any(k > 2 for _, k in orders):
        raise NotImplementedError("third derivatives in the slope of an EPL")
    out = []
    for j, k in orders:
        c = powers[k]
        if j:
            c = c * torch.stack([n - m for m in range(j)]).prod(0)
        out.append(c[j : j + terms + 2])
    return out


def _chebyshev(square: Tensor, terms: int) -> Float[Tensor, "m power"]:
    """Coefficients of the powers of ``2 Re(p)`` in ``U_m``: (-1)^k C(m - k, k) |p|^2k at m - 2 k."""
    rows = [
        [
            (-1) ** ((m - i) // 2) * math.comb((m + i) // 2, i) if (m - i) % 2 == 0 <= m - i else 0
            for i in range(terms)
        ]
        for m in range(terms)
    ]
    half = [[max(m - i, 0) // 2 for i in range(terms)] for m in range(terms)]
    like: dict[str, Any] = {"dtype": square.dtype, "device": square.device}
    return torch.tensor(rows, **like) * square ** torch.tensor(half, **like)


def epl_convergence(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    einstein_radius: Tensor,
    slope: Tensor,
    ellipticity: Float[Tensor, "2"],
    centre: Float[Tensor, "2"],
) -> Float[Tensor, "*grid"]:
    """Surface density over the critical one."""
    x, y = _from(x, y, centre)
    r2 = _away(elliptical_square(x, y, ellipticity))
    return (3 - slope) / 2 * torch.exp((slope - 1) / 2 * torch.log(einstein_radius**2 / r2))


def nfw(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    scale_radius: Tensor,
    alpha_rs: Tensor,
    centre: Float[Tensor, "2"],
) -> Deflection:
    """Spherical NFW halo.

    Args:
        scale_radius: [arcsec].
        alpha_rs: deflection at the scale radius [arcsec].
        centre: [arcsec].
    """
    x, y = _from(x, y, centre)
    u2 = _away(x * x + y * y) / scale_radius**2
    scale = alpha_rs / (1 - math.log(2.0)) * _nfw_mass(u2) / (u2 * scale_radius)
    return scale * x, scale * y


def nfw_convergence(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    scale_radius: Tensor,
    alpha_rs: Tensor,
    centre: Float[Tensor, "2"],
) -> Float[Tensor, "*grid"]:
    """Surface density over the critical one."""
    x, y = _from(x, y, centre)
    v = 1 - _away(x * x + y * y) / scale_radius**2
    near = v.abs() < _NEAR
    far = torch.where(near, 0.5, v)
    # (1 - A(v)) / -v; at the scale radius sum v^k / (2k + 3)
    profile = torch.where(near, _power_sum(torch.where(near, v, 0.0), 3), (_arc(far) - 1) / far)
    return alpha_rs / (2 * (1 - math.log(2.0)) * scale_radius) * profile


_NEAR = 0.05
"""Distance of the squared radius from 1 within which NFW functions are series."""


def _nfw_mass(u2: Tensor) -> Tensor:
    """ln(u / 2) + arccosh(1 / u) / sqrt(1 - u^2), of u^2 > 0; near 0 its series, which does not cancel."""
    small = u2 < 1e-5
    log = torch.log(u2 / 4) / 2
    direct = log + _arc(1 - torch.where(small, 1.0, u2))
    series = u2 / 2 * (-log - 0.5) + u2 * u2 * (3 / 8 * -log - 7 / 32)
    return torch.where(small, series, direct)


def _arc(v: Tensor) -> Tensor:
    """atanh(sqrt v) / sqrt v for v < 1; below 0 its continuation atan(sqrt -v) / sqrt -v."""
    near = v.abs() < _NEAR
    up, down = torch.where(v >= _NEAR, v, 0.5).sqrt(), torch.where(v <= -_NEAR, -v, 0.5).sqrt()
    far = torch.where(v > 0, torch.atanh(up) / up, torch.atan(down) / down)
    return torch.where(near, _power_sum(torch.where(near, v, 0.0), 1), far)


def _power_sum(v: Tensor, first: int) -> Tensor:
    """sum_k v^k / (2 k + first), for |v| < _NEAR."""
    total = torch.zeros_like(v)
    for k in range(11, -1, -1):
        total = total * v + 1 / (2 * k + first)
    return total


def nfw_of_mass(
    mass: Tensor, concentration: Tensor, lens_redshift: float, source_redshift: float
) -> tuple[Tensor, Tensor]:
    """Scale radius and deflection there [arcsec] of a halo of 200 times the critical density.

    Flat LambdaCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3.

    Args:
        mass: M200 [solar masses].
        concentration: r200 over the scale radius.
    """
    from astropy.constants import G, c

    d_l, d_s = (_distance(0.0, z) for z in (lens_redshift, source_redshift))  # Mpc
    stiffness = (c**2 / (4 * math.pi * G)).to("solMass/Mpc").value
    surface = stiffness * d_s / (d_l * _distance(lens_redshift, source_redshift)) / 1e6  # solMass / kpc^2
    critical = _cosmology().critical_density(lens_redshift).to("solMass/kpc3").value
    r200 = (3 * mass / (800 * math.pi * critical)) ** (1 / 3)  # kpc
    r_s = r200 / concentration
    density = mass / (
        4 * math.pi * r_s**3 * (torch.log1p(concentration) - concentration / (1 + concentration))
    )
    arcsec = _KPC / d_l
    alpha = 4 * density * r_s * (1 - math.log(2.0)) / surface * r_s * arcsec
    return r_s * arcsec, alpha


def halos(
    profile: Callable[..., Deflection],
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    *parameters: Float[Tensor, "halo ..."],
    chunk: int | None = None,
) -> Deflection:
    """Sum over any number of halos, whose parameters have a leading axis.

    Args:
        profile: such as :func:`nfw`.
        chunk: halos whose deflections are held at once; by default all.
    """
    many = torch.vmap(profile, in_dims=(None, None) + (0,) * len(parameters))
    step = chunk or len(parameters[0])
    ax, ay = torch.zeros_like(x), torch.zeros_like(y)
    for i in range(0, len(parameters[0]), step):
        dx, dy = many(x, y, *(p[i : i + step] for p in parameters))
        ax, ay = ax + dx.sum(0), ay + dy.sum(0)
    return ax, ay


def trace(
    x: Float[Tensor, "*grid"],
    y: Float[Tensor, "*grid"],
    planes: Sequence[Callable[[Tensor, Tensor], Deflection]],
    scaling: Float[Tensor, "plane plane+1"],
) -> Deflection:
    """Where rays meet the source plane, deflected by several planes in turn.

    ``theta_j = theta - sum_(i < j) scaling_ij alpha_i(theta_i)``.

    Args:
        planes: reduced deflections (with respect to the source), nearest first.
        scaling: of :func:`plane_scaling`.
    """
    bent: list[Deflection] = []
    for j in range(len(planes) + 1):
        px, py = x, y
        for i, (ax, ay) in enumerate(bent):
            px, py = px - scaling[i, j] * ax, py - scaling[i, j] * ay
        if j < len(planes):
            bent.append(planes[j](px, py))
    return px, py


def plane_scaling(redshifts: Sequence[float], source_redshift: float) -> Float[Tensor, "plane plane+1"]:
    """``D_ij D_s / (D_j D_is)`` of the planes, and of the source in the last column (1 there).

    Flat LambdaCDM, Omega_m = 0.3.

    Args:
        redshifts: of the planes, ascending.
    """
    every = [*redshifts, source_redshift]
    out = torch.zeros(len(redshifts), len(every), dtype=torch.float64)
    for i, a in enumerate(redshifts):
        for j in range(i + 1, len(every)):
            whole = _distance(0, every[j]) * _distance(a, source_redshift)
            out[i, j] = _distance(a, every[j]) * _distance(0, source_redshift) / whole
    return out


@cache
def _cosmology() -> Any:
    from astropy.cosmology import FlatLambdaCDM  # slow to import

    return FlatLambdaCDM(H0=70.0, Om0=0.3)


def _distance(a: float, b: float) -> float:
    """Angular diameter distance between two redshifts [Mpc], in flat space."""
    near, far = (float(_cosmology().comoving_distance(z).to_value("Mpc")) for z in (a, b))
    return (far - near) / (1 + b)


def _from(x: Tensor, y: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    cx, cy = centre.unbind(-1)
    return x - cx, y - cy


def _away(square: Tensor) -> Tensor:
    """A squared radius, replaced at the centre, where the singular factor multiplies a zero."""
    return torch.where(square > _CENTRE, square, 1.0)
