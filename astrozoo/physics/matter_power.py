"""The linear power spectrum of matter, its halos, and the convergence of their light deflection.

Lengths are comoving [Mpc / h], wave numbers [h / Mpc], masses [Msun / h] within 200 times the mean density.
Functions are differentiable in the parameters of the cosmology.

References:
    Eisenstein & Hu 1998, ApJ 496, 605 (transfer function); Tinker et al. 2008, ApJ 688, 709 (mass function);
    Tinker et al. 2010, ApJ 724, 878 (bias); Duffy et al. 2008, MNRAS 390, L64 (concentrations); Cooray &
    Sheth 2002, Phys. Rep. 372, 1 (profiles in Fourier space); LoVerde & Afshordi 2008, PRD 78, 123506
    (Limber).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import sici
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import HUBBLE_DISTANCE, Cosmology, comoving_distance, growth

__all__ = [
    "CRITICAL",
    "Lensing",
    "Matter",
    "concentration",
    "convergence_power",
    "halo_bias",
    "halo_waves",
    "lensing_weights",
    "linear_power",
    "mass_function",
    "transfer",
]

CRITICAL = 2.77536627e11
"""[Msun h^2 / Mpc^3] Critical density today."""
_CMB = 2.7255
"""[K] Temperature of the microwave background."""
_WAVES = (-4.0, 2.5)
"""Decimal exponents of the wave numbers [h / Mpc] over which variances are integrated. Beyond them lies less
than 1e-4 of the variance in spheres of 0.3 Mpc / h or more."""
_NODES = 1500
"""Nodes of that integral; the acoustic oscillations are resolved 30 times over."""
_COLLAPSE = 1.686
"""Linear density at which a sphere collapses."""
_OVERDENSITY = 200.0
"""Mean density of a halo, in units of the mean density of matter."""


def transfer(k: Float[Tensor, "*n"], cosmology: Cosmology) -> Float[Tensor, "*n"]:
    """Growth of a linear wave until today, relative to long ones (Eisenstein & Hu 1998, eq. 16 to 24)."""
    h, k = cosmology.h, k * cosmology.h
    om, ob = cosmology.omega_m * h**2, cosmology.omega_b * h**2
    fb, theta = ob / om, _CMB / 2.7
    z_eq, k_eq = 2.5e4 * om / theta**4, 7.46e-2 * om / theta**2
    b1 = 0.313 * om**-0.419 * (1 + 0.607 * om**0.674)
    z_drag = 1291 * om**0.251 / (1 + 0.659 * om**0.828) * (1 + b1 * ob ** (0.238 * om**0.223))
    r_drag, r_eq = (31.5e3 * ob / theta**4 / z for z in (z_drag, z_eq))
    sound = 2 / (3 * k_eq) * (6 / r_eq).sqrt()
    sound = sound * (((1 + r_drag).sqrt() + (r_drag + r_eq).sqrt()) / (1 + r_eq.sqrt())).log()
    silk = 1.6 * ob**0.52 * om**0.73 * (1 + (10.4 * om) ** -0.95)
    a1 = (46.9 * om) ** 0.670 * (1 + (32.1 * om) ** -0.532)
    a2 = (12.0 * om) ** 0.424 * (1 + (45.0 * om) ** -0.582)
    alpha_c = a1**-fb * a2 ** (-(fb**3))
    b1 = 0.944 / (1 + (458 * om) ** -0.708)
    beta_c = 1 / (1 + b1 * ((1 - fb) ** ((0.395 * om) ** -0.0266) - 1))
    q = k / (13.41 * k_eq)

    def pressureless(alpha: Tensor | float, beta: Tensor | float) -> Tensor:
        log = (math.e + 1.8 * beta * q).log()
        return log / (log + (14.2 / alpha + 386 / (1 + 69.9 * q**1.08)) * q**2)

    ks = k * sound
    mixed = 1 / (1 + (ks / 5.4) ** 4)
    cold = mixed * pressureless(1.0, beta_c) + (1 - mixed) * pressureless(alpha_c, beta_c)
    y = (1 + z_eq) / (1 + z_drag)
    root = (1 + y).sqrt()
    g = y * (-6 * root + (2 + 3 * y) * ((root + 1) / (root - 1)).log())
    alpha_b = 2.07 * k_eq * sound * (1 + r_drag) ** -0.75 * g
    beta_b = 0.5 + fb + (3 - 2 * fb) * ((17.2 * om) ** 2 + 1).sqrt()
    shifted = ks / (1 + (8.41 * om**0.435 / ks) ** 3) ** (1 / 3)
    baryons = pressureless(1.0, 1.0) / (1 + (ks / 5.2) ** 2)
    baryons = baryons + alpha_b / (1 + (beta_b / ks) ** 3) * torch.exp(-((k / silk) ** 1.4))
    return fb * baryons * torch.sinc(shifted / math.pi) + (1 - fb) * cold


class Matter(NamedTuple):
    """The linear density of today on nodes of wave number, which :meth:`of` makes once.

    Args:
        k: [h / Mpc].
        power: [(Mpc / h)^3].
        mean: mean density [Msun h^2 / Mpc^3].
    """

    k: Float[Tensor, "k"]
    power: Float[Tensor, "k"]
    mean: Float[Tensor, ""]

    @classmethod
    def of(cls, cosmology: Cosmology) -> Matter:
        """Of a cosmology."""
        k = torch.logspace(*_WAVES, _NODES, dtype=torch.float64, device=cosmology.h.device)
        return cls(k, linear_power(k, cosmology), CRITICAL * cosmology.omega_m)

    def sigma(self, mass: Float[Tensor, "m"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """SD of the linear density of today in spheres of a mass, and minus its slope ``d ln / d ln M``."""
        radius = (3 * mass / (4 * math.pi * self.mean)) ** (1 / 3)
        x = self.k * radius[:, None]
        window, slope = _top_hat(x)
        weight = self.k**3 * self.power / (2 * math.pi**2)
        variance = torch.trapezoid(weight * window**2, self.k.log())
        change = torch.trapezoid(weight * 2 * window * slope, self.k.log())  # d variance / d ln R
        return variance.sqrt(), -change / variance / 6


def _top_hat(x: Tensor) -> tuple[Tensor, Tensor]:
    """The Fourier transform of a sphere, ``3 (sin x - x cos x) / x^3``, and its slope in ln x."""
    small = x < 0.02
    at = torch.where(small, 1.0, x)
    window = torch.where(small, 1 - x**2 / 10, 3 * (at.sin() - at * at.cos()) / at**3)
    slope = torch.where(small, -(x**2) / 5, 3 * torch.sinc(at / math.pi) - 3 * window)
    return window, slope


def linear_power(k: Float[Tensor, "*n"], cosmology: Cosmology) -> Float[Tensor, "*n"]:
    """The power of the linear density of today [(Mpc / h)^3], scaled to ``sigma8``."""
    nodes = torch.logspace(*_WAVES, _NODES, dtype=torch.float64, device=k.device)
    window = _top_hat(8 * nodes)[0]

    def shape(k: Tensor) -> Tensor:
        return k**cosmology.n_s * transfer(k, cosmology) ** 2

    variance = torch.trapezoid(nodes**3 * shape(nodes) * window**2 / (2 * math.pi**2), nodes.log())
    return cosmology.sigma8**2 / variance * shape(k)


def mass_function(
    mass: Float[Tensor, "m"], redshift: float, cosmology: Cosmology, matter: Matter
) -> Float[Tensor, "m"]:
    """Number of halos per volume and logarithm (base e) of the mass [(h / Mpc)^3]."""
    sigma, slope = matter.sigma(mass)
    sigma = sigma * _growth(redshift, cosmology)
    amplitude, a = 0.186 * (1 + redshift) ** -0.14, 1.47 * (1 + redshift) ** -0.06
    alpha = 10 ** (-((0.75 / math.log10(_OVERDENSITY / 75)) ** 1.2))
    b = 2.57 * (1 + redshift) ** -alpha
    f = amplitude * ((sigma / b) ** -a + 1) * torch.exp(-1.19 / sigma**2)
    return f * matter.mean / mass * slope


def _growth(redshift: float, cosmology: Cosmology) -> Tensor:
    return growth(torch.tensor([1 / (1 + redshift)], dtype=torch.float64), cosmology).d1[0]


def halo_bias(
    mass: Float[Tensor, "m"], redshift: float, cosmology: Cosmology, matter: Matter
) -> Float[Tensor, "m"]:
    """Density of halos in units of that of matter, on large scales."""
    nu = _COLLAPSE / (matter.sigma(mass)[0] * _growth(redshift, cosmology))
    y = math.log10(_OVERDENSITY)
    fading = math.exp(-((4 / y) ** 4))
    amplitude, a = 1 + 0.24 * y * fading, 0.44 * y - 0.88
    c = 0.019 + 0.107 * y + 0.19 * fading
    return 1 - amplitude * nu**a / (nu**a + _COLLAPSE**a) + 0.183 * nu**1.5 + c * nu**2.4


def concentration(mass: Float[Tensor, "m"], redshift: float) -> Float[Tensor, "m"]:
    """Radius of a halo in units of the scale radius of its NFW profile, in the mean."""
    return 10.14 * (mass / 2e12) ** -0.081 * (1 + redshift) ** -1.01


def halo_waves(
    k: Float[np.ndarray, "n"], mass: float, redshift: float, cosmology: Cosmology
) -> Float[np.ndarray, "n"]:
    """The Fourier transform of an NFW profile that ends at the radius of the halo; 1 for long waves."""
    c = float(concentration(torch.tensor([mass]), redshift))
    density = _OVERDENSITY * CRITICAL * float(cosmology.omega_m)
    x = np.asarray(k) * (3 * mass / (4 * math.pi * density)) ** (1 / 3) / c
    (si_1, ci_1), (si_0, ci_0) = sici((1 + c) * x), sici(x)
    total = math.log1p(c) - c / (1 + c)
    return (np.sin(x) * (si_1 - si_0) + np.cos(x) * (ci_1 - ci_0) - np.sin(c * x) / ((1 + c) * x)) / total


class Lensing(NamedTuple):
    """What lenses light of a distribution of sources.

    Args:
        redshift: nodes.
        distance: comoving, of the nodes [Mpc / h].
        weight: convergence per density contrast and comoving length [h / Mpc].
    """

    redshift: Float[np.ndarray, "z"]
    distance: Float[np.ndarray, "z"]
    weight: Float[np.ndarray, "z"]


def lensing_weights(
    redshift: Float[np.ndarray, "z"], sources: Float[np.ndarray, "z"], cosmology: Cosmology
) -> Lensing:
    """The weight of matter at each redshift in the convergence.

    Args:
        redshift: increasing, above 0.
        sources: their number per redshift; its scale does not matter.

    Raises:
        InputError: redshifts that do not increase from above 0, or numbers that are negative or all 0.
    """
    z, n = np.asarray(redshift, float), np.asarray(sources, float)
    if len(z) < 2 or not (np.diff(z) > 0).all() or z[0] <= 0:
        raise InputError("redshift", "nodes that do not increase from above 0", "increasing redshifts")
    if n.shape != z.shape or not np.isfinite(n).all() or (n < 0).any() or not n.any():
        raise InputError("sources", "negative numbers, or none", "numbers of sources at each redshift")
    distance = comoving_distance(torch.as_tensor(1 / (1 + z)), cosmology).numpy()
    n = n / np.trapezoid(n, z)
    # The mean over sources behind of 1 - d / d_source, from two cumulative integrals.
    behind, inverse = (_remaining(y, z) for y in (n, n / distance))
    efficiency = behind - distance * inverse
    factor = 1.5 * float(cosmology.omega_m) / HUBBLE_DISTANCE**2
    return Lensing(z, distance, factor * (1 + z) * distance * efficiency)


def _remaining(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The integral from each node to the last one."""
    parts = np.diff(x) * (y[1:] + y[:-1]) / 2
    return np.append(np.cumsum(parts[::-1])[::-1], 0.0)


def convergence_power(
    ell: Float[np.ndarray, "n"],
    lensing: Lensing,
    power: Callable[[np.ndarray, float], np.ndarray],
) -> Float[np.ndarray, "n"]:
    """The power spectrum of the convergence [sr] by Limber's approximation.

    Args:
        ell: multipoles.
        power: that of matter [(Mpc / h)^3], called with wave numbers [h / Mpc] and a redshift.
    """
    k = (np.asarray(ell)[:, None] + 0.5) / lensing.distance
    matter = np.stack([power(k[:, i], z) for i, z in enumerate(lensing.redshift)], 1)
    return np.trapezoid((lensing.weight / lensing.distance) ** 2 * matter, lensing.distance, axis=1)
