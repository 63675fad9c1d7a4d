"""Stamps of simulated galaxies as arrays. It imports no torch, so that worker processes start quickly."""

from __future__ import annotations

import math

import galsim
import numpy as np
from jaxtyping import Float

from astrozoo.data.galaxy_morphology import draw_components
from astrozoo.data.galaxy_population import Galaxy, Population
from astrozoo.data.galaxy_survey import BANDS, KINDS, GalaxySurvey, PsfRange, noise_kernel

__all__ = ["render_chunk"]

_GALAXY, _PSF, _PLACE, _NOISE = range(4)
"""Streams of random numbers of one galaxy. Each has a generator, so that a setting changes one of them."""
_MOFFAT_BETA = 3.0
_OBSCURATION = 1 / 3
_AIRY_FWHM = 1.03
"""[wavelength / diameter] Full width at half maximum of an Airy disc without an obscuration."""
_NEIGHBOUR_DISTANCE = 0.2
"""[side of a stamp] Neighbours are at least so far from the centre: nearer ones are blends."""


def render_chunk(
    survey: GalaxySurvey, population: Population, seed: int, first: int, count: int
) -> dict[str, np.ndarray]:
    """Galaxies ``first`` to ``first + count - 1`` of a seed: the fields of ``GalaxyStamps``."""
    rows = [_galaxy(survey, population, seed, i) for i in range(first, first + count)]
    return {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}


def _galaxy(survey: GalaxySurvey, population: Population, seed: int, i: int) -> dict[str, np.ndarray]:
    rngs = [np.random.default_rng([seed, i, stream]) for stream in range(4)]
    rng = rngs[_GALAXY]
    galaxy = population.draw(rng, survey.radius, survey.magnitude)
    kind = int(rng.choice(len(KINDS), p=np.array(survey.kinds) / sum(survey.kinds)))
    profile, flux, shape = _profile(rng, galaxy, KINDS[kind], survey)
    psf = _psf(rngs[_PSF], survey.psf)
    place = rngs[_PLACE]
    x, y = survey.centre_scatter * place.standard_normal(2)
    noiseless = _draw(galsim.Convolve(profile, psf), survey, (x, y))
    noise = rngs[_NOISE]
    power = math.sqrt(float((noiseless**2).sum()))
    wanted = noise.uniform()  # drawn whatever the settings are, so that the noise is the same for all
    rms = survey.noise_rms
    if survey.snr is not None:
        rms = power / math.exp(np.interp(wanted, (0, 1), np.log(survey.snr)))
    assert rms is not None
    image = noiseless + rms * _noise(noise, survey)
    for _ in range(place.poisson(survey.neighbours)):
        image = image + _neighbour(place, population, survey, psf)
    stamp = _draw(psf, survey)
    values = {
        "image": image,
        "noiseless": noiseless,
        "psf": stamp / stamp.sum(),
        "noise_rms": rms,
        "flux": flux,
        "half_light_radius": galaxy.half_light_radius,
        "e1": shape.g1,
        "e2": shape.g2,
        "x": x,
        "y": y,
        "kind": kind,
        "magnitude": survey.zero_point - 2.5 * math.log10(flux),
        "redshift": galaxy.redshift,
        "snr": power / rms,
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _profile(
    rng: np.random.Generator, galaxy: Galaxy, kind: str, survey: GalaxySurvey
) -> tuple[galsim.GSObject, float, galsim.Shear]:
    """The galaxy before the PSF, its flux, and the shape of its disc as the survey sees it."""
    light = draw_components(rng, galaxy, kind, BANDS[survey.band])
    reference = 10 ** (-0.4 * (galaxy.magnitude - survey.zero_point))  # in F814W
    turn = survey.rotation * galsim.degrees
    lens = galsim.Shear(g1=survey.shear[0], g2=survey.shear[1])
    profile = (light.profile * reference).rotate(turn).shear(lens)
    turned = galsim.Shear(g=light.shape.g, beta=light.shape.beta + turn)
    return profile, light.flux * reference, lens + turned


def _neighbour(
    rng: np.random.Generator, population: Population, survey: GalaxySurvey, psf: galsim.GSObject
) -> Float[np.ndarray, "y x"]:
    """A smooth galaxy at a random place, but not at the centre."""
    galaxy = population.draw(rng, survey.radius, survey.magnitude)
    profile, _, _ = _profile(rng, galaxy, "smooth", survey)
    half = survey.size / 2
    distance = half * math.sqrt(rng.uniform((2 * _NEIGHBOUR_DISTANCE) ** 2, 1.5))
    angle = rng.uniform(0, 2 * np.pi)
    place = (distance * math.cos(angle), distance * math.sin(angle))
    return _draw(galsim.Convolve(profile, psf), survey, place)


def _psf(rng: np.random.Generator, psf: PsfRange) -> galsim.GSObject:
    fwhm = math.exp(rng.uniform(*np.log(psf.fwhm))) if psf.fwhm[0] < psf.fwhm[1] else psf.fwhm[0]
    g1, g2 = np.clip(psf.shape + psf.ellipticity * rng.standard_normal(2), -0.6, 0.6)
    profile = {
        "moffat": lambda: galsim.Moffat(beta=_MOFFAT_BETA, fwhm=fwhm),
        "gaussian": lambda: galsim.Gaussian(fwhm=fwhm),
        "kolmogorov": lambda: galsim.Kolmogorov(fwhm=fwhm),
        "airy": lambda: galsim.Airy(lam_over_diam=fwhm / _AIRY_FWHM, obscuration=_OBSCURATION),
    }[psf.profile]()
    return profile.shear(g1=g1, g2=g2)


def _draw(
    profile: galsim.GSObject, survey: GalaxySurvey, offset: tuple[float, float] = (0.0, 0.0)
) -> Float[np.ndarray, "y x"]:
    """The profile averaged over pixels; the stamp's centre is at ``(size - 1) / 2``."""
    image = profile.drawImage(
        nx=survey.size, ny=survey.size, scale=survey.pixel_scale, offset=offset, dtype=float
    )
    return image.array


def _noise(rng: np.random.Generator, survey: GalaxySurvey) -> Float[np.ndarray, "y x"]:
    """Noise of unit variance, cut from a larger image so that opposite edges are independent."""
    kernel = noise_kernel(survey.noise_correlation)
    side = survey.size + len(kernel) - 1
    windows = np.lib.stride_tricks.sliding_window_view
    white = rng.standard_normal((side, side))
    return windows(windows(white, len(kernel), 0) @ kernel, len(kernel), 1) @ kernel
