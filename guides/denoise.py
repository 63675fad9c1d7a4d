"""Guides of images without noise."""

from __future__ import annotations

from astrozoo.errors import InputError
from astrozoo.guides.mass_map import FourierGuide
from astrozoo.types import Problem

__all__ = ["fourier"]


def fourier(problem: Problem) -> FourierGuide:
    """A mean field over the Fourier modes of an image in place of its pixels.

    Raises:
        InputError: the data are points.
    """
    if problem.preconditioner is None:
        raise InputError("guide", "fourier", "mean_field for points")
    shape = problem.args[0].values.shape[-2:]
    return FourierGuide((int(shape[0]), int(shape[1])), problem.dtype)
