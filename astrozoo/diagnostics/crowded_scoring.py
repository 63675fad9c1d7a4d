"""Scores of a catalogue of a crowded field against the truth, where which sources exist is the question.

Truth and catalogue are astropy tables with ``x``, ``y`` [px of the reference image] and ``flux_{band}``
[nMgy]. The truth has ``is_star``. A catalogue may have ``p_exists``, ``p_star``, and quantiles of fluxes
(``flux_{band}_q16``, ``_q84``, ``_q025``, ``_q975``). Only sources inside a border are scored, and their
partners may lie outside it. The truth must reach fainter than ``limit``: a source of the catalogue that is
brighter than the limit may be one that is truly a little fainter.

References:
    Liu, McAuliffe & Regier 2021, arXiv 2102.02409 (StarNet: the rule of detection, on M2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from astrozoo.errors import InputError

__all__ = [
    "detection",
    "flux_coverage",
    "one_to_one",
    "pair_up",
    "reliability",
    "score_crowded",
]

DISTANCE = 0.5
"""[px] Largest difference of x, and of y, of the published rule (Liu et al. 2021)."""
MAGNITUDE = 0.5
"""[mag] Largest difference of magnitudes of the published rule."""
BORDER = 5.0
"""[px] Width of the frame of the image in which nothing is scored, as published."""
LIMIT = 22.3
"""[mag] Magnitude to which HST's catalogue of M2 is complete enough to be a truth."""
_LEVELS = {0.68: ("q16", "q84"), 0.95: ("q025", "q975")}
"""Nominal coverage, and the columns of quantiles that bound the interval."""


def magnitudes(table: Table, band: str) -> Float[np.ndarray, "n"]:
    """Magnitudes in a band; infinity where a flux is not positive."""
    flux = np.asarray(table[f"flux_{band}"], float)
    return 22.5 - 2.5 * np.log10(np.where(flux > 0, flux, 1e-300))


def inside(table: Table, shape: tuple[int, int], border: float = BORDER) -> Bool[np.ndarray, "n"]:
    """Whether sources are more than ``border`` from the edges of an image of ``shape`` (rows, columns)."""
    x, y = np.asarray(table["x"], float), np.asarray(table["y"], float)
    low, high_x, high_y = border - 0.5, shape[1] - 0.5 - border, shape[0] - 0.5 - border
    return (x > low) & (x < high_x) & (y > low) & (y < high_y)


def agree(
    truth: Table, catalogue: Table, band: str, distance: float = DISTANCE, magnitude: float = MAGNITUDE
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """All pairs (row of the truth, row of the catalogue) that agree by the published rule.

    A source may be in several pairs.
    """
    there = cKDTree(_xy(catalogue))
    near = there.query_ball_point(_xy(truth), distance, p=np.inf) if len(catalogue) and len(truth) else []
    pairs = [(i, j) for i, row in enumerate(near) for j in row]
    i, j = np.array(pairs, int).reshape(-1, 2).T
    close = np.abs(magnitudes(truth, band)[i] - magnitudes(catalogue, band)[j]) < magnitude
    return i[close], j[close]


def detection(
    truth: Table,
    catalogue: Table,
    shape: tuple[int, int],
    *,
    band: str = "r",
    limit: float = LIMIT,
    magnitude: float = MAGNITUDE,
) -> dict[str, float]:
    """True positive rate, precision and F1 by the published rule.

    A true source counts as detected if any source of the catalogue agrees with it, and a source of the
    catalogue as true if it agrees with any true one. Both are scored to the limit.
    """
    i, j = agree(truth, catalogue, band, magnitude=magnitude)
    wanted = inside(truth, shape) & (magnitudes(truth, band) < limit)
    listed = inside(catalogue, shape) & (magnitudes(catalogue, band) < limit)
    return _rates(np.isin(np.arange(len(truth)), i)[wanted], np.isin(np.arange(len(catalogue)), j)[listed])


def one_to_one(
    truth: Table, catalogue: Table, shape: tuple[int, int], *, band: str = "r", limit: float = LIMIT
) -> dict[str, float]:
    """Completeness, purity and F1 within 1 px, each source used once, without a condition on flux."""
    i, j = pair_up(truth, catalogue, band)
    wanted = inside(truth, shape) & (magnitudes(truth, band) < limit)
    listed = inside(catalogue, shape) & (magnitudes(catalogue, band) < limit)
    return _rates(np.isin(np.arange(len(truth)), i)[wanted], np.isin(np.arange(len(catalogue)), j)[listed])


def _rates(detected: Bool[np.ndarray, "t"], true: Bool[np.ndarray, "c"]) -> dict[str, float]:
    completeness = float(detected.mean()) if len(detected) else np.nan
    purity = float(true.mean()) if len(true) else np.nan
    total = completeness + purity
    f1 = 2 * completeness * purity / total if total > 0 else 0.0
    counts = {"true sources": len(detected), "catalogued": len(true)}
    return {"true positive rate": completeness, "precision": purity, "F1": f1, **counts}


def pair_up(
    truth: Table, catalogue: Table, band: str = "r", distance: float = 1.0
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The assignment of as many pairs as possible, each source in one pair at most.

    Among assignments of as many pairs, that with the least sum of ``(distance / px)^2 + |difference / mag|``
    is taken; a difference counts as 2 mag at most.

    Args:
        distance: largest distance of a pair [px].

    Returns:
        Row numbers in the truth, ascending, and those of their partners in the catalogue.
    """
    if len(truth) == 0 or len(catalogue) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    here, there = _xy(truth), _xy(catalogue)
    apart = np.hypot(*(here[:, None] - there[None]).transpose(2, 0, 1))
    difference = np.abs(magnitudes(truth, band)[:, None] - magnitudes(catalogue, band)[None])
    far = 10.0 * min(len(truth), len(catalogue))  # so that no pair is given up for better ones
    cost = np.where(apart <= distance, apart**2 + np.minimum(difference, 2.0), far)
    i, j = linear_sum_assignment(cost)
    near = apart[i, j] <= distance
    return i[near], j[near]


def flux_coverage(
    truth: Table, catalogue: Table, pairs: tuple[np.ndarray, np.ndarray], bands: Sequence[str]
) -> list[dict[str, object]]:
    """How often the true flux lies in the 68 % and in the 95 % interval, of pairs of sources.

    Raises:
        InputError: the catalogue has no quantiles of a band.
    """
    i, j = pairs
    rows: list[dict[str, object]] = []
    for band in bands:
        names = [f"flux_{band}_{name}" for name in ("q16", "q84", "q025", "q975")]
        if not set(names) <= set(catalogue.colnames):
            raise InputError("catalogue", f"columns {catalogue.colnames}", f"{names} among them")
        true = np.asarray(truth[f"flux_{band}"], float)[i]
        row: dict[str, object] = {"band": band, "n": len(i)}
        for level, (low, high) in _LEVELS.items():
            a, b = (np.asarray(catalogue[f"flux_{band}_{name}"], float)[j] for name in (low, high))
            row[f"{level:.0%}"] = float(((true >= a) & (true <= b)).mean()) if len(i) else np.nan
        rows.append(row)
    return rows


def reliability(
    probability: Float[np.ndarray, "n"], true: Bool[np.ndarray, "n"], edges: Sequence[float]
) -> list[dict[str, float]]:
    """Stated probabilities against the fraction that is true, in bins of the stated probability."""
    rows = []
    for low, high in pairwise(edges):
        chosen = (probability >= low) & ((probability < high) | (high == edges[-1]))
        n = int(chosen.sum())
        row: dict[str, float] = {"from": low, "to": high, "n": n}
        if n:
            smooth = (true[chosen].sum() + 1) / (n + 2)
            row |= {"stated": float(probability[chosen].mean()), "found": float(true[chosen].mean())}
            row["standard error"] = float(np.sqrt(smooth * (1 - smooth) / (n + 2)))
        rows.append(row)
    return rows


def score_crowded(
    truth: Table,
    catalogue: Table,
    shape: tuple[int, int],
    *,
    band: str = "r",
    limit: float = LIMIT,
    bright: float = 18.0,
    typed: float = 21.0,
) -> dict[str, object]:
    """All scores of one catalogue.

    Args:
        shape: rows and columns of the reference image.
        bright: magnitude to which the precision of bright sources is scored.
        typed: magnitude to which stars that are called galaxies are counted.

    Returns:
        ``published rule`` (:func:`detection`), ``bright`` (the same to that magnitude), ``1 px``
        (:func:`one_to_one`), ``stars called galaxies`` (fraction of the paired stars), and, if the catalogue
        has the columns, ``coverage`` (:func:`flux_coverage`) and ``reliability`` of ``p_exists``.
    """
    scores: dict[str, object] = {
        "published rule": detection(truth, catalogue, shape, band=band, limit=limit),
        "bright": detection(truth, catalogue, shape, band=band, limit=bright),
        "1 px": one_to_one(truth, catalogue, shape, band=band, limit=limit),
    }
    i, j = pair_up(truth, catalogue, band)
    used = inside(truth, shape)[i] & (magnitudes(truth, band)[i] < limit)
    i, j = i[used], j[used]
    if "p_star" in catalogue.colnames:
        star = np.asarray(truth["is_star"], bool)[i] & (magnitudes(truth, band)[i] < typed)
        wrong = np.asarray(catalogue["p_star"], float)[j][star] < 0.5
        scores["stars called galaxies"] = float(wrong.mean()) if star.any() else np.nan
    bands = [
        name.removeprefix("flux_").removesuffix("_q16")
        for name in catalogue.colnames
        if name.endswith("_q16")
    ]
    if bands:
        scores["coverage"] = flux_coverage(truth, catalogue, (i, j), bands)
    if "p_exists" in catalogue.colnames:
        chosen = inside(catalogue, shape) & (magnitudes(catalogue, band) < limit)
        true = np.isin(np.arange(len(catalogue)), agree(truth, catalogue, band)[1])
        p = np.asarray(catalogue["p_exists"], float)
        scores["reliability"] = reliability(p[chosen], true[chosen], (0, 0.5, 0.7, 0.9, 1))
    return scores


def _xy(table: Table) -> Float[np.ndarray, "n 2"]:
    return np.column_stack([np.asarray(table["x"], float), np.asarray(table["y"], float)])
