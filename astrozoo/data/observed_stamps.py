"""ObservedStamps of galaxies from a file: images, PSFs and noise, one galaxy in the middle of each."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from astrozoo.errors import DataError

__all__ = ["ObservedStamps", "read_observed"]

_UNIT = 0.05
"""[1] Largest difference of a PSF's sum from 1. PSFs cut at their wings lose a few per cent."""


@dataclass(frozen=True, eq=False)
class ObservedStamps:
    """Galaxies in the middle of sky-subtracted stamps.

    Args:
        image: [flux].
        psf: with the pixel, of unit sum; its centre is at ``(side - 1) / 2``, as those of the stamps.
        noise_rms: of white noise [flux].
        pixel_scale: [arcsec].
    """

    image: Float[Tensor, "n y x"]
    psf: Float[Tensor, "n y x"]
    noise_rms: Float[Tensor, "n"]
    pixel_scale: float


def read_observed(path: Path, pixel_scale: float | None = None) -> ObservedStamps:
    """Stamps from an ``.npz`` or ``.safetensors`` file, in float64.

    The file has ``image`` [n, y, x], ``psf`` [n, y, x] or [y, x] (of the stamps' size or smaller, with
    differences in size that are even), ``noise_rms`` [n] or a number, and ``pixel_scale``, a number.

    Args:
        pixel_scale: in place of the file's [arcsec].

    Raises:
        DataError: the file is unreadable, an array is missing or has another shape, pixels are not finite,
            noise is not positive, or PSFs do not have unit sums.
    """
    values = _load(path)
    missing = [name for name in ("image", "psf", "noise_rms") if name not in values]
    if missing:
        raise DataError(str(path), f"no {', '.join(missing)}", "arrays image, psf and noise_rms")
    image, psf, noise = values["image"], values["psf"], values["noise_rms"]
    scale = values.get("pixel_scale", torch.tensor(torch.nan)) if pixel_scale is None else pixel_scale
    scale = float(scale)
    if not (np.isfinite(scale) and scale > 0):
        raise DataError(str(path), "no pixel scale", "pixel_scale in the file, or --pixel-scale")
    if image.ndim != 3 or len(image) == 0:
        raise DataError(str(path), f"image of shape {tuple(image.shape)}", "[n, y, x] with a galaxy or more")
    if not image.isfinite().all():
        bad = int((~image.isfinite().flatten(1).all(1)).sum())
        raise DataError(str(path), f"{bad} stamps with pixels that are not finite", "finite pixels")
    noise = noise.expand(len(image)) if noise.ndim == 0 else noise
    if noise.shape != image.shape[:1] or not (noise.isfinite() & (noise > 0)).all():
        what = f"noise_rms of shape {tuple(noise.shape)}, from {noise.min():g} to {noise.max():g}"
        raise DataError(str(path), what, f"{len(image)} positive numbers, or one")
    return ObservedStamps(image, _matched(path, psf, image), noise, scale)


def _load(path: Path) -> dict[str, Tensor]:
    expected = "an .npz or .safetensors file of arrays"
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.as_tensor(np.asarray(file[name], dtype=float)) for name in file.files}
        if path.suffix == ".safetensors":
            return {name: value.double() for name, value in load_file(path).items()}
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(str(path), f"unreadable ({error})", expected) from error
    raise DataError(str(path), f"a name that ends in {path.suffix!r}", expected)


def _matched(path: Path, psf: Tensor, image: Tensor) -> Float[Tensor, "n y x"]:
    """A PSF for each stamp, padded to the stamps' size."""
    psf = psf.expand(len(image), -1, -1) if psf.ndim == 2 else psf
    if psf.ndim != 3 or len(psf) != len(image):
        raise DataError(str(path), f"psf of shape {tuple(psf.shape)}", f"[{len(image)}, y, x] or [y, x]")
    if not psf.isfinite().all() or not ((psf.sum((1, 2)) - 1).abs() < _UNIT).all():
        raise DataError(str(path), "PSFs that are not finite or of other sums", "PSFs of unit sum")
    gaps = [image.shape[-1] - psf.shape[-1], image.shape[-2] - psf.shape[-2]]
    if min(gaps) < 0:
        sides = f"PSFs of {tuple(psf.shape[1:])} px in stamps of {tuple(image.shape[1:])} px"
        raise DataError(str(path), sides, "PSFs that are not larger than the stamps")
    if any(gap % 2 for gap in gaps):
        sides = f"PSFs of {tuple(psf.shape[1:])} px in stamps of {tuple(image.shape[1:])} px"
        raise DataError(str(path), sides, "both odd or both even, so that both have the same centre")
    psf = psf / psf.sum((1, 2), keepdim=True)
    return torch.nn.functional.pad(psf, (gaps[0] // 2, gaps[0] // 2, gaps[1] // 2, gaps[1] // 2))
