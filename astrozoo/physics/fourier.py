"""Linear filters of periodic fields, as products in Fourier space."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["filter_bank", "filtered", "frequencies", "summed"]


def frequencies(shape: tuple[int, int], like: Tensor) -> tuple[Float[Tensor, "y 1"], Float[Tensor, "h"]]:
    """Frequencies ky and kx of the modes of ``rfft2`` [cycles / pixel]; h is ``x // 2 + 1``."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    return torch.fft.fftfreq(shape[0], **options)[:, None], torch.fft.rfftfreq(shape[1], **options)


def filtered(field: Float[Tensor, "*b y x"], kernel: Float[Tensor, "y h"]) -> Float[Tensor, "*b y x"]:
    """The field times a filter in Fourier space. The operator is symmetric.

    Args:
        kernel: of the modes of ``rfft2``; real and even in k. It has no gradient.
    """
    return _Filter.apply(field[..., None, :, :], kernel[None], True)


def filter_bank(field: Float[Tensor, "*b y x"], kernels: Float[Tensor, "m y h"]) -> Float[Tensor, "*b m y x"]:
    """The field under each of several filters (:func:`filtered`)."""
    return _Filter.apply(field, kernels, False)


def summed(fields: Float[Tensor, "*b m y x"], kernels: Float[Tensor, "m y h"]) -> Float[Tensor, "*b y x"]:
    """The sum of fields, each under its filter: the adjoint of :func:`filter_bank`."""
    return _Filter.apply(fields, kernels, True)


class _Filter(torch.autograd.Function):
    """:func:`filter_bank`, or its adjoint.

    Each is the derivative of the other, so that derivatives of any order cost as much as the function. The
    derivatives of torch's own real FFTs are complex FFTs of twice the size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernels: Tensor, adjoint: bool) -> Tensor:
        waves = torch.fft.rfft2(x)
        product = (waves * kernels).sum(-3) if adjoint else waves[..., None, :, :] * kernels
        return torch.fft.irfft2(product, s=x.shape[-2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernels, ctx.adjoint = inputs
        ctx.save_for_backward(kernels)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (kernels,) = ctx.saved_tensors
        return _Filter.apply(gradient[0], kernels, not ctx.adjoint), None, None
