"""Shear (g1, g2) of a batch of galaxies, with the distribution of their intrinsic shapes learned.

Each galaxy comes with draws of its parameters from the posterior under an *interim* prior, and a log weight
for each draw: the interim posterior over the density that it was drawn from, without the interim prior. The
likelihood of a galaxy under the population ``alpha`` and the shear is the mean over its draws of

    weight * p(eta, ln r, ln F | g, alpha),

where the density of the seen ellipticity is that of the intrinsic one, times the Jacobian of the inverse
shear (:func:`astrozoo.physics.ellipticity.unshear`). The shear is the same for all galaxies.

:mod:`astrozoo.shear` makes the draws from images.

References:
    Schneider et al. 2015, ApJ 807, 87 (hierarchical inference of shear by importance sampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.ellipticity import unshear
from astrozoo.types import Problem

__all__ = ["GalaxyDraws", "Population", "Shear", "problem", "simulate"]

_SCALES = {"ellipticity_sd": 0.5, "log_flux_sd": 0.5, "log_radius_sd": 0.3}
"""Prior medians of the population's SDs: about those of faint galaxies."""
_SCALE_SD = 0.7
"""Prior SD of the logarithm of each: a factor of two."""
_CENTRE_SD = (2.0, 1.0)
"""Prior SDs of the population's means of ln F and ln r. They are wide, because the data give the means."""
_SLOPE_SD = 0.5
"""Prior SD of the slope of ln r against ln F."""
_SIMULATED_ERRORS = (0.1, 0.1, 0.05, 0.025)
"""Errors of (eta_1, eta_2, ln r, ln F) of simulated galaxies, about those of images with an S/N of 50. With
larger ones, few draws of a galaxy would lie in a narrow population, and the mean over them would be poor."""


class GalaxyDraws(NamedTuple):
    """Draws of the parameters of galaxies.

    Attributes:
        eta: ellipticity as seen, see :mod:`astrozoo.physics.ellipticity`.
        log_radius: ln of the half-light radius [arcsec].
        log_flux: ln of the flux.
        log_weight: log of the likelihood of the galaxy's data over the density of the draw. A constant may
            be added to all those of a galaxy.
    """

    eta: Float[Tensor, "galaxy draw 2"]
    log_radius: Float[Tensor, "galaxy draw"]
    log_flux: Float[Tensor, "galaxy draw"]
    log_weight: Float[Tensor, "galaxy draw"]


class Population(NamedTuple):
    """The distribution of galaxies.

    Attributes:
        ellipticity_sd: SD of each component of the intrinsic ellipticity, which is normal.
        log_flux_mean, log_flux_sd: of ln F, which is normal.
        log_radius_mean, log_radius_sd: of ln r at the mean of ln F. Given ln F, ln r is normal.
        radius_slope: d(mean of ln r) / d(ln F).
    """

    ellipticity_sd: Tensor
    log_flux_mean: Tensor
    log_flux_sd: Tensor
    log_radius_mean: Tensor
    log_radius_sd: Tensor
    radius_slope: Tensor

    def log_density(
        self, eta: Float[Tensor, "*b 2"], log_radius: Float[Tensor, "*b"], log_flux: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b"]:
        """Log density of intrinsic ellipticities, sizes and fluxes."""
        brighter = log_flux - self.log_flux_mean
        larger = log_radius - self.log_radius_mean - self.radius_slope * brighter
        shape = (eta / self.ellipticity_sd).square().sum(-1)
        flux, radius = (brighter / self.log_flux_sd).square(), (larger / self.log_radius_sd).square()
        scale = 2 * self.ellipticity_sd.log() + self.log_flux_sd.log() + self.log_radius_sd.log()
        return -0.5 * (shape + flux + radius) - scale - 2 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Shear:
    """The hierarchical model. Its latents are the shear and the parameters of :class:`Population`.

    Args:
        shear_sd: prior SD of each component of the shear. The default is that of the outskirts of a cluster,
            ten times that of blank sky.
    """

    shear_sd: float = 0.1

    def __call__(self, galaxies: GalaxyDraws, centre: Float[Tensor, "2"]) -> None:
        """The model.

        Args:
            centre: prior means of the population's means of ln F and of ln r [ln arcsec].
        """
        like = galaxies.log_weight

        def normal(name: str, mean: Tensor, sd: float) -> Tensor:
            return pyro.sample(name, dist.Normal(mean, sd))

        def scale(name: str) -> Tensor:
            return pyro.sample(name, dist.LogNormal(like.new_tensor(math.log(_SCALES[name])), _SCALE_SD))

        prior = dist.Normal(like.new_zeros(2), self.shear_sd).to_event(1)
        shear = pyro.sample("shear", prior)
        population = Population(
            ellipticity_sd=scale("ellipticity_sd"),
            log_flux_mean=normal("log_flux_mean", centre[0], _CENTRE_SD[0]),
            log_flux_sd=scale("log_flux_sd"),
            log_radius_mean=normal("log_radius_mean", centre[1], _CENTRE_SD[1]),
            log_radius_sd=scale("log_radius_sd"),
            radius_slope=normal("radius_slope", torch.zeros_like(centre[0]), _SLOPE_SD),
        )
        with pyro.plate("galaxy", len(like)):
            pyro.factor("galaxies", log_likelihood(galaxies, shear, population))


def log_likelihood(
    galaxies: GalaxyDraws, shear: Float[Tensor, "2"], population: Population
) -> Float[Tensor, "galaxy"]:
    """Log likelihood of each galaxy, up to a constant: the log of the mean over its draws."""
    intrinsic, log_jacobian = unshear(galaxies.eta, shear)
    density = population.log_density(intrinsic, galaxies.log_radius, galaxies.log_flux) + log_jacobian
    return torch.logsumexp(density + galaxies.log_weight, -1) - math.log(galaxies.log_weight.shape[-1])


def problem(data: GalaxyDraws, *, shear_sd: float = 0.1) -> Problem:
    """The problem of the shear of all galaxies.

    Args:
        shear_sd: see :class:`Shear`.

    Raises:
        InputError: fewer than two galaxies, or draws that are not finite.
    """
    if data.log_weight.ndim != 2 or len(data.log_weight) < 2:
        raise InputError("galaxies", f"draws of shape {tuple(data.log_weight.shape)}", "2 galaxies or more")
    if not all(part.isfinite().all() for part in data):
        raise InputError("galaxies", "draws that are not finite", "numbers")
    weight = data.log_weight.softmax(-1)
    flux, radius = ((weight * part).sum(-1) for part in (data.log_flux, data.log_radius))
    centre = torch.stack((flux.median(), radius.median()))
    start = {
        "shear": (weight[..., None] * data.eta).sum(-2).mean(0).clamp(-0.2, 0.2) / 2,
        "log_flux_mean": centre[0],
        "log_radius_mean": centre[1],
        "log_flux_sd": flux.std().clamp(0.05, 2.0),
        "log_radius_sd": radius.std().clamp(0.05, 1.0),
        "ellipticity_sd": flux.new_tensor(0.5),
        "radius_slope": flux.new_zeros(()),
    }
    plates = {"galaxy": {"galaxies": 0}}
    return Problem(
        Shear(shear_sd),
        (data, centre),
        name="shear",
        data_plates=plates,
        start=start,
        dims={"shear": ("component",)},
        coords={"component": ["g1", "g2"]},
    )


def simulate(seed: int = 0, *, galaxies: int = 60, draws: int = 64) -> tuple[GalaxyDraws, dict[str, Any]]:
    """Draws of galaxies of a population from the model's prior, each measured with normal errors.

    The draws are those of the interim posterior under a flat prior, so that all weights are equal.

    Args:
        galaxies: their number.
        draws: of each galaxy.
    """
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def scale(median: float) -> Tensor:
        return median * torch.exp(_SCALE_SD * noise())

    truth = {
        "shear": Shear().shear_sd * noise(2),
        "ellipticity_sd": scale(_SCALES["ellipticity_sd"]),
        "log_flux_mean": _CENTRE_SD[0] * noise(),
        "log_flux_sd": scale(_SCALES["log_flux_sd"]),
        "log_radius_mean": math.log(0.4) + _CENTRE_SD[1] * noise(),
        "log_radius_sd": scale(_SCALES["log_radius_sd"]),
        "radius_slope": _SLOPE_SD * noise(),
    }
    flux = truth["log_flux_sd"] * noise(galaxies)
    radius = truth["log_radius_mean"] + truth["radius_slope"] * flux
    radius = radius + truth["log_radius_sd"] * noise(galaxies)
    seen, _ = unshear(truth["ellipticity_sd"] * noise(galaxies, 2), -truth["shear"])
    values = torch.cat((seen, radius[:, None], (flux + truth["log_flux_mean"])[:, None]), 1)
    errors = values.new_tensor(_SIMULATED_ERRORS)
    measured = values + errors * noise(galaxies, 4)
    drawn = measured[:, None] + errors * noise(galaxies, draws, 4)
    data = GalaxyDraws(drawn[..., :2], drawn[..., 2], drawn[..., 3], drawn.new_zeros(galaxies, draws))
    return data, truth
