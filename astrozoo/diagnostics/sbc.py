"""Simulation-based calibration: are the ranks of the truth among posterior draws uniform?

References:
    Talts et al. 2018, arXiv 1804.06788; Säilynoja, Bürkner & Vehtari 2022, Statistics and Computing 32, 32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy import stats

from astrozoo._files import write_json
from astrozoo.diagnostics.metrics import scalars
from astrozoo.errors import InputError
from astrozoo.types import Result

__all__ = ["LEVELS", "RANKED", "calibration", "ecdf_band", "in_batches", "ranks", "ranks_of", "sbc_figure"]

LEVELS = (0.5, 0.8, 0.95)
"""Probabilities of the central intervals whose coverage is counted."""
RANKED = 99
"""Number of evenly chosen draws among which a truth is ranked. Thinned draws of long chains are nearly
independent."""
_NULL = 2000
"""Number of simulated sets of uniform ranks from which the null distribution of the ECDF statistic is
estimated. P-values are multiples of 1/2001."""


def ranks(
    draws: Float[np.ndarray, "draw scalar"], truth: Float[np.ndarray, "scalar"], seed: int
) -> Int[np.ndarray, "scalar"]:
    """The number of draws below the truth; ties (of discrete sites) are broken at random."""
    rng = np.random.default_rng(seed)
    below, same = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + rng.integers(0, same + 1)


def ranks_of(result: Result, truth: Mapping[str, Any], seed: int) -> dict[str, int]:
    """The rank of the truth among :data:`RANKED` draws of a fit, by label, for every scalar with a truth."""
    ranked = scalars(replace(result, draws={name: x for name, x in result.draws.items() if name in truth}))
    flat = ranked.draws.reshape(-1, len(ranked))
    thin = flat[np.linspace(0, len(flat) - 1, RANKED).round().astype(int)]
    true = np.concatenate(
        [np.ravel(np.asarray(truth[name], float)) for name in result.draws if name in truth]
    )
    return dict(zip(ranked.labels, ranks(thin, true, seed).tolist(), strict=True))


def in_batches(
    folder: Path,
    seeds: Sequence[int],
    size: int,
    settings: Mapping[str, Any],
    fit: Callable[[Sequence[int]], Mapping[str, Any]],
) -> Iterator[Mapping[str, Any]]:
    """Fit simulations ``size`` at a time. Each batch is saved to a file; a saved batch is read, not refitted.

    Args:
        folder: an existing folder for the files.
        seeds: of the simulations.
        size: number of simulations in a batch.
        settings: settings of the run, as JSON represents them. Saved batches must have the same.
        fit: simulates and fits a batch, given its seeds.

    Raises:
        InputError: the folder contains batches with other settings.
    """
    for i in range(0, len(seeds), size):
        batch = list(seeds[i : i + size])
        expected = {**settings, "seeds": batch}
        file = folder / f"{batch[0]}.json"
        if file.exists():
            contents = json.loads(file.read_text(encoding="utf-8"))
            if contents["asked"] != expected:
                raise InputError(f"folder {folder}", f"simulations of {contents['asked']}", str(expected))
        else:
            contents = {"asked": expected, **fit(batch)}
            write_json(contents, file)
        yield contents


def _lowest_tail(counts: Int[np.ndarray, "*b point"], n: int, at: np.ndarray) -> Float[np.ndarray, "*b"]:
    """The smallest two-sided binomial tail probability of an ECDF over the points."""
    below, above = stats.binom.cdf(counts, n, at), stats.binom.sf(counts - 1, n, at)
    return 2 * np.minimum(below, above).min(-1)


def _null(n: int, draws: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ECDF, and the statistic of ``_NULL`` sets of ``n`` uniform ranks in 0 ... draws."""
    points = np.linspace(0, draws, min(draws, 100) + 1).round().astype(int)[:-1]
    uniform = np.random.default_rng(seed).integers(0, draws + 1, (_NULL, n))
    counts = np.stack([(uniform <= p).sum(1) for p in points], -1)
    return points, _lowest_tail(counts, n, (points + 1) / (draws + 1))


def ecdf_band(n: int, draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in (0, 1], and the lower and upper edge of the simultaneous band of uniform ranks' ECDFs."""
    points, null = _null(n, draws)
    tail = np.quantile(null, 1 - level)
    at = (points + 1) / (draws + 1)
    low, high = stats.binom.ppf(tail / 2, n, at) / n, stats.binom.ppf(1 - tail / 2, n, at) / n
    return at, low, high


def calibration(
    labels: list[str],
    ranks: Int[np.ndarray, "simulation scalar"],
    draws: int,
    levels: tuple[float, ...] = LEVELS,
) -> list[dict[str, Any]]:
    """Test the ranks of each scalar for uniformity, and count how often intervals contain the truth.

    Args:
        labels: of the scalars.
        ranks: of the truth among ``draws`` draws.
        draws: number of draws.
        levels: probabilities of the central intervals.

    Returns:
        a row per scalar: p-values of the ECDF test and of chi squared, and the coverage of each interval.

    Raises:
        InputError: there are fewer than 20 simulations.
    """
    n = len(ranks)
    if n < 20:
        raise InputError("simulations", n, "20 or more")
    points, null = _null(n, draws)
    bins = int(np.clip(n // 10, 2, 20))
    rows = []
    for label, column in zip(labels, ranks.T, strict=True):
        counts = (column[:, None] <= points).sum(0)
        observed = _lowest_tail(counts, n, (points + 1) / (draws + 1))
        edges = np.linspace(0, draws + 1, bins + 1)
        expected = n * np.diff(np.ceil(edges)) / (draws + 1)
        histogram, _ = np.histogram(column, np.ceil(edges) - 0.5)
        row: dict[str, Any] = {
            "parameter": label,
            "p (ecdf)": float((1 + (null <= observed).sum()) / (1 + len(null))),
            "p (chi2)": float(stats.chisquare(histogram, expected).pvalue),
        }
        uniform = (column + 0.5) / (draws + 1)
        for level in levels:
            row[f"coverage of {level:.0%}"] = float((np.abs(uniform - 0.5) <= level / 2).mean())
        rows.append(row)
    return rows


def sbc_figure(labels: list[str], ranks: Int[np.ndarray, "simulation scalar"], draws: int) -> Figure:
    """Histograms of ranks with their 95% range; ECDFs minus the uniform ECDF, with the simultaneous band."""
    n, bins = len(ranks), int(np.clip(len(ranks) // 10, 2, 20))
    figure = Figure(figsize=(8, 1.7 * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), 2, squeeze=False)
    at, low, high = ecdf_band(n, draws)
    band = stats.binom.ppf((0.025, 0.975), n, 1 / bins)
    for (left, right), label, column in zip(axes, labels, ranks.T, strict=True):
        left.hist(column, bins=bins, range=(-0.5, draws + 0.5), color="#0072b2", alpha=0.7)
        left.axhspan(*band, color="black", alpha=0.12)
        left.set_title(label, fontsize=8, loc="left")
        ecdf = (column[:, None] <= at * (draws + 1) - 1 + 1e-9).mean(0)
        right.fill_between(at, low - at, high - at, color="black", alpha=0.12, step="post")
        right.step(at, ecdf - at, color="#d55e00", where="post")
        for ax in (left, right):
            ax.tick_params(labelsize=6)
    return figure
