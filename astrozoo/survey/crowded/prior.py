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

from astrozoo.data.simulate import load_priors
from astrozoo.errors import InputError

__all__ = ["FieldPrior", "Population"]

KNOT_SPACING = 0.92
"""[ln flux] Distance of the knots of a luminosity function: one magnitude, as published functions are binned."""
TAIL = 4.0
"""Degrees of freedom of the Student distribution of colours: horizontal-branch stars, variables and binaries
lie off the locus of a cluster."""
ROUGHNESS = 0.3
"""[1] Prior SD of the change of slope d ln N / d ln flux from one knot to the next. The main-sequence turn-off
of a cluster, the sharpest feature expected, changes it by about .7 over two magnitudes."""
SLOPE = -0.6
"""[1] Mean of the prior of d ln N / d ln flux of stars: .24 dex per magnitude, that of a globular cluster's
lower giant branch and of its main sequence below the turn-off."""
SLOPE_SD = 0.3
"""[1] SD of that prior."""
STAR_LEVEL_SD = 3.0
"""[1] Prior SD of ln(density of stars): that of the halo and of a cluster's core differ by a factor 1e3."""
GALAXY_LEVEL_SD = 0.5
"""[1] Prior SD of ln(density of galaxies): clustering and extinction on fields of some arc minutes."""
GALAXY_COUNTS = 3.2e3
"""[deg^-2] Galaxies per unit ln flux at :data:`GALAXY_FLUX` in band r: a quarter of a magnitude fainter than
2,300 per magnitude at r = 20 (Yasuda et al. 2001, figure 7, smoothed)."""
GALAXY_FLUX = 10.0
"""[nMgy] Flux of r = 20."""
GALAXY_SLOPE = -1.0
"""[1] d ln N / d ln flux of galaxies: .4 dex per magnitude (Yasuda et al. 2001)."""
COLOUR_SOURCES = 10.0
"""[sources] Weight of the hyperprior of a locus of colours."""
STAR_SCATTER = 0.15
"""[ln flux ratio] Prior scatter about the locus of stars, before the field is seen. A cluster's own is .03 to
.1, and :data:`COLOUR_SOURCES` let some fifty stars decide."""
UNKNOWN_SCATTER = 1.0
"""[ln flux ratio] Scatter of the colours in bands for which the survey's prior has none."""
SIZE_SOURCES = 10.0
"""[sources] Weight of the hyperprior of the sizes of galaxies."""
_GRID = 20
"""Integration steps between two knots: the trapezoid rule is then right to 1e-4."""


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
        ellipticity_sd: of each component of a galaxy's ellipticity.
    """

    bands: tuple[str, ...]
    reference: int
    star: Population
    galaxy: Population
    log_radius: tuple[float, float]
    ellipticity_sd: float = 0.25

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
        knots = _knots(*np.log(limits))
        floor = np.log(limits[0] if complete is None else complete)
        is_star = np.isnan(shape[:, 0])
        pixel = (pixel_scale / 3600) ** 2  # [deg^2]
        galaxy_level = np.log(GALAXY_COUNTS * pixel) + GALAXY_SLOPE * (knots - np.log(GALAXY_FLUX))
        total = max(weight[is_star].sum(), 1.0) / area
        line = SLOPE * (knots - knots[0])
        star_level = line + np.log(total / _integral(knots, np.exp, line))
        populations = []
        for rows, level, level_sd, kind in (
            (is_star, star_level, STAR_LEVEL_SD, "star"),
            (~is_star, galaxy_level, GALAXY_LEVEL_SD, "galaxy"),
        ):
            log_flux = np.log(flux[rows, reference])
            log_rate = _luminosity_function(log_flux, weight[rows], area, knots, level, level_sd, floor)
            density = _integral(knots, np.exp, log_rate)
            sd = None if flux_sd is None else flux_sd[rows]
            log_ratio, scatter = _locus(flux[rows], sd, weight[rows], knots, bands, reference, kind)
            populations.append(Population(density, knots, log_rate - np.log(density), log_ratio, scatter))
        star, galaxy = populations
        log_radius = _sizes(np.log(shape[~is_star, 0]), weight[~is_star], pixel_scale)
        return cls(tuple(bands), reference, star, galaxy, log_radius)


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


def _knots(low: float, high: float) -> Float[np.ndarray, "knot"]:
    return np.linspace(low, high, max(3, 1 + round((high - low) / KNOT_SPACING)))


def _integral(knots: np.ndarray, function: np.ufunc, values: np.ndarray) -> float:
    """Integral over ln flux of a function of what is linear between the knots."""
    grid = _grid(knots)
    return float(np.trapezoid(function(np.interp(grid, knots, values)), grid))


def _grid(knots: np.ndarray) -> np.ndarray:
    return np.linspace(knots[0], knots[-1], _GRID * (len(knots) - 1) + 1)


def _hats(knots: np.ndarray, at: np.ndarray) -> Float[np.ndarray, "n knot"]:
    """Weights of the knots in linear interpolation."""
    return np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], -1)


def _luminosity_function(
    log_flux: Float[np.ndarray, "s"],
    weight: Float[np.ndarray, "s"],
    area: float,
    knots: Float[np.ndarray, "knot"],
    level: Float[np.ndarray, "knot"],
    level_sd: float,
    floor: float,
) -> Float[np.ndarray, "knot"]:
    """Ln of the number of sources per px^2 and unit ln flux at the knots: a penalised Poisson likelihood.

    The Gaussian prior has the mean ``level``; its SDs are ``level_sd`` of the mean level, :data:`SLOPE_SD` of
    the mean slope, and :data:`ROUGHNESS` of changes of slope. The problem is convex.
    """
    n, width = len(knots), knots[1] - knots[0]
    mean = np.full((1, n), 1 / n) / level_sd
    slope = np.zeros((1, n))
    slope[0, [0, -1]] = np.array([-1, 1]) / ((knots[-1] - knots[0]) * SLOPE_SD)
    bend = np.diff(np.eye(n), 2, axis=0) / (width * ROUGHNESS)
    root = np.concatenate([mean, slope, bend])
    precision = root.T @ root
    used = (log_flux >= floor) & (log_flux <= knots[-1])
    counts = weight[used] @ _hats(knots, log_flux[used])
    grid = _grid(knots)
    step = np.gradient(grid) * (grid >= floor)
    step[[0, -1]] *= 0.5
    hats = _hats(knots, grid)
    rate = level.copy()
    for _ in range(100):
        expected = area * step * np.exp(hats @ rate)
        gradient = counts - expected @ hats - precision @ (rate - level)
        move = np.linalg.solve(precision + (hats.T * expected) @ hats, gradient)
        rate = rate + move / max(1.0, np.abs(move).max())
        if np.abs(move).max() < 1e-8:
            break
    return rate


def _locus(
    flux: Float[np.ndarray, "s band"],
    flux_sd: Float[np.ndarray, "s band"] | None,
    weight: Float[np.ndarray, "s"],
    knots: Float[np.ndarray, "knot"],
    bands: Sequence[str],
    reference: int,
    kind: str,
) -> tuple[Float[np.ndarray, "knot band"], Float[np.ndarray, "other other"]]:
    """Expected ln flux ratios at the knots, and the scale matrix of the Student distribution about them.

    An EM algorithm: the latent variables are each source's true deviation from the locus, and its weight in
    the Student distribution. The hyperprior is the mean colour of the survey's stars or galaxies at every
    knot, with the weight of :data:`COLOUR_SOURCES`.
    """
    centre, scatter = _survey_ratios(kind, bands, reference)
    mean = np.repeat(centre[None], len(knots), 0)  # [knot, other]
    hyper = scatter
    others = [b for b in range(len(bands)) if b != reference]
    log_flux = np.log(flux)
    ratio = log_flux[:, others] - log_flux[:, [reference]]
    noise = np.zeros((len(flux), len(others), len(others)))
    if flux_sd is not None:
        relative = (flux_sd / flux) ** 2
        noise += relative[:, reference, None, None]
        noise += np.eye(len(others)) * relative[:, others, None]
    hats = _hats(knots, np.clip(log_flux[:, reference], knots[0], knots[-1]))
    bend = np.diff(np.eye(len(knots)), axis=0)
    smooth = COLOUR_SOURCES * (bend.T @ bend) + COLOUR_SOURCES / len(knots) * np.eye(len(knots))
    for _ in range(30 if len(flux) and others else 0):
        deviation = ratio - hats @ mean
        gain = scatter @ np.linalg.inv(scatter + noise)  # [s, other, other]
        distance = np.einsum("si,sij,sj->s", deviation, np.linalg.inv(scatter + noise), deviation)
        student = weight * (TAIL + len(others)) / (TAIL + distance)
        true = np.einsum("sij,sj->si", gain, deviation)
        rest = scatter - gain @ scatter
        mean = np.linalg.solve(
            (hats.T * student) @ hats + smooth,
            hats.T @ (student[:, None] * (true + hats @ mean)) + COLOUR_SOURCES / len(knots) * centre,
        )
        spread = (ratio - hats @ mean) * np.sqrt(student)[:, None] if flux_sd is None else None
        moment = (
            spread.T @ spread
            if spread is not None
            else np.einsum("s,si,sj->ij", student, true, true) + np.einsum("s,sij->ij", weight, rest)
        )
        scatter = (moment + COLOUR_SOURCES * hyper) / (weight.sum() + COLOUR_SOURCES)
    full = np.zeros((len(knots), len(bands)))
    full[:, others] = mean
    return full, scatter


def _survey_ratios(
    kind: str, bands: Sequence[str], reference: int
) -> tuple[Float[np.ndarray, "other"], Float[np.ndarray, "other other"]]:
    """Mean and covariance of ln flux ratios to the reference band, of the survey's stars or galaxies.

    Bands that the survey's prior does not have are expected at ratio 1, with :data:`UNKNOWN_SCATTER`. The
    scatter of stars is that about the locus of one field.
    """
    survey = load_priors()
    colour = survey["colour"][kind]
    weights = np.array(colour["weights"])
    weights = weights / weights.sum()
    means, covariances = np.array(colour["means"]), np.array(colour["covariances"])
    centre = weights @ means
    spread = means - centre
    covariance = np.einsum("k,kij->ij", weights, covariances + spread[:, :, None] * spread[:, None])
    others = [b for b in range(len(bands)) if b != reference]
    matrix = np.zeros((len(others), means.shape[1]))
    known = np.zeros(len(others), bool)
    for row, b in enumerate(others):
        if bands[b] in survey["bands"] and bands[reference] in survey["bands"]:
            first, last = (survey["bands"].index(bands[k]) for k in (reference, b))
            low, high = sorted((first, last))
            matrix[row, low:high] = 1.0 if last > first else -1.0
            known[row] = True
    if kind == "star":
        scatter = STAR_SCATTER**2 * np.eye(len(others))
    else:
        scatter = matrix @ covariance @ matrix.T
    scatter = scatter * np.outer(known, known) + np.diag(np.where(known, 0.0, UNKNOWN_SCATTER**2))
    return matrix @ centre, scatter


def _sizes(
    log_radius: Float[np.ndarray, "g"], weight: Float[np.ndarray, "g"], pixel_scale: float
) -> tuple[float, float]:
    """Mean and SD of ln(half-light radius / px), with the survey's as the hyperprior."""
    survey = load_priors()["log_radius_arcsec"]
    mean, sd = survey["mean"] - np.log(pixel_scale), survey["sd"]
    total = weight.sum() + SIZE_SOURCES
    learned = float((weight @ log_radius + SIZE_SOURCES * mean) / total)
    square = weight @ (log_radius - learned) ** 2 + SIZE_SOURCES * (sd**2 + (mean - learned) ** 2)
    return learned, float(np.sqrt(square / total))


def _log_student(
    deviation: Float[np.ndarray, "s other"], scale: Float[np.ndarray, "other other"]
) -> Float[np.ndarray, "s"]:
    """Ln density of the multivariate Student distribution with :data:`TAIL` degrees of freedom."""
    d = deviation.shape[1]
    if d == 0:
        return np.zeros(len(deviation))
    from scipy.stats import multivariate_t

    return np.atleast_1d(multivariate_t(shape=scale, df=TAIL).logpdf(deviation))
