"""Training images of galaxies: drawn and rendered by GalSim, in the eight orientations of a square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from astrozoo._files import replacing
from astrozoo.data.simulate_lens import SOURCES, draw_source, render_source
from astrozoo.errors import DataError, InputError

__all__ = ["Galaxies", "read_galaxies", "render_galaxies"]

_RADII = (5.0, 9.0)
"""[px] Range of the half-light radii: such a galaxy fits into a decoder's image and is resolved by it."""
_BLUR = 1.0
"""[px] Sigma of the Gaussian that galaxies are convolved with."""
_CHUNK = 500
"""Galaxies per saved chunk: an interrupted run loses at most one chunk, about 4 s of work."""


class Galaxies(Dataset[Tensor]):
    """Images of unit sum. Item ``8 i + k`` is galaxy ``i`` in orientation ``k``.

    Args:
        images: the galaxies, each in one orientation.
    """

    def __init__(self, images: Float[Tensor, "n y x"]) -> None:
        self.images = images

    def __len__(self) -> int:
        return 8 * len(self.images)

    def __getitem__(self, index: int) -> Float[Tensor, "y x"]:
        galaxy, orientation = divmod(index, 8)
        image = torch.rot90(self.images[galaxy], orientation % 4)
        return image.flip(1) if orientation >= 4 else image

    def __getitems__(self, index: Sequence[int]) -> list[Tensor]:
        return [self[i] for i in index]


def render_galaxies(n: int, seed: int, size: int, folder: Path | None = None) -> Float[Tensor, "n y x"]:
    """Images of unit sum, alternately smooth and clumpy; see :func:`~.simulate_lens.draw_source`.

    Args:
        n: number of galaxies.
        seed: of the random galaxies.
        size: side of an image [px].
        folder: where images are saved in chunks, so that an interrupted run continues. None saves nothing.

    Raises:
        InputError: if ``n`` is not positive.
        OutputError: if a chunk cannot be written.
    """
    if n < 1:
        raise InputError("galaxies", n, "1 or more")
    parts = []
    for first in range(0, n, _CHUNK):
        count = min(_CHUNK, n - first)
        path = None if folder is None else folder / f"{seed}-{first}-{count}.safetensors"
        if path is not None and path.is_file():
            parts.append(load_file(path)["images"])
            continue
        rng = np.random.default_rng([seed, first])
        images = np.stack([_galaxy(rng, first + i, size) for i in range(count)]).astype(np.float32)
        parts.append(torch.from_numpy(images))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_file({"images": parts[-1]}, partial)
    return torch.cat(parts)


def read_galaxies(path: Path, size: int) -> Float[Tensor, "n y x"]:
    """Images of unit sum: the tensor ``images`` of a safetensors file.

    Raises:
        DataError: the file is unreadable, or its images differ in size, are negative or are not of unit sum.
    """
    expected = f"a safetensors file with images [n >= 10, {size}, {size}], not negative, each of sum 1"
    try:
        images = load_file(path)["images"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(str(path), f"unusable ({error})", expected) from error
    if images.ndim != 3 or images.shape[1:] != (size, size) or len(images) < 10:
        raise DataError(str(path), f"images of shape {tuple(images.shape)}", expected)
    if not (images >= 0).all() or not torch.allclose(images.sum((1, 2)), torch.ones(len(images)), atol=1e-3):
        raise DataError(str(path), "negative pixels, NaN, or other sums", expected)
    return images


def _galaxy(rng: np.random.Generator, i: int, size: int) -> np.ndarray:
    radius = math.exp(rng.uniform(*np.log(_RADII)))
    return render_source(draw_source(rng, SOURCES[i % len(SOURCES)]), size, 1 / radius, blur=_BLUR)
