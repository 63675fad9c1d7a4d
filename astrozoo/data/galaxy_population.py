"""The population that simulated galaxies are drawn from.

By default it is a smoothed bootstrap of 500 parametric fits to COSMOS galaxies of F814W < 23.5 (the file
``galaxy_shapes/real_galaxy_23.5_500_fits.fits`` of the local data). Where there is no such file, it is a
multivariate normal with the mean and the covariance of the same quantities.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.io import fits
from jaxtyping import Float

from astrozoo.data import root
from astrozoo.errors import DataError, InputError

__all__ = ["CosmosPopulation", "Galaxy", "Population", "SersicPopulation", "load_population"]

FILE = Path("galaxy_shapes") / "real_galaxy_23.5_500_fits.fits"
_FAINTEST = 23.6
"""[mag] Magnitudes are described by ``ln(_FAINTEST - magnitude)``: the fits end at 23.5."""
_HST_PIXEL = 0.03
"""[arcsec] Pixel scale of the images that were fitted."""
_Z0 = 0.05
"""[1] Redshifts are described by ``ln(redshift + _Z0)``, which is finite at 0."""
_SMOOTHING = 0.25
"""[1] Width of the kernel, in standard deviations of the population. It is half the optimum for normal data
(0.47), because the distributions of sizes and Sersic indices have steeper edges than normal ones."""
_BULGE_SMOOTHING = 0.05
"""[1] Standard deviation of the kernel of the bulge fraction, which is between 0 and 1."""
_INDEX = (0.5, 5.0)
"""Range of Sersic indices. Smaller ones have a sharp edge, and larger ones take long Fourier transforms."""
_AXIS_RATIO = (0.15, 1.0)
_TRIES = 500
"""Draws before the ranges of a survey are taken for empty."""

_MEAN = np.array([-0.0683, -1.0530, 0.2490, 0.3049, -0.4706])
_SD = np.array([0.9134, 0.6110, 0.6500, 1.0782, 0.5462])
_CORRELATION = np.array(
    [
        [1.00, 0.37, 0.19, 0.15, -0.30],
        [0.37, 1.00, -0.03, 0.11, -0.10],
        [0.19, -0.03, 1.00, 0.19, 0.01],
        [0.15, 0.11, 0.19, 1.00, 0.03],
        [-0.30, -0.10, 0.01, 0.03, 1.00],
    ]
)
"""Moments of the five columns of :class:`CosmosPopulation`, of the 468 fits that do not lie at a limit."""


@dataclass(frozen=True)
class Galaxy:
    """One galaxy of the population.

    Args:
        magnitude: F814W.
        half_light_radius: of the circle of equal area [arcsec].
        index: Sersic index.
        axis_ratio: minor over major axis.
        redshift: photometric redshift.
        bulge_fraction: of the light.
    """

    magnitude: float
    half_light_radius: float
    index: float
    axis_ratio: float
    redshift: float
    bulge_fraction: float


class Population(Protocol):
    """A distribution of galaxies."""

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        ...

    @property
    def digest(self) -> str:
        """A hash of its content."""
        ...

    def draw(
        self, rng: np.random.Generator, radius: tuple[float, float], magnitude: tuple[float, float]
    ) -> Galaxy:
        """A galaxy whose half-light radius [arcsec] and magnitude are in the given ranges.

        Raises:
            InputError: almost no galaxy is in the ranges.
        """
        ...


@dataclass(frozen=True)
class SersicPopulation:
    """Galaxies of one Sersic index, with normal distributions: those of :class:`astrozoo.models.shear.Shear`.

    Args:
        index: Sersic index.
        ellipticity_sd: SD of each component of a vector whose length is ``-ln(axis ratio)``.
        magnitude: (mean, SD).
        log_radius: (mean, SD) of ln r [ln arcsec] at the mean magnitude.
        radius_slope: d(mean of ln r) / d(ln flux).
    """

    index: float = 1.0
    ellipticity_sd: float = 0.5
    magnitude: tuple[float, float] = (25.0, 0.3)
    log_radius: tuple[float, float] = (math.log(0.5), 0.25)
    radius_slope: float = 0.3

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        return f"normal distributions, Sersic index {self.index:g}"

    @property
    def digest(self) -> str:
        """A hash of its content."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def draw(
        self, rng: np.random.Generator, radius: tuple[float, float], magnitude: tuple[float, float]
    ) -> Galaxy:
        """A galaxy; see :class:`Population`. It has no redshift and no bulge."""
        return _in_ranges(self._draw, rng, radius, magnitude)

    def _draw(self, rng: np.random.Generator) -> Galaxy:
        fainter = self.magnitude[1] * rng.standard_normal()
        brighter = -fainter * math.log(10) / 2.5  # in ln flux
        length = (
            self.log_radius[0] + self.radius_slope * brighter + self.log_radius[1] * rng.standard_normal()
        )
        ratio = math.exp(-self.ellipticity_sd * math.hypot(*rng.standard_normal(2)))
        return Galaxy(self.magnitude[0] + fainter, math.exp(length), self.index, ratio, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class CosmosPopulation:
    """COSMOS galaxies.

    Args:
        name: where it comes from.
        table: rows that are bootstrapped: ``ln(23.6 - magnitude)``, ``ln radius``, ``ln index``, ``logit axis
            ratio``, ``ln(redshift + 0.05)``. None for a multivariate normal.
        bulge: bulge fraction of each row.
    """

    name: str
    table: Float[np.ndarray, "n 5"] | None = None
    bulge: Float[np.ndarray, "n"] | None = None

    @property
    def digest(self) -> str:
        """A hash of its content."""
        digest = hashlib.sha256(self.name.encode())
        if self.table is not None and self.bulge is not None:
            digest.update(self.table.tobytes() + self.bulge.tobytes())
        return digest.hexdigest()

    def draw(
        self, rng: np.random.Generator, radius: tuple[float, float], magnitude: tuple[float, float]
    ) -> Galaxy:
        """A galaxy; see :class:`Population`."""
        return _in_ranges(self._draw, rng, radius, magnitude)

    def _draw(self, rng: np.random.Generator) -> Galaxy:
        noise = rng.standard_normal(5)
        if self.table is None or self.bulge is None:
            row = _MEAN + _SD * (np.linalg.cholesky(_CORRELATION) @ noise)
            bulge = rng.beta(0.35, 1.2)  # as skewed as the fits: a median of 0.1, and a tail up to 1
        else:
            k = int(rng.integers(len(self.table)))
            mean, sd = self.table.mean(0), self.table.std(0)
            # Shrinking keeps the variance of the table (Silverman 1986, section 6.4).
            shrunk = (self.table[k] - mean + _SMOOTHING * sd * noise) / math.hypot(1.0, _SMOOTHING)
            row, bulge = mean + shrunk, abs(self.bulge[k] + _BULGE_SMOOTHING * rng.standard_normal())
        return Galaxy(
            magnitude=_FAINTEST - math.exp(row[0]),
            half_light_radius=math.exp(row[1]),
            index=float(np.clip(math.exp(row[2]), *_INDEX)),
            axis_ratio=float(np.clip(1 / (1 + math.exp(-row[3])), *_AXIS_RATIO)),
            redshift=max(math.exp(row[4]) - _Z0, 0.0),
            bulge_fraction=float(min(bulge, 1.0)),
        )


def _in_ranges(
    draw: Callable[[np.random.Generator], Galaxy],
    rng: np.random.Generator,
    radius: tuple[float, float],
    magnitude: tuple[float, float],
) -> Galaxy:
    for _ in range(_TRIES):
        galaxy = draw(rng)
        inside = radius[0] <= galaxy.half_light_radius <= radius[1]
        if inside and magnitude[0] <= galaxy.magnitude <= magnitude[1]:
            return galaxy
    expected = "ranges of radius and magnitude with more than a few galaxies in a thousand"
    raise InputError("survey", f"radius={radius}, magnitude={magnitude}", expected)


def load_population() -> CosmosPopulation:
    """The bootstrap of the COSMOS fits; the multivariate normal if the local data have no such file.

    Raises:
        DataError: the file is unreadable.
    """
    folder = root()
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        return CosmosPopulation("multivariate normal (no COSMOS fits in the local data)")
    try:
        with fits.open(path) as file:
            rows = file[1].data
            sersic, bulge = np.array(rows["sersicfit"]), np.array(rows["fit_dvc_btt"])
            magnitude, redshift = np.array(rows["mag_auto"]), np.array(rows["zphot"])
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise DataError(str(path), f"unusable ({error})", "the table of COSMOS fits") from error
    length, index, ratio = sersic[:, 1], sersic[:, 2], sersic[:, 3]
    radius = _HST_PIXEL * length * np.sqrt(ratio)  # the fits' radius is along the major axis
    usable = (length > 0.5) & (index > 0.11) & (index < 5.99) & (radius < 3.0) & (redshift >= 0)
    columns = (
        np.log(_FAINTEST - magnitude),
        np.log(radius),
        np.log(index),
        np.log(ratio / (1 - ratio)),
        np.log(redshift + _Z0),
    )
    table = np.stack(columns, axis=1)[usable]
    return CosmosPopulation("smoothed bootstrap of COSMOS fits", table, np.clip(bulge, 0.0, 1.0)[usable])
