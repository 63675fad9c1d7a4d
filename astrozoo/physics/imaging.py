"""From surface brightness to pixels: grids, supersampling, PSFs, and the noise of a detector.

Images are ``[y, x]``, with the origin of angular coordinates at the centre of the array, x to the right and
y up [arcsec].
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
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
    product = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel)
    return torch.fft.irfft2(product, s=size)[..., :ny, :nx]


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
