"""Small scenes with known stars."""

from __future__ import annotations

from collections.abc import Callable

import galsim
import numpy as np
import pytest
from astropy.wcs import WCS

from astrozoo.data.images import Field, Image
from astrozoo.data.psf import PixelPsf
from astrozoo.survey.crowded.scene import Scene

BANDS = {"g": (900.0, 300.0, 1.35), "r": (850.0, 700.0, 1.2)}
"""Electrons per nMgy, sky [electrons] and FWHM [arcsec] of each band."""


def moffat_stamp(fwhm: float, size: int = 41) -> np.ndarray:
    """A Moffat PSF through square pixels of .396 arcsec."""
    psf = galsim.Convolve(galsim.Moffat(beta=3.0, fwhm=fwhm).shear(g1=0.03, g2=-0.02), galsim.Pixel(0.396))
    return psf.drawImage(nx=size, ny=size, scale=0.396, method="no_pixel", dtype=float).array


def make_field(
    xy: np.ndarray,
    flux: np.ndarray,
    *,
    radius: np.ndarray | None = None,
    side: int = 40,
    seed: int | None = 0,
    sharper: float = 1.0,
) -> Field:
    """Stars and galaxies drawn by GalSim in two bands, of which g is shifted and rotated.

    Args:
        xy: positions in r.
        flux: [nMgy], columns g and r.
        radius: half-light radii of exponential discs [px], 0 for stars; stars only by default.
        side: of the images [px].
        seed: of the noise; None for none.
        sharper: the true PSF is this much narrower than the one that the field states.
    """
    rng = np.random.default_rng(seed)
    reference = WCS(naxis=2)
    reference.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    reference.wcs.crval, reference.wcs.crpix = [150.0, 2.0], [side / 2 + 1, side / 2 + 1]
    reference.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * 0.396 / 3600
    images = []
    for column, (band, (gain, sky, fwhm)) in enumerate(BANDS.items()):
        wcs = reference.deepcopy()
        if band == "g":
            angle = np.radians(0.5)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            wcs.wcs.crpix += [0.3, -0.4]
            wcs.wcs.cd = wcs.wcs.cd @ turn
        place = np.column_stack(wcs.all_world2pix(*reference.all_pix2world(xy, 0).T, 0)) if len(xy) else xy
        psf = galsim.Moffat(beta=3.0, fwhm=fwhm / sharper).shear(g1=0.03, g2=-0.02)
        canvas = galsim.ImageD(side, side, xmin=0, ymin=0, scale=0.396)
        sizes = np.zeros(len(xy)) if radius is None else radius
        for (x, y), light, size in zip(place, flux[:, column], sizes, strict=True):
            source = psf
            if size > 0:
                disc = galsim.Exponential(half_light_radius=0.396 * size).shear(g1=0.15, g2=0.1)
                source = galsim.Convolve(psf, disc)
            source.withFlux(gain * light).drawImage(canvas, center=(x, y), add_to_image=True)
        model = canvas.array + sky
        images.append(
            Image(
                band=band,
                counts=model.copy() if seed is None else rng.poisson(model).astype(float),
                sky=np.full((side, side), sky),
                calibration=np.full((side, side), gain),
                valid=np.ones((side, side), bool),
                saturated=np.zeros((side, side), bool),
                wcs=wcs,
                psf=PixelPsf(moffat_stamp(fwhm)),
            )
        )
    return Field(tuple(images))


def make_truth(count: int, seed: int, *, side: int = 40, apart: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions at least ``apart`` px from each other, and fluxes from 3 to 100 nMgy in g and r."""
    rng = np.random.default_rng(seed)
    xy = np.zeros((0, 2))
    while len(xy) < count:
        trial = rng.uniform(3, side - 4, 2)
        if not len(xy) or np.hypot(*(xy - trial).T).min() > apart:
            xy = np.vstack([xy, trial])
    red = np.exp(rng.uniform(np.log(3), np.log(100), count))
    return xy, np.column_stack([red * np.exp(rng.normal(-0.4, 0.1, count)), red])


@pytest.fixture(scope="session")
def truth() -> tuple[np.ndarray, np.ndarray]:
    return make_truth(25, seed=3)


@pytest.fixture(scope="session")
def scene(truth: tuple[np.ndarray, np.ndarray]) -> Scene:
    return Scene.of(make_field(*truth))


@pytest.fixture(scope="session")
def field_of() -> Callable[..., Field]:
    return make_field


@pytest.fixture(scope="session")
def truth_of() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return make_truth
