"""How well scores tell lenses from other stamps, with intervals."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from astrozoo.errors import InputError

__all__ = [
    "auroc",
    "auroc_interval",
    "calibration_error",
    "calibration_table",
    "true_positive_rate",
    "wilson",
]


def auroc(score: Float[np.ndarray, "n"], lens: Bool[np.ndarray, "n"]) -> float:
    """Probability that a lens has a higher score than another stamp; ties count half.

    Raises:
        InputError: there are no lenses, or nothing else.
    """
    _check(lens)
    order = np.argsort(score, kind="stable")
    index = np.unique(score[order], return_inverse=True)[1]
    ranks = np.empty(len(score))
    ends = np.cumsum(np.bincount(index))
    ranks[order] = (ends - (np.bincount(index) - 1) / 2)[index]
    n = int(lens.sum())
    return float((ranks[lens].sum() - n * (n + 1) / 2) / (n * (len(lens) - n)))


def auroc_interval(
    score: Float[np.ndarray, "n"], lens: Bool[np.ndarray, "n"], level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Interval of the AUROC from bootstraps of lenses and of other stamps apart."""
    rng = np.random.default_rng(0)
    positive, negative = score[lens], score[~lens]
    found = []
    for _ in range(draws):
        scores = (rng.choice(positive, len(positive)), rng.choice(negative, len(negative)))
        found.append(auroc(np.concatenate(scores), np.arange(len(score)) < len(positive)))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def true_positive_rate(
    score: Float[np.ndarray, "n"], lens: Bool[np.ndarray, "n"], false_positive_rate: float = 0.01
) -> tuple[float, float, float]:
    """Fraction of lenses above the score that this fraction of other stamps exceeds, with its 95 % interval.

    The interval is that of bootstraps, which include the threshold's own uncertainty.
    """
    _check(lens)
    rng = np.random.default_rng(0)
    positive, negative = score[lens], score[~lens]

    def rate(p: np.ndarray, n: np.ndarray) -> float:
        return float((p > np.quantile(n, 1 - false_positive_rate, method="higher")).mean())

    found = [
        rate(rng.choice(positive, len(positive)), rng.choice(negative, len(negative))) for _ in range(1000)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return rate(positive, negative), float(low), float(high)


def calibration_table(
    probability: Float[np.ndarray, "n"], lens: Bool[np.ndarray, "n"], bins: int = 10
) -> list[dict[str, float]]:
    """Stated probability and fraction of lenses in bins of equal width, with the fraction's 95 % interval."""
    at = np.minimum((probability * bins).astype(int), bins - 1)
    rows = []
    for k in np.unique(at):
        inside = at == k
        low, high = wilson(int(lens[inside].sum()), int(inside.sum()))
        rows.append(
            {
                "stated": float(probability[inside].mean()),
                "lenses": float(lens[inside].mean()),
                "low": low,
                "high": high,
                "stamps": int(inside.sum()),
            }
        )
    return rows


def calibration_error(
    probability: Float[np.ndarray, "n"], lens: Bool[np.ndarray, "n"], bins: int = 10
) -> float:
    """Expected calibration error: the mean difference of stated probability and fraction, over stamps."""
    rows = calibration_table(probability, lens, bins)
    return sum(row["stamps"] * abs(row["stated"] - row["lenses"]) for row in rows) / len(lens)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a fraction; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    p, n = successes / trials, trials
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def _check(lens: Bool[np.ndarray, "n"]) -> None:
    if lens.all() or not lens.any():
        raise InputError("labels", f"{int(lens.sum())} lenses of {len(lens)} stamps", "lenses and others")
