"""Colours of a field's stars: their mean as a function of the reference band's flux, and their scatter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from astrozoo.survey.crowded.scene import Scene

__all__ = ["Locus", "first_locus", "learn_locus"]

_SCATTER = (0.1, 0.7)
"""Limits of the scatter of ln(flux ratio) about the locus: .1 so that the prior never hides a variable star's
colours, .7 (.76 mag) is the spread of all stars' colours."""
_FOR_CURVE, _FOR_MEAN = 40, 8
"""Least numbers of stars for a quadratic locus, and for a constant one."""
_ROUNDS = 5
"""Reweightings of the robust fit."""
_OUTLIER = 2.5
"""[scatter] Stars further from the locus have less weight."""


@dataclass(frozen=True)
class Locus:
    """Colours of stars.

    Args:
        reference: column of the reference band.
        coefficients: of 1, l and l^2 for ``ln(flux_b / flux_reference)``; zero for the reference band.
        scatter: SD of that ratio about its mean; infinite for the reference band.
        limits: range of l, the log flux of the reference band [ln nMgy]; the curve is constant outside it.
    """

    reference: int
    coefficients: Float[np.ndarray, "band 3"]
    scatter: Float[np.ndarray, "band"]
    limits: tuple[float, float]

    def ratio(self, log_reference: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s band"]:
        """Mean ln(flux_b / flux_reference) at log fluxes of the reference band."""
        return _powers(np.clip(log_reference, *self.limits)) @ self.coefficients.T

    @property
    def precision(self) -> Float[np.ndarray, "band band"]:
        """The inverse covariance of log fluxes that the locus alone implies: flat in the total flux."""
        size = len(self.scatter)
        difference = np.eye(size)
        difference[:, self.reference] -= 1
        return difference.T @ np.diag(1 / self.scatter**2) @ difference


def first_locus(scene: Scene) -> Locus:
    """The colours of all light above the sky, with the widest scatter."""
    light = np.zeros(len(scene.bands))
    for k, column in enumerate(scene.column):
        above = np.where(scene.valid[k], (scene.counts[k] - scene.sky[k]) / scene.calibration[k], 0.0)
        noise = np.sqrt((scene.sky[k] / scene.calibration[k] ** 2).sum())
        light[column] += max(float(above.sum()), float(noise)) / scene.band.count(scene.band[k])
    reference = scene.bands.index("r") if "r" in scene.bands else 0
    coefficients = np.zeros((len(light), 3))
    coefficients[:, 0] = np.log(light / light[reference])
    scatter = np.full(len(light), _SCATTER[1])
    scatter[reference] = np.inf
    return Locus(reference, coefficients, scatter, (0.0, 0.0))


def learn_locus(
    locus: Locus, log_flux: Float[np.ndarray, "s band"], sd: Float[np.ndarray, "s band"]
) -> Locus:
    """The locus of measured stars: quadratic, robust to outliers; the given one where there are too few.

    Args:
        locus: names the reference band.
        log_flux: of stars [ln nMgy].
        sd: of the log fluxes; stars with more than 0.5 are left out.
    """
    reference = locus.reference
    coefficients, scatter = locus.coefficients.copy(), locus.scatter.copy()
    level = log_flux[:, reference]
    good = sd[:, reference] < 0.5
    if good.sum() < _FOR_MEAN:
        return locus
    limits = (float(np.quantile(level[good], 0.02)), float(np.quantile(level[good], 0.98)))
    for band in range(len(scatter)):
        use = good & (sd[:, band] < 0.5)
        if band == reference or use.sum() < _FOR_MEAN:
            continue
        design = _powers(np.clip(level[use], *limits))
        if use.sum() < _FOR_CURVE:
            design = design[:, :1]
        ratio = (log_flux[:, band] - level)[use]
        variance = (sd[use, band] ** 2) + (sd[use, reference] ** 2)
        spread, trust = scatter[band], np.ones(len(ratio))
        for _ in range(_ROUNDS):
            weight = trust / (variance + spread**2)
            solution = np.linalg.lstsq(
                np.sqrt(weight)[:, None] * design, np.sqrt(weight) * ratio, rcond=None
            )[0]
            miss = np.abs(ratio - design @ solution)
            total = np.sqrt(variance + spread**2)
            trust = np.minimum(1, _OUTLIER * total / np.maximum(miss, 1e-12))
            excess = np.median(miss**2) / 0.4549 - np.median(
                variance
            )  # 0.4549: median of chi2 with one degree
            spread = np.sqrt(np.clip(excess, _SCATTER[0] ** 2, _SCATTER[1] ** 2))
        coefficients[band] = 0
        coefficients[band, : design.shape[1]] = solution
        scatter[band] = spread
    return replace(locus, coefficients=coefficients, scatter=scatter, limits=limits)


def _powers(level: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s 3"]:
    return np.stack([np.ones_like(level), level, level**2], axis=1)
