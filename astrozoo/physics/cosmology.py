"""A flat universe with dark energy: expansion, distances, growth of structure, the linear power spectrum.

All are differentiable in the parameters, and can be captured and mapped over a batch of them. There is no
radiation, and neutrinos have no mass.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import chebyshev
from torch import Tensor

from astrozoo.errors import InputError

__all__ = [
    "HUBBLE_DISTANCE",
    "Cosmology",
    "Growth",
    "comoving_distance",
    "growth",
    "hubble",
    "make_cosmology",
    "matter_fraction",
]

HUBBLE_DISTANCE = 2997.92458
"""[Mpc / h] c / H0."""
_NODES = 48
"""Chebyshev nodes of the growth functions. Their error is then 1e-9 or less."""
_QUADRATURE = 48
"""Gauss-Legendre nodes of distances. Their relative error is then below 1e-10 to redshift 10."""


class Cosmology(NamedTuple):
    """Parameters of a flat universe, each a scalar of double precision.

    Args:
        omega_m: density of all matter today.
        omega_b: density of baryons today.
        h: Hubble's constant [100 km / s / Mpc].
        n_s: slope of the primordial power.
        sigma8: SD of the linear density in spheres of 8 Mpc / h today.
        w0, wa: equation of state of dark energy, ``w0 + wa (1 - a)``.
    """

    omega_m: Float[Tensor, ""]
    omega_b: Float[Tensor, ""]
    h: Float[Tensor, ""]
    n_s: Float[Tensor, ""]
    sigma8: Float[Tensor, ""]
    w0: Float[Tensor, ""]
    wa: Float[Tensor, ""]


def make_cosmology(
    omega_m: float = 0.3089,
    omega_b: float = 0.0486,
    h: float = 0.6774,
    n_s: float = 0.9667,
    sigma8: float = 0.8159,
    w0: float = -1.0,
    wa: float = 0.0,
) -> Cosmology:
    """A cosmology from numbers; by default that of Planck 2015 (table 4, last column).

    Raises:
        InputError: values that no flat universe with early matter has.
    """
    values = {"omega_m": omega_m, "omega_b": omega_b, "h": h, "n_s": n_s, "sigma8": sigma8}
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(name, value, "a number above 0")
    if not omega_b < omega_m < 1:
        raise InputError("omega_m", omega_m, f"more than omega_b = {omega_b:g} and less than 1")
    if not (math.isfinite(w0 + wa) and w0 + wa < -1 / 3 and w0 < -1 / 3):
        raise InputError("w0, wa", (w0, wa), "w0 and w0 + wa below -1/3")
    if h > 10:
        raise InputError("h", h, "Hubble's constant in units of 100 km/s/Mpc, about 0.7")
    return Cosmology(*(torch.tensor(float(x), dtype=torch.float64) for x in (*values.values(), w0, wa)))


def matter_fraction(a: Float[Tensor, "*n"], cosmology: Cosmology) -> Float[Tensor, "*n"]:
    """The density of matter at scale factor ``a``, in units of the critical density then."""
    return 1 / (1 + _dark_over_matter(a, cosmology))


def hubble(a: Float[Tensor, "*n"], cosmology: Cosmology) -> Float[Tensor, "*n"]:
    """Hubble's rate E at scale factor ``a``, in units of today's."""
    return (cosmology.omega_m / a**3 * (1 + _dark_over_matter(a, cosmology))).sqrt()


def _dark_over_matter(a: Tensor, cosmology: Cosmology) -> Tensor:
    power = -3 * (cosmology.w0 + cosmology.wa)
    today = (1 - cosmology.omega_m) / cosmology.omega_m
    return today * torch.exp(power * a.log() - 3 * cosmology.wa * (1 - a))


def comoving_distance(a: Float[Tensor, "n"], cosmology: Cosmology) -> Float[Tensor, "n"]:
    """The comoving distance [Mpc / h] to where light of scale factor ``a`` comes from."""
    like: dict[str, Any] = {"dtype": torch.float64, "device": cosmology.omega_m.device}
    nodes, weights = (torch.as_tensor(x, **like) for x in np.polynomial.legendre.leggauss(_QUADRATURE))
    least = a.to(**like).sqrt()[..., None]
    root = least + (1 - least) * (nodes + 1) / 2  # the integrand is smooth in the root of a
    integrand = 2 / (root**3 * hubble(root**2, cosmology))
    return HUBBLE_DISTANCE * (integrand * weights).sum(-1) * (1 - least[..., 0]) / 2


class Growth(NamedTuple):
    """Growth of structure at some scale factors. ``d1`` is 1 today.

    Args:
        d1, f1: first-order growth, and its slope in ln a.
        d2, f2: second-order growth (negative; about ``-3/7 d1^2``), and its slope in ln a.
        early: ``d1 / a`` of early times. ``d1 / early`` is the growth that equals a in the matter era.
    """

    d1: Float[Tensor, "n"]
    f1: Float[Tensor, "n"]
    d2: Float[Tensor, "n"]
    f2: Float[Tensor, "n"]
    early: Float[Tensor, ""]


def growth(a: Float[Tensor, "n"], cosmology: Cosmology) -> Growth:
    """Growth at scale factors from 0 to 1; it has no derivative in ``a``.

    ``g1 = D1 / a`` and ``g2 = D2 / a^2`` solve linear equations in ln a, which are regular at a = 0:

        g1'' + (4 + h) g1' + 3/2 (1 - w) (1 - Om(a)) g1 = 0,     h = d ln E / d ln a
        g2'' + (6 + h) g2' + (8 + 2 h - 3/2 Om(a)) g2 = -3/2 Om(a) g1^2

    They are solved by collocation at Chebyshev nodes of the root of a.

    References:
        Linder & Jenkins 2003, MNRAS 346, 573; Bouchet et al. 1995, A&A 296, 575, eq. 34 (second order).
    """
    like: dict[str, Any] = {"dtype": torch.float64, "device": cosmology.omega_m.device}
    t, slope, to_series = (torch.as_tensor(x, **like) for x in _collocation())
    first = torch.zeros_like(t)
    first[0] = 1.0
    nodes = (t**2).clamp_min(1e-30)
    matter = matter_fraction(nodes, cosmology)
    w = cosmology.w0 + cosmology.wa * (1 - nodes)
    h = -1.5 * (1 + w * (1 - matter))
    second = slope @ slope
    # At a = 0 the first equation is 0 = 0. The condition g1 = 1 takes its place.
    operator = second + (4 + h)[:, None] * slope + torch.diag_embed(1.5 * (1 - w) * (1 - matter))
    g1 = torch.linalg.solve(operator * (1 - first)[:, None] + torch.diag_embed(first), first)
    operator = second + (6 + h)[:, None] * slope + torch.diag_embed(8 + 2 * h - 1.5 * matter)
    g2 = torch.linalg.solve(operator, -1.5 * matter * g1**2)

    a = a.to(**like)
    angle = torch.arccos((2 * a.sqrt() - 1).clamp(-1, 1))
    series = torch.cos(angle[..., None] * torch.arange(_NODES, **like)) @ to_series
    (v1, s1), (v2, s2) = ((series @ g, series @ (slope @ g)) for g in (g1, g2))
    today = g1[-1]
    return Growth(a * v1 / today, 1 + s1 / v1, a**2 * v2 / today**2, 2 + s2 / v2, 1 / today)


@cache
def _collocation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes in t from 0 to 1; the matrix of d / d ln a at the nodes, a = t^2; values to Chebyshev series."""
    y = -np.cos(np.pi * np.arange(_NODES) / (_NODES - 1))
    to_values = chebyshev.chebvander(y, _NODES - 1)
    to_series = np.linalg.inv(to_values)
    derivative = chebyshev.chebval(y, chebyshev.chebder(np.eye(_NODES))).T
    t = (y + 1) / 2
    return t, t[:, None] * (derivative @ to_series), to_series
