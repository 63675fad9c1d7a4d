"""Checks of a field, and the part of it that a user asks for."""

from __future__ import annotations

import re

import numpy as np

from astrozoo.data.images import Field
from astrozoo.errors import InputError

__all__ = ["check_pixels", "read_box"]

_BOX = re.compile(r"(\d+):(\d+),(\d+):(\d+)")


def check_pixels(images: Field) -> None:
    """Raise unless every valid pixel can be used.

    Raises:
        InputError: no pixel is valid, or a valid one has counts that are not finite, or a sky or calibration
            that is not finite and positive.
    """
    if not any(image.valid.any() for image in images):
        raise InputError(f"field {images.name!r}", "every pixel masked", "an image with valid pixels")
    for image in images:
        good = {"counts": np.isfinite(image.counts)}
        for name in ("sky", "calibration"):
            values = getattr(image, name)
            good[name] = np.isfinite(values) & (values > 0)
        for name, usable in good.items():
            bad = int((image.valid & ~usable).sum())
            if bad:
                wrong = "not finite" if name == "counts" else "not finite or not positive"
                raise InputError(
                    f"image {image.name or image.band}",
                    f"{bad} valid pixels with {name} {wrong}",
                    "a mask over them",
                )


def read_box(text: str) -> tuple[slice, slice]:
    """Rows and columns of "300:556,1400:1656".

    Raises:
        InputError: the text is not of that form, or the box is empty.
    """
    found = _BOX.fullmatch(text.replace(" ", ""))
    y0, y1, x0, x1 = map(int, found.groups()) if found else (0, 0, 0, 0)
    if not (y0 < y1 and x0 < x1):
        raise InputError("box", repr(text), "'row:row,column:column', such as '300:556,1400:1656'")
    return slice(y0, y1), slice(x0, x1)
