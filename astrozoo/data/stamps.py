"""Stamps of single galaxies from files, brought to one size: recentred, cropped or padded, and scaled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import conv2d

from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError, InputError

__all__ = [
    "Pixels",
    "Stamps",
    "border_noise",
    "check_size",
    "read_images",
    "standardise",
    "turned",
    "turned_back",
]

_BLUR = 1.5
"""[px] Sigma of the Gaussian by which an image is multiplied pixel by pixel for its scale. The noise of the
scale is then a fifth of that of the plain sum of squares."""
_WINDOW = 0.12
"""Sigma of the window in which the centroid is measured, as a fraction of the standard side: about the extent
of a galaxy that fills the stamp."""
_SHIFT = 0.25
"""Largest shift to the centroid, as a fraction of a stamp's side. A light source farther out is a
neighbour."""
_ROUNDS = 8
"""Centroids that are computed in turn, each in a window around the one before. A galaxy as wide as the
window is then centred within 1/256 of its first offset."""
_AT_ONCE = 500
"""Stamps that are brought to the standard frame at once, in double precision. It limits memory."""
_FEWEST = 0.5
"""Least fraction of finite pixels of a stamp. With fewer, the galaxy is not seen."""
_LEAST_SCALE = 5.0
"""[SD of the noise] Least signal-to-noise ratio that sets the scale: it keeps the scale of an empty stamp
from 0."""


class Pixels(NamedTuple):
    """What a model is given of one galaxy, or of several along a leading axis.

    Args:
        image: pixels, in units of the galaxy's brightness; 0 where not used.
        noise: SD of the noise of a pixel, in the same unit.
        used: False in pixels without data: those outside a small stamp, and those that were not finite.
    """

    image: Float[Tensor, "*n y x"]
    noise: Float[Tensor, "*n"]
    used: Bool[Tensor, "*n y x"]


@dataclass(frozen=True, eq=False)
class Stamps:
    """Galaxies of one size, each in units of its own brightness.

    Args:
        pixels: of all galaxies.
        scale: rms of each galaxy's light over the standard area, in the unit of the file: what the pixels are
            divided by.
        orientation: how each galaxy was turned (:func:`turned`).
        names: one per galaxy.
    """

    pixels: Pixels
    scale: Float[Tensor, "n"]
    orientation: Int[Tensor, "n"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> Stamps:
        pixels = Pixels(*(x[part] for x in self.pixels))
        return Stamps(pixels, self.scale[part], self.orientation[part], self.names[part])

    def to(self, dtype: torch.dtype) -> Stamps:
        """The same stamps in another floating dtype."""
        image, noise, used = self.pixels
        pixels = Pixels(image.to(dtype), noise.to(dtype), used)
        return Stamps(pixels, self.scale.to(dtype), self.orientation, self.names)


def turned(images: Shaped[Tensor, "*n y x"], orientation: int) -> Shaped[Tensor, "*n y x"]:
    """Images in one of the eight orientations of a square, 0 to 7; 0 leaves them as they are.

    The bits of the number are, in this order: a transposition, a reflection of y, and half a turn.
    """
    if orientation & 1:
        images = images.mT
    if orientation & 2:
        images = images.flip(-2)
    return images.flip(-2, -1) if orientation & 4 else images


def turned_back(images: Shaped[Tensor, "*n y x"], orientation: int) -> Shaped[Tensor, "*n y x"]:
    """The inverse of :func:`turned`."""
    if orientation & 4:
        images = images.flip(-2, -1)
    if orientation & 2:
        images = images.flip(-2)
    return images.mT if orientation & 1 else images


def standardise(
    images: Sequence[Float[np.ndarray, "y x"]] | Float[np.ndarray, "n y x"],
    size: int,
    noise: float | Sequence[float] | Float[np.ndarray, "n"] | None = None,
    *,
    names: Sequence[str] | None = None,
    subtract_sky: bool = False,
) -> Stamps:
    """Stamps of any sizes as :class:`Stamps` of one size.

    A stamp is shifted by whole pixels so that the centroid of its brightest source near the middle lies in
    the middle of the standard frame. It is cropped, or padded with pixels that are not used. Pixels that
    are not finite are not used either. It is then turned into the one of the eight orientations of a square
    in which its
    major axis lies between 0 and 45 degrees from x towards y, and its longer tail points to x: a model then
    need not learn each galaxy eight times.

    Args:
        images: sky-subtracted images. Their sides may be odd or even, and may differ.
        size: side of the standard frame [px].
        noise: SD of the noise of a pixel, of all or of each stamp. None: measured at the borders.
        names: of the galaxies, for messages and reports; numbers by default.
        subtract_sky: subtract the median of each stamp's border first.

    Raises:
        DataError: there are no stamps; a stamp is not a 2-d image of numbers, has less than half of its
            pixels finite, or has the same value in all pixels; or a noise is not a finite number above 0.
    """
    if not len(images):
        raise DataError("stamps", "none", "at least one galaxy")
    names = tuple(str(i) for i in range(len(images))) if names is None else tuple(names)
    given = _given_noise(noise, len(images))
    parts = []
    for first in range(0, len(images), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        arrays = [_checked(image, name) for image, name in zip(images[part], names[part], strict=True)]
        if subtract_sky:
            arrays = [image - np.nanmedian(_border(image)) for image in arrays]
        sigma = np.array([border_noise(image) for image in arrays]) if given is None else given[part]
        _check_noise(sigma, names[part], measured=given is None)
        parts.append(_standard(arrays, sigma, size))
    image, sd, used, scale, orientation = (torch.cat(column) for column in zip(*parts, strict=True))
    return Stamps(Pixels(image, sd, used), scale, orientation, names)


def _standard(
    images: Sequence[Float[np.ndarray, "y x"]], sigma: Float[np.ndarray, "n"], size: int
) -> tuple[Tensor, ...]:
    """Image, noise, used, scale and orientation of some stamps."""
    frames = torch.from_numpy(np.stack([_framed(image, size) for image in images]))
    orientation = _orientations(frames.nan_to_num(0.0))
    frames = torch.stack([turned(frame, int(k)) for frame, k in zip(frames, orientation, strict=True)])
    used = frames.isfinite()
    pixels = frames.nan_to_num(0.0)
    sd = torch.from_numpy(sigma)
    scale = _scale(pixels, used, sd)
    image = (pixels / scale[:, None, None]).float()
    return image, (sd / scale).float(), used, scale.float(), orientation


def border_noise(image: Float[np.ndarray, "y x"]) -> float:
    """SD of the noise, from the median absolute deviation of the outermost eighth of a stamp's pixels.

    Light of the galaxy that reaches the border makes it too large.
    """
    values = _border(image)
    values = values[np.isfinite(values)]
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def _border(image: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "k"]:
    ny, nx = image.shape
    width = max(1, round(min(ny, nx) / 32))
    inside = np.zeros(image.shape, bool)
    inside[width : ny - width, width : nx - width] = True
    return image[~inside]


def _checked(image: np.ndarray, name: str) -> Float[np.ndarray, "y x"]:
    what, image = f"stamp {name}", np.asarray(image)
    if image.ndim != 2 or min(image.shape) < 4 or image.dtype.kind not in "fiub":
        raise DataError(what, f"shape {image.shape} of {image.dtype}", "an image of at least 4 x 4 numbers")
    image = image.astype(np.float64)
    finite = np.isfinite(image)
    if finite.mean() < _FEWEST:
        raise DataError(what, f"{1 - finite.mean():.0%} of pixels not finite", f"at most {1 - _FEWEST:.0%}")
    if np.ptp(image[finite]) == 0:
        raise DataError(what, f"the value {image[finite][0]:g} in all pixels", "an image of a galaxy")
    return np.where(finite, image, np.nan)


def _given_noise(noise: object, count: int) -> Float[np.ndarray, "n"] | None:
    if noise is None:
        return None
    given = np.asarray(noise, np.float64)
    if given.ndim > 1 or (given.ndim and len(given) != count):
        raise DataError("noise", f"shape {given.shape}", f"a number, or one for each of {count} stamps")
    return np.broadcast_to(given, count).copy()


def _check_noise(sigma: Float[np.ndarray, "n"], names: Sequence[str], *, measured: bool) -> None:
    bad = ~(np.isfinite(sigma) & (sigma > 0))
    if bad.any():
        first = int(bad.argmax())
        wanted = "a number above 0: its border has no noise, so state the noise"
        expected = wanted if measured else "a finite number above 0"
        raise DataError(f"noise of stamp {names[first]}", f"{sigma[first]:g}", expected)


def _framed(image: Float[np.ndarray, "y x"], size: int) -> Float[np.ndarray, "size size"]:
    """The image around its centroid; NaN where there are no data."""
    rows, columns = (int(np.floor(c - (size - 1) / 2 + 0.5)) for c in _centroid(image, size))
    frame = np.full((size, size), np.nan)
    ny, nx = image.shape
    y0, y1 = max(rows, 0), min(rows + size, ny)
    x0, x1 = max(columns, 0), min(columns + size, nx)
    frame[y0 - rows : y1 - rows, x0 - columns : x1 - columns] = image[y0:y1, x0:x1]
    return frame


def _centroid(image: Float[np.ndarray, "y x"], size: int) -> tuple[float, float]:
    """Row and column of the centroid of the light in a Gaussian window, which follows the centroid."""
    ny, nx = image.shape
    light = np.nan_to_num(image, nan=0.0)
    middle = np.array([(ny - 1) / 2, (nx - 1) / 2])
    most = _SHIFT * np.array([ny, nx])
    sigma = _WINDOW * min(size, ny, nx)
    y, x = np.arange(ny)[:, None], np.arange(nx)[None]
    centre = middle
    for _ in range(_ROUNDS):
        weight = np.exp(-0.5 * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / sigma**2) * light
        total = weight.sum()
        if total <= 0:
            return float(middle[0]), float(middle[1])
        centre = np.array([(weight * y).sum(), (weight * x).sum()]) / total
        centre = np.clip(centre, middle - most, middle + most)
    return float(centre[0]), float(centre[1])


def _orientations(frames: Float[Tensor, "n y x"]) -> Int[Tensor, "n"]:
    """The orientation in which each galaxy is standard, by its moments in a Gaussian window."""
    size = frames.shape[-1]
    axis = torch.arange(size, dtype=frames.dtype) - (size - 1) / 2
    window = torch.exp(-0.5 * (axis / (_WINDOW * size)) ** 2)
    light = frames * window[:, None] * window
    x, y = axis[None, :], axis[:, None]
    plus, cross = ((light * weight).sum((1, 2)) for weight in (x**2 - y**2, 2 * x * y))
    tail = torch.stack([(light * c * (x**2 + y**2)).sum((1, 2)) for c in (x, y)])  # of x and of y
    transposed, reflected = plus < 0, cross < 0  # a transposition leaves 2 x y as it is
    along = torch.where(transposed, tail[1], tail[0])
    return transposed.long() + 2 * reflected.long() + 4 * (along < 0).long()


def _scale(
    pixels: Float[Tensor, "n y x"], used: Bool[Tensor, "n y x"], noise: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """rms over the frame of the galaxy's light, nearly without that of the noise."""
    half = round(3 * _BLUR)
    steps = torch.arange(-half, half + 1, dtype=pixels.dtype)
    kernel = torch.exp(-0.5 * (steps / _BLUR) ** 2)
    kernel = kernel / kernel.sum()
    blurred = conv2d(pixels[:, None], kernel[None, None, :, None], padding=(half, 0))
    blurred = conv2d(blurred, kernel[None, None, None, :], padding=(0, half))[:, 0]
    square = (pixels * blurred).sum((1, 2)) - noise**2 * used.sum((1, 2)) * kernel[half] ** 2
    least = (_LEAST_SCALE * noise) ** 2
    return torch.maximum(square, least).sqrt() / pixels.shape[-1]


def read_images(path: Path) -> tuple[list[np.ndarray], list[str], np.ndarray | None]:
    """All images of a file, or of the FITS files of a folder, with their names and, if stated, their noise.

    In a FITS file each HDU with two axes is an image, and one with three axes is a stack of images. In a
    NumPy file these are the array ``image`` or ``images``, ``[n, y, x]``, or else all arrays with two axes;
    the array ``noise_rms``, ``[n]``, has the noise.

    Raises:
        DataError: there is no such file, it is unreadable, or it has no images.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.split(".", 1)[-1].lower().startswith(_FITS))
        if not files:
            raise DataError(str(path), "a folder without FITS files", "stamps of galaxies")
        parts = [list(_fits_images(file)) for file in files]
        named = [
            (image, f"{file.stem}:{name}")
            for file, part in zip(files, parts, strict=True)
            for image, name in part
        ]
        return [image for image, _ in named], [name for _, name in named], None
    if path.suffix in (".npz", ".npy"):
        images, names, noise = _numpy_images(path)
    else:
        named = list(_fits_images(path))
        images, names, noise = [image for image, _ in named], [name for _, name in named], None
    if not images:
        raise DataError(str(path), "no images", "stamps of galaxies")
    return images, names, noise


_FITS = ("fits", "fit", "fts")
"""Beginnings of the suffixes of FITS files, which may be compressed."""


def _fits_images(path: Path) -> Iterable[tuple[np.ndarray, str]]:
    with open_fits(path) as hdus:
        for k, hdu in enumerate(hdus):
            if not hdu.is_image or hdu.data is None or hdu.data.ndim not in (2, 3):
                continue
            data = np.array(hdu.data, dtype=np.float64)
            if data.ndim == 2:
                yield data, hdu.name or str(k)
            else:
                yield from ((plane, f"{hdu.name or k}[{i}]") for i, plane in enumerate(data))


def _numpy_images(path: Path) -> tuple[list[np.ndarray], list[str], np.ndarray | None]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {"image": content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files if content[name].dtype.kind in "fiub"}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NumPy file") from error
    stack = next((arrays[name] for name in ("image", "images") if name in arrays), None)
    noise = arrays.get("noise_rms")
    if stack is not None and stack.ndim == 3:
        return list(stack), [str(i) for i in range(len(stack))], noise
    planes = {name: array for name, array in arrays.items() if array.ndim == 2}
    if stack is not None and stack.ndim != 2:
        raise DataError(f"{path}: image", f"shape {stack.shape}", "[n, y, x]")
    return list(planes.values()), list(planes), noise


def check_size(size: int) -> None:
    """Check the side of the standard frame.

    Raises:
        InputError: it is less than 8 px.
    """
    if size < 8:
        raise InputError("size", size, "8 px or more")
