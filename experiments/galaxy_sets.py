"""Sets of galaxies that experiments compare: simulated, reconstructed, and drawn from priors of latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data.simulate_galaxies import GalaxyStamps, simulate_galaxies
from astrozoo.models import galaxy_population, latent_galaxies
from astrozoo.models.galaxy_population import SURVEY
from astrozoo.models.latent_galaxies import CONDITIONS, SNR, LatentGalaxies, encoded, observed

__all__ = ["GalaxySet", "galaxy_sets", "priors"]

SEED = 2_000_003
"""Seed of the galaxies: neither the networks nor the flows are trained on it."""


@dataclass(frozen=True, eq=False)
class GalaxySet:
    """Noiseless images with their PSFs.

    Args:
        images: [flux of zero point 25].
        psf: of each, with the pixel.
        z: latents in fixed units, of decoded galaxies.
        conditions: of the galaxies, [n, condition], in the order of
            :data:`~astrozoo.models.latent_galaxies.CONDITIONS`.
    """

    images: Float[Tensor, "n y x"]
    psf: Float[Tensor, "n k l"]
    z: Float[Tensor, "n z"] | None = None
    conditions: Float[Tensor, "n condition"] | None = None

    @property
    def flux(self) -> Float[Tensor, "n"]:
        """Flux inside the stamps."""
        return self.images.sum((-2, -1))


def priors(folder: Path | None = None, weights: str | Path = "psf_vae") -> dict[str, LatentGalaxies]:
    """N(0, I) and the trained priors, by name.

    Args:
        folder: of :mod:`experiments.train_latent_flow`. None: the flows that the package ships.
        weights: of the decoder.
    """
    sources: dict[str, str | Path | None] = {"N(0, I)": None}
    if folder is not None:
        sources["VampPrior"] = folder / "vamp.safetensors"
    for name, stem in {"flow": "latent_flow_unconditional", "flow, given conditions": "latent_flow"}.items():
        sources[name] = stem if folder is None else folder / f"{stem}.safetensors"
    return {name: latent_galaxies.load(prior=source, weights=weights) for name, source in sources.items()}


def galaxy_sets(
    count: int,
    cache: Path,
    among: dict[str, LatentGalaxies],
    *,
    weights: str | Path = "psf_vae",
    seed: int = 0,
) -> dict[str, GalaxySet]:
    """Sets of ``count`` galaxies each, with PSFs of one distribution.

    "data" and "data again" are simulated galaxies that nothing is trained on. "reconstructions" decode draws
    of q(z | x) of "data", seen with noise. "parametric" are single Sersic profiles of the same population.
    The other sets are draws of the priors. Those with conditions take the conditions of "data".

    Args:
        cache: folder of simulated galaxies.
        among: the priors; see :func:`priors`.
    """
    stamps = simulate_galaxies(SURVEY, 2 * count, seed=SEED, cache=cache)
    first, again = stamps[:count], stamps[count:]
    smooth = replace(SURVEY, kinds=(1.0, 0.0, 0.0, 0.0, 0.0))
    parametric = simulate_galaxies(smooth, count, seed=SEED + 1, cache=cache)
    sets = {"data": _simulated(first), "data again": _simulated(again), "parametric": _simulated(parametric)}
    decoder = next(iter(among.values()))
    networks = galaxy_population.load(weights, dtype=torch.float32)
    image, noise_rms = observed(first, snr=SNR, seed=seed)
    mean, sd = encoded(networks, image, first.psf, noise_rms, SURVEY)
    z = mean + sd * torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    conditions = sets["data"].conditions
    sets["reconstructions"] = _decoded(decoder, z, first.psf, conditions)
    for name, galaxies in among.items():
        given = {n: getattr(first, n) for n in galaxies.inputs}
        sets[name] = _decoded(
            galaxies, galaxies.sample(count, given, seed=seed), first.psf, conditions if given else None
        )
    return sets


def _simulated(stamps: GalaxyStamps) -> GalaxySet:
    conditions = torch.stack([getattr(stamps, name) for name in CONDITIONS], 1)
    return GalaxySet(stamps.noiseless, stamps.psf, None, conditions)


@torch.no_grad()
def _decoded(galaxies: LatentGalaxies, z: Tensor, psf: Tensor, conditions: Tensor | None) -> GalaxySet:
    images = galaxies.images(z, psf, SURVEY.pixel_scale, SURVEY.size)
    return GalaxySet(images, psf, z, conditions)
