"""Stamps of several bands in units of their noise: what a lens finder is given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import DataError

__all__ = ["MOST_MISSING", "Prepared", "prepare"]

MOST_MISSING = 0.3
"""Largest fraction of the pixels of a band that may have no data. With more, arcs may be hidden."""
_MAD = 0.6744897501960817
"""Median absolute deviation of a standard normal."""


class Prepared(NamedTuple):
    """Stamps in units of the noise.

    Attributes:
        image: sky-subtracted, divided by the noise; 0 where there are no data.
        noise: SD of a pixel's noise in each band [unit of the stamps].
        sky: that was subtracted [unit of the stamps].
    """

    image: Float[Tensor, "n band y x"]
    noise: Float[Tensor, "n band"]
    sky: Float[Tensor, "n band"]


def prepare(image: Float[Tensor, "n band y x"], names: tuple[str, ...] = ()) -> Prepared:
    """Subtract the median of each band of a stamp, and divide by its noise.

    The noise is measured from differences of adjacent pixels by their median absolute deviation, so that a
    galaxy in the middle hardly changes it. It is that of a pixel if the noise is white.

    Args:
        image: stamps; NaN in pixels without data.
        names: of the stamps, for messages.

    Raises:
        DataError: a band of a stamp has too few pixels with data (:data:`MOST_MISSING`) or the same value in
            most pixels.
    """
    used = image.isfinite()
    missing = 1 - used.flatten(2).float().mean(2)
    _check(
        missing > MOST_MISSING, names, f"more than {MOST_MISSING:.0%} of the pixels of a band without data"
    )
    image = torch.where(used, image, torch.nan)
    sky = image.flatten(2).nanmedian(2).values
    differences = torch.cat([image.diff(dim=axis).flatten(2) for axis in (-1, -2)], 2)
    noise = differences.abs().nanmedian(2).values / (_MAD * 2**0.5)
    _check(~(noise > 0), names, "a band with the same value in most pixels")
    scaled = (image - sky[:, :, None, None]) / noise[:, :, None, None]
    return Prepared(scaled.nan_to_num(0.0), noise, sky)


def _check(bad: Tensor, names: tuple[str, ...], got: str) -> None:
    stamps = bad.any(1).nonzero().flatten().tolist()
    if stamps:
        some = ", ".join(names[i] if names else str(i) for i in stamps[:5])
        more = f" and {len(stamps) - 5} more" if len(stamps) > 5 else ""
        raise DataError(f"stamp {some}{more}", got, "images with data in most pixels")
