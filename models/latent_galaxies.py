"""Galaxies without PSF and noise that are drawn from a learned prior of the latents of
:mod:`astrozoo.models.psf_vae`.

:class:`LatentGalaxies` is that model's decoder with a prior ``p(z)`` or ``p(z | size, magnitude,
redshift)`` of :mod:`astrozoo.models.latent_flow` in place of ``N(0, I)``::

    galaxies = latent_galaxies.load()
    z = galaxies.sample(1000, {"half_light_radius": 0.3, "magnitude": 22.0, "redshift": 0.5}, seed=0)
    galaxies.light(z).image(psf, pixel_scale=0.1, shape=(48, 48))

The latents are in fixed units: fluxes in units of AB magnitude :data:`ZERO_POINT`, lengths in units of
:data:`LENGTH`. The table that the prior is trained on is that of :func:`table_of`.

References:
    Lanusse et al. 2021, MNRAS 504, 5543.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.latents import LatentTable
from astrozoo.data.simulate_galaxies import GalaxyStamps, GalaxySurvey
from astrozoo.errors import InputError
from astrozoo.models import galaxy_population, latent_flow
from astrozoo.models.galaxy_encoder import moments
from astrozoo.models.latent_flow import LatentPrior
from astrozoo.nets.galaxy import LATENT, GalaxyDecoder, Networks, Units, in_units
from astrozoo.physics.convolved_gaussians import (
    GaussianSum,
    convolved_image,
    surface_brightness,
    transfer_function,
)

__all__ = ["CONDITIONS", "LatentGalaxies", "encoded", "generator", "load", "observed", "table_of"]

ZERO_POINT = 30.0
"""[AB mag] Zero point of the latents' unit of flux. Latents of galaxies of 23 mag are then near 0."""
LENGTH = 0.1
"""[arcsec] The latents' unit of length: a pixel of the training set of :mod:`~astrozoo.models.psf_vae`."""
CONDITIONS = ("half_light_radius", "magnitude", "redshift")
"""Conditions of the shipped prior: [arcsec], of the circle of equal area; F814W [AB mag]; photometric."""
SNR = (50.0, 300.0)
"""Range of the signal-to-noise ratio of the stamps that :func:`table_of` encodes. In fainter ones, the
latents of structure are drawn from the encoder's prior N(0, I), and not from the galaxies."""
_SMOOTHING = 0.7
"""[px] Sigma of the Gaussian by which the galaxies of :meth:`LatentGalaxies.draw` are widened, so that the
sum of the pixels is the flux to 1e-4."""
_BATCH = 250
"""Stamps that are encoded at a time: 250 need about 100 MB."""


@dataclass(frozen=True, eq=False)
class LatentGalaxies:
    """A distribution of galaxies: a prior of latents and the decoder.

    It is a :class:`astrozoo.galsim_galaxy.Generator`, so ``GalSimGalaxy`` draws its galaxies.

    Args:
        decoder: of :mod:`astrozoo.models.psf_vae`.
        prior: of the latents. None: N(0, I).
        size: side of a stamp of :meth:`draw` [px].
        pixel_scale: of such a stamp [arcsec].
        zero_point: AB magnitude of a flux of 1.
    """

    decoder: GalaxyDecoder
    prior: LatentPrior | None
    size: int = 128
    pixel_scale: float = 0.05
    zero_point: float = 25.0

    def __post_init__(self) -> None:
        if self.prior is not None and self.prior.features != LATENT:
            raise InputError("prior of latents", f"{self.prior.features} latents", f"{LATENT}")

    @property
    def inputs(self) -> Mapping[str, tuple[float, float]]:
        """The conditions, and the range of each that the prior was trained on."""
        return {} if self.prior is None else self.prior.ranges

    def sample(
        self, count: int, conditions: Mapping[str, Any] | None = None, *, seed: int
    ) -> Float[Tensor, "count z"]:
        """Latents of galaxies.

        Args:
            count: number of galaxies.
            conditions: a number, or a tensor ``[count]``, for each of :attr:`inputs`.
            seed: of the draws.

        Raises:
            InputError: a condition is missing, unknown or not finite. The message has the trained ranges.

        Warns:
            UserWarning: a condition is outside the trained range.
        """
        if self.prior is None and conditions:
            raise InputError("conditions", ", ".join(conditions), "none: the prior is N(0, I)")
        given = {name: torch.as_tensor(value).expand(count) for name, value in (conditions or {}).items()}
        return self._drawn(count, None if self.prior is None else self.prior.tensor_of(given), seed)

    def _drawn(self, count: int, conditions: Tensor | None, seed: int) -> Float[Tensor, "count z"]:
        like = next(self.decoder.parameters())
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.prior is None:
                return torch.randn(count, LATENT, dtype=like.dtype).to(like)
            p = self.prior.prior(conditions)
            return p.sample((count,) if conditions is None else ())

    def light(self, z: Float[Tensor, "*b z"]) -> GaussianSum:
        """The galaxies as sums of Gaussians. Lengths are in arcsec from the centre of the stamp."""
        flux, length = z.new_tensor(10 ** (0.4 * (self.zero_point - ZERO_POINT))), z.new_tensor(LENGTH)
        with torch.no_grad():
            return GaussianSum(*self.decoder(z)).scaled(flux, length)

    def images(
        self, z: Float[Tensor, "*b z"], psf: Float[Tensor, "*b k l"], pixel_scale: float, size: int
    ) -> Float[Tensor, "*b size size"]:
        """Noiseless images.

        Args:
            psf: with the pixel, of unit sum and of the pixel scale.
            pixel_scale: [arcsec].
            size: side of the images [px].
        """
        seen = self.light(z).scaled(z.new_ones(()), z.new_tensor(1 / pixel_scale))
        return convolved_image(seen, transfer_function(psf.to(z), (size, size)), (size, size))

    def draw(self, random: torch.Generator, inputs: Mapping[str, float]) -> Float[Tensor, "y x"]:
        """A galaxy: surface brightness at pixel centres, times the area of a pixel.

        It is widened by a Gaussian of sigma .7 px, because components may be narrower than a pixel.
        """
        seed = int(torch.randint(2**62, (), generator=random))
        given = torch.tensor([[inputs[name] for name in self.inputs]]) if self.inputs else None
        (z,) = self._drawn(1, None if given is None else given.to(next(self.decoder.parameters())), seed)
        x, y = self._grid(z)
        return surface_brightness(self._smooth(z), x, y)

    def half_light_radius(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n"]:
        """Radius of the circle that is as large as the brightest pixels with half of a stamp's light
        [arcsec]. For elliptical profiles it is that of the circle of equal area."""
        x, y = self._grid(z)
        radii = []
        for one in z:
            values = surface_brightness(self._smooth(one), x, y).flatten().sort(descending=True).values
            light = values.cumsum(0)
            half = light[-1] / 2
            k = int(torch.searchsorted(light, half))
            before = light[k - 1] if k else light.new_zeros(())
            area = k + (half - before) / (light[k] - before)
            radii.append((area / math.pi).sqrt() * self.pixel_scale)
        return torch.stack(radii)

    def flux(self, z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b"]:
        """Total fluxes."""
        return self.light(z).flux.sum(-1)

    def _grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of the pixels of a stamp [px]."""
        axis = torch.arange(self.size, dtype=like.dtype, device=like.device) - (self.size - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return x, y

    def _smooth(self, z: Tensor) -> GaussianSum:
        """The light in pixels of a stamp, widened."""
        light = self.light(z).scaled(z.new_ones(()), z.new_tensor(1 / self.pixel_scale))
        wider = light.covariance + _SMOOTHING**2 * z.new_tensor([1.0, 0.0, 1.0])
        return light._replace(covariance=wider)


def load(
    *,
    prior: str | Path | Trained | LatentPrior | None = "latent_flow",
    weights: str | Path | Trained = "psf_vae",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> LatentGalaxies:
    """Galaxies of the trained networks.

    Args:
        prior: of the latents: "latent_flow" is conditional on :data:`CONDITIONS`, and
            "latent_flow_unconditional" on nothing; or a file written by training, or a prior. None: N(0, I).
        weights: of the decoder; see :func:`astrozoo.models.galaxy_population.load`.
        dtype: of the networks.
        settings: of :class:`LatentGalaxies`.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: a file is missing or corrupt, or its weights are of another model.
        InputError: the prior has another number of latents than the decoder.
    """
    if prior is not None and not isinstance(prior, LatentPrior):
        prior = latent_flow.load(weights=prior, dtype=dtype)
    networks = galaxy_population.load(weights, dtype=dtype)
    return LatentGalaxies(networks.decoder, prior, **settings)


@cache
def generator() -> LatentGalaxies:
    """The generator of galaxies with given size, magnitude and redshift, for ``GalSimGalaxy``."""
    return load()


def table_of(
    networks: Networks,
    stamps: GalaxyStamps,
    survey: GalaxySurvey,
    *,
    snr: tuple[float, float] = SNR,
    seed: int = 0,
) -> LatentTable:
    """q(z | x) in the fixed units, of simulated galaxies with new noise, and their conditions.

    Args:
        networks: in the dtype of the stamps.
        stamps: galaxies.
        survey: of the stamps.
        snr: range of the signal-to-noise ratio, whose logarithm is uniform.
        seed: of signal-to-noise ratios and noise.
    """
    image, noise_rms = observed(stamps, snr=snr, seed=seed)
    mean, sd = encoded(networks, image, stamps.psf, noise_rms, survey)
    conditions = torch.stack([getattr(stamps, name) for name in CONDITIONS], 1)
    return LatentTable(mean, sd, conditions.to(mean), CONDITIONS)


def observed(
    stamps: GalaxyStamps, *, snr: tuple[float, float], seed: int
) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "n"]]:
    """Images with new white noise, and the SD of the noise of a pixel of each."""
    g = torch.Generator().manual_seed(seed)
    clean = stamps.noiseless
    low, high = (math.log(limit) for limit in snr)
    ratio = (low + (high - low) * torch.rand(len(clean), generator=g, dtype=clean.dtype)).exp()
    noise_rms = clean.square().sum((-2, -1)).sqrt() / ratio
    noise = torch.randn(clean.shape, generator=g, dtype=clean.dtype)
    return clean + noise_rms[:, None, None] * noise, noise_rms


@torch.no_grad()
def encoded(
    networks: Networks,
    image: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n k l"],
    noise_rms: Float[Tensor, "n"],
    survey: GalaxySurvey,
) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n z"]]:
    """Means and SDs of q(z | x) in the fixed units."""
    unit = 10 ** (0.4 * (survey.zero_point - ZERO_POINT))
    rows = []
    for first in range(0, len(image), _BATCH):
        part = slice(first, first + _BATCH)
        noise = noise_rms[part]
        mean, sd = moments(networks, image[part] / noise[:, None, None], psf[part])
        length = torch.full_like(noise, LENGTH / survey.pixel_scale)
        rows.append((in_units(mean, Units(unit / noise, length)), sd))
    mean, sd = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return mean, sd
