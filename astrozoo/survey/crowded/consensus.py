"""One catalogue from many: the sources on which samples of catalogues agree, and how sure they are.

Sources of different samples are the same if they lie within :data:`SAME_PLACE` in each axis and within
:data:`SAME_MAGNITUDE` of each other, the rule by which catalogues of crowded fields are scored. The source
that most samples confirm is taken first, and its rows are used up.

The probability that it exists is not the share of the samples that confirm it. The source was chosen, and
its place computed, to agree with these samples, so that this share is too high: in clutter, chance
coincidences of many samples make sources. The share is therefore calibrated. Each chain is left out in turn,
the consensus of the others is made, and its sources are compared with the catalogues of the chain that was
left out, as they will be with the truth. The probability is the mean share of confirming catalogues left out,
as an increasing function of the share of those that made the source (isotonic regression). The halves of a
single chain take the part of chains.

References:
    Portillo et al. 2017, AJ 154, 132 (condensed catalogues).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from scipy.optimize import isotonic_regression
from scipy.spatial import cKDTree

from astrozoo.errors import InputError
from astrozoo.survey.crowded.samples import Samples, magnitude

__all__ = ["SAME_MAGNITUDE", "SAME_PLACE", "THRESHOLD", "consensus", "given_sources"]

SAME_PLACE = 0.5
"""[px] Largest distance in each axis of two rows of the same source: the published rule of scores on M2."""
SAME_MAGNITUDE = 0.5
"""[mag] Largest difference of their magnitudes in the reference band: the same rule."""
THRESHOLD = 0.25
"""Default of the least probability that a source exists. On one simulated field of 80 px with M2's density
and four chains of 5600 moves per source, F1 by the published rule and by place alone (1 px) is .77 and .88 at
.15, .79 and .89 at .2, .80 and .88 at .25, .80 and .88 at .3, .80 and .85 at .4."""
SEEDS = 32
"""Catalogues, spread evenly, whose sources may begin a group. A source that exists with probability .25 is in
one of them with probability 1 - 1e-4."""
PASSES = 3
"""Times that a group is collected anew about the mean of its members: it no longer changes then."""


def consensus(samples: Samples, threshold: float = THRESHOLD) -> Table:
    """The consensus of the samples.

    Args:
        samples: catalogues of several chains.
        threshold: least probability that a source exists.

    Returns:
        One row per source, the surest first. ``p_exists``, ``p_star`` (given that it exists); ``x``, ``y``
        [px of the reference image] and ``x_sd``, ``y_sd``; for each band b ``flux_b``, ``flux_b_sd`` [nMgy]
        and the quantiles ``flux_b_q025``, ``flux_b_q16``, ``flux_b_q84`` and ``flux_b_q975`` (2.5, 16, 84 and
        97.5 %); ``half_light_radius`` [px], ``e1``, ``e2``: means of the members that are galaxies, NaN
        without any; ``members``: samples that confirm the source.

    Raises:
        InputError: the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise InputError("threshold of the consensus", threshold, "a probability between 0 and 1")
    m = magnitude(samples.flux[:, samples.reference])
    point = np.column_stack([samples.xy / SAME_PLACE, m / SAME_MAGNITUDE])
    every = np.arange(len(m))
    groups = list(_Search(point, samples.catalogue, every).groups(threshold))
    size = samples.chains * samples.length
    share = np.array([len(group) / size for group in groups])
    chance = _calibrated(samples, point, share, threshold)
    order = np.argsort(-chance, kind="stable")
    order = order[chance[order] >= threshold]
    return _table(samples, [groups[i] for i in order], chance[order])


def given_sources(samples: Samples) -> Table:
    """The same table, of catalogues that all have the same sources in the same order, which exist."""
    size = samples.chains * samples.length
    rows = np.arange(len(samples.xy)).reshape(size, -1)
    return _table(samples, list(rows.T), np.ones(rows.shape[1]))


def _calibrated(
    samples: Samples, point: Float[np.ndarray, "row 3"], share: Float[np.ndarray, "g"], threshold: float
) -> Float[np.ndarray, "g"]:
    """Probabilities that sources exist, by the shares of the catalogues that make them."""
    size = samples.chains * samples.length
    blocks = samples.chains if samples.chains > 1 else min(2, samples.length)
    number = np.arange(size) * blocks // size  # of the block of each catalogue
    block = number[samples.catalogue]
    made, confirmed = [1.0], [1.0]
    for left_out in range(blocks if blocks > 1 else 0):
        inside = _Search(point, samples.catalogue, np.flatnonzero(block != left_out))
        outside = _Search(point, samples.catalogue, np.flatnonzero(block == left_out))
        for group in inside.groups(threshold):
            rows = outside.near(point[group].mean(0))
            outside.used[rows] = True
            made.append(len(group) / (number != left_out).sum())
            confirmed.append(len(rows) / (number == left_out).sum())
    order = np.argsort(made, kind="stable")
    fit = isotonic_regression(np.array(confirmed)[order]).x
    return np.interp(share, np.array(made)[order], fit)


class _Search:
    """Rows as points whose distance, the largest over three axes, is at most 1 for the same source."""

    def __init__(
        self,
        point: Float[np.ndarray, "row 3"],
        catalogue: Int[np.ndarray, "row"],
        chosen: Int[np.ndarray, "m"],
    ) -> None:
        self.point, self.catalogue, self.chosen = point, catalogue, chosen
        self.numbers = np.unique(catalogue[chosen])
        self.used = np.zeros(len(point), bool)
        self.tree = cKDTree(point[chosen])

    def near(self, centre: Float[np.ndarray, "3"]) -> Int[np.ndarray, "m"]:
        """Rows of the same source as the centre: of each catalogue the nearest that is not used."""
        rows = self.chosen[np.array(self.tree.query_ball_point(centre, 1.0, p=np.inf), np.int64)]
        rows = rows[~self.used[rows]]
        distance = np.square(self.point[rows] - centre).sum(1)
        rows = rows[np.argsort(distance, kind="stable")]
        return rows[np.unique(self.catalogue[rows], return_index=True)[1]]

    def groups(self, threshold: float) -> Iterator[Int[np.ndarray, "m"]]:
        """Groups of rows, that with the most members first. The rows of a group are used up."""
        count = len(self.numbers)
        seeds = self.numbers[np.unique(np.linspace(0, count - 1, min(SEEDS, count)).astype(int))]
        rows = self.chosen[np.isin(self.catalogue[self.chosen], seeds)]
        if not len(rows):
            return
        bound = self.tree.query_ball_point(self.point[rows], 1.0, p=np.inf, return_length=True)
        heap = [(-int(min(n, count)), int(row)) for n, row in zip(bound, rows, strict=True)]
        heapq.heapify(heap)
        least = threshold * count
        while heap:
            stated, row = heapq.heappop(heap)
            if -stated < least:
                return
            if self.used[row]:
                continue
            members = self.near(self.point[row])
            if len(members) < -stated:  # rows have been used since
                heapq.heappush(heap, (-len(members), row))
                continue
            for _ in range(PASSES):
                members = self.near(self.point[members].mean(0))
            self.used[members] = True
            yield members


def _table(samples: Samples, groups: list[np.ndarray], chances: Float[np.ndarray, "g"]) -> Table:
    """Means, SDs and quantiles of the members of each group."""
    names = ["p_exists", "p_star", "x", "y", "x_sd", "y_sd"]
    quantiles = {"q025": 0.025, "q16": 0.16, "q84": 0.84, "q975": 0.975}
    for band in samples.bands:
        names += [f"flux_{band}", f"flux_{band}_sd", *(f"flux_{band}_{q}" for q in quantiles)]
    names += ["half_light_radius", "e1", "e2", "members"]
    star: Bool[np.ndarray, "row"] = samples.is_star
    rows = []
    for group, chance in zip(groups, chances, strict=True):
        xy, flux, galaxy = samples.xy[group], samples.flux[group], group[~star[group]]
        row = [chance, star[group].mean(), *xy.mean(0), *xy.std(0)]
        low_high = np.quantile(flux, list(quantiles.values()), axis=0)
        for b in range(len(samples.bands)):
            row += [flux[:, b].mean(), flux[:, b].std(), *low_high[:, b]]
        row += [*(samples.shape[galaxy].mean(0) if len(galaxy) else [np.nan] * 3), len(group)]
        rows.append(row)
    table = Table(np.array(rows).reshape(len(rows), len(names)), names=names)
    table["members"] = table["members"].astype(int)
    return table
