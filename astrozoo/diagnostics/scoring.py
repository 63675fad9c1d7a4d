"""Scores of a source catalogue against the truth, by the rules of the Celeste papers.

Truth and catalogues are astropy tables. The truth has ``ra``, ``dec`` [deg], ``is_star``, ``flux_{band}``
[nMgy] and, for galaxies, ``dev_fraction``, ``radius`` [arcsec], ``axis_ratio``, ``angle`` [deg]. A catalogue
has ``p_star`` and the same names; it may have ``colour_{ab}`` [mag] (otherwise taken from the fluxes) and,
for :func:`coverage`, ``log_flux_{band}``, ``log_radius_sd`` and the ``_sd`` of each (``ra_sd``, ``dec_sd``
[mas], that of ra times cos(dec)). A quantity that is missing from a catalogue, or NaN there, is not scored.

The rules are those of Regier et al. 2019, sec. 6, and of Celeste.jl's ``AccuracyBenchmark.jl``:

- A true source is matched to the nearest source of the catalogue within one pixel.
- The r band is compared in asinh magnitudes, colours in magnitudes.
- Profile, axis ratio, radius and angle are compared only for galaxies that are almost purely de Vaucouleurs
  or exponential (a de Vaucouleurs fraction above .95 or below .05).
- Angles are compared modulo 180 degrees, and only up to a true axis ratio of .6.
- Galaxies larger than 20 pixels are left out.
- Radii are those of the circle of equal area, as published.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, tables 1 and 2.
    Lupton, Gunn & Szalay 1999, AJ 118, 1406 (asinh magnitudes).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from jaxtyping import Float, Int
from scipy.stats import rankdata

from astrozoo.errors import InputError

__all__ = [
    "PUBLISHED",
    "QUANTITIES",
    "asinh_magnitude",
    "coverage",
    "errors",
    "match",
    "paired_differences",
    "score",
]

_BANDS = "ugriz"
_COLOURS = tuple(pairwise(_BANDS))
_PIXEL = 0.396
"""Side of a pixel of SDSS [arcsec], in which tolerances and errors of position are given."""
_ASINH_B = {"u": 1.4e-10, "g": 0.9e-10, "r": 1.2e-10, "i": 1.8e-10, "z": 7.4e-10}
"""Softening of SDSS's asinh magnitudes, as a fraction of the flux of magnitude 0."""
_POGSON = 2.5 / np.log(10)
"""Magnitudes per natural logarithm of a flux ratio."""
_MAX_RADIUS = 20.0
"""Radius of a true galaxy above which it is not scored [px], by the rules above."""

QUANTITIES = {
    "missed stars": "",
    "missed galaxies": "",
    "position": "px",
    "r": "mag",
    **{f"{a}-{b}": "mag" for a, b in _COLOURS},
    "profile": "",
    "axis ratio": "",
    "radius": "px",
    "angle": "deg",
}
"""The quantities that are scored, with their units. A missed star is one that is classified as a galaxy."""

_COLUMNS = ("Photo", "Celeste VI", "Celeste MCMC", "VI synthetic", "MCMC synthetic")
_FIGURES = {
    "missed stars": (0.071, 0.061, 0.133, 0.113, 0.098),
    "missed galaxies": (0.038, 0.028, 0.010, 0.056, 0.009),
    "position": (0.271, 0.268, 0.268, 0.133, 0.117),
    "r": (0.181, 0.172, 0.182, 0.136, 0.108),
    "u-g": (1.02, 0.575, 0.564, 0.399, 0.382),
    "g-r": (0.329, 0.169, 0.168, 0.148, 0.149),
    "r-i": (0.204, 0.115, 0.113, 0.128, 0.130),
    "i-z": (0.379, 0.173, 0.181, 0.169, 0.180),
    "profile": (0.229, 0.162, 0.315, 0.231, 0.228),
    "axis ratio": (0.204, 0.143, 0.111, 0.136, 0.082),
    "radius": (1.25, 0.631, 0.545, 0.645, 0.427),
    "angle": (15.0, 13.0, 12.8, 4.8, 5.3),
    "star AUC": (np.nan, 0.985, 0.991, 0.981, 0.994),
}
PUBLISHED = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _FIGURES.items()}
"""Mean absolute errors of Regier et al. 2019, by quantity and then by column: of Photo and Celeste on Stripe
82 (385 sources), and of Celeste on synthetic images (474 sources)."""


def asinh_magnitude(flux: Float[np.ndarray, "*n"], band: str) -> Float[np.ndarray, "*n"]:
    """SDSS magnitude of a flux [nMgy], finite for any sign (Lupton et al. 1999, eq. 3)."""
    if band not in _ASINH_B:
        raise InputError("band", band, f"one of {_BANDS}")
    b = _ASINH_B[band]
    return -_POGSON * (np.arcsinh(np.asarray(flux, float) * 1e-9 / (2 * b)) + np.log(b))


def match(
    truth: Table, catalogue: Table, tolerance_px: float = 1.0
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Pairs of rows that are each other's nearest and not farther apart than the tolerance.

    Returns:
        Row numbers in the truth, ascending, and those of their partners in the catalogue.

    Raises:
        InputError: a table lacks ``ra`` or ``dec``.
    """
    for name, table in (("truth", truth), ("catalogue", catalogue)):
        missing = {"ra", "dec"} - set(table.colnames)
        if missing:
            raise InputError(name, f"columns {table.colnames}", f"{sorted(missing)} too")
    if len(truth) == 0 or len(catalogue) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    here, there = (
        SkyCoord(np.asarray(t["ra"]), np.asarray(t["dec"]), unit="deg") for t in (truth, catalogue)
    )
    nearest, distance, _ = here.match_to_catalog_sky(there)
    back, _, _ = there.match_to_catalog_sky(here)
    rows = np.arange(len(truth))
    kept = (back[nearest] == rows) & (distance.to_value(units.arcsec) <= tolerance_px * _PIXEL)
    return rows[kept], nearest[kept]


def errors(
    truth: Table, catalogue: Table, tolerance_px: float = 1.0
) -> dict[str, Float[np.ndarray, "truth"]]:
    """The absolute error of each true source in each of :data:`QUANTITIES`; NaN where it is not scored."""
    rows, partners = match(truth, catalogue, tolerance_px)
    small = ~(_column(truth, "radius") > _MAX_RADIUS * _PIXEL)  # stars have no radius
    rows, partners = rows[small[rows]], partners[small[rows]]
    true, estimate = truth[rows], catalogue[partners]
    star = np.asarray(true["is_star"], bool)
    p_star = _column(estimate, "p_star")
    wrong = np.where(np.isnan(p_star), np.nan, (p_star > 0.5) != star)
    east, north = _offsets(true, estimate)
    values = {
        "missed stars": np.where(star, wrong, np.nan),
        "missed galaxies": np.where(star, np.nan, wrong),
        "position": np.hypot(east, north) / _PIXEL,
        "r": np.abs(
            asinh_magnitude(_column(estimate, "flux_r"), "r") - asinh_magnitude(_column(true, "flux_r"), "r")
        ),
    }
    for a, b in _COLOURS:
        values[f"{a}-{b}"] = np.abs(_colour(estimate, a, b) - _colour(true, a, b))
    dev, ratio = _column(true, "dev_fraction"), _column(true, "axis_ratio")
    pure = ~star & ((dev < 0.05) | (dev > 0.95))
    turn = np.abs((_column(estimate, "angle") - _column(true, "angle") + 90) % 180 - 90)
    shapes = {
        "profile": np.abs(_column(estimate, "dev_fraction") - dev),
        "axis ratio": np.abs(_column(estimate, "axis_ratio") - ratio),
        "radius": np.abs(_column(estimate, "radius") - _column(true, "radius")) / _PIXEL,
        "angle": np.where(ratio <= 0.6, turn, np.nan),
    }
    values |= {name: np.where(pure, value, np.nan) for name, value in shapes.items()}
    out = {name: np.full(len(truth), np.nan) for name in QUANTITIES}
    for name, value in values.items():
        out[name][rows] = value
    return out


def score(truth: Table, catalogue: Table, tolerance_px: float = 1.0) -> Table:
    """Mean absolute errors, and the area under the star/galaxy curve.

    Returns:
        ``quantity``, ``unit``, ``error`` (for "star AUC" the area), ``standard_error``, ``n``; one row for
        each of :data:`QUANTITIES` and "star AUC". NaN where nothing could be scored.
    """
    rows = []
    for name, value in errors(truth, catalogue, tolerance_px).items():
        mean, sd, n = _summary(value)
        rows.append((name, QUANTITIES[name], mean, sd, n))
    matched, partners = match(truth, catalogue, tolerance_px)
    star = np.asarray(truth["is_star"], bool)[matched]
    rows.append(("star AUC", "", *_auc(star, _column(catalogue, "p_star")[partners])))
    return Table(rows=rows, names=["quantity", "unit", "error", "standard_error", "n"])


def paired_differences(truth: Table, a: Table, b: Table, tolerance_px: float = 1.0) -> Table:
    """Errors of catalogue ``a`` minus errors of catalogue ``b``, on the sources that both contain.

    Returns:
        ``quantity``, ``unit``, ``difference`` (mean of error a minus error b; negative: ``a`` is better),
        ``standard_error`` (of the paired differences), ``n``.
    """
    of_a, of_b = errors(truth, a, tolerance_px), errors(truth, b, tolerance_px)
    rows = [(name, unit, *_summary(of_a[name] - of_b[name])) for name, unit in QUANTITIES.items()]
    return Table(rows=rows, names=["quantity", "unit", "difference", "standard_error", "n"])


def coverage(
    truth: Table, catalogue: Table, columns: Sequence[str] | None = None, tolerance_px: float = 1.0
) -> Table:
    """How often the truth lies within 1, 2 and 3 standard deviations of the catalogue's value.

    Args:
        truth: as in the module's docstring.
        catalogue: as in the module's docstring.
        columns: names among "log flux u" ... "log flux z", "u-g" ... "i-z", "ra", "dec", "log radius"
            (galaxies only); by default all that the catalogue has errors for.
        tolerance_px: of the match.

    Returns:
        ``quantity``, ``n``, and for k = 1, 2, 3 ``within_k`` and ``standard_error_k``. The standard error is
        binomial, with one success and one failure added so that it is never 0. Normal errors give .683,
        .954 and .997.

    Raises:
        InputError: a quantity is unknown, or the catalogue has no error for it.
    """
    rows, partners = match(truth, catalogue, tolerance_px)
    scores = _standardised(truth[rows], catalogue[partners])
    for name in columns or ():
        if name not in scores:
            raise InputError("coverage", name, f"one of {', '.join(scores) or 'none: no _sd columns'}")
    table = []
    for name in scores if columns is None else columns:
        z = np.abs(scores[name][np.isfinite(scores[name])])
        row: list[object] = [name, len(z)]
        for k in (1, 2, 3):
            smooth = ((z < k).sum() + 1) / (len(z) + 2)
            row += [(z < k).mean() if len(z) else np.nan, np.sqrt(smooth * (1 - smooth) / (len(z) + 2))]
        table.append(row)
    names = ["quantity", "n", *(f"{part}_{k}" for k in (1, 2, 3) for part in ("within", "standard_error"))]
    types = [str, int] + [float] * 6
    return Table(rows=table or None, names=names, dtype=types)


def _standardised(true: Table, estimate: Table) -> dict[str, Float[np.ndarray, "m"]]:
    """(catalogue - truth) / sd of every quantity for which the catalogue has an error."""
    columns = set(estimate.colnames)
    east, north = _offsets(true, estimate)
    scores = {
        f"log flux {b}": (estimate[f"log_flux_{b}"] - np.log(true[f"flux_{b}"]))
        / estimate[f"log_flux_{b}_sd"]
        for b in _BANDS
        if f"log_flux_{b}_sd" in columns
    }
    for a, b in _COLOURS:
        if f"colour_{a}{b}_sd" in columns:
            scores[f"{a}-{b}"] = (_colour(estimate, a, b) - _colour(true, a, b)) / estimate[
                f"colour_{a}{b}_sd"
            ]
    scores |= {
        name: offset * 1e3 / estimate[f"{name}_sd"]
        for name, offset in (("ra", east), ("dec", north))
        if f"{name}_sd" in columns
    }
    if "log_radius_sd" in columns:
        galaxy = np.where(true["is_star"], np.nan, 1.0)
        scores["log radius"] = (
            galaxy * np.log(_column(estimate, "radius") / _column(true, "radius")) / estimate["log_radius_sd"]
        )
    return {name: np.asarray(np.ma.filled(z, np.nan), float) for name, z in scores.items()}


def _column(table: Table, name: str) -> Float[np.ndarray, "n"]:
    """A column as plain floats, NaN where it is masked or missing."""
    if name not in table.colnames:
        return np.full(len(table), np.nan)
    return np.ma.filled(np.ma.asarray(table[name], float), np.nan)


def _colour(table: Table, a: str, b: str) -> Float[np.ndarray, "n"]:
    """The colour a - b [mag]; NaN where a flux is not positive and no colour is given."""
    if f"colour_{a}{b}" in table.colnames:
        return _column(table, f"colour_{a}{b}")
    fluxes = (_column(table, f"flux_{band}") for band in (a, b))
    first, second = (np.log(np.where(flux > 0, flux, np.nan)) for flux in fluxes)
    return _POGSON * (second - first)


def _offsets(true: Table, estimate: Table) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Catalogue minus truth, (east, north) [arcsec], for sources that are close together."""
    ra = (_column(estimate, "ra") - _column(true, "ra") + 180) % 360 - 180
    return (
        3600 * ra * np.cos(np.deg2rad(_column(true, "dec"))),
        3600 * (_column(estimate, "dec") - _column(true, "dec")),
    )


def _summary(values: Float[np.ndarray, "n"]) -> tuple[float, float, int]:
    """Mean, its standard error and the number of finite values."""
    values = values[np.isfinite(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    return mean, float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan, n


def _auc(star: np.ndarray, p_star: Float[np.ndarray, "n"]) -> tuple[float, float, int]:
    """Probability that a star's ``p_star`` exceeds a galaxy's, its standard error, the number of sources.

    A tie counts as one half. The standard error is that of Hanley & McNeil 1982.
    """
    known = np.isfinite(p_star)
    star, p_star = star[known], p_star[known]
    n1, n0 = int(star.sum()), int((~star).sum())
    if n1 == 0 or n0 == 0:
        return np.nan, np.nan, n1 + n0
    area = float((rankdata(p_star)[star].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n1 - 1) * (q1 - area**2) + (n0 - 1) * (q2 - area**2)
    return area, float(np.sqrt(variance / (n1 * n0))), n1 + n0
