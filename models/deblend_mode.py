"""The mode of a blend by Levenberg-Marquardt, for a batch of scenes at once.

All latents of :class:`~astrozoo.models.deblend.Deblend` are normal, so that the log density is minus half a
sum of squares. Each source's image is differentiated by its own latents only, in forward mode; derivatives by
log fluxes are the images themselves. An iteration costs as much as rendering each source once for each of its
latents.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import nnls
from torch import Tensor

from astrozoo.physics.convolved_gaussians import image_of, point_transform, product

if TYPE_CHECKING:
    from astrozoo.models.deblend import Deblend, Pixels, Sources

__all__ = ["Mode", "find_mode", "first_guess"]

RADII = (-1.0, 0.0, 1.0)
"""[SD of the prior] Radii of all galaxies that are tried as the start; the best fit of the fluxes wins."""
LEAST_FLUX = 0.02
"""Least flux of the start, relative to the prior's median: the noise of a point source."""
FIRST_DAMPING = 1e-2
"""Damping of the first step, relative to the curvature."""
MOST_DAMPING = 1e8
"""Damping at which a search gives up: steps are then lost in rounding."""
CHUNK = 8
"""Scenes whose derivatives are computed at once. It limits memory; more are not faster."""


class Mode(NamedTuple):
    """Modes of a batch of scenes.

    Attributes:
        values: by site, with the axis of the scenes first.
        log_density: there, up to a constant of the scene.
        covariance: of all latents in the order of the sites, from the Gauss-Newton curvature.
        converged: whether the last step raised the log density by less than the tolerance.
        iterations: of the longest search.
    """

    values: dict[str, Tensor]
    log_density: Float[Tensor, "b"]
    covariance: Float[Tensor, "b d d"]
    converged: Bool[Tensor, "b"]
    iterations: int


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the latents of each source are in the flat vector of a scene.

    Args:
        model: of the scene.
        galaxies, stars, bands: numbers.
    """

    model: Deblend
    galaxies: int
    stars: int
    bands: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        count = self.galaxies + self.stars
        shapes: dict[str, tuple[int, ...]] = {"log_flux": (count, self.bands), "position": (count, 2)}
        for name, site in self.model.morphology.sites.items() if self.galaxies else ():
            shapes[name] = (self.galaxies, *site.shape)
        return shapes

    @property
    def dim(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def split(self, w: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        parts = w.split([math.prod(shape) for shape in self.shapes.values()], -1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}

    def join(self, values: Mapping[str, Tensor]) -> Float[Tensor, "b d"]:
        return torch.cat([values[name].flatten(1) for name in self.shapes], 1)

    def columns(self) -> tuple[Tensor, Tensor]:
        """Indices of each galaxy's and each star's own latents besides fluxes: position first."""
        index = self.split(torch.arange(self.dim)[None])
        own = [index["position"][0, : self.galaxies]]
        names = list(self.shapes)[2:]
        own += [index[name][0].reshape(self.galaxies, -1) for name in names]
        return torch.cat(own, 1), index["position"][0, self.galaxies :]

    def prior(self, sources: Sources) -> tuple[Float[Tensor, "b d"], Float[Tensor, "d"]]:
        """Means and SDs of all latents."""
        from astrozoo.models.deblend import LOG_FLUX_SD, POSITION_SD

        like = sources.log_flux
        sites = self.model.morphology.sites
        count, mean, sd = self.galaxies + self.stars, [], []
        for name, shape in self.shapes.items():
            full = like.new_ones(len(like), *shape)
            if name == "log_flux":
                mean.append(like[:, None].expand(-1, count, -1).flatten(1))
                sd.append(LOG_FLUX_SD * full[0].flatten())
            elif name == "position":
                mean.append(0 * full.flatten(1))
                sd.append(POSITION_SD * full[0].flatten())
            else:
                mean.append(sites[name].mean * full.flatten(1))
                sd.append(sites[name].sd * full[0].flatten())
        return torch.cat(mean, 1), torch.cat(sd)


def _layout(model: Deblend, sources: Sources) -> _Layout:
    return _Layout(model, sources.galaxies.shape[1], sources.stars.shape[1], sources.log_flux.shape[1])


class _Target:
    """Sums of squares of scenes and their derivatives.

    Args:
        model, pixels, sources: of a batch of scenes.
    """

    def __init__(self, model: Deblend, pixels: Pixels, sources: Sources) -> None:
        self.layout = _layout(model, sources)
        self.pixels, self.sources = pixels, sources
        self.mean, self.sd = self.layout.prior(sources)
        self.weight = torch.where(pixels.mask, 1 / pixels.sd, 0.0)
        self.columns = self.layout.columns()
        self.stamp = (pixels.image.shape[-2], pixels.image.shape[-1])

    def _galaxy(self, q: Tensor, place: Tensor, fwhm: Tensor, transfer: Tensor) -> Float[Tensor, "band y x"]:
        """The image of a galaxy of unit flux in each band, from its own latents."""
        values, first = {}, 2
        for name, site in self.layout.model.morphology.sites.items():
            width = math.prod(site.shape)
            values[name] = q[first : first + width].reshape(site.shape)
            first += width
        light = self.layout.model.morphology.transform(values, place + q[:2], fwhm, transfer[0])
        return image_of(product(light, transfer), self.stamp)

    def _star(self, q: Tensor, place: Tensor, fwhm: Tensor, transfer: Tensor) -> Float[Tensor, "band y x"]:
        return image_of(product(point_transform(place + q, transfer[0]), transfer), self.stamp)

    def _per_source(self, rows: Tensor, w: Tensor, slopes: bool) -> list[tuple[Tensor, ...]]:
        """Unit images ``[b, source, band, y, x]`` of galaxies and of stars, and their derivatives by own
        latents."""
        kinds = ((self._galaxy, self.sources.galaxies), (self._star, self.sources.stars))
        parts = []
        for (function, place), own in zip(kinds, self.columns, strict=True):
            if not place.shape[1]:
                continue
            both = function if not slopes else _with_slopes(function)
            each = torch.func.vmap(both, in_dims=(0, 0, None, None))
            batch = torch.func.vmap(each, in_dims=(0, 0, 0, 0))
            out = batch(w[:, own], place[rows], self.sources.fwhm[rows], self.pixels.transfer[rows])
            parts.append(out if slopes else (out,))
        return parts

    def values(self, rows: Tensor, w: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Log density up to a constant."""
        out = []
        for part, z in zip(rows.split(CHUNK), w.split(CHUNK), strict=True):
            images = torch.cat([p[0] for p in self._per_source(part, z, False)], 1)
            flux = self.layout.split(z)["log_flux"].exp()
            model = (flux[..., None, None] * images).sum(1)
            residual = self.weight[part] * (self.pixels.image[part] - model)
            white = (z - self.mean[part]) / self.sd
            out.append(-0.5 * (residual.square().sum((1, 2, 3)) + white.square().sum(1)))
        return torch.cat(out)

    def expand(self, rows: Tensor, w: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Log density, its gradient, and minus its Hessian without second derivatives of the images."""
        parts = [self._expand(part, z) for part, z in zip(rows.split(CHUNK), w.split(CHUNK), strict=True)]
        value, gradient, curvature = (torch.cat(column) for column in zip(*parts, strict=True))
        return value, gradient, curvature

    def _expand(self, rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, bands = len(w), self.layout.bands
        flux = self.layout.split(w)["log_flux"].exp()[..., None, None]
        parts = self._per_source(rows, w, True)
        images = flux * torch.cat([image for _, image in parts], 1)  # [b, source, band, y, x]
        weight = self.weight[rows]
        residual = weight * (self.pixels.image[rows] - images.sum(1))
        n = residual[0, 0].numel()
        jacobian = w.new_zeros(b, self.layout.dim, bands, n)
        index = self.layout.split(torch.arange(self.layout.dim)[None])["log_flux"][0]  # [source, band]
        weighted = (images * weight[:, None]).flatten(3)
        for k in range(bands):
            jacobian[:, index[:, k], k] = weighted[:, :, k]
        first = 0
        for (slopes, _), own in zip(parts, (c for c in self.columns if len(c)), strict=True):
            count = len(own)
            scale = flux[:, first : first + count] * weight[:, None]  # [b, source, band, y, x]
            # slopes: [b, source, band, y, x, latent]
            scaled = (slopes * scale[..., None]).movedim(-1, 2).flatten(-2)
            jacobian[:, own.flatten()] = scaled.flatten(1, 2)
            first += count
        jacobian = jacobian.flatten(2)
        white = (w - self.mean[rows]) / self.sd
        value = -0.5 * (residual.square().sum((1, 2, 3)) + white.square().sum(1))
        gradient = (jacobian @ residual.flatten(1)[..., None])[..., 0] - white / self.sd
        return value, gradient, jacobian @ jacobian.mT + torch.diag(self.sd**-2)


def _with_slopes(function):  # type: ignore[no-untyped-def]
    """The derivatives of a function by its first argument, and its value."""

    def twice(*args: Tensor) -> tuple[Tensor, Tensor]:
        image = function(*args)
        return image, image

    return torch.func.jacfwd(twice, has_aux=True)


@torch.no_grad()
def first_guess(model: Deblend, pixels: Pixels, sources: Sources) -> dict[str, Tensor]:
    """Shapes and positions of the prior's mean, and fluxes of a joint non-negative fit in each band.

    All galaxies have the radius of :data:`RADII` that fits best.
    """
    target = _Target(model, pixels, sources)
    rows = torch.arange(len(pixels.image))
    best, best_value = target.mean, torch.full((len(rows),), -torch.inf).to(target.mean)
    for shift in RADII if target.layout.galaxies else (0.0,):
        values = target.layout.split(target.mean.clone())
        if target.layout.galaxies:
            values["log_radius"] = values["log_radius"] + shift * model.morphology.sites["log_radius"].sd
        w = target.layout.join(values)
        images = torch.cat(
            [
                torch.cat([p[0] for p in target._per_source(part, z, False)], 1)
                for part, z in zip(rows.split(CHUNK), w.split(CHUNK), strict=True)
            ]
        )
        values["log_flux"] = _fluxes(images, pixels, target.weight, sources)
        w = target.layout.join(values)
        value = target.values(rows, w)
        better = value > best_value
        best, best_value = torch.where(better[:, None], w, best), torch.where(better, value, best_value)
    return target.layout.split(best)


def _fluxes(
    images: Float[Tensor, "b source band y x"], pixels: Pixels, weight: Tensor, sources: Sources
) -> Float[Tensor, "b source band"]:
    """Log fluxes of the joint fit of all sources with non-negative fluxes."""
    design = (images * weight[:, None]).flatten(-2).permute(0, 2, 3, 1).numpy()  # [b, band, pixel, source]
    data = (pixels.image * weight).flatten(-2).numpy()
    flux = [[nnls(a, y)[0] for a, y in zip(*pair, strict=True)] for pair in zip(design, data, strict=True)]
    solved = torch.as_tensor(np.array(flux)).to(images).mT
    return torch.maximum(solved, LEAST_FLUX * sources.log_flux.exp()[:, None]).log()


@torch.no_grad()
def find_mode(
    model: Deblend,
    pixels: Pixels,
    sources: Sources,
    start: Mapping[str, Tensor],
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Mode:
    """Levenberg-Marquardt from a start to a mode of each scene.

    Args:
        pixels, sources, start: with an axis of scenes first.
        iterations: the most.
        tolerance: a search ends when a step gains less [nat].
    """
    with warnings.catch_warnings():  # the first derivative of this kind makes torch load scripts
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        return _search(_Target(model, pixels, sources), start, iterations, tolerance)


def _search(target: _Target, start: Mapping[str, Tensor], iterations: int, tolerance: float) -> Mode:
    w = target.layout.join(start).clone()
    every = torch.arange(len(w))
    value, gradient, curvature = target.expand(every, w)
    damping = torch.full_like(value, FIRST_DAMPING)
    active = torch.ones_like(value, dtype=torch.bool)
    converged, iteration = ~active, 0
    while active.any() and iteration < iterations:
        iteration += 1
        rows = every[active]
        diagonal = curvature[rows].diagonal(dim1=1, dim2=2)
        damped = curvature[rows] + torch.diag_embed(damping[rows, None] * diagonal)
        step = torch.cholesky_solve(gradient[rows][..., None], torch.linalg.cholesky(damped))[..., 0]
        trial = w[rows] + step
        new = target.values(rows, trial)
        gain = new - value[rows]
        good = gain > 0
        done = good & (gain < tolerance) & (damping[rows] <= FIRST_DAMPING)
        damping[rows] = torch.where(good, (damping[rows] / 5).clamp_min(1e-6), damping[rows] * 4)
        moved = rows[good]
        w[moved] = trial[good]
        if len(moved):
            value[moved], gradient[moved], curvature[moved] = target.expand(moved, w[moved])
        # At a maximum to rounding no step gains; the gain that the model predicts tells this from a failure.
        predicted = 0.5 * (gradient[rows] * step).sum(1)
        flat = ~good & (predicted < tolerance / 10)
        stuck = ~good & (damping[rows] > MOST_DAMPING)
        converged[rows[done | flat]] = True
        active[rows[done | flat | stuck]] = False
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    return Mode(target.layout.split(w), value, covariance, converged, iteration)
