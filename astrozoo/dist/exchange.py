"""Collective operations with derivatives, for a program that all ranks run on parts of the same arrays.

The objective of such a program is one number that all ranks have, such as :func:`total` of their parts. Each
rank then calls ``backward`` and has the derivatives of its own parts. All ranks evaluate the same operations
in the same order, also in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astrozoo._comm import Comm

__all__ = ["exchange", "largest", "replicated", "total"]

Shapes = tuple[tuple[int, ...], ...]


def exchange(parts: Sequence[Tensor], shapes: Shapes, comm: Comm) -> tuple[Tensor, ...]:
    """:meth:`astrozoo._comm.Comm.all_to_all` with derivatives, which are exchanged the other way."""
    return _Exchange.apply(comm, shapes, *parts)


def total(x: Tensor, comm: Comm) -> Tensor:
    """The sum over ranks, on all of them."""
    return _Total.apply(comm, x)


def replicated(x: Tensor, comm: Comm) -> Tensor:
    """A tensor that is the same on all ranks, such as a parameter; its derivative is the sum over ranks."""
    return _Replicated.apply(comm, x)


def largest(x: Tensor, comm: Comm) -> Tensor:
    """The largest over ranks of a number; NaN if one is NaN. It has no derivative."""
    return _Largest.apply(comm, x)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(comm: Comm, shapes: Shapes, *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(comm.all_to_all(parts, shapes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.comm, _, *parts = inputs
        ctx.shapes = tuple(tuple(x.shape) for x in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *_Exchange.apply(ctx.comm, ctx.shapes, *gradients)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(comm: Comm, x: Tensor) -> Tensor:
        return comm.all_reduce(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.comm = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return None, _Replicated.apply(ctx.comm, gradient[0])


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(comm: Comm, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.comm = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return None, _Total.apply(ctx.comm, gradient[0])


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(comm: Comm, x: Tensor) -> Tensor:
        return comm.all_gather(x).amax(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return None, None
