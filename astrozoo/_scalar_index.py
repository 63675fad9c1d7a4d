"""``A[k]`` under vmap with a ``k`` that has no dimensions, such as a discrete latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ScalarIndices", "plate_indices"]


_PLATE = "_astrozoo_plate_indices"
"""Attribute that marks a tensor as the indices of a plate."""


def plate_indices(indices: Tensor) -> Tensor:
    """Mark all indices of a plate: a sequential plate then iterates over numbers, which a graph can hold."""
    setattr(indices, _PLATE, True)
    return indices


class ScalarIndices(TorchFunctionMode):
    """While it is active, a tensor without dimensions may index another tensor under vmap.

    Torch reads such an index as a Python number. Under vmap there is no such number, and torch refuses.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.unbind and getattr(args[0], _PLATE, False):  # of ``for i in plate``
            return range(len(args[0]))
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_scalar, index)):
                return _indexed(args[0], index)
        return func(*args, **(kwargs or {}))


def _is_scalar(item: Any) -> bool:
    return isinstance(item, Tensor) and item.ndim == 0 and item.dtype not in (torch.bool, torch.uint8)


def _indexed(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """``x[index]``. Scalar indices are applied first, as torch does."""
    sizes = [_dims(item) for item in index]
    missing = [slice(None)] * (x.ndim - sum(sizes))
    gap = next((n for n, item in enumerate(index) if item is Ellipsis), len(index))
    rest: list[Any] = []
    dim = 0
    for item in (*index[:gap], *missing, *index[gap + 1 :]):
        if _is_scalar(item):
            positive = torch.where(item < 0, item + x.shape[dim], item)
            x = x.index_select(dim, positive.long().reshape(1)).squeeze(dim)
        else:
            rest.append(item)
            dim += _dims(item)
    return x[tuple(rest)]


def _dims(item: Any) -> int:
    """Number of dimensions that an item of an index consumes."""
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1
