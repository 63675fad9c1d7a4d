"""Linear filters of periodic fields, as products in Fourier space."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["binned_power", "filter_bank", "filtered", "frequencies", "summed"]


def frequencies(shape: tuple[int, int], like: Tensor) -> tuple[Float[Tensor, "y 1"], Float[Tensor, "h"]]:
    """Frequencies ky and kx of the modes of ``rfft2`` [cycles / pixel]; h is ``x // 2 + 1``."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    return torch.fft.fftfreq(shape[0], **options)[:, None], torch.fft.rfftfreq(shape[1], **options)


def filtered(field: Float[Tensor, "*b *grid"], kernel: Shaped[Tensor, "*modes"]) -> Float[Tensor, "*b *grid"]:
    """The field times a filter in Fourier space. The operator is symmetric if the kernel is real.

    Args:
        kernel: of the modes of ``rfft2`` (of a map) or ``rfftn`` (of a volume): real and even in k, or
            imaginary and odd (then 0 at the highest frequency of an even side). It has no gradient.
    """
    return _Filter.apply(field.unsqueeze(-kernel.dim() - 1), kernel.conj()[None], True)


def filter_bank(
    field: Float[Tensor, "*b *grid"], kernels: Shaped[Tensor, "m *modes"]
) -> Float[Tensor, "*b m *grid"]:
    """The field under each of several filters (:func:`filtered`)."""
    return _Filter.apply(field, kernels, False)


def summed(
    fields: Float[Tensor, "*b m *grid"], kernels: Shaped[Tensor, "m *modes"]
) -> Float[Tensor, "*b *grid"]:
    """The sum of fields, each under the conjugate of its filter: the adjoint of :func:`filter_bank`."""
    return _Filter.apply(fields, kernels, True)


def binned_power(
    field: Float[Tensor, "*b y x"], bins: int
) -> tuple[Float[Tensor, "bins"], Float[Tensor, "*b bins"]]:
    """Mean power in rings of frequency, relative to that of white noise of unit variance.

    Args:
        bins: rings of equal width in the logarithm of the frequency, up to the highest of an axis. A ring
            without modes is NaN.

    Returns:
        the mean frequency of each ring [cycles / pixel], and its power.
    """
    ny, nx = int(field.shape[-2]), int(field.shape[-1])
    ky, kx = frequencies((ny, nx), field)
    k = (kx**2 + ky**2).sqrt()
    edges = torch.logspace(
        math.log10(1 / max(ny, nx)), math.log10(0.5), bins + 1, dtype=k.dtype, device=k.device
    )
    ring = torch.bucketize(k, edges[1:-1])
    # A mode of the half spectrum stands for two, except in the first column and the last of an even side.
    count = torch.full_like(k, 2.0)
    count[:, 0] = 1
    if nx % 2 == 0:
        count[:, -1] = 1
    count = torch.where((k > 0) & (k <= 0.5), count, 0.0)
    power = torch.fft.rfft2(field, norm="ortho").abs().square()
    one_hot = torch.nn.functional.one_hot(ring, bins).to(k) * count[..., None]
    total = one_hot.sum((0, 1))
    middle = (one_hot * k[..., None]).sum((0, 1)) / total
    return middle, torch.einsum("...yh,yhn->...n", power, one_hot) / total


class _Filter(torch.autograd.Function):
    """:func:`filter_bank`, or its adjoint.

    Each is the derivative of the other, so that derivatives of any order cost as much as the function. The
    derivatives of torch's own real FFTs are complex FFTs of twice the size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernels: Tensor, adjoint: bool) -> Tensor:
        axes = kernels.dim() - 1
        shape, dim = x.shape[-axes:], tuple(range(-axes, 0))
        waves = torch.fft.rfftn(x, dim=dim)
        under = -axes - 1
        product = (waves * kernels.conj()).sum(under) if adjoint else waves.unsqueeze(under) * kernels
        return torch.fft.irfftn(product, s=shape, dim=dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernels, ctx.adjoint = inputs
        ctx.save_for_backward(kernels)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (kernels,) = ctx.saved_tensors
        return _Filter.apply(gradient[0], kernels, not ctx.adjoint), None, None
