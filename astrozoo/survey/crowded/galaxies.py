"""Galaxies of the joint mode: which sources are better explained as one galaxy than as one star or several.

A star that is a galaxy leaves residuals in a ring, in which further stars are born. The test therefore
compares what is there, a source and its fainter companions, with one galaxy in their place. Neighbours keep
their fluxes and positions, which makes the test conservative.

A galaxy must also overcome the field's odds: at its brightness, a cluster has many stars and the sky few
galaxies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from astrozoo.survey.crowded.joint import Linearised, Stars
from astrozoo.survey.crowded.learning import galaxy_counts
from astrozoo.survey.crowded.scene import Scene
from astrozoo.survey.crowded.stamps import make_stamps

__all__ = ["with_galaxies"]

_LEAST_SNR = 15.0
"""Signal to noise of a source, all images together and its neighbours fixed, below which its shape is not
tested: fainter ones are told from stars by their surroundings, not by their shape."""
_FROM_EDGE = 2.0
"""[px] Least distance of a galaxy from the edge of the reference image: stars outside look like galaxies on
the edge."""
_COMPANIONS = (0.0, 2.0, 3.5)
"""[px] Distances within which fainter sources may be parts of the galaxy."""
_RADII = (1.1, 1.7, 2.6, 4.0)
"""[px] Half-light radii that are tried, with ratios of 1.5. A smaller galaxy can't be told from a star with
undetected neighbours."""
_ELLIPTICITIES = ((0.5, 6), (1.0, 6))
"""Moduli of the ellipticities that are tried beside 0, and position angles of each."""
_SHAPE_COST = 8.0
"""Change of chi2 that three parameters of shape must bring: twice the logarithm of the number of shapes that
are tried."""
_ELONGATED = 100.0
"""Ellipticities are tried if the best round galaxy is at most this much worse in chi2 than what is there."""
_LEAST_GAIN = 1.0
"""Least gain of chi2, with all costs, of a change: a galaxy would turn for ever otherwise."""
_REACH = 6
"""[px] Half side of the pixels that are compared, to which the galaxy's size is added."""
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
            change = _best(scene, stars, model, members, threshold, _SHAPE_COST + 2 * float(odds[s]))
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


def _best(
    scene: Scene,
    stars: Stars,
    model: Linearised,
    members: Int[np.ndarray, "m"],
    threshold: float,
    cost: float,
) -> _Change | None:
    """The best source in the place of the members, if it pays."""
    flux = stars.flux[members]
    centre = flux.sum(1) / flux.sum() @ stars.xy[members]
    was_galaxy = ~np.isnan(stars.shape[members, 0])
    trials = np.array([[np.nan] * 3, *([radius, 0.0, 0.0] for radius in _RADII)])
    gains, fluxes, before = _fits(scene, stars, model, members, centre, trials)
    now = before - cost * was_galaxy.sum() - threshold * (len(members) - 1)
    gains[1:] -= cost
    if len(members) > 1:  # deaths of stars are decided elsewhere
        gains[0] = -np.inf
    elif not was_galaxy[0]:
        gains[0] = now
    radius = trials[1 + int(gains[1:].argmax()), 0]
    if gains[1:].max() > now - _ELONGATED:
        turned = np.array(
            [
                [radius, e * np.cos(2 * np.pi * a / n), e * np.sin(2 * np.pi * a / n)]
                for e, n in _ELLIPTICITIES
                for a in range(n)
            ]
        )
        more, more_fluxes, _ = _fits(scene, stars, model, members, centre, turned)
        trials, fluxes = np.concatenate([trials, turned]), np.concatenate([fluxes, more_fluxes])
        gains = np.concatenate([gains, more - cost])
    chosen = int(gains.argmax())
    if gains[chosen] <= now + _LEAST_GAIN:
        return None
    return _Change(members, centre, fluxes[chosen], trials[chosen], float(gains[chosen] - now))


def _fits(
    scene: Scene,
    stars: Stars,
    model: Linearised,
    members: Int[np.ndarray, "m"],
    centre: Float[np.ndarray, "2"],
    trials: Float[np.ndarray, "t 3"],
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t band"], float]:
    """How far chi2 falls with each trial in the place of the members, its fluxes, and with the members."""
    reach = np.full(len(trials), _REACH)
    stamps = make_stamps(scene, np.tile(centre, (len(trials), 1)), reach, trials)
    wide = make_stamps(scene, centre[None], np.array([int(stamps.reach.max())]))
    flux = stars.flux[members]
    score, inform = (np.zeros((len(trials), len(scene.bands))) for _ in range(2))
    before = 0.0
    own = make_stamps(scene, stars.xy[members], model.stamps.reach[members], stars.shape[members])
    itself = np.repeat(np.arange(len(trials))[:, None], 2, axis=1)
    for k, column in enumerate(scene.column):
        y0, y1, x0, x1 = wide.box[k, 0]
        light = own.light(k, flux[:, column])
        weight, residual = model.weight[k], model.residual[k]
        inside = (slice(y0, y1), slice(x0, x1))
        before += float((weight[inside] * light[inside] * (light[inside] + 2 * residual[inside])).sum())
        score[:, column] += stamps.project(k, weight * np.where(weight > 0, residual + light, 0.0))[:, 0]
        inform[:, column] += stamps.products(k, weight, itself)[:, 0, 0]
    best = np.maximum(score, 0) / np.maximum(inform, 1e-300)
    return (best * (2 * score - best * inform)).sum(1), best, before
