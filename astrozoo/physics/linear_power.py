"""The linear power spectrum of matter today, and Gaussian fields that have it.

References:
    Eisenstein & Hu 1998, ApJ 496, 605 (transfer function with baryons).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import Cosmology
from astrozoo.physics.pm import wave_numbers

__all__ = [
    "Modes",
    "Shells",
    "box_modes",
    "cross_power",
    "field_of",
    "linear_power",
    "make_shells",
    "mesh_power",
    "tabulated_power",
    "transfer",
]

CMB_TEMPERATURE = 2.7255
"""[K] of the cosmic microwave background (Fixsen 2009)."""
_SIGMA8_RANGE = (1e-4, 30.0)
"""[h / Mpc] Wave numbers between which the integral of sigma8 runs. What lies outside adds less than 1e-5."""
_SIGMA8_NODES = 400
"""Wave numbers of that integral, equally spaced in ln k. Its error is then below 1e-4."""


class Modes(NamedTuple):
    """The wave numbers of a box, each once.

    Args:
        k: increasing [h / Mpc]; the first is that of the mean, 0.
        which: index in ``k`` of each mode of ``rfftn``.
        cell: side of a cell [Mpc / h].
    """

    k: Float[Tensor, "n"]
    which: Int[Tensor, "x y h"]
    cell: Float[Tensor, ""]


def box_modes(shape: tuple[int, int, int], box: float) -> Modes:
    """The modes of a box whose first side is ``box`` [Mpc / h]."""
    cell = torch.tensor(box / shape[0], dtype=torch.float64)
    waves = wave_numbers(shape, cell)
    square = waves[0] ** 2 + waves[1] ** 2 + waves[2] ** 2
    unique, index = torch.unique((square * 1e10).round(), return_inverse=True)
    return Modes((unique / 1e10).sqrt() / cell, index, cell)


def transfer(k: Float[Tensor, "n"], cosmology: Cosmology) -> Float[Tensor, "n"]:
    """The transfer function of Eisenstein & Hu, with acoustic oscillations, at k > 0 [h / Mpc]."""
    theta2 = (CMB_TEMPERATURE / 2.7) ** 2
    matter, baryon = (omega * cosmology.h**2 for omega in (cosmology.omega_m, cosmology.omega_b))
    fraction = cosmology.omega_b / cosmology.omega_m
    z_equal = 2.5e4 * matter / theta2**2
    k_equal = 0.0746 * matter / theta2
    b1 = 0.313 * matter**-0.419 * (1 + 0.607 * matter**0.674)
    b2 = 0.238 * matter**0.223
    z_drag = 1291 * matter**0.251 / (1 + 0.659 * matter**0.828) * (1 + b1 * baryon**b2)
    r_drag, r_equal = (31.5 * baryon / theta2**2 * 1000 / z for z in (1 + z_drag, z_equal))
    ratio = ((1 + r_drag).sqrt() + (r_drag + r_equal).sqrt()) / (1 + r_equal.sqrt())
    sound = 2 / (3 * k_equal) * (6 / r_equal).sqrt() * ratio.log()
    silk = 1.6 * baryon**0.52 * matter**0.73 * (1 + (10.4 * matter) ** -0.95)

    a1 = (46.9 * matter) ** 0.670 * (1 + (32.1 * matter) ** -0.532)
    a2 = (12.0 * matter) ** 0.424 * (1 + (45.0 * matter) ** -0.582)
    alpha_c = a1**-fraction * a2 ** (-(fraction**3))
    c1 = 0.944 / (1 + (458 * matter) ** -0.708)
    c2 = (0.395 * matter) ** -0.0266
    beta_c = 1 / (1 + c1 * ((1 - fraction) ** c2 - 1))
    y = z_equal / (1 + z_drag)
    root = (1 + y).sqrt()
    g = y * (-6 * root + (2 + 3 * y) * ((root + 1) / (root - 1)).log())
    alpha_b = 2.07 * k_equal * sound * (1 + r_drag) ** -0.75 * g
    beta_b = 0.5 + fraction + (3 - 2 * fraction) * ((17.2 * matter) ** 2 + 1).sqrt()
    node = 8.41 * matter**0.435

    k = k * cosmology.h  # [1 / Mpc], as in the paper
    q, ks = k / (13.41 * k_equal), k * sound

    def pressureless(alpha: Any, beta: Any) -> Tensor:
        log = (math.e + 1.8 * beta * q).log()
        return log / (log + (14.2 / alpha + 386 / (1 + 69.9 * q**1.08)) * q**2)

    inner = 1 / (1 + (ks / 5.4) ** 4)
    of_dark = inner * pressureless(1.0, beta_c) + (1 - inner) * pressureless(alpha_c, beta_c)
    shifted = ks / (1 + (node / ks) ** 3) ** (1 / 3)
    damped = alpha_b / (1 + (beta_b / ks) ** 3) * torch.exp(-((k / silk) ** 1.4))
    of_baryons = pressureless(1.0, 1.0) / (1 + (ks / 5.2) ** 2) + damped
    return fraction * of_baryons * torch.sinc(shifted / math.pi) + (1 - fraction) * of_dark


def linear_power(k: Float[Tensor, "n"], cosmology: Cosmology) -> Float[Tensor, "n"]:
    """P(k) today [(Mpc / h)^3] at wave numbers above 0 [h / Mpc], with the cosmology's sigma8."""
    low, high = (math.log10(limit) for limit in _SIGMA8_RANGE)
    table = torch.logspace(low, high, _SIGMA8_NODES, dtype=torch.float64, device=k.device)
    variance = _variance(table, table**cosmology.n_s * transfer(table, cosmology) ** 2)
    return cosmology.sigma8**2 / variance * k**cosmology.n_s * transfer(k, cosmology) ** 2


def _variance(k: Tensor, power: Tensor) -> Tensor:
    """Variance of the density in spheres of 8 Mpc / h."""
    x = 8 * k
    window = 3 * (torch.sin(x) - x * torch.cos(x)) / x**3
    return torch.trapezoid(power * window**2 * k**3 / (2 * math.pi**2), k.log())


def tabulated_power(
    k: Float[Tensor, "n"], table: tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]
) -> Float[Tensor, "n"]:
    """A table of k [h / Mpc] and P [(Mpc / h)^3] at other wave numbers, by lines in the logarithms.

    Raises:
        InputError: the table is no spectrum, or does not cover the wave numbers.
    """
    at, power = (np.asarray(x, float) for x in table)
    if len(at) < 2 or not (np.diff(at) > 0).all() or not at[0] > 0:
        raise InputError("spectrum", "wave numbers that do not increase from above 0", "increasing ones")
    if not (np.isfinite(power).all() and (power > 0).all()):
        raise InputError("spectrum", "a power that is not positive", "P(k) above 0")
    least, most = float(k.min()), float(k.max())
    if least < at[0] * (1 - 1e-9) or most > at[-1] * (1 + 1e-9):
        got = f"wave numbers {at[0]:.4g} to {at[-1]:.4g} h/Mpc"
        raise InputError("spectrum", got, f"those of the box, {least:.4g} to {most:.4g} h/Mpc")
    return torch.as_tensor(np.exp(np.interp(np.log(k.numpy()), np.log(at), np.log(power))))


def mesh_power(power: Float[Tensor, "n"], modes: Modes) -> Float[Tensor, "n"]:
    """Power of each of ``modes.k`` from P(k) at ``modes.k[1:]``, relative to white noise of unit variance."""
    return torch.cat((torch.zeros_like(power[:1]), power)) / modes.cell**3


def field_of(white: Float[Tensor, "*b x y z"], relative: Float[Tensor, "n"], modes: Modes) -> Tensor:
    """The Gaussian field of white noise with the power of :func:`mesh_power`, differentiable in that too."""
    root = torch.cat((torch.zeros_like(relative[:1]), relative[1:].sqrt())).to(white.dtype)
    waves = torch.fft.rfftn(white, dim=(-3, -2, -1)) * root[modes.which]
    return torch.fft.irfftn(waves, s=white.shape[-3:], dim=(-3, -2, -1))


class Shells(NamedTuple):
    """Shells of wave number.

    Args:
        k: mean wave number of the modes of each [h / Mpc].
        size: how many modes each has.
        which: the shell of each mode of ``rfftn``; that of modes in none is the number of shells.
        weight: how many modes each mode of ``rfftn`` stands for: 1 in planes that hold their own conjugates,
            else 2.
    """

    k: Float[Tensor, "s"]
    size: Float[Tensor, "s"]
    which: Int[Tensor, "x y h"]
    weight: Float[Tensor, "x y h"]


def make_shells(modes: Modes, sides: int) -> Shells:
    """Shells as wide as the longest wave, from the longest wave to the highest frequency of an axis.

    Args:
        sides: cells of the last axis.
    """
    fundamental = modes.k[1]
    number = (modes.k / fundamental).round().long()[modes.which] - 1
    most = int((math.pi / modes.cell / fundamental).round()) - 1
    index = torch.where((number < 0) | (number >= most), most, number)
    weight = torch.full(index.shape, 2.0, dtype=torch.float64)
    weight[..., 0] = 1
    if sides % 2 == 0:
        weight[..., -1] = 1
    flat = index.flatten()
    count, total = torch.zeros(2, most + 1, dtype=torch.float64)
    count.index_add_(0, flat, weight.flatten())
    total.index_add_(0, flat, (weight * modes.k[modes.which]).flatten())
    return Shells((total / count)[:-1], count[:-1], index, weight)


def cross_power(
    one: Float[Tensor, "*b x y z"], other: Float[Tensor, "*b x y z"], shells: Shells
) -> Float[Tensor, "*b s"]:
    """Mean cross power of two fields in shells, relative to that of white noise of unit variance.

    Times the volume of a cell it is in (Mpc / h)^3. That of a field with itself is its power.
    """
    dims = (-3, -2, -1)
    waves = (
        torch.fft.rfftn(one, dim=dims, norm="ortho") * torch.fft.rfftn(other, dim=dims, norm="ortho").conj()
    )
    product = (waves.real * shells.weight).flatten(-3)
    total = product.new_zeros(*product.shape[:-1], len(shells.k) + 1)
    total = total.index_add(-1, shells.which.flatten(), product)
    return total[..., :-1] / shells.size
