"""How the prior of a crowded field is learned from its sources, under hyperpriors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from astrozoo.data.simulate import load_priors

__all__ = [
    "GALAXY_LEVEL_SD",
    "SLOPE",
    "STAR_LEVEL_SD",
    "TAIL",
    "evenly_spaced_knots",
    "galaxy_counts",
    "integral",
    "locus",
    "luminosity_function",
    "sizes",
]

KNOT_SPACING = 0.92
"""[ln flux] Distance of the knots of a luminosity function: one magnitude, the usual width of a bin."""
TAIL = 4.0
"""Degrees of freedom of the Student distribution of colours: horizontal-branch stars, variables and binaries
lie off the locus of a cluster."""
ROUGHNESS = 0.3
"""[1] Prior SD of the change of slope d ln N / d ln flux from one knot to the next. The sharpest feature of a
cluster, its main-sequence turn-off, changes it by about .7 over two magnitudes."""
SLOPE = -0.6
"""[1] Mean of the prior of d ln N / d ln flux of stars: .24 dex per magnitude, that of a globular cluster's
lower giant branch and of its main sequence below the turn-off."""
SLOPE_SD = 0.3
"""[1] SD of that prior."""
STAR_LEVEL_SD = 3.0
"""[1] Prior SD of ln(density of stars): that of the halo and of a cluster's core differ by a factor 1e3."""
GALAXY_LEVEL_SD = 0.5
"""[1] Prior SD of ln(density of galaxies): clustering and extinction on fields of some arc minutes."""
GALAXY_COUNTS = 1.5e3
"""[deg^-2] Galaxies per unit ln flux at :data:`GALAXY_FLUX` in band r: three fields of Stripe 82's co-add, of
.034 deg^2 each, have 142 of 19.5 < r < 20.5."""
GALAXY_FLUX = 10.0
"""[nMgy] Flux of r = 20."""
GALAXY_SLOPE = -0.95
"""[1] d ln N / d ln flux of galaxies: .38 dex per magnitude between r = 20 and 21.5 on the same fields."""
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


def evenly_spaced_knots(low: float, high: float) -> Float[np.ndarray, "knot"]:
    """At least three knots from ``low`` to ``high``, about :data:`KNOT_SPACING` apart."""
    return np.linspace(low, high, max(3, 1 + round((high - low) / KNOT_SPACING)))


def integral(knots: Float[np.ndarray, "knot"], log_rate: Float[np.ndarray, "knot"]) -> float:
    """Integral over ln flux of a rate whose logarithm is linear between the knots."""
    grid = _grid(knots)
    return float(np.trapezoid(np.exp(np.interp(grid, knots, log_rate)), grid))


def _grid(knots: np.ndarray) -> np.ndarray:
    return np.linspace(knots[0], knots[-1], _GRID * (len(knots) - 1) + 1)


def _hats(knots: np.ndarray, at: np.ndarray) -> Float[np.ndarray, "n knot"]:
    """Weights of the knots in linear interpolation."""
    return np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], -1)


def galaxy_counts(knots: Float[np.ndarray, "knot"], pixel_scale: float) -> Float[np.ndarray, "knot"]:
    """Ln of the number of galaxies per pixel and unit ln flux on an ordinary field.

    Args:
        pixel_scale: side of a pixel [arcsec].
    """
    pixel = (pixel_scale / 3600) ** 2  # [deg^2]
    return np.log(GALAXY_COUNTS * pixel) + GALAXY_SLOPE * (knots - np.log(GALAXY_FLUX))


def luminosity_function(
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


def locus(
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
    mean = mean_0 = np.repeat(centre[None], len(knots), 0)  # [knot, other]
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
    share = COLOUR_SOURCES / len(knots) * np.eye(len(knots))
    smooth = np.einsum("kl,ij->kilj", COLOUR_SOURCES * (bend.T @ bend) + share, np.linalg.inv(hyper))
    size = mean.size
    for _ in range(30 if len(flux) and others else 0):
        precision = np.linalg.inv(scatter + noise)  # [s, other, other]
        deviation = ratio - hats @ mean
        distance = np.einsum("si,sij,sj->s", deviation, precision, deviation)
        student = weight * (TAIL + len(others)) / (TAIL + distance)
        sure = student[:, None, None] * precision
        normal = np.einsum("sk,sl,sij->kilj", hats, hats, sure, optimize=True) + smooth
        # the hyperprior's mean is the same at every knot, so that the differences do not pull on it
        target = np.einsum("sk,sij,sj->ki", hats, sure, ratio) + share @ mean_0 @ np.linalg.inv(hyper)
        mean = np.linalg.solve(normal.reshape(size, size), target.ravel()).reshape(mean.shape)
        gain = scatter @ precision
        true = np.einsum("sij,sj->si", gain, ratio - hats @ mean)
        rest = np.einsum("s,sij->ij", weight, scatter - gain @ scatter)
        moment = np.einsum("s,si,sj->ij", student, true, true) + rest
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
    own_scatter = STAR_SCATTER**2 * np.eye(len(others))
    scatter = own_scatter if kind == "star" else matrix @ covariance @ matrix.T
    scatter = scatter * np.outer(known, known) + np.diag(np.where(known, 0.0, UNKNOWN_SCATTER**2))
    return matrix @ centre, scatter


def sizes(
    log_radius: Float[np.ndarray, "g"], weight: Float[np.ndarray, "g"], pixel_scale: float
) -> tuple[float, float]:
    """Mean and SD of ln(half-light radius / px), with the survey's as the hyperprior."""
    survey = load_priors()["log_radius_arcsec"]
    mean, sd = survey["mean"] - np.log(pixel_scale), survey["sd"]
    total = weight.sum() + SIZE_SOURCES
    learned = float((weight @ log_radius + SIZE_SOURCES * mean) / total)
    square = weight @ (log_radius - learned) ** 2 + SIZE_SOURCES * (sd**2 + (mean - learned) ** 2)
    return learned, float(np.sqrt(square / total))
