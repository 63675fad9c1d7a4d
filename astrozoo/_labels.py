"""Names of sites, of their axes and of positions along the axes: validation, and names that files allow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astrozoo.errors import InputError

__all__ = [
    "RESERVED",
    "check_sites",
    "checked_coords",
    "checked_dims",
    "checked_start",
    "decoded",
    "encoded",
    "file_names",
]

RESERVED = ("chain", "draw", "problem")
"""Names of the axes that every result has. An axis of a site must not have one of these names."""


def checked_dims(dims: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of axes by site, as tuples.

    Raises:
        InputError: they are not sequences of different, unreserved, non-empty names.
    """
    for site, axes in dims.items():
        what = f"dims of {site!r}"
        if isinstance(axes, str) or not all(isinstance(axis, str) and axis for axis in axes):
            raise InputError(what, repr(axes), "a tuple with a name for each axis")
        if len(set(axes)) < len(axes):
            raise InputError(what, repr(axes), "different names for different axes")
        if set(axes) & set(RESERVED):
            raise InputError(
                what, repr(axes), f"other names than {', '.join(RESERVED)}, axes of every result"
            )
    return {site: tuple(axes) for site, axes in dims.items()}


def checked_coords(coords: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values along axes, as arrays of one dimension.

    Raises:
        InputError: the values are not numbers, strings or dates of one kind in one dimension.
    """
    return {axis: _coordinate(axis, values) for axis, values in coords.items()}


def _coordinate(axis: str, values: Any) -> np.ndarray:
    expected = "a sequence of numbers, strings or dates (without time zones), all of one kind"
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"coords of {axis!r}", repr(values), expected)
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if not hasattr(values, "dtype"):
        values = list(values)
        kinds = {_kind(value) for value in values}
        if len(kinds) > 1 or None in kinds:
            raise InputError(f"coords of {axis!r}", repr(values)[:80], expected)
        array = np.asarray(values, dtype="datetime64[us]" if kinds == {"date"} else None)
    else:
        array = np.asarray(values)
        if array.dtype.kind in "OT" and all(isinstance(value, str) for value in array.flat):
            array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "biufUMm":
        raise InputError(f"coords of {axis!r}", f"shape {array.shape} of {array.dtype}", expected)
    return array


def _kind(value: Any) -> str | None:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return str(value.dtype)
    if isinstance(value, datetime | date):
        return None if getattr(value, "tzinfo", None) else "date"
    kinds = ((bool | np.bool_, "bool"), (str, "str"), (int | float | np.integer | np.floating, "number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None)


def checked_start(start: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Starting values as tensors.

    Raises:
        InputError: a value is not numeric, or not finite.
    """
    tensors = {}
    for site, value in start.items():
        try:
            x = value if isinstance(value, Tensor) else torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"start of {site!r}", type(value).__name__, "numbers or a tensor") from error
        if not x.isfinite().all():
            raise InputError(f"start of {site!r}", "values that are not finite", "finite values")
        tensors[site] = x if isinstance(value, Tensor) else x.to(dtype)
    return tensors


def check_sites(
    dims: Mapping[str, tuple[str, ...]], coords: Mapping[str, np.ndarray], shapes: Mapping[str, torch.Size]
) -> None:
    """Compare the names of axes with the sites of a model.

    Args:
        dims: names of axes, by site.
        coords: values along axes, by axis.
        shapes: shapes of all sites of one problem.

    Raises:
        InputError: a site is unknown or has fewer axes, axes of different lengths have the same name, or the
            length of coords differs from that of their axis.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for site, axes in dims.items():
        if site not in shapes:
            raise InputError("dims", f"axes of {site!r}", f"names among the sites {sorted(shapes)}")
        if len(axes) > len(shapes[site]):
            raise InputError(f"dims of {site!r}", axes, f"at most {len(shapes[site])}, one for each axis")
        for axis, length in zip(axes, shapes[site], strict=False):
            known, other = lengths.setdefault(axis, (length, site))
            if known != length:
                got = f"axis {axis!r} of length {length}, and of {known} at {other!r}"
                raise InputError(f"dims of {site!r}", got, "another name for an axis of another length")
    for axis, values in coords.items():
        length, site = lengths.get(axis, (len(values), ""))
        if len(values) != length:
            raise InputError(f"coords of {axis!r}", f"{len(values)} values", f"{length}, as {site!r} has")


def file_names(names: Iterable[str], axes: Iterable[str]) -> dict[str, str]:
    """Names of variables for files and ArviZ: without ``/``, and different from the axes.

    A ``/`` means a group in NetCDF, and xarray takes a variable with the name of an axis for that axis.
    """
    taken, chosen = set(axes), {}
    names = list(names)
    for name in sorted(names, key=lambda name: bool(re.search(r"[/\0]", name))):
        label = re.sub(r"[/\0]", ".", name)
        label = label if label.strip(".") else f"site{label}"
        while label in taken:
            label += "_"
        taken.add(label)
        chosen[name] = label
    return chosen


def encoded(coords: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Coordinates as JSON, with their dtypes. Dates are integers, in the unit of their dtype."""
    plain = {axis: x.view(np.int64) if x.dtype.kind in "Mm" else x for axis, x in coords.items()}
    return {axis: {"dtype": coords[axis].dtype.str, "values": x.tolist()} for axis, x in plain.items()}


def decoded(coords: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of :func:`encoded`."""
    arrays = {}
    for axis, entry in coords.items():
        dtype = np.dtype(entry["dtype"])
        dates = dtype.kind in "Mm"
        array = np.asarray(entry["values"], dtype=np.int64 if dates else dtype)
        arrays[axis] = array.view(dtype) if dates else array
    return arrays
