"""How far two sets of draws are apart, each with what chance alone would give."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from astrozoo.errors import InputError

__all__ = ["c2st", "mmd", "wasserstein"]

_PERMUTATIONS = 500
"""Permutations of the labels from which the 95% quantile of a null distribution is estimated. The level is
then good to 1%."""


def wasserstein(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d"]:
    """Wasserstein-1 distance of every marginal, in its own units: the area between quantile functions."""
    _check(x, y)
    at = (np.arange(2000) + 0.5) / 2000
    return np.abs(np.quantile(x, at, axis=0) - np.quantile(y, at, axis=0)).mean(0)


def mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], seed: int = 0) -> tuple[float, float]:
    """Squared maximum mean discrepancy (unbiased), and the 95% quantile of its null by permutations.

    A Gaussian kernel, its width the median distance of the pooled draws, in units of ``y``'s SDs.

    References:
        Gretton et al. 2012, JMLR 13, 723.
    """
    z, first = _pooled(x, y)
    squares = cdist(z, z, "sqeuclidean")
    off = ~np.eye(len(z), dtype=bool)
    kernel = np.exp(-squares / np.median(squares[off]))
    np.fill_diagonal(kernel, 0.0)
    n, m = first.sum(), (~first).sum()

    def statistic(first: np.ndarray) -> float:
        ours, theirs = first.astype(float), (~first).astype(float)
        to_ours = kernel @ ours
        within = ours @ to_ours / (n * (n - 1)) + theirs @ (kernel @ theirs) / (m * (m - 1))
        return float(within - 2 * theirs @ to_ours / (n * m))

    rng = np.random.default_rng(seed)
    null = [statistic(rng.permutation(first)) for _ in range(_PERMUTATIONS)]
    return statistic(first), float(np.quantile(null, 0.95))


def c2st(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], seed: int = 0) -> tuple[float, float]:
    """Accuracy with which neighbours tell two equally large sets apart (0.5: not); its null's 95% quantile.

    Each draw is classified by its ``sqrt(n)`` nearest others, in units of ``y``'s SDs. The null is by
    permutations of the labels, so that it knows of the neighbours that draws share.

    References:
        Lopez-Paz & Oquab 2017 (classifier two-sample test); Henze 1988 (by nearest neighbours).
    """
    z, first = _pooled(x, y)
    k = int(np.sqrt(len(z) / 2)) // 2 * 2 + 1
    _, nearest = cKDTree(z).query(z, k + 1)
    nearest = nearest[:, 1:]

    def accuracy(first: np.ndarray) -> float:
        said = first[nearest].mean(1) > 0.5
        return float(((said & first).sum() / first.sum() + (~said & ~first).sum() / (~first).sum()) / 2)

    rng = np.random.default_rng(seed)
    null = [accuracy(rng.permutation(first)) for _ in range(_PERMUTATIONS)]
    return accuracy(first), float(np.quantile(null, 0.95))


def _pooled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in units of ``y``'s SDs, equally many of each, and which are ``x``."""
    _check(x, y)
    n = min(len(x), len(y))
    spread = y.std(0)
    kept = spread > 0
    x, y = (a[np.linspace(0, len(a) - 1, n).round().astype(int)][:, kept] / spread[kept] for a in (x, y))
    return np.concatenate((x, y)), np.arange(2 * n) < n


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 4:
        raise InputError(
            "draws", f"shapes {x.shape} and {y.shape}", "[n, d] and [m, d], four or more of each"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("draws", "values that are not finite", "finite draws")
