"""Priors of the light of one galaxy in a blend, before the PSF: one shape in all bands.

A prior names its sites, which are normal, and turns their values into the Fourier transform of light of unit
flux. Two sites are common to all: ``log_radius``, ln of the half-light radius in units of the PSF's FWHM, and
``ellipticity``, whose axis ratio is ``exp(-2 |s|)``. The position is added by the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models import galaxy_population
from astrozoo.nets.galaxy import LATENT, GalaxyDecoder, flux_latent, sheared, size_latent
from astrozoo.physics.convolved_gaussians import GaussianSum, light_transform
from astrozoo.physics.sersic_gaussians import sersic_gaussians

__all__ = ["PRIORS", "LatentPrior", "Morphology", "NormalSite", "SersicPrior"]

LOG_RADIUS = (math.log(0.8), 0.6)
"""Mean and SD of ln(half-light radius / FWHM). Galaxies of 0.2 to 1.5 arcsec in a seeing of 0.7 arcsec are
within two SDs."""
ELLIPTICITY_SD = 0.3
"""SD of each component of the ellipticity: that of the decoder's training set."""
INDEX = (-0.3, 0.5)
"""Mean and SD of the coordinate of the Sersic index: the median is 1.3, and 0.65 to 3.8 are within two
SDs."""


class NormalSite(NamedTuple):
    """A latent of each galaxy, with a normal prior.

    Attributes:
        shape: of one galaxy's values.
        mean, sd: of each element.
    """

    shape: tuple[int, ...]
    mean: float
    sd: float


class Morphology(Protocol):
    """A prior of the light of a galaxy."""

    @property
    def sites(self) -> Mapping[str, NormalSite]:
        """The latents of a galaxy besides its fluxes and its position."""
        ...

    def transform(
        self,
        values: Mapping[str, Tensor],
        position: Float[Tensor, "*b 2"],
        fwhm: Float[Tensor, "*b"],
        frame: Float[Tensor, "*c 2 ky kx"],
    ) -> Float[Tensor, "*b 2 ky kx"]:
        """The transform of light of unit flux.

        Args:
            values: of :attr:`sites`, with leading batch axes.
            position: (x, y) from the centre of the image [px].
            fwhm: of the PSF [px].
            frame: any transfer function of the image, whose frequencies are used.
        """
        ...


_FRAME = {
    "log_radius": NormalSite((), *LOG_RADIUS),
    "ellipticity": NormalSite((2,), 0.0, ELLIPTICITY_SD),
}


@dataclass(frozen=True)
class SersicPrior:
    """A Sersic profile with elliptical isophotes. Further site: ``index_coordinate``
    (:func:`astrozoo.physics.sersic_gaussians.sersic_index`)."""

    @property
    def sites(self) -> Mapping[str, NormalSite]:
        """See :class:`Morphology`."""
        return {**_FRAME, "index_coordinate": NormalSite((), *INDEX)}

    def transform(
        self, values: Mapping[str, Tensor], position: Tensor, fwhm: Tensor, frame: Tensor
    ) -> Tensor:
        """See :class:`Morphology`."""
        flux, sigma = sersic_gaussians(values["index_coordinate"])
        radius = fwhm * values["log_radius"].exp()
        shear = 2 * values["ellipticity"]
        covariance = (radius[..., None] * sigma).square()[..., None] * sheared(
            shear[..., None, 0], shear[..., None, 1]
        )
        mean = position[..., None, :].expand(*covariance.shape[:-1], 2)
        return light_transform(GaussianSum(flux, mean, covariance), frame)


@dataclass(frozen=True)
class LatentPrior:
    """The decoder of ``psf_vae``, which was trained on simulated galaxies with knots, arms and bars.

    Further site: ``structure``, the decoder's ten latents of structure, which are standard normal. Flux,
    position, size and ellipticity are the scene's, because the decoder is linear in them.
    """

    def __post_init__(self) -> None:
        _decoder(torch.float64, torch.device("cpu"))  # a network cannot be made while a function is mapped

    @property
    def sites(self) -> Mapping[str, NormalSite]:
        """See :class:`Morphology`."""
        return {**_FRAME, "structure": NormalSite((LATENT - 6,), 0.0, 1.0)}

    def transform(
        self, values: Mapping[str, Tensor], position: Tensor, fwhm: Tensor, frame: Tensor
    ) -> Tensor:
        """See :class:`Morphology`."""
        structure, log_radius = values["structure"], values["log_radius"]
        decoder = _decoder(structure.dtype, structure.device)
        zero = torch.zeros_like(log_radius)[..., None]
        parts = (
            flux_latent(zero),
            zero,
            zero,
            size_latent(zero),
            values["ellipticity"] / ELLIPTICITY_SD,
            structure,
        )
        light = GaussianSum(*decoder(torch.cat(parts, -1))).scaled(zero[..., 0] + 1, fwhm * log_radius.exp())
        return light_transform(light._replace(mean=light.mean + position[..., None, :]), frame)


@cache
def _decoder(dtype: torch.dtype, device: torch.device) -> GalaxyDecoder:
    return galaxy_population.load("psf_vae", dtype=dtype, device=device).decoder


PRIORS: Mapping[str, Callable[[], Morphology]] = {"latent": LatentPrior, "sersic": SersicPrior}
"""Makers of the priors by name."""
