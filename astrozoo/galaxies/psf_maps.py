"""Maps and shapes of fitted galaxies: posterior means and SDs with and without PSF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from astrozoo.models.galaxy_discrepancy import SITE, noiseless
from astrozoo.types import Problem, Result

__all__ = ["Maps", "maps_of", "shapes_of"]

_DRAWS = 64
"""Draws that means and SDs of maps are taken over: an SD is then known to a tenth."""
_SHAPE_DRAWS = 200
"""Draws of shapes. They are cheaper than maps."""
_POINTS = 2.0
"""Points of a deconvolved map per pixel of the exposure, along each axis."""
_RINGS, _ANGLES = 24, 16
"""Points along the radius and the angle that stand for a component where its half-light radius is computed.
They give the radius of a galaxy to about .5 %."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Images of one galaxy. Lists have an item per exposure.

    Args:
        data: NaN in pixels that are not used [unit of the image].
        model: posterior mean of the noiseless image [unit of the image].
        model_sd: its posterior SD.
        residual: data minus the decoder's image, in SDs of the noise. Correlated noise is whitened.
        deconvolved: posterior mean of the surface brightness without PSF, on a finer grid, in the unit of the
            first image per square pixel.
        deconvolved_sd: its posterior SD.
        chi2: mean square of the residual of each exposure.
    """

    data: list[Float[np.ndarray, "y x"]]
    model: list[Float[np.ndarray, "y x"]]
    model_sd: list[Float[np.ndarray, "y x"]]
    residual: list[Float[np.ndarray, "y x"]]
    deconvolved: Float[np.ndarray, "m m"]
    deconvolved_sd: Float[np.ndarray, "m m"]
    chi2: list[float]


@torch.no_grad()
def maps_of(problem: Problem, result: Result, most: int | None = None) -> list[Maps]:
    """The maps of the galaxies of a problem, or of the first ones."""
    galaxies = []
    for i in range(problem.batch or 1):
        if i == most:
            break
        exposures, latent, ratios, discrepancy = _one(problem, result, i, _DRAWS)
        galaxies.append(_maps(problem.model, exposures, latent, ratios, discrepancy))
    return galaxies


@torch.no_grad()
def shapes_of(problem: Problem, result: Result, number: int = 0) -> dict[str, Float[np.ndarray, "draw"]]:
    """Flux, half-light radius [px] and ellipticity of the deconvolved galaxy, for draws of the posterior."""
    exposures, latent, *_ = _one(problem, result, number, _SHAPE_DRAWS)
    model: Any = problem.model
    units = (unit.expand(len(latent)) for unit in (exposures[0].flux, exposures[0].length))
    light = model.light(latent).scaled(*units)
    flux = light.flux.sum(-1)
    share = light.flux / flux[:, None]
    centre = (share[..., None] * light.mean).sum(-2)
    offset = light.mean - centre[:, None]
    xx, xy, yy = light.covariance.unbind(-1)
    qxx = (share * (xx + offset[..., 0] ** 2)).sum(-1)
    qyy = (share * (yy + offset[..., 1] ** 2)).sum(-1)
    qxy = (share * (xy + offset[..., 0] * offset[..., 1])).sum(-1)
    size = qxx + qyy + 2 * (qxx * qyy - qxy**2).clamp_min(0).sqrt()
    shapes = {
        "flux": flux,
        "half-light radius": _half_light(share, offset, light.covariance),
        "e1": (qxx - qyy) / size,
        "e2": 2 * qxy / size,
    }
    return {name: values.numpy() for name, values in shapes.items()}


def _half_light(share: Tensor, offset: Tensor, covariance: Tensor) -> Tensor:
    """Radius of the circle around the centroid that contains half of the light [px].

    Each component is replaced by points of equal light.
    """
    angles = torch.arange(_ANGLES, dtype=share.dtype) * (2 * torch.pi / _ANGLES)
    fractions = (torch.arange(_RINGS, dtype=share.dtype) + 0.5) / _RINGS
    radii = (-2 * (1 - fractions).log()).sqrt()
    unit = radii[:, None, None] * torch.stack((angles.cos(), angles.sin()), -1)
    xx, xy, yy = covariance.unbind(-1)
    first = xx.sqrt()
    second = (yy - xy**2 / xx).clamp_min(0).sqrt()
    x = offset[..., 0, None] + first[..., None] * unit.reshape(-1, 2)[:, 0]
    y = offset[..., 1, None] + (xy / first)[..., None] * unit.reshape(-1, 2)[:, 0]
    y = y + second[..., None] * unit.reshape(-1, 2)[:, 1]
    distance = (x**2 + y**2).sqrt().flatten(1)
    weight = share[..., None].expand_as(x).flatten(1) / x.shape[-1]
    order = distance.argsort(-1)
    enclosed = weight.gather(-1, order).cumsum(-1)
    at = (enclosed < 0.5).sum(-1, keepdim=True).clamp_max(distance.shape[-1] - 1)
    return distance.gather(-1, order).gather(-1, at)[:, 0]


def _one(
    problem: Problem, result: Result, number: int, count: int
) -> tuple[tuple[Any, ...], Float[Tensor, "n z"], Tensor | None, Tensor | None]:
    """Exposures of one galaxy, and evenly spaced draws of its latents, flux ratios and discrepancy."""
    exposures = problem.args[0]
    if problem.batch is not None:
        exposures = tree_map(lambda leaf: leaf[number], exposures)

    def draws(site: str) -> Tensor | None:
        if site not in result.draws:
            return None
        values = torch.as_tensor(result.draws[site]).to(exposures[0].image).flatten(0, 1)
        if problem.batch is not None:
            values = values[:, number]
        return values[torch.linspace(0, len(values) - 1, min(count, len(values))).round().long()]

    latent = draws("latent")
    assert latent is not None
    return exposures, latent, draws("log_flux_ratio"), draws(SITE)


def _maps(
    model: Any,
    exposures: tuple[Any, ...],
    latent: Tensor,
    ratios: Tensor | None,
    discrepancy: Float[Tensor, "n 1"] | None,
) -> Maps:
    images = model.images(exposures, latent, ratios)
    first = exposures[0]
    side = round(_POINTS * max(first.image.shape))
    maps = model.deconvolved(first, latent, side, 1 / _POINTS)
    residuals, moments = [], []
    for k, (exposure, image) in enumerate(zip(exposures, images, strict=True)):
        scaled = (exposure.image - image.mean(0)) / exposure.sd
        white = model.white(k, exposure)
        whitened = scaled if white is None else white(scaled)
        residuals.append(torch.where(exposure.mask, whitened, torch.nan).numpy())
        mean, sd = image.mean(0), image.std(0)
        if discrepancy is not None:
            args = (exposure.image, exposure.sd, exposure.mask, image, discrepancy[:, 0])
            means, sds = noiseless(*args)
            mean, sd = means.mean(0), (means.var(0) + sds.square().mean(0)).sqrt()
        moments.append((mean.numpy(), sd.numpy()))
    return Maps(
        data=[torch.where(e.mask, e.image, torch.nan).numpy() for e in exposures],
        model=[mean for mean, _ in moments],
        model_sd=[sd for _, sd in moments],
        residual=residuals,
        deconvolved=maps.mean(0).numpy(),
        deconvolved_sd=maps.std(0).numpy(),
        chi2=[float(np.nanmean(residual**2)) for residual in residuals],
    )
