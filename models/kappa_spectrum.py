"""Power spectra of the convergence: of files, the shipped one, and on the modes of a map."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import DataError, InputError
from astrozoo.physics import fourier

__all__ = ["Spectrum", "checked", "load_spectrum", "mode_power"]


class Spectrum(NamedTuple):
    """A power spectrum of the convergence: C_ell [sr] at increasing multipoles."""

    ell: Float[np.ndarray, "n"]
    power: Float[np.ndarray, "n"]


@cache
def _shipped() -> Spectrum:
    text = (files("astrozoo.models") / "mass_map_spectrum.json").read_text()
    content = json.loads(text)
    return Spectrum(np.asarray(content["ell"]), np.asarray(content["power"]))


def load_spectrum(path: str | Path | None = None) -> Spectrum:
    """A power spectrum from a text file of two columns, ell and C_ell, or an NPY file of two rows or columns.

    Without a path: a Planck-2015 cosmology and sources with a median redshift of 0.9, made by
    ``experiments/make_kappa_spectrum.py``.

    Raises:
        DataError: the file has no such columns.
        InputError: multipoles that do not increase, or a power that is not positive.
    """
    if path is None:
        return _shipped()
    path = Path(path)
    try:
        table = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=_delimiter(path))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), f"{type(error).__name__}: {error}", "two columns: ell and C_ell"
        ) from error
    if table.ndim != 2 or 2 not in (table.shape if path.suffix == ".npy" else table.shape[1:]):
        raise DataError(str(path), f"an array of shape {table.shape}", "two columns: ell and C_ell")
    ell, power = table if path.suffix == ".npy" and len(table) == 2 else table.T
    return checked(Spectrum(ell.astype(float), power.astype(float)))


def _delimiter(path: Path) -> str | None:
    return "," if path.suffix == ".csv" else None


def checked(spectrum: Spectrum) -> Spectrum:
    """The spectrum.

    Raises:
        InputError: multipoles that do not increase from above 0, or a power that is not positive.
    """
    ell, power = spectrum
    if len(ell) < 2 or not (np.diff(ell) > 0).all() or not (ell > 0).all():
        raise InputError("spectrum", "multipoles that do not increase from above 0", "increasing multipoles")
    if not (np.isfinite(power).all() and (power > 0).all()):
        raise InputError("spectrum", "a power that is not positive", "C_ell above 0")
    return spectrum


def mode_power(
    shape: tuple[int, int], pixel: float, spectrum: Spectrum, like: Tensor
) -> Float[Tensor, "y h"]:
    """Power of each mode, in units of that of white noise of unit variance; 0 for the mean."""
    side = math.radians(pixel / 60)
    ky, kx = fourier.frequencies(shape, like)
    ell = (2 * math.pi / side * (kx**2 + ky**2).sqrt()).numpy()
    least, most = ell[ell > 0].min(), ell.max()
    if least < spectrum.ell[0] or most > spectrum.ell[-1]:
        got = f"multipoles {spectrum.ell[0]:.4g} to {spectrum.ell[-1]:.4g}"
        raise InputError("spectrum", got, f"those of the map, {least:.4g} to {most:.4g}")
    inside = np.where(ell > 0, ell, least)
    log_power = np.interp(np.log(inside), np.log(spectrum.ell), np.log(spectrum.power))
    return torch.as_tensor(np.where(ell > 0, np.exp(log_power), 0.0) / side**2).to(like)
