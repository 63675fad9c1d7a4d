"""Simulated star clusters as a survey sees them: crowded fields with known truth, rendered by GalSim.

The stars have the luminosity function and the colours of a globular cluster with its main-sequence turn-off
at r = 19.3, as M2: a giant branch, a horizontal branch, a turn-off and a main sequence. A few galaxies of
the Celeste model's prior lie behind them.
"""

from __future__ import annotations

from dataclasses import replace

import galsim
import numpy as np
from astropy.table import Table, vstack
from jaxtyping import Float

from astrozoo.data.images import Field, crop
from astrozoo.data.psf import PixelPsf
from astrozoo.data.simulate import draw_sources, simulate_field
from astrozoo.errors import InputError

__all__ = ["DENSITY", "blurred_psf", "cluster_sources", "simulate_cluster"]

DENSITY = 1 / 9
"""[px^-2] Stars brighter than :data:`LIMIT`: that of M2 at rows 627:733, columns 307:413 of SDSS's frame."""
LIMIT = 22.3
"""[mag] Magnitude in r to which :data:`DENSITY` counts."""
_GALAXIES = 7e-4
"""[px^-2] Galaxies of r < 22.3: 16 per square arc minute. Three fields of Stripe 82's co-add have about 5 of
r < 21.5, and counts rise by .38 dex per magnitude."""
_NUMBER = ((14.2, -1.8), (16.0, -1.2), (18.0, -0.6), (19.0, -0.1), (20.0, 0.25), (21.0, 0.4), (25.0, 0.8))
"""Luminosity function: r, and log10 of the relative number of stars per magnitude; linear between. Brighter
stars are saturated in SDSS."""
_COLOUR = (
    (14.2, 0.95),
    (16.0, 0.68),
    (18.0, 0.52),
    (19.0, 0.36),
    (19.5, 0.27),
    (20.5, 0.32),
    (22.0, 0.5),
    (25.0, 1.0),
)
"""Colour g - r [mag] of giants, turn-off and main sequence, at r."""
_SCATTER = 0.04
"""[mag] Scatter of g - r about that line: binaries, and differential reddening."""
_BLUE_FRACTION = 0.03
"""Fraction of the stars brighter than r = 19 that are on the horizontal branch, of g - r = -.2."""
_BRIGHTER_THAN = 19.0
"""[mag] r to which the horizontal branch reaches."""
_LOCUS = {"u-g": (0.72, 1.3), "r-i": (-0.03, 0.45), "i-z": (-0.02, 0.25)}
"""Other colours [mag] as linear functions (intercept, slope) of g - r: SDSS's stellar locus."""
_SURROUND = 12.0
"""[px] Width of the frame around the image in which there are stars too: their cores reach into the image."""

_PAD = 16
"""[px] Width of the frame that is rendered around the image and cut off. The bands of a simulated field are
shifted by up to 11 px; after the cut, every band shows the same sky."""


def cluster_sources(
    shape: tuple[int, int], rng: np.random.Generator, *, density: float = DENSITY, faintest: float = LIMIT
) -> Table:
    """Stars and galaxies in and around an image of ``shape`` (rows, columns).

    Args:
        density: stars of r < :data:`LIMIT` [px^-2].
        faintest: magnitude in r of the faintest stars; the luminosity function goes on to 25.

    Returns:
        As :func:`astrozoo.data.simulate.draw_sources`, with ``x`` and ``y`` [px].

    Raises:
        InputError: the density is not positive, or ``faintest`` not between 20 and 25.
    """
    if not (density > 0 and 20 <= faintest <= 25):
        raise InputError("density and faintest", (density, faintest), "above 0, and from 20 to 25")
    height, width = (side + 2 * _SURROUND for side in shape)
    area = height * width
    stars = _stars(rng.poisson(area * density * _number_to(faintest) / _number_to(LIMIT)), faintest, rng)
    galaxies = draw_sources(4 * max(1, round(_GALAXIES * area)), rng, r_range=(17.0, 22.3))
    galaxies = galaxies[~galaxies["is_star"]][: rng.poisson(_GALAXIES * area)]
    table = vstack([stars, galaxies])
    table["x"] = rng.uniform(-_SURROUND, shape[1] - 1 + _SURROUND, len(table))
    table["y"] = rng.uniform(-_SURROUND, shape[0] - 1 + _SURROUND, len(table))
    return table


def _grid(faintest: float) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes, and the number of stars brighter than each, relative to one per magnitude."""
    r = np.linspace(_NUMBER[0][0], faintest, 2000)
    number = 10 ** np.interp(r, *np.array(_NUMBER).T)
    return r, np.concatenate([[0], np.cumsum((number[1:] + number[:-1]) / 2 * np.diff(r))])


def _number_to(faintest: float) -> float:
    return float(_grid(faintest)[1][-1])


def _stars(n: int, faintest: float, rng: np.random.Generator) -> Table:
    r_grid, cumulative = _grid(faintest)
    r = np.interp(rng.uniform(0, cumulative[-1], n), cumulative, r_grid)
    g_r = np.interp(r, *np.array(_COLOUR).T) + _SCATTER * rng.standard_normal(n)
    blue = (r < _BRIGHTER_THAN) & (rng.random(n) < _BLUE_FRACTION)
    g_r[blue] = -0.2 + _SCATTER * rng.standard_normal(int(blue.sum()))
    u_g, r_i, i_z = (a + b * g_r for a, b in _LOCUS.values())
    magnitude = {"u": r + g_r + u_g, "g": r + g_r, "r": r, "i": r - r_i, "z": r - r_i - i_z}
    table = Table({"is_star": np.ones(n, bool)})
    for band, values in magnitude.items():
        table[f"flux_{band}"] = 10 ** (0.4 * (22.5 - values))
    for name in ("dev_fraction", "radius", "axis_ratio", "angle"):
        table[name] = np.full(n, np.nan)
    return table


def simulate_cluster(
    *,
    seed: int,
    shape: tuple[int, int] = (106, 106),
    bands: str = "ugriz",
    density: float = DENSITY,
    faintest: float = LIMIT,
) -> tuple[Field, Table]:
    """A field of SDSS's depth on a globular cluster, and its truth.

    The PSF is :func:`astrozoo.data.simulate.simulate_field`'s "survey", which is no Gaussian mixture. The
    images' PSFs are exact; see :func:`blurred_psf` for one that must be corrected.

    Raises:
        InputError: see :func:`cluster_sources`.
    """
    sources = cluster_sources(shape, np.random.default_rng((seed, 1)), density=density, faintest=faintest)
    height, width = shape
    sources["x"] += _PAD
    sources["y"] += _PAD
    rendered = (height + 2 * _PAD, width + 2 * _PAD)
    images, truth = simulate_field(sources=sources, seed=seed, shape=rendered, bands=bands, psf="survey")
    truth["x"] -= _PAD
    truth["y"] -= _PAD
    return crop(images, slice(_PAD, _PAD + height), slice(_PAD, _PAD + width)), truth


def blurred_psf(images: Field, *, blur: float = 0.04, radius: float = 12.0) -> Field:
    """The same images with PSFs that are wrong as a survey's are: too wide, round, and without wings.

    Args:
        blur: relative excess of the FWHM. SDSS's PSF on M2 has its peak 8 % too low.
        radius: distance beyond which the PSF is 0, as SDSS's eigen-images [px].
    """

    def wrong(stamp: Float[np.ndarray, "n n"]) -> PixelPsf:
        size = len(stamp)
        profile = galsim.ImageD(stamp, scale=1.0, xmin=0, ymin=0)
        fwhm = float(galsim.Image(profile.array, scale=1.0).calculateFWHM())
        model = galsim.Kolmogorov(fwhm=(1 + blur) * fwhm)
        drawn = model.drawImage(nx=size, ny=size, scale=1.0, method="no_pixel", dtype=float).array
        distance = np.hypot(*(np.mgrid[:size, :size] - size // 2))
        return PixelPsf(np.where(distance < radius, drawn, 0.0))

    changed = (
        replace(image, psf=wrong(image.psf.stamp((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)))
        for image in images
    )
    return replace(images, images=tuple(changed))
