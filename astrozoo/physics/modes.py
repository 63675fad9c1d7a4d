"""The Fourier modes of a periodic box: Gaussian fields with a power spectrum, and power in shells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.pm import wave_numbers

__all__ = [
    "Modes",
    "Shells",
    "box_modes",
    "cross_power",
    "field_of",
    "make_shells",
    "mesh_power",
    "tabulated_power",
]


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
