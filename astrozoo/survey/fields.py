"""Fields of images: their pixels are checked, boxes of them are read, and their contents are hashed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import binary_dilation

from astrozoo.data.images import Field, Image
from astrozoo.errors import InputError

__all__ = [
    "check_fraction",
    "check_pixels",
    "check_position_error",
    "fingerprint",
    "good_pixels",
    "read_box",
    "usable_field",
    "with_finite_noise",
]

_CORE = 3
"""Distance from a saturated pixel within which pixels are left out [px], because charge bleeds into them."""
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


def check_fraction(value: float) -> None:
    """Raise unless a number is a fraction of stars.

    Raises:
        InputError: it is not between 0 and 1, both excluded: neither type of source may be impossible.
    """
    if not 0 < value < 1:
        raise InputError("star fraction", value, "a number between 0 and 1")


def usable_field(images: Field) -> Field:
    """The images that have valid pixels, with a finite sky and calibration in masked pixels too.

    Raises:
        InputError: as :func:`check_pixels`.
    """
    check_pixels(images)
    return replace(images, images=tuple(with_finite_noise(image) for image in images if image.valid.any()))


def with_finite_noise(image: Image) -> Image:
    """An image whose masked pixels have the median sky and calibration where theirs are not usable."""
    changed = {}
    for name in ("sky", "calibration"):
        values = getattr(image, name)
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any() and image.valid.any():
            changed[name] = np.where(wrong, np.median(values[image.valid]), values)
    return replace(image, **changed) if changed else image


def check_position_error(value: float) -> None:
    """Raise unless a number is a standard deviation of positions.

    Raises:
        InputError: it is not positive and finite.
    """
    if not 0 < value < np.inf:
        raise InputError("position error", value, "a positive number [arcsec]")


def good_pixels(images: Field) -> list[Bool[np.ndarray, "y x"]]:
    """Valid pixels outside saturated cores, which goodness of fit is judged by."""
    grow = np.ones((3, 3))
    good = []
    for image in images:
        core = image.saturated
        if core.any():
            core = binary_dilation(core, grow, iterations=_CORE)
        good.append(image.valid & ~core)
    return good


def read_box(text: str) -> tuple[slice, slice]:
    """Rows and columns of "300:556,1400:1656".

    Raises:
        InputError: the text is not of that form, or the box is empty.
    """
    match = _BOX.fullmatch(text.replace(" ", ""))
    y0, y1, x0, x1 = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (y0 < y1 and x0 < x1):
        raise InputError("box", repr(text), "'row:row,column:column', such as '300:556,1400:1656'")
    return slice(y0, y1), slice(x0, x1)


def fingerprint(images: Field, *settings: object) -> str:
    """A hash of all pixels, their positions on the sky, the PSFs and the settings."""
    digest = hashlib.sha256()

    def add(part: object) -> None:
        array = part if isinstance(part, np.ndarray) else None
        text = repr(part) if array is None else f"{array.dtype}{array.shape}"
        # the length keeps lists of parts apart that are the same text when joined
        digest.update(f"{len(text)}:{text}".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())

    for image in images:
        ny, nx = image.shape
        corners = np.array([[0.0, 0.0, nx - 1.0, nx - 1.0], [0.0, ny - 1.0, 0.0, ny - 1.0]])
        add(image.band)
        for array in (image.counts, image.sky, image.calibration, image.valid):
            add(array)
        add(np.stack(image.wcs.all_pix2world(*corners, 0)))
        add(image.psf.stamp((nx - 1) / 2, (ny - 1) / 2))
    for setting in settings:
        add(setting)
    return digest.hexdigest()[:16]
