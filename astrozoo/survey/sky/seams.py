"""Sources of overlapping boxes become one list: what two boxes have both seen is kept once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["SAME", "SEAM", "kept"]

SAME = 1.0
"""[arcsec] Distance within which sources of two boxes may be one.

The scatter of two fits of a faint source is a few tenths. Sources of one box that are closer than this are
matched one to one."""
SEAM = 3.0
"""[arcsec] Width of the strip outside a box whose sources are kept too, until seams are resolved. A source
moves by less than this between the fits of two boxes."""


def kept(
    positions: Sequence[Float[np.ndarray, "s 2"]], inside: Sequence[Bool[np.ndarray, "s"]]
) -> list[Bool[np.ndarray, "s"]]:
    """Which sources of each box to keep.

    Sources of two boxes are the same if each is the other's nearest, within :data:`SAME`. Of such a group one
    is kept: that of the first box that has it inside or, where each box sees it on the other's side, that of
    the first box. A source that only one box has is kept if it is inside this box: a box sees what is inside
    it better than its neighbours do.

    Args:
        positions: (ra, dec) of each box's sources [deg], in a fixed order of boxes.
        inside: whether each is inside its own box.
    """
    sizes = [len(part) for part in positions]
    start = np.concatenate(([0], np.cumsum(sizes))).astype(int)
    if not start[-1]:
        return [np.zeros(0, bool) for _ in positions]
    vectors = [_vectors(part) for part in positions]
    reach = 2 * np.sin(np.deg2rad(SAME / 3600) / 2)
    trees = [cKDTree(part) if len(part) else None for part in vectors]
    links: list[np.ndarray] = []
    for a in range(len(vectors)):
        for b in range(a + 1, len(vectors)):
            first, second = trees[a], trees[b]
            if first is None or second is None:
                continue
            distance, there = second.query(vectors[a], distance_upper_bound=reach)
            rows = np.flatnonzero(np.isfinite(distance))
            if len(rows):
                _, back = first.query(vectors[b][there[rows]])
                rows = rows[back == rows]
                links.append(np.stack((start[a] + rows, start[b] + there[rows])))
    pairs = np.concatenate(links, axis=1) if links else np.zeros((2, 0), int)
    graph = coo_matrix((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(start[-1], start[-1]))
    count, group = connected_components(graph, directed=False)
    own = np.concatenate(list(inside))
    members = np.bincount(group, minlength=count)
    # of each group, the first row of those inside, else the first row
    rank = np.where(own, 0, start[-1]) + np.arange(start[-1])
    best = np.full(count, 2 * start[-1])
    np.minimum.at(best, group, rank)
    keep = (rank == best[group]) & (own | (members[group] > 1))
    return [keep[start[k] : start[k + 1]] for k in range(len(positions))]


def _vectors(positions: Float[np.ndarray, "s 2"]) -> Float[np.ndarray, "s 3"]:
    """Unit vectors of (ra, dec) [deg]."""
    ra, dec = np.deg2rad(np.asarray(positions, float).reshape(-1, 2)).T
    return np.stack((np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)), -1)
