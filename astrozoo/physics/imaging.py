"""From surface brightness to pixels: grids, supersampling, PSFs, and the noise of a detector.

Images are ``[y, x]``, with the origin of angular coordinates at the centre of the array, x to the right and
y up [arcsec].
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "circular_convolve",
    "convolve",
    "downsample",
    "gaussian_log_likelihood",
    "noise_variance",
    "pixel_grid",
    "poisson_log_likelihood",
]


def pixel_grid(
    shape: tuple[int, int], pixel_scale: Tensor, supersample: int = 1
) -> tuple[Float[Tensor, "Y X"], Float[Tensor, "Y X"]]:
    """x and y of the centres of pixels, or of ``supersample^2`` equal parts of each [arcsec].

    Args:
        shape: (rows, columns), of whole pixels.
        pixel_scale: [arcsec]; its dtype and device are the grid's.
    """

    def axis(n: int) -> Tensor:
        whole = n * supersample
        steps = torch.arange(whole, dtype=pixel_scale.dtype, device=pixel_scale.device)
        return (steps - (whole - 1) / 2) * (pixel_scale / supersample)

    y, x = torch.meshgrid(axis(shape[0]), axis(shape[1]), indexing="ij")
    return x, y


def downsample(image: Float[Tensor, "*b Y X"], supersample: int) -> Float[Tensor, "*b y x"]:
    """Means over blocks of ``supersample^2``."""
    if supersample == 1:
        return image
    *head, ny, nx = image.shape
    blocks = image.reshape(*head, ny // supersample, supersample, nx // supersample, supersample)
    return blocks.mean((-3, -1))


def convolve(image: Float[Tensor, "*b y x"], psf: Float[Tensor, "*b k k"]) -> Float[Tensor, "*b y x"]:
    """Convolution with a PSF of odd side, of an image that is dark outside its frame."""
    (ny, nx), (ky, kx) = image.shape[-2:], psf.shape[-2:]
    size = (_fast(ny + ky // 2), _fast(nx + kx // 2))
    # the middle of the PSF goes to the origin, so that what wraps around lands outside the frame
    kernel = torch.nn.functional.pad(psf, (0, size[1] - kx, 0, size[0] - ky))
    kernel = torch.roll(kernel, (-(ky // 2), -(kx // 2)), (-2, -1))
    padded = torch.nn.functional.pad(image, (0, size[1] - nx, 0, size[0] - ny))
    return _Circular.apply(padded, kernel, False)[..., :ny, :nx]


def circular_convolve(image: Float[Tensor, "*b y x"], kernel: Float[Tensor, "*b y x"]) -> Tensor:
    """Convolution of an image that repeats in both directions. The kernel's origin is its first pixel."""
    return _Circular.apply(image, kernel, False)


class _Circular(torch.autograd.Function):
    """Circular convolution of real arrays ``[..., y, x]``, or correlation with the second (``reflect``).

    Its derivatives are again such products, so that a Hessian takes half the time that it takes through
    torch's real FFTs: the derivatives of those are complex FFTs of twice the size. Inductor (torch 2.13)
    miscompiled the Hessian of a lens that had them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, reflect: bool) -> Tensor:
        kernel = torch.fft.rfft2(b)
        product = torch.fft.rfft2(a) * (kernel.conj() if reflect else kernel)
        return torch.fft.irfft2(product, s=a.shape[-2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        a, b, ctx.reflect = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (a, b) = outer, ctx.saved_tensors
        of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_a = _Circular.apply(g, b, not ctx.reflect).sum_to_size(a.shape)
        if ctx.needs_input_grad[1]:
            of_b = _Circular.apply(*((a, g) if ctx.reflect else (g, a)), True).sum_to_size(b.shape)
        return of_a, of_b, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        a, b = ctx.saved_tensors
        parts = [
            _Circular.apply(x, y, ctx.reflect)
            for x, y in ((da, b), (a, db))
            if x is not None and y is not None
        ]
        return sum(parts[1:], parts[0])


def _fast(n: int) -> int:
    """The next length that is a product of 2, 3 and 5."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def noise_variance(
    model: Float[Tensor, "*b y x"], background_rms: Tensor, exposure: Tensor
) -> Float[Tensor, "*b y x"]:
    """``background_rms^2 + model / exposure``, the model not below 0."""
    return background_rms**2 + model.clamp_min(0.0) / exposure


def gaussian_log_likelihood(
    image: Float[Tensor, "*b y x"],
    model: Float[Tensor, "*b y x"],
    variance: Float[Tensor, "*b y x"],
    mask: Bool[Tensor, "*b y x"] | None = None,
) -> Tensor:
    """Sum over the pixels where the mask is True (all by default)."""
    each = torch.distributions.Normal(model, variance.sqrt(), validate_args=False).log_prob(image)
    return (each if mask is None else torch.where(mask, each, 0.0)).sum()


def poisson_log_likelihood(
    counts: Float[Tensor, "*b y x"],
    expected: Float[Tensor, "*b y x"],
    mask: Bool[Tensor, "*b y x"] | None = None,
) -> Tensor:
    """Sum over the pixels where the mask is True (all by default)."""
    each = torch.distributions.Poisson(expected, validate_args=False).log_prob(counts)
    return (each if mask is None else torch.where(mask, each, 0.0)).sum()
