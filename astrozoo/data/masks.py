"""Masks of surveys: bad and saturated pixels, from bits, codes, names of planes or one good value."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from astropy.io import fits
from jaxtyping import Bool

from astrozoo.data.arrays import read_array
from astrozoo.data.description import MaskDescription
from astrozoo.errors import DataError

__all__ = ["read_mask"]

_MOST_BITS = 64
"""[1] Bits of the widest mask."""


def read_mask(
    about: MaskDescription, what: str, shape: tuple[int, int], plane: int | None
) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"]]:
    """Bad and saturated pixels of a mask.

    Args:
        about: the mask, and what its values mean.
        what: the description's key, for messages.
        shape: of the image.
        plane: of the image in its cube.

    Raises:
        DataError: the mask has another shape or no whole numbers, or a bit or plane does not exist in it.
    """
    array, header = read_array(about.at, plane=plane)
    if array.shape != shape:
        raise DataError(f"{what} ({about.at})", f"shape {array.shape}", f"that of the image, {shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise DataError(f"{what} ({about.at})", f"values such as {array.ravel()[:3]}", "whole numbers")
    values = array.astype(np.int64)
    planes = {**about.planes, **_planes_of(header)}
    saturated = _any_of(values, about.saturated, about, planes, what)
    if about.good is not None:
        return values != about.good, saturated
    if about.bad is None:
        return (values != 0), saturated
    return _any_of(values, about.bad, about, planes, what) | saturated, saturated


def _planes_of(header: fits.Header) -> dict[str, int]:
    """Bits by name, from the ``MP_<NAME>`` cards of the pipeline of HSC and LSST."""
    cards = {str(key)[3:]: header[key] for key in header if re.match(r"MP_\w+$", str(key))}
    return {name: int(bit) for name, bit in cards.items() if isinstance(bit, int)}


def _any_of(
    values: np.ndarray,
    wanted: tuple[int | str, ...],
    about: MaskDescription,
    planes: Mapping[str, int],
    what: str,
) -> Bool[np.ndarray, "y x"]:
    """Pixels with any of the bits, or with any of the codes."""
    out = np.zeros(values.shape, bool)
    for name in wanted:
        if isinstance(name, str) and name not in planes:
            known = ", ".join(f"{n} ({b})" for n, b in planes.items()) or "none in the header: use numbers"
            raise DataError(what, f"the plane {name!r}", f"one of: {known}")
        number = planes[name] if isinstance(name, str) else name
        if about.codes:
            out |= values == number
        elif 0 <= number < _MOST_BITS:
            out |= (values >> number) & 1 == 1
        else:
            raise DataError(what, f"bit {number}", f"the number of a bit, from 0 to {_MOST_BITS - 1}")
    return out
