"""Galaxies of the joint mode: which sources are better explained as one galaxy than as one star or several.

A star that is a galaxy leaves residuals in a ring, in which further stars are born. The test therefore
compares what is there, a source and its fainter companions, with one galaxy in their place. The fluxes of
neighbours adjust to it; their positions do not, which makes the test conservative.

A galaxy must also overcome the field's odds: at its brightness, a cluster has many stars and the sky few
galaxies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from astrozoo.survey.crowded.joint import Linearised, Stars
from astrozoo.survey.crowded.learning import galaxy_counts
from astrozoo.survey.crowded.scene import Scene
from astrozoo.survey.crowded.stamps import cross_products, make_stamps

__all__ = ["with_galaxies"]

_LEAST_SNR = 15.0
"""Signal to noise of a source, all images together and its neighbours fixed, below which its shape is not
tested: fainter ones are told from stars by their surroundings, not by their shape."""
_FROM_EDGE = 2.0
"""[px] Least distance of a galaxy from the edge of the reference image: stars outside look like galaxies on
the edge."""
_COMPANIONS = (0.0, 2.0, 3.5, 5.0)
"""[px] Distances within which fainter sources may be parts of the galaxy."""
_RADII = (1.1, 1.7, 2.6, 4.0)
"""[px] Half-light radii that are tried, with ratios of 1.5. A smaller galaxy can't be told from a star with
undetected neighbours."""
_SHAPE_COST = 8.0
"""Change of chi2 that three parameters of shape must bring: twice the logarithm of the number of distinct
shapes."""
_NEAR_GAIN = (30.0, 0.03)
"""A round galaxy is fitted in position and shape if it is worse than what is there by less than this change
of chi2, or by less than this fraction of the members'. The least radius is worse by 4 % for a star."""
_EVALUATIONS = 150
"""Limit of the evaluations of that fit, which has five parameters."""
_LEAST_GAIN = 1.0
"""Least gain of chi2, with all costs, of a change: a galaxy would turn for ever otherwise."""
_REACH = 6
"""[px] Half side of the pixels that are compared, to which the galaxy's size is added."""
_NEIGHBOURS = 8.0
"""[px] Distance within which the fluxes of neighbours adjust."""
_APART = 8.0
"""[px] Least distance of two changes of one round: the residuals near a change are no longer right."""


@dataclass(frozen=True)
class _Change:
    """One source in the place of several: the rows of these, and the new source."""

    members: Int[np.ndarray, "m"]
    xy: Float[np.ndarray, "2"]
    flux: Float[np.ndarray, "band"]
    shape: Float[np.ndarray, "3"]
    gain: float


def with_galaxies(
    scene: Scene, stars: Stars, model: Linearised, threshold: float, reference: int, pixel_scale: float
) -> tuple[Stars, Int[np.ndarray, "s"]]:
    """The stars, some of which have become galaxies, or stars again, and taken in their companions.

    Args:
        scene: the images.
        stars: at their joint mode.
        model: of the stars.
        threshold: change of chi2 that one more star must bring.
        reference: column of the band in which stars and galaxies are counted.
        pixel_scale: side of a pixel [arcsec].

    Returns:
        The sources, and the row that each had before.
    """
    changes: list[_Change] = []
    gone = np.zeros(len(stars), bool)
    shape, log_flux, xy = stars.shape.copy(), stars.log_flux.copy(), stars.xy.copy()
    for change in _changes(scene, stars, model, threshold, reference, pixel_scale):
        if all(np.hypot(*(change.xy - other.xy)) > _APART for other in changes):
            changes.append(change)
            first = change.members[0]
            gone[change.members[1:]] = True
            shape[first], xy[first] = change.shape, change.xy
            log_flux[first] = np.log(np.maximum(change.flux, 1e-3 * change.flux.max()))
    rows = np.flatnonzero(~gone)
    return replace(stars, shape=shape, log_flux=log_flux, xy=xy).take(rows), rows


def _changes(
    scene: Scene, stars: Stars, model: Linearised, threshold: float, reference: int, pixel_scale: float
) -> Iterator[_Change]:
    """The changes that pay, from the brightest source."""
    if not len(stars):
        return
    itself = np.repeat(np.arange(len(stars))[:, None], 2, axis=1)
    inform, flux = np.zeros(len(stars)), stars.flux
    for k, column in enumerate(scene.column):
        inform += flux[:, column] ** 2 * model.stamps.products(k, model.weight[k], itself)[:, 0, 0]
    corner = np.array(scene.shape[::-1]) - 1
    inside = np.all((stars.xy > _FROM_EDGE) & (stars.xy < corner - _FROM_EDGE), axis=1)
    tree = cKDTree(stars.xy)
    odds = _log_odds(stars, reference, float(np.prod(scene.shape)), pixel_scale)
    for s in np.argsort(-flux[:, reference], kind="stable"):
        if inform[s] < _LEAST_SNR**2 or not inside[s]:
            continue
        best, seen = None, 0
        for distance in _COMPANIONS:
            near = np.array(tree.query_ball_point(stars.xy[s], distance), np.int64)
            near = near[(near != s) & (flux[near, reference] < flux[s, reference])]
            members = np.concatenate([[s], near])
            if len(members) == seen:
                continue
            seen = len(members)
            place = _Place(scene, stars, model, members, tree)
            change = _best(place, stars, threshold, _SHAPE_COST + 2 * float(odds[s]))
            if change is not None and (best is None or change.gain > best.gain):
                best = change
        if best is not None:
            yield best


def _log_odds(stars: Stars, reference: int, area: float, pixel_scale: float) -> Float[np.ndarray, "s"]:
    """Ln(number of stars / number of galaxies) per unit ln flux, at the flux of each source."""
    level = stars.log_flux[:, reference]
    ordered = np.sort(level)
    near = np.searchsorted(ordered, level + 0.5) - np.searchsorted(ordered, level - 0.5)
    return np.log(np.maximum(near, 1) / area) - galaxy_counts(level, pixel_scale)


def _best(place: _Place, stars: Stars, threshold: float, cost: float) -> _Change | None:
    """The best source in the place of the members, if it pays."""
    members = place.members
    was_galaxy = ~np.isnan(stars.shape[members, 0])
    trials = np.array([[np.nan] * 3, *([radius, 0.0, 0.0] for radius in _RADII)])
    gains, fluxes = place.fit(place.centre, trials)
    now = place.before - cost * was_galaxy.sum() - threshold * (len(members) - 1)
    gains[1:] -= cost
    if len(members) > 1:  # deaths of stars are decided elsewhere
        gains[0] = -np.inf
    elif not was_galaxy[0]:
        gains[0] = now
    chosen = int(gains.argmax())
    xy, shape, light, gain = place.centre, trials[chosen], fluxes[chosen], gains[chosen]
    if gains[1:].max() > now - max(_NEAR_GAIN[0], _NEAR_GAIN[1] * place.before):
        xy, shape, light, gain = _refined(place, trials[1 + gains[1:].argmax()])
        gain -= cost
    if gain <= now + _LEAST_GAIN:
        return None
    return _Change(members, xy, light, shape, float(gain - now))


def _refined(
    place: _Place, shape: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "3"], Float[np.ndarray, "band"], float]:
    """Position, shape, fluxes and gain of the galaxy that fits best."""

    def galaxy(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        radius = np.clip(shape[0] * np.exp(step[2]), _RADII[0], 1.5 * _RADII[-1])
        return place.centre + np.clip(step[:2], -1, 1), np.array(
            [radius, *np.clip(shape[1:] + step[3:], -1, 1)]
        )

    def loss(step: np.ndarray) -> float:
        xy, trial = galaxy(step)
        return -float(place.fit(xy, trial[None])[0][0])

    simplex = np.vstack([np.zeros(5), 0.25 * np.eye(5)])
    options = {"initial_simplex": simplex, "maxfev": _EVALUATIONS, "xatol": 0.01, "fatol": 0.5}
    best = minimize(loss, np.zeros(5), method="Nelder-Mead", options=options)
    xy, refined = galaxy(best.x)
    gains, fluxes = place.fit(xy, refined[None])
    return xy, refined, fluxes[0], float(gains[0])


class _Place:
    """The residual without some sources, the members, in whose place another source is tried.

    Args:
        members: rows of the sources.
        centre: of their light [px].
        before: how far the members lower chi2.
    """

    def __init__(
        self, scene: Scene, stars: Stars, model: Linearised, members: Int[np.ndarray, "m"], tree: cKDTree
    ) -> None:
        self.scene, self.members, self.weight = scene, members, model.weight
        flux = stars.flux[members]
        self.centre = flux.sum(1) / flux.sum() @ stars.xy[members]
        near = np.setdiff1d(tree.query_ball_point(self.centre, _NEIGHBOURS), members).astype(np.int64)
        reach, shape = model.stamps.reach, stars.shape
        own = make_stamps(scene, stars.xy[members], reach[members], shape[members])
        self.near = make_stamps(scene, stars.xy[near], np.minimum(reach[near], _REACH), shape[near])
        pairs = np.stack(np.meshgrid(np.arange(len(near)), np.arange(len(near))), -1).reshape(-1, 2)
        bands = len(scene.bands)
        self.before, self.lifted = 0.0, []
        matrix = np.zeros((bands, len(near), len(near)))
        matrix[:, np.arange(len(near)), np.arange(len(near))] = 1 / stars.flux[near].T ** 2
        self.right = np.zeros((bands, len(near)))
        for k, column in enumerate(scene.column):
            light, residual, weight = own.light(k, flux[:, column]), model.residual[k], model.weight[k]
            self.before += float((weight * light * (light + 2 * residual)).sum())
            self.lifted.append(weight * (residual + light))
            self.right[column] += self.near.project(k, self.lifted[k])[:, 0]
            products = self.near.products(k, weight, pairs)[:, 0, 0]
            matrix[column] += products.reshape(len(near), len(near))
        self.inverse = np.linalg.inv(matrix)
        self.alone = float(np.einsum("bi,bij,bj->", self.right, self.inverse, self.right))

    def fit(
        self, centre: Float[np.ndarray, "2"], trials: Float[np.ndarray, "t 3"]
    ) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t band"]]:
        """How far a source of each shape at a position lowers chi2, and its fluxes; neighbours adjust."""
        scene, count = self.scene, len(trials)
        stamps = make_stamps(scene, np.tile(centre, (count, 1)), np.full(count, _REACH), trials)
        score, inform = np.zeros((count, len(scene.bands))), np.zeros((count, len(scene.bands)))
        mixed = np.zeros((len(scene.bands), count, len(self.near)))
        itself = np.repeat(np.arange(count)[:, None], 2, axis=1)
        pairs = np.indices((count, len(self.near))).reshape(2, -1).T
        for k, column in enumerate(scene.column):
            score[:, column] += stamps.project(k, self.lifted[k])[:, 0]
            inform[:, column] += stamps.products(k, self.weight[k], itself)[:, 0, 0]
            products = cross_products(stamps, self.near, k, self.weight[k], pairs)[:, 0, 0]
            mixed[column] += products.reshape(count, -1)
        absorbed = mixed @ self.inverse  # [band, trial, neighbour]
        score -= np.einsum("bti,bi->tb", absorbed, self.right)
        inform -= np.einsum("bti,bti->tb", absorbed, mixed)
        flux = np.maximum(score, 0) / np.maximum(inform, 1e-300)
        return (flux * (2 * score - flux * inform)).sum(1) + self.alone, flux
