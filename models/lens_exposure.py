"""Images of strong lenses as tensors: the data of the lens models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.data.lens_image import LensImage
from astrozoo.errors import InputError

__all__ = ["Exposure", "observe", "stack"]


class Exposure(NamedTuple):
    """Images of one lens on one grid of pixels, in ``band`` bands.

    Attributes:
        image: values of the pixels [unit].
        psf: kernel with the image's pixel scale; it sums to 1.
        variance: variance of the noise that does not depend on the model [unit^2].
        gain: variance of the photon noise, divided by the model's image [unit]: 1 / exposure, or 0 for a map.
        mask: True where a pixel is used.
        pixel_scale: side of a pixel [arcsec].
    """

    image: Float[Tensor, "band y x"]
    psf: Float[Tensor, "band k k"]
    variance: Float[Tensor, "band y x"]
    gain: Float[Tensor, "band"]
    mask: Bool[Tensor, "band y x"]
    pixel_scale: Float[Tensor, ""]

    def total_variance(self, model: Float[Tensor, "band y x"]) -> Float[Tensor, "band y x"]:
        """Variance of all noise, given the model's image [unit^2]."""
        return self.variance + self.gain[:, None, None] * model.clamp_min(0.0)

    def rows(self) -> tuple[Exposure, ...]:
        """The lenses of a batch, one by one; of one lens, itself."""
        if self.image.ndim == 3:
            return (self,)
        return tuple(Exposure(*row) for row in zip(*self, strict=True))

    def check(self) -> None:
        """Verify that the tensors have consistent shapes and positive variances.

        Raises:
            InputError: they do not.
        """
        image, psf = self.image, self.psf
        if self.mask.shape != image.shape or self.variance.shape != image.shape:
            got = f"mask {tuple(self.mask.shape)}, variance {tuple(self.variance.shape)}"
            raise InputError("exposure", got, f"the shape of the image, {tuple(image.shape)}")
        if psf.shape[-1] % 2 == 0 or psf.shape[-2] % 2 == 0 or max(psf.shape[-2:]) > min(image.shape[-2:]):
            raise InputError("psf", f"shape {tuple(psf.shape)}", "odd sides, no larger than the image")
        if not bool((self.variance[self.mask] > 0).all()):
            raise InputError("variance", "unmasked pixels that are not positive", "positive variances")


def observe(*bands: LensImage, dtype: torch.dtype = torch.float64) -> Exposure:
    """The tensors of one lens, from one image per band, all on the same grid of pixels.

    Raises:
        InputError: there is no image, or the images differ in shape, pixel scale or size of the PSF.
    """
    if not bands:
        raise InputError("images of a lens", "none", "at least one")
    first = bands[0]
    for other in bands[1:]:
        grid = (other.shape, other.pixel_scale, other.psf.shape)
        if grid != (first.shape, first.pixel_scale, first.psf.shape):
            expected = f"the grid of {first.name!r}, {(first.shape, first.pixel_scale, first.psf.shape)}"
            raise InputError(f"lens image {other.name!r}", grid, f"{expected} (shape, pixel scale, PSF)")

    def stacked(arrays: Sequence[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(a, dtype=dtype) for a in arrays])

    variances = [
        torch.full(b.shape, b.background_rms**2) if b.background_rms else torch.as_tensor(b.noise) ** 2
        for b in bands
    ]
    return Exposure(
        image=stacked([b.image for b in bands]),
        psf=stacked([b.psf for b in bands]),
        variance=stacked(variances),
        gain=torch.tensor([1 / b.exposure if b.exposure else 0.0 for b in bands], dtype=dtype),
        mask=torch.stack([torch.as_tensor(b.mask) for b in bands]),
        pixel_scale=torch.tensor(first.pixel_scale, dtype=dtype),
    )


def stack(exposures: Sequence[Exposure]) -> Exposure:
    """Several lenses as one batch, with a leading axis on every tensor.

    Raises:
        InputError: their shapes differ.
    """
    shapes = {tuple(tuple(t.shape) for t in e) for e in exposures}
    if len(shapes) != 1:
        raise InputError("a batch of lenses", f"shapes {sorted(shapes)}", "images and PSFs of one shape")
    return Exposure(*map(torch.stack, zip(*exposures, strict=True)))
