"""What is expected of the sources of a crowded field, and how the field itself says it.

Stars and galaxies are two Poisson processes over position, flux, colour and shape. Each has a density of
sources, a luminosity function, and a locus of colours that depends on flux. All are learned from a catalogue
of the field, or from draws of whole catalogues (the M step of Monte-Carlo EM), under hyperpriors that decide
where the field has few sources. The hyperprior of galaxies is their mean density on the sky, which does not
depend on a star cluster in front of them.

References:
    Yasuda et al. 2001, AJ 122, 1104 (counts of galaxies in SDSS's bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.stats import multivariate_t

from astrozoo.data.simulate import load_priors
from astrozoo.errors import InputError
from astrozoo.survey.crowded.learning import (
    GALAXY_LEVEL_SD,
    SLOPE,
    STAR_LEVEL_SD,
    TAIL,
    evenly_spaced_knots,
    galaxy_counts,
    integral,
    locus,
    luminosity_function,
    sizes,
)

__all__ = ["FieldPrior", "Population"]


@dataclass(frozen=True)
class Population:
    """A Poisson process of stars, or of galaxies.

    Args:
        density: sources whose flux lies between the first and the last knot [px^-2].
        log_flux: knots of ln flux in the reference band, ascending [ln nMgy].
        log_number: ln of the probability density of ln flux at the knots; linear between them, and zero
            density outside.
        log_ratio: ln(flux / flux in the reference band) expected at the knots; linear between them.
        scatter: covariance of these, of all bands but the reference; the distribution is Student's with
            :data:`TAIL` degrees of freedom, of which this is the scale matrix.
    """

    density: float
    log_flux: Float[np.ndarray, "knot"]
    log_number: Float[np.ndarray, "knot"]
    log_ratio: Float[np.ndarray, "knot band"]
    scatter: Float[np.ndarray, "other other"]

    def log_luminosity(self, log_flux: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
        """Ln probability density of ln flux; minus infinity outside the knots."""
        return np.interp(log_flux, self.log_flux, self.log_number, left=-np.inf, right=-np.inf)

    def locus(self, log_flux: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s band"]:
        """Expected ln(flux / flux in the reference band)."""
        columns = [np.interp(log_flux, self.log_flux, column) for column in self.log_ratio.T]
        return np.stack(columns, -1)

    def log_intensity(self, flux: Float[np.ndarray, "s band"], reference: int) -> Float[np.ndarray, "s"]:
        """Ln of the expected number of sources per px^2, unit ln reference flux and unit ln ratios."""
        log_flux = np.log(flux[:, reference])
        deviation = np.delete(np.log(flux) - log_flux[:, None] - self.locus(log_flux), reference, 1)
        with np.errstate(divide="ignore"):
            level = np.log(self.density)
        return level + self.log_luminosity(log_flux) + _log_student(deviation, self.scatter)


@dataclass(frozen=True)
class FieldPrior:
    """Prior of the sources of a field.

    Args:
        bands: in the order of the columns of fluxes.
        reference: number of the reference band among them.
        star, galaxy: the two populations.
        log_radius: mean and SD of ln(half-light radius / px) of galaxies.
        ellipticity_sd: SD of each component of ``-ln(axis ratio) (cos 2 phi, sin 2 phi)`` of galaxies.
    """

    bands: tuple[str, ...]
    reference: int
    star: Population
    galaxy: Population
    log_radius: tuple[float, float]
    ellipticity_sd: float

    @property
    def density(self) -> float:
        """Sources of both kinds [px^-2]."""
        return self.star.density + self.galaxy.density

    @property
    def star_fraction(self) -> float:
        """Stars among the sources between the limits of flux."""
        return self.star.density / self.density

    def log_intensity(
        self, flux: Float[np.ndarray, "s band"], shape: Float[np.ndarray, "s 3"]
    ) -> Float[np.ndarray, "s"]:
        """Ln prior intensity of each source of a catalogue.

        The ln prior density of a catalogue is the sum of these minus ``density`` times the area.

        Args:
            flux: [nMgy].
            shape: half-light radius [px] and two components of ellipticity; NaN for a star.
        """
        is_star = np.isnan(shape[:, 0])
        mean, sd = self.log_radius
        log_radius = np.log(np.where(is_star, 1.0, shape[:, 0]))
        size = -0.5 * ((log_radius - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
        e_sd = self.ellipticity_sd
        round_ = -0.5 * (np.where(is_star[:, None], 0, shape[:, 1:]) ** 2).sum(1) / e_sd**2
        round_ -= 2 * np.log(e_sd) + np.log(2 * np.pi)
        return np.where(
            is_star,
            self.star.log_intensity(flux, self.reference),
            self.galaxy.log_intensity(flux, self.reference) + size + round_,
        )

    def with_star_fraction(self, fraction: float) -> FieldPrior:
        """The same total density, with this fraction of stars; 1 allows no galaxies.

        Raises:
            InputError: the fraction is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            raise InputError("star fraction", fraction, "between 0 and 1")
        return replace(
            self,
            star=replace(self.star, density=fraction * self.density),
            galaxy=replace(self.galaxy, density=(1 - fraction) * self.density),
        )

    @classmethod
    def learn(
        cls,
        flux: Float[np.ndarray, "s band"],
        shape: Float[np.ndarray, "s 3"],
        *,
        bands: Sequence[str],
        reference: int,
        area: float,
        limits: tuple[float, float],
        complete: float | None = None,
        weight: Float[np.ndarray, "s"] | None = None,
        flux_sd: Float[np.ndarray, "s band"] | None = None,
        pixel_scale: float = 0.396,
    ) -> FieldPrior:
        """Learn the prior from the sources of a field.

        Args:
            flux: [nMgy]. Sources fainter than ``complete`` in the reference band are not counted.
            shape: half-light radius [px] and ellipticity; NaN for a star.
            bands: names of the columns of ``flux``.
            reference: number of the reference band.
            area: in which these sources lie [px^2].
            limits: least and largest flux in the reference band that a source may have [nMgy].
            complete: flux above which hardly a source is missing [nMgy]; by default the least. Below it,
                the luminosity function is extrapolated.
            weight: of each source: 1 by default; for draws of whole catalogues, 1 / number of catalogues.
            flux_sd: measurement errors, which widen the scatter of colours; None if the fluxes are draws.
            pixel_scale: side of a pixel [arcsec].

        Raises:
            InputError: the shapes do not agree, a flux is not positive, or the limits are not ascending.
        """
        _check(flux, shape, bands, reference, area, limits)
        weight = np.ones(len(flux)) if weight is None else weight
        knots = evenly_spaced_knots(*np.log(limits))
        floor = np.log(limits[0] if complete is None else complete)
        is_star = np.isnan(shape[:, 0])
        total = max(weight[is_star].sum(), 1.0) / area
        line = SLOPE * (knots - knots[0])
        star_level = line + np.log(total / integral(knots, line))
        populations = []
        for rows, level, level_sd, kind in (
            (is_star, star_level, STAR_LEVEL_SD, "star"),
            (~is_star, galaxy_counts(knots, pixel_scale), GALAXY_LEVEL_SD, "galaxy"),
        ):
            log_flux = np.log(flux[rows, reference])
            log_rate = luminosity_function(log_flux, weight[rows], area, knots, level, level_sd, floor)
            density = integral(knots, log_rate)
            sd = None if flux_sd is None else flux_sd[rows]
            log_ratio, scatter = locus(flux[rows], sd, weight[rows], knots, bands, reference, kind)
            populations.append(Population(density, knots, log_rate - np.log(density), log_ratio, scatter))
        star, galaxy = populations
        log_radius = sizes(np.log(shape[~is_star, 0]), weight[~is_star], pixel_scale)
        ellipticity_sd = load_priors()["ellipticity"]["sd"]
        return cls(tuple(bands), reference, star, galaxy, log_radius, ellipticity_sd)


def _check(
    flux: np.ndarray,
    shape: np.ndarray,
    bands: Sequence[str],
    reference: int,
    area: float,
    limits: tuple[float, float],
) -> None:
    if flux.ndim != 2 or flux.shape[1] != len(bands) or shape.shape != (len(flux), 3):
        got = f"fluxes {flux.shape}, shapes {shape.shape}"
        raise InputError("sources", got, f"[s, {len(bands)}] and [s, 3]")
    if not 0 <= reference < len(bands):
        raise InputError("reference band", reference, f"0 to {len(bands) - 1}")
    if not (np.isfinite(flux) & (flux > 0)).all():
        raise InputError("fluxes", f"{int((~(flux > 0)).sum())} that are not positive", "positive fluxes")
    if not (area > 0 and 0 < limits[0] < limits[1]):
        raise InputError("area and limits of flux", (area, limits), "positive and ascending")


def _log_student(
    deviation: Float[np.ndarray, "s other"], scale: Float[np.ndarray, "other other"]
) -> Float[np.ndarray, "s"]:
    """Ln density of the multivariate Student distribution with :data:`TAIL` degrees of freedom."""
    d = deviation.shape[1]
    if d == 0:
        return np.zeros(len(deviation))
    return np.atleast_1d(multivariate_t(shape=scale, df=TAIL).logpdf(deviation))
