"""A catalogue of a fitted field: medians and standard deviations of every source's posterior.

Medians, because those of a flux, of its logarithm and of its magnitude are one and the same source, because
posteriors of faint fluxes and of shapes are skewed, and because no other estimate has a smaller expected
absolute error, which is what catalogues are scored by.

Fluxes are in nanomaggies (1 nMgy = 3.631 microjansky), a unit that FITS cannot name: in ``catalog.fits`` the
flux columns have no unit, and their comments (``TCOMM``) say so. Everything else has a unit of the standard.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884 (what is estimated).
    Lupton, Gunn & Szalay 1999, AJ 118, 1406 (asinh magnitudes).
    Mardia & Jupp 2000, Directional Statistics, eq. 2.3.11 (circular standard deviation).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from astropy import units
from astropy.table import Column, Table
from jaxtyping import Float

from astrozoo.diagnostics.scoring import asinh_magnitude
from astrozoo.models.celeste import band_matrix
from astrozoo.survey.flags import POSITION_FLAGS, position_flags

if TYPE_CHECKING:
    from astrozoo.survey.celeste.fit import FieldFit
    from astrozoo.survey.crowded.fit import CrowdedFit

__all__ = ["FLAGS", "catalogue", "measured_bands"]

FLAGS = {
    **POSITION_FLAGS,
    "not_converged": "the fit spent its budget before it met its stopping rule",
    "poor_posterior": "k-hat above 0.7, and no Markov chains that converged: means and errors are not to be "
    "trusted",
    "outgrows_patch": "its light goes on beyond the largest patch: flux and size are not to be trusted",
    "maybe_double": "two stars may explain its pixels better than one source, but are too close or too faint "
    "to tell",
    "poor_profile": "its light does not follow the model's profile: fluxes have larger errors for it",
    "unmodelled_light": "residuals beside it show light that no source explains: its flux may be wrong",
}
"""Meaning of each flag; the k-th, from 0, is bit 2**k of the column ``flags``."""

_POGSON = 2.5 / np.log(10)
_SOFTENED = "ugriz"
_FLAT_ANGLE = 180 / np.sqrt(12)
"""Standard deviation of an angle of which nothing is known [deg]."""
_MIN_DRAWS = 10
"""Smallest number of draws from which a standard deviation is quoted.

A star may have a few draws as a galaxy, or one, whose standard deviation would be 0. That of 10 draws is
right within 24 %."""


def catalogue(fit: FieldFit) -> Table:
    """One row per source: medians (and ``_sd``, standard deviations) of its posterior draws.

    Args:
        fit: a fitted field.

    Returns:
        ``id`` (that of ``fit.detections``, or 1, 2 ...); ``ra``, ``dec`` [deg] (means); ``ra_sd`` (of ra cos
        dec), ``dec_sd`` [mas], ``ra_dec_cov`` [mas^2]; ``p_star``; for each band b of the images ``flux_b``
        [nMgy], ``log_flux_b`` [ln nMgy], ``mag_b`` (SDSS's asinh magnitude; of others a Pogson one);
        for each two adjacent ones ``colour_ab`` [mag]; given a galaxy, ``dev_fraction``, ``radius`` [arcsec],
        ``axis_ratio``, ``angle`` [deg, north through east; an axial median], see
        :mod:`astrozoo.physics.profiles` (NaN where no draw is a galaxy; standard deviations are NaN where
        fewer than 10 are); ``chi2_b``: mean squared residual, in sigma, of the pixels around the source;
        ``k_hat`` of importance weights, or ``r_hat`` and ``ess`` of Markov chains that replaced them; a
        column for each of :data:`FLAGS`, and ``flags``, all of them as bits.
    """
    draws, detections = fit.draws, fit.detections
    n = len(detections)
    table = Table(meta={"FIELD": fit.field.name, "FLUXUNIT": "nanomaggy, 3.631 microjansky"})
    ids = np.asarray(detections["id"]) if "id" in detections.colnames else np.arange(1, n + 1)
    table["id"] = Column(ids, description="number of the source")
    _add_position(
        table, np.asarray(detections["ra"], float), np.asarray(detections["dec"], float), draws["offset"]
    )
    table["p_star"] = Column(fit.p_star, description="probability of a star (else a galaxy)")
    _add_photometry(table, fit)
    _add_shape(table, fit)
    for band, chi2 in zip(fit.field.bands, np.asarray(fit.chi2, float).T, strict=True):
        table[f"chi2_{band}"] = Column(
            chi2, description=f"mean squared residual of the patch in {band} [sigma^2]"
        )
    for name, what in (
        ("k_hat", "Pareto k-hat of importance weights; above 0.7 is poor, NaN where chains replaced them"),
        ("r_hat", "largest R-hat of Markov chains; NaN if there are none"),
        ("ess", "smallest effective sample size of Markov chains; NaN if there are none"),
    ):
        table[name] = Column(np.asarray(getattr(fit, name), float), description=what)
    _add_flags(table, fit)
    return table


def measured_bands(fit: FieldFit | CrowdedFit) -> list[str]:
    """The bands of the field's images, in the prior's order (that of wavelength)."""
    return [band for band in fit.prior.bands if band in fit.field.bands]


def _add(
    table: Table, name: str, draws: Float[np.ndarray, "s d"], unit: units.UnitBase | None, what: str
) -> None:
    """Median and standard deviation over the draws that are not NaN."""
    median, sd = torch.nanmedian(torch.from_numpy(draws), 1).values.numpy(), _moments(draws)[1]
    table[name] = Column(median, unit=unit, description=what)
    table[f"{name}_sd"] = Column(sd, unit=unit, description=f"standard deviation of {name}")


def _moments(draws: Float[np.ndarray, "s d"]) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s"]]:
    known = np.isfinite(draws)
    count = known.sum(1).astype(float)
    count[count == 0] = np.nan
    mean = np.where(known, draws, 0).sum(1) / count
    square = np.where(known, draws - mean[:, None], 0) ** 2
    return mean, np.where(count < _MIN_DRAWS, np.nan, np.sqrt(square.sum(1) / count))


def _add_position(table: Table, ra: np.ndarray, dec: np.ndarray, offset: Float[np.ndarray, "s d 2"]) -> None:
    mean = offset.mean(1)
    centred = 1e3 * (offset - mean[:, None])  # mas
    east, north = centred[..., 0], centred[..., 1]
    table["ra"] = Column(
        (ra + mean[:, 0] / 3600 / np.cos(np.deg2rad(dec))) % 360,
        unit=units.deg,
        description="right ascension",
    )
    table["dec"] = Column(dec + mean[:, 1] / 3600, unit=units.deg, description="declination")
    table["ra_sd"] = Column(
        east.std(1), unit=units.mas, description="standard deviation of right ascension times cos(dec)"
    )
    table["dec_sd"] = Column(north.std(1), unit=units.mas, description="standard deviation of declination")
    table["ra_dec_cov"] = Column(
        (east * north).mean(1), unit=units.mas**2, description="covariance of ra cos(dec) and dec"
    )


def _add_photometry(table: Table, fit: FieldFit) -> None:
    bands = measured_bands(fit)
    sdss = fit.field.meta.get("survey", "SDSS") == "SDSS"  # the softening is that of its depth
    log_flux, colour = (torch.from_numpy(np.asarray(fit.draws[k], float)) for k in ("log_flux", "colour"))
    matrix = band_matrix(len(fit.prior.bands), fit.prior.reference, log_flux)

    def ln(band: str) -> Float[np.ndarray, "s d"]:  # one band at a time: all of a whole field's are gigabytes
        row = matrix[fit.prior.bands.index(band)]
        return (row[0] * log_flux + colour @ row[1:]).numpy()

    for b in bands:
        _add(
            table,
            f"flux_{b}",
            np.exp(ln(b)),
            units.Unit("nmgy"),
            f"flux in {b} [nanomaggy = 3.631 microjansky]",
        )
    for b in bands:
        _add(table, f"log_flux_{b}", ln(b), None, f"natural log of the flux in {b} [nanomaggy]")
    for b in bands:
        kind, mag = "asinh", asinh_magnitude(np.exp(ln(b)), b) if sdss and b in _SOFTENED else None
        if mag is None:
            kind, mag = "Pogson", 22.5 - _POGSON * ln(b)
        _add(table, f"mag_{b}", mag, units.mag, f"{kind} AB magnitude in {b}")
    for a, b in pairwise(bands):
        _add(table, f"colour_{a}{b}", _POGSON * (ln(b) - ln(a)), units.mag, f"colour {a} - {b}")


def _add_shape(table: Table, fit: FieldFit) -> None:
    galaxy = fit.draws["is_star"] < 0.5

    def of_galaxies(values: np.ndarray) -> np.ndarray:
        return np.where(galaxy, values, np.nan)

    eta1, eta2 = np.moveaxis(fit.draws["ellipticity"], -1, 0)
    log_radius = of_galaxies(fit.draws["log_radius"])
    fraction = of_galaxies(1 / (1 + np.exp(-fit.draws["dev_logit"])))
    _add(table, "dev_fraction", fraction, None, "share of de Vaucouleurs light, if a galaxy")
    _add(
        table,
        "radius",
        np.exp(log_radius),
        units.arcsec,
        "half-light radius (circle of equal area), if a galaxy",
    )
    table["log_radius_sd"] = Column(
        _moments(log_radius)[1], description="standard deviation of ln(radius / arcsec), if a galaxy"
    )
    ratio = of_galaxies(np.exp(-np.hypot(eta1, eta2)))
    _add(table, "axis_ratio", ratio, None, "minor to major axis, if a galaxy")
    angle, spread = _axial(of_galaxies(np.arctan2(eta2, eta1)))
    table["angle"] = Column(
        angle, unit=units.deg, description="position angle of the major axis, north through east, if a galaxy"
    )
    table["angle_sd"] = Column(
        spread, unit=units.deg, description="circular standard deviation of angle, at most 52 (nothing known)"
    )


def _axial(twice: Float[np.ndarray, "s d"]) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s"]]:
    """Median and circular standard deviation [deg] of axes (180 degrees are none) from twice the angle.

    The median is that of the angles from the circular mean, each within 90 degrees of it.
    """
    east, _ = _moments(np.cos(twice))
    north, _ = _moments(np.sin(twice))
    with np.errstate(divide="ignore"):
        spread = np.rad2deg(0.5 * np.sqrt(-2 * np.log(np.clip(np.hypot(east, north), 0, 1))))
    few = np.isfinite(twice).sum(1) < _MIN_DRAWS
    spread = np.where(few, np.nan, np.minimum(spread, _FLAT_ANGLE))
    mean = np.arctan2(north, east)
    off = (twice - mean[:, None] + np.pi) % (2 * np.pi) - np.pi
    median = torch.nanmedian(torch.from_numpy(off), 1).values.numpy()
    return np.rad2deg(0.5 * (mean + median)) % 180, spread


def _add_flags(table: Table, fit: FieldFit) -> None:
    values = position_flags(fit.field, fit.detections)
    values |= {name: np.asarray(flag, bool) for name, flag in fit.flags.items()}
    values["not_converged"] = ~np.asarray(fit.converged, bool)
    values["poor_posterior"] = fit.poor
    bits = np.zeros(len(table), np.int32)
    for k, (name, what) in enumerate(FLAGS.items()):
        table[name] = Column(values[name], description=what)
        bits |= np.where(values[name], 2**k, 0).astype(np.int32)
    listed = ", ".join(f"{2**k} {name}" for k, name in enumerate(FLAGS))
    table["flags"] = Column(bits, description=f"sum of {listed}")
