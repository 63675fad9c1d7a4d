"""Simulated stamps with new noise at every look, in the eight orientations of a square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from astrozoo.errors import InputError

__all__ = ["NoisyStamps", "Stamp", "noisy_stamps"]


class Stamp(NamedTuple):
    """One simulated galaxy, or several along a first axis.

    Attributes:
        image: with noise, divided by the standard deviation of the noise.
        noiseless: the same without noise.
        psf: of unit sum.
    """

    image: Float[Tensor, "*n y x"]
    noiseless: Float[Tensor, "*n y x"]
    psf: Float[Tensor, "*n k l"]


class NoisyStamps(Dataset[Stamp]):
    """Each galaxy in eight orientations, each with several signal-to-noise ratios and noises.

    An item depends on the seed and its number only, so that training can be continued and repeated.

    Args:
        noiseless: galaxies with their PSF and pixels.
        psf: the PSF of each.
        snr: range of the signal-to-noise ratio, whose logarithm is uniform: the root of the sum of the
            squares of the noiseless pixels, divided by the standard deviation of the noise.
        size: side of the middle part that is used [px]; None: the whole stamp. PSFs are not cut.
        repeats: number of noises of each galaxy in each orientation.
        seed: of signal-to-noise ratios and noises.

    Raises:
        InputError: there is no galaxy, or the range is empty.
    """

    def __init__(
        self,
        noiseless: Float[Tensor, "n y x"],
        psf: Float[Tensor, "n k k"],
        *,
        snr: tuple[float, float],
        size: int | None = None,
        repeats: int = 8,
        seed: int = 0,
    ) -> None:
        if not len(noiseless) or len(noiseless) != len(psf):
            raise InputError(
                "galaxies", f"{len(noiseless)} with {len(psf)} PSFs", "at least one, each with a PSF"
            )
        if not 0 < snr[0] <= snr[1]:
            raise InputError("snr", snr, "(low, high) with 0 < low <= high")
        if size is not None:
            cut = (noiseless.shape[-1] - size) // 2
            if size < 1 or cut < 0 or (noiseless.shape[-1] - size) % 2:
                side = noiseless.shape[-1]
                raise InputError("size", size, f"the side of the stamps, {side} px, less an even number")
            noiseless = noiseless[:, cut : cut + size, cut : cut + size]
        self.noiseless, self.psf, self.snr, self.repeats, self.seed = noiseless, psf, snr, repeats, seed

    def __len__(self) -> int:
        return 8 * self.repeats * len(self.noiseless)

    def __getitem__(self, index: int) -> Stamp:
        galaxy, orientation = index // (8 * self.repeats), index % 8
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        low, high = (math.log(snr) for snr in self.snr)
        snr = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
        clean, psf = (self._turned(x[galaxy], orientation) for x in (self.noiseless, self.psf))
        clean = clean * (snr / clean.square().sum().sqrt())
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return Stamp(clean + noise, clean, psf)

    def __getitems__(self, index: Sequence[int]) -> list[Stamp]:
        return [self[i] for i in index]

    @staticmethod
    def _turned(image: Tensor, orientation: int) -> Tensor:
        image = torch.rot90(image, orientation % 4)
        return image.flip(1) if orientation >= 4 else image


def noisy_stamps(
    noiseless: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n k k"],
    *,
    snr: tuple[float, float],
    size: int | None = None,
    seed: int = 0,
) -> Stamp:
    """Each galaxy once, as it is oriented, with a random signal-to-noise ratio and noise."""
    items = NoisyStamps(noiseless, psf, snr=snr, size=size, repeats=1, seed=seed)
    return Stamp(*(torch.stack(part) for part in zip(*(items[8 * i] for i in range(len(psf))), strict=True)))
