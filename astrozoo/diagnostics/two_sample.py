"""Distances between two sets of draws, each with the value that chance alone would give."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from astrozoo.errors import InputError

__all__ = ["c2st", "mmd", "wasserstein"]

_PERMUTATIONS = 500
"""Number of permutations of the labels from which the 95% quantile of a null distribution is estimated. The
standard error of the level is then 1%: ``sqrt(0.95 * 0.05 / 500)``."""
_QUANTILES = 2000
"""Number of equally spaced probabilities at which the quantile functions of two marginals are compared."""


def wasserstein(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d"]:
    """Wasserstein-1 distance of every marginal, in its units: the area between the two quantile functions."""
    _check(x, y)
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return np.abs(np.quantile(x, levels, axis=0) - np.quantile(y, levels, axis=0)).mean(0)


def mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], seed: int = 0) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy, and the 95% quantile of its null distribution.

    The kernel is Gaussian. Its width is the median distance between the pooled draws, in units of ``y``'s
    SDs. The null distribution is that of permuted labels.

    References:
        Gretton et al. 2012, JMLR 13, 723.
    """
    z, first = _pooled(x, y)
    squares = cdist(z, z, "sqeuclidean")
    off_diagonal = ~np.eye(len(z), dtype=bool)
    kernel = np.exp(-squares / np.median(squares[off_diagonal]))
    np.fill_diagonal(kernel, 0.0)
    n, m = first.sum(), (~first).sum()

    def statistic(first: np.ndarray) -> float:
        in_x, in_y = first.astype(float), (~first).astype(float)
        to_x = kernel @ in_x
        within = in_x @ to_x / (n * (n - 1)) + in_y @ (kernel @ in_y) / (m * (m - 1))
        return float(within - 2 * in_y @ to_x / (n * m))

    rng = np.random.default_rng(seed)
    null = [statistic(rng.permutation(first)) for _ in range(_PERMUTATIONS)]
    return statistic(first), float(np.quantile(null, 0.95))


def c2st(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], seed: int = 0) -> tuple[float, float]:
    """Accuracy of a nearest-neighbour classifier between the two sets, and the 95% quantile of its null.

    The accuracy is 0.5 where the sets cannot be distinguished. Each draw is classified by a majority of its
    ``sqrt(n)`` nearest others, in units of ``y``'s SDs; of the larger set, only as many draws as in the
    smaller one are used. The null distribution is that of permuted labels, because neighbours are shared
    between draws and their votes are not independent.

    References:
        Lopez-Paz & Oquab 2017 (classifier two-sample test); Henze 1988 (by nearest neighbours).
    """
    z, first = _pooled(x, y)
    k = int(np.sqrt(len(z) / 2)) // 2 * 2 + 1
    _, nearest = cKDTree(z).query(z, k + 1)
    nearest = nearest[:, 1:]

    def accuracy(first: np.ndarray) -> float:
        as_x = first[nearest].mean(1) > 0.5  # draws that are classified as draws of x
        return float(((as_x & first).sum() / first.sum() + (~as_x & ~first).sum() / (~first).sum()) / 2)

    rng = np.random.default_rng(seed)
    null = [accuracy(rng.permutation(first)) for _ in range(_PERMUTATIONS)]
    return accuracy(first), float(np.quantile(null, 0.95))


def _pooled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equally many draws of both in units of ``y``'s SDs, and a mask that is True for draws of ``x``."""
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
