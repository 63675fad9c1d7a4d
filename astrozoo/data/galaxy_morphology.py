"""Light of galaxies as GalSim objects: bulge, disc, knots, spiral arms, bars and irregular clumps.

Structure is a map of surface brightness in the plane of the disc, in units of the disc's half-light radius.
It is wrapped in a ``galsim.InterpolatedImage`` and inclined with the disc, which takes less time than a sum
of many profiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import galsim
import numpy as np
from jaxtyping import Float
from scipy.special import gammainc, gammaincinv

from astrozoo.data.galaxy_population import Galaxy

__all__ = ["Components", "draw_components"]

_CELLS = 65
"""Side of a map [cells]. Larger maps take longer: 129 cells take half again as long to draw as 65."""
_REACH = 4.0
"""[half-light radius of the disc] Half the side of a map: 99 % of the disc's light is inside."""
_DISC = 1.6783469900166605
"""Half-light radius of an exponential disc, in scale lengths."""
_MAX_BULGE = 0.6
"""[1] Largest bulge fraction of a galaxy with a disc. Galaxies with a larger one have a single profile."""
_CELL = 2 * _REACH / _CELLS
_AXIS = (np.arange(_CELLS) - (_CELLS - 1) / 2) * _CELL
_X, _Y = np.meshgrid(_AXIS, _AXIS)
_R = np.hypot(_X, _Y)
_PHI = np.arctan2(_Y, _X)
_EXPONENTIAL = np.exp(-_DISC * _R)
_RADII = np.linspace(0.0, 2 * _REACH, 257)
"""[half-light radius of the disc] Radii at which the curve of growth is computed."""
_RING = np.searchsorted(_RADII, _R.ravel())
_DISC_GROWTH = 1 - (1 + _DISC * _RADII) * np.exp(-_DISC * _RADII)

_SLOPES = {"bulge": 2.0, "disc": 0.8, "structure": -0.5}
"""Slopes of flux per frequency against wavelength. They give g - i of about 1.0, 0.4 and -0.25."""
_REFERENCE = 0.81
"""[um] Wavelength of F814W, in which the light fractions are drawn."""
_SLOPE_SCATTER = 0.4
"""Standard deviation of a galaxy's slope about that of its components."""


@dataclass(frozen=True, eq=False)
class Components:
    """The light of one galaxy.

    Args:
        profile: the galaxy, centred, of flux ``flux``.
        flux: in the survey's band, relative to F814W.
        shape: of the disc.
    """

    profile: galsim.GSObject
    flux: float
    shape: galsim.Shear


def draw_components(rng: np.random.Generator, galaxy: Galaxy, kind: str, wavelength: float) -> Components:
    """The light of a galaxy of a kind, at a random position angle.

    Args:
        rng: generator. What it gives does not depend on the wavelength.
        galaxy: magnitude and redshift are not used.
        kind: one of :data:`~astrozoo.data.galaxy_survey.KINDS`.
        wavelength: [um].
    """
    angle = rng.uniform(0, np.pi) * galsim.radians
    shape = galsim.Shear(q=galaxy.axis_ratio, beta=angle)
    tilt = _SLOPE_SCATTER * rng.standard_normal()

    def colour(slope: float) -> float:
        return float((wavelength / _REFERENCE) ** (slope + tilt))

    if kind == "smooth":
        flux = colour(_SLOPES["disc"] + 0.3 * (galaxy.index - 1))
        profile = galsim.Sersic(_step(galaxy.index), half_light_radius=galaxy.half_light_radius, flux=flux)
        return Components(profile.shear(shape), flux, shape)
    bulge = min(galaxy.bulge_fraction, _MAX_BULGE)
    index, size = _step(rng.uniform(1.0, 4.0)), rng.uniform(0.15, 0.5)
    fraction, values = _STRUCTURES[kind](rng)
    light = {
        "bulge": bulge * colour(_SLOPES["bulge"]),
        "disc": (1 - bulge) * (1 - fraction) * colour(_SLOPES["disc"]),
        "structure": (1 - bulge) * fraction * colour(_SLOPES["structure"]),
    }
    flux = sum(light.values())
    values = values / values.sum()
    # The radius of the population is that in F814W, so that a galaxy has one shape in all bands.
    scale = galaxy.half_light_radius / _half_light(bulge, (1 - bulge) * fraction, values, index, size)
    image = galsim.Image(np.ascontiguousarray(values, dtype=np.float32))
    structure = galsim.InterpolatedImage(image, scale=_CELL * scale, flux=light["structure"])
    disc = galsim.Exponential(half_light_radius=scale, flux=light["disc"])
    parts = [(disc + structure.rotate(rng.uniform(0, 360) * galsim.degrees)).shear(shape)]
    if light["bulge"] > 0:
        rounder = galsim.Shear(q=0.5 + 0.5 * galaxy.axis_ratio, beta=angle)
        parts.append(galsim.Sersic(index, half_light_radius=size * scale, flux=light["bulge"]).shear(rounder))
    return Components(galsim.Add(parts), flux, shape)


def _step(index: float) -> float:
    """A Sersic index in steps of 1/8: GalSim computes and caches one table for each value."""
    return round(8 * index) / 8


def _half_light(bulge: float, fraction: float, values: np.ndarray, index: float, size: float) -> float:
    """Half-light radius of a galaxy, in units of the disc's, of light in the plane of the disc."""
    growth = np.cumsum(np.bincount(_RING, values.ravel(), minlength=len(_RADII)))
    b = gammaincinv(2 * index, 0.5)
    light = bulge * gammainc(2 * index, b * (_RADII / size) ** (1 / index))
    light += fraction * growth + (1 - bulge - fraction) * _DISC_GROWTH
    return float(np.interp(0.5, light, _RADII))


def _clumps(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, width: np.ndarray, stretch: np.ndarray | float = 1.0
) -> Float[np.ndarray, "cells cells"]:
    """A sum of Gaussians of the given fluxes and widths, each longer along x by ``stretch``."""
    along, across = width * np.sqrt(stretch), width / np.sqrt(stretch)
    columns = np.exp(-0.5 * ((_AXIS - x[:, None]) / along[:, None]) ** 2) / along[:, None]
    rows = np.exp(-0.5 * ((_AXIS - y[:, None]) / across[:, None]) ** 2) / across[:, None]
    return rows.T @ (flux[:, None] * columns)


def _knots(rng: np.random.Generator, count: int, light: np.ndarray) -> Float[np.ndarray, "cells cells"]:
    """Star-forming knots of unit total flux, at positions drawn from a map of light."""
    chance = light.ravel() / light.sum()
    place = np.searchsorted(np.cumsum(chance), rng.uniform(0, 1, count)).clip(0, light.size - 1)
    x, y = _X.ravel()[place], _Y.ravel()[place]
    flux = rng.exponential(size=count)
    return _clumps(x, y, flux / flux.sum(), rng.uniform(0.09, 0.18, count)) * _CELL**2 / (2 * np.pi)


def _arms(rng: np.random.Generator, count: int, start: float, phase: float) -> np.ndarray:
    """Logarithmic spiral arms in an exponential disc, which begin at a radius ``start``."""
    pitch = np.radians(rng.uniform(10, 35))
    sharpness = rng.uniform(1.0, 5.0)
    winding = np.log(np.maximum(_R, 0.05) / start) / np.tan(pitch)
    crest = np.exp(sharpness * (np.cos(count * (_PHI - winding) - phase) - 1))
    return _EXPONENTIAL * crest / (1 + (0.6 * start / np.maximum(_R, 0.01)) ** 4)


def _mixed(rng: np.random.Generator, light: np.ndarray, knots: tuple[int, int]) -> np.ndarray:
    """Light with a part of it in knots."""
    part = rng.uniform(0.05, 0.4)
    count = int(rng.integers(*knots))
    return (1 - part) * light / light.sum() + part * _knots(rng, count, light)


def _knotty(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    return rng.uniform(0.1, 0.5), _knots(rng, int(rng.integers(4, 41)), _EXPONENTIAL)


def _spiral(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    count = int(rng.choice([2, 2, 2, 3, 4]))
    light = _arms(rng, count, rng.uniform(0.25, 0.5), rng.uniform(0, 2 * np.pi))
    return rng.uniform(0.3, 0.8), _mixed(rng, light, (5, 31))


def _barred(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    half = rng.uniform(0.5, 1.2)
    bar = np.exp(-((_X / half) ** 4) - (_Y / (rng.uniform(0.15, 0.35) * half)) ** 2)
    light = bar / bar.sum()
    if rng.uniform() < 0.6:
        arms = _arms(rng, 2, half, 0.0)
        light = light + rng.uniform(0.5, 2.0) * arms / arms.sum()
    return rng.uniform(0.2, 0.6), _mixed(rng, light, (3, 21))


def _irregular(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    count = int(rng.integers(3, 9))
    x0, y0 = rng.normal(0, 0.3, 2)
    x, y = x0 + rng.normal(0, 0.7, count), y0 + rng.normal(0, 0.7, count)
    width, stretch = rng.uniform(0.15, 0.6, count), rng.uniform(0.4, 2.5, count)
    light = _clumps(x.clip(-2, 2), y.clip(-2, 2), rng.exponential(size=count), width, stretch)
    return rng.uniform(0.5, 0.9), _mixed(rng, light, (4, 16))


_STRUCTURES = {"knots": _knotty, "spiral": _spiral, "barred": _barred, "irregular": _irregular}
"""Kind -> function that draws the fraction of the disc's light in structure, and its map."""
