"""Blends of galaxies rendered by GalSim, in several bands, with the true image of each galaxy.

The galaxies have colour gradients: bulge, disc and knots have colours of their own. So no model with one
shape in all bands describes them exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import galsim
import numpy as np
from astropy.table import Table
from jaxtyping import Float

from astrozoo.data.galaxy_morphology import draw_components
from astrozoo.data.galaxy_population import load_population
from astrozoo.data.galaxy_survey import BANDS, KINDS
from astrozoo.data.scenes import Scene
from astrozoo.errors import InputError

__all__ = ["BlendSurvey", "blendedness", "simulate_blend"]


@dataclass(frozen=True)
class BlendSurvey:
    """How blends are observed. Defaults are those of HSC's wide survey.

    Args:
        size: side of the images [px].
        pixel_scale: [arcsec].
        bands: of :data:`astrozoo.data.galaxy_survey.BANDS`.
        fwhm: of the Moffat PSF in each band [arcsec].
        depth: magnitude of a point source with a signal-to-noise ratio of 5, in each band.
        magnitude: range of F814W magnitudes.
        radius: range of half-light radii [arcsec].
        separation: range of the distance of a galaxy from its nearest neighbour [px].
        position_sd: SD of each coordinate of the listed positions about the true ones [px].
        clumpy: fraction of galaxies with knots, arms, bars or clumps; the others are Sersic profiles.
        gradients: whether bulge, disc and knots have colours of their own. Without, a galaxy has the shape of
            the middle band in all bands.
    """

    size: int = 48
    pixel_scale: float = 0.168
    bands: tuple[str, ...] = ("g", "r", "i")
    fwhm: tuple[float, ...] = (0.75, 0.70, 0.60)
    depth: tuple[float, ...] = (26.5, 26.1, 25.9)
    magnitude: tuple[float, float] = (20.5, 23.3)
    radius: tuple[float, float] = (0.2, 1.0)
    separation: tuple[float, float] = (3.5, 8.0)
    position_sd: float = 0.3
    clumpy: float = 0.5
    gradients: bool = True

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.fwhm) == len(self.depth):
            raise InputError("survey", f"{len(self.bands)} bands", "as many PSFs and depths as bands")
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown or not self.bands:
            raise InputError("bands", unknown or "none", f"some of {', '.join(BANDS)}")


def simulate_blend(
    seed: int, galaxies: int = 3, survey: BlendSurvey | None = None
) -> tuple[Scene, Float[np.ndarray, "source band y x"]]:
    """A scene with its galaxies near the centre, and the noiseless image of each.

    The table of sources has, besides the listed positions, the true ones ``x_true`` and ``y_true``, the true
    ``flux_BAND`` of each band, which is that of the whole galaxy, and ``clumpy``.

    Args:
        seed: of all draws.
        galaxies: their number.
        survey: see :class:`BlendSurvey`.
    """
    survey = survey or BlendSurvey()
    rng = np.random.default_rng([seed, 77])
    places = _places(rng, galaxies, survey)
    psfs = [galsim.Moffat(beta=3.0, fwhm=fwhm) for fwhm in survey.fwhm]
    population = load_population()
    images = []
    clumpy = rng.uniform(size=galaxies) < survey.clumpy
    fluxes = np.empty((galaxies, len(survey.bands)))
    for i, (x, y) in enumerate(places):
        galaxy = population.draw(rng, survey.radius, survey.magnitude)
        kind = str(rng.choice(KINDS[1:])) if clumpy[i] else KINDS[0]
        state = rng.integers(2**32)
        rows = []
        for k, band in enumerate(survey.bands):
            light = draw_components(np.random.default_rng(state), galaxy, kind, BANDS[band])
            fluxes[i, k] = light.flux * 10 ** (-0.4 * (galaxy.magnitude - _ZERO_POINT))
            if not survey.gradients:
                middle = BANDS[survey.bands[len(survey.bands) // 2]]
                light = draw_components(np.random.default_rng(state), galaxy, kind, middle)
            profile = galsim.Convolve(light.profile.withFlux(fluxes[i, k]), psfs[k])
            rows.append(_draw(profile, survey.size, survey.pixel_scale, x, y))
        images.append(rows)
    truth = np.array(images)
    noise = np.array(
        [_pixel_noise(*pair, survey.pixel_scale) for pair in zip(psfs, survey.depth, strict=True)]
    )
    sd = np.broadcast_to(noise[:, None, None], truth.shape[1:])
    data = truth.sum(0) + sd * rng.standard_normal(sd.shape)
    listed = places + survey.position_sd * rng.standard_normal(places.shape)
    table = Table({"x": listed[:, 0], "y": listed[:, 1], "x_true": places[:, 0], "y_true": places[:, 1]})
    for k, band in enumerate(survey.bands):
        table[f"flux_{band}"] = fluxes[:, k]
    table["clumpy"] = clumpy
    side = 2 * math.ceil(_PSF_HALF * max(survey.fwhm) / survey.pixel_scale) + 1
    stamps = np.stack([_draw(psf, side, survey.pixel_scale, side // 2, side // 2) for psf in psfs])
    name = f"blend {seed} simulated by GalSim"
    return Scene(data, sd.copy(), np.ones(data.shape, bool), stamps, survey.bands, table, name), truth


def blendedness(images: Float[np.ndarray, "source *p"]) -> Float[np.ndarray, "source"]:
    """``1 - <image, image> / <image, sum of all images>`` of each source: 0 alone, near 1 under another.

    References:
        Bosch et al. 2018, PASJ 70, S5.
    """
    flat = images.reshape(len(images), -1)
    return 1 - (flat**2).sum(1) / (flat * flat.sum(0)).sum(1)


_PSF_HALF = 4.5
"""[FWHM] Half the side of the PSF stamps. 0.5 % of the light of a Moffat PSF is outside."""
_ZERO_POINT = 27.0
"""AB magnitude of a flux of 1, as of HSC's co-adds."""


def _places(rng: np.random.Generator, count: int, survey: BlendSurvey) -> Float[np.ndarray, "n 2"]:
    """Positions of which each but the first is at a separation in the range from its nearest neighbour."""
    low, high = survey.separation
    middle = (survey.size - 1) / 2
    places = [np.zeros(2)]
    while len(places) < count:
        beside = places[rng.integers(len(places))]
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
        trial = beside + distance * np.array([np.cos(angle), np.sin(angle)])
        if min(np.hypot(*(trial - place)) for place in places) >= low:
            places.append(trial)
    out = np.array(places)
    return out - out.mean(0) + middle + rng.uniform(-0.5, 0.5, 2)


def _draw(profile: galsim.GSObject, size: int, scale: float, x: float, y: float) -> Float[np.ndarray, "y x"]:
    middle = (size - 1) / 2
    image = profile.drawImage(nx=size, ny=size, scale=scale, offset=(x - middle, y - middle), dtype=float)
    return image.array


def _pixel_noise(psf: galsim.GSObject, depth: float, scale: float) -> float:
    """SD of a pixel if a point source of the given magnitude has a signal-to-noise ratio of 5."""
    stamp = _draw(psf, 41, scale, 20, 20)
    return 10 ** (-0.4 * (depth - _ZERO_POINT)) / 5 * math.sqrt(float((stamp**2).sum()))
