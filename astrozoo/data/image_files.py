"""Files of single images with their noise: FITS and NPZ."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.data.fits_file import open_fits
from astrozoo.data.wcs import celestial_wcs, has_celestial
from astrozoo.errors import DataError, InputError

__all__ = ["NoisyImage", "image_or_number", "read_noisy_image", "read_npz"]

_ARRAYS = ("image", "noise", "mask")


class NoisyImage(NamedTuple):
    """An image from a file. Pixels without data are 0, with noise 1."""

    image: Float[np.ndarray, "y x"]
    noise: Float[np.ndarray, "y x"]
    mask: Bool[np.ndarray, "y x"]
    wcs: WCS | None


def read_noisy_image(
    path: Path, noise: str | Path | float | None = None, mask: str | Path | None = None
) -> NoisyImage:
    """An image with its noise and mask.

    Pixels whose value or noise is not finite, or whose noise is 0 or less, have no data.

    Args:
        path: an NPZ file with ``image`` and optionally ``noise`` and ``mask``, a NPY file, or a FITS image.
        noise: SD of every pixel: a number, or the file of an image. It takes the place of that in the file.
        mask: file of an image which is not 0 where there are data.

    Raises:
        DataError: a file is missing or unreadable.
        InputError: no noise, shapes that do not agree, or no pixel with data.
    """
    arrays: dict[str, np.ndarray] = {}
    wcs = None
    if path.suffix == ".npz":
        arrays = {name: x for name, x in read_npz(path).items() if name in _ARRAYS}
        if "image" not in arrays:
            raise DataError(str(path), "no array 'image'", "arrays image, noise and (optionally) mask")
    else:
        arrays["image"], wcs = _image(path)
    if noise is not None:
        arrays["noise"] = np.asarray(image_or_number(noise))
    if mask is not None:
        arrays["mask"] = _image(Path(mask))[0]
    image = _numbers(arrays["image"], str(path))
    if image.ndim != 2 or min(image.shape) < 4:
        raise InputError(str(path), f"an image of shape {image.shape}", "[y, x] with 4 pixels or more a side")
    if "noise" not in arrays:
        raise InputError("noise", "none", "the SD of each pixel: a number or an image")
    sd = _numbers(arrays["noise"], "noise")
    good = (
        np.isfinite(arrays["mask"]) & (arrays["mask"] != 0)
        if "mask" in arrays
        else np.ones(image.shape, bool)
    )
    for name, array in {"noise": sd, "mask": good}.items():
        if array.shape != image.shape and array.size != 1:
            raise InputError(name, f"{array.shape} pixels", f"those of the image, {image.shape}")
    sd, good = np.broadcast_to(sd, image.shape), np.broadcast_to(good, image.shape)
    good = good & np.isfinite(image) & np.isfinite(sd) & (sd > 0)
    if not good.any():
        raise InputError(str(path), "no pixel with data", "pixels with a finite value and noise above 0")
    return NoisyImage(np.where(good, image, 0.0), np.where(good, sd, 1.0), good, wcs)


def image_or_number(source: str | Path | float) -> float | np.ndarray:
    """A number above 0 from its text, or the image of a file.

    Raises:
        DataError: no such file.
        InputError: a number of 0 or less.
    """
    try:
        value = float(str(source))
    except ValueError:
        return _image(Path(str(source)))[0]
    if not 0 < value < np.inf:
        raise InputError("noise", value, "a number above 0, or a file")
    return value


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ file.

    Raises:
        DataError: the file is missing or unreadable.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file", "an NPZ file")
    try:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NPZ file") from error


def _numbers(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise InputError(what, f"values of type {array.dtype}", "real numbers")
    return np.asarray(array, dtype=float)


def _image(path: Path) -> tuple[np.ndarray, WCS | None]:
    if path.suffix == ".npy":
        if not path.is_file():
            raise DataError(str(path), "no such file", "a NPY file or a FITS image")
        try:
            return np.load(path, allow_pickle=False), None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NPY file") from error
    with open_fits(path) as hdus:
        hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
        if hdu is None:
            raise DataError(str(path), "no image in any HDU", "a FITS image")
        image = np.asarray(hdu.data, dtype=float)
        wcs = celestial_wcs(hdu.header, str(path)) if has_celestial(hdu.header) else None
        return image, wcs
