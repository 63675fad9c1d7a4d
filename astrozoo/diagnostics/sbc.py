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
"""The number of draws among which a truth is ranked, evenly chosen. They are nearly independent if chains are
long."""
_NULL = 2000
"""Sets of uniform ranks from which the null distribution of the ECDF statistic is estimated; p-values are
multiples of 1/2001."""


def ranks(
    draws: Float[np.ndarray, "draw scalar"], truth: Float[np.ndarray, "scalar"], seed: int
) -> Int[np.ndarray, "scalar"]:
    """How many draws lie below the truth; ties (of discrete sites) are broken at random."""
    rng = np.random.default_rng(seed)
    below, same = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + rng.integers(0, same + 1)


def ranks_of(result: Result, truth: Mapping[str, Any], seed: int) -> dict[str, int]:
    """Of one fit: the rank of every scalar that has a truth among :data:`RANKED` draws, by its label."""
    held = scalars(replace(result, draws={name: x for name, x in result.draws.items() if name in truth}))
    flat = held.draws.reshape(-1, len(held))
    thin = flat[np.linspace(0, len(flat) - 1, RANKED).round().astype(int)]
    true = np.concatenate(
        [np.ravel(np.asarray(truth[name], float)) for name in result.draws if name in truth]
    )
    return dict(zip(held.labels, ranks(thin, true, seed).tolist(), strict=True))


def in_batches(
    folder: Path,
    seeds: Sequence[int],
    size: int,
    asked: Mapping[str, Any],
    fit: Callable[[Sequence[int]], Mapping[str, Any]],
) -> Iterator[Mapping[str, Any]]:
    """Simulations fitted ``size`` at a time; each batch is kept in a file, and taken from there if it is.

    Args:
        folder: of the files; there already.
        asked: settings (as JSON has them) that batches of another run must share.
        fit: of a batch's seeds.

    Raises:
        InputError: the folder holds batches of other settings.
    """
    for i in range(0, len(seeds), size):
        batch = list(seeds[i : i + size])
        wanted = {**asked, "seeds": batch}
        file = folder / f"{batch[0]}.json"
        if file.exists():
            held = json.loads(file.read_text(encoding="utf-8"))
            if held["asked"] != wanted:
                raise InputError(f"folder {folder}", f"simulations of {held['asked']}", str(wanted))
        else:
            held = {"asked": wanted, **fit(batch)}
            write_json(held, file)
        yield held


def _lowest_tail(counts: Int[np.ndarray, "*b point"], n: int, at: np.ndarray) -> Float[np.ndarray, "*b"]:
    """Of an ECDF: the smallest two-sided binomial tail probability over the points."""
    below, above = stats.binom.cdf(counts, n, at), stats.binom.sf(counts - 1, n, at)
    return 2 * np.minimum(below, above).min(-1)


def _null(n: int, draws: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points, and the statistic of ``_NULL`` sets of ``n`` uniform ranks in 0 ... draws."""
    points = np.linspace(0, draws, min(draws, 100) + 1).round().astype(int)[:-1]
    uniform = np.random.default_rng(seed).integers(0, draws + 1, (_NULL, n))
    counts = np.stack([(uniform <= p).sum(1) for p in points], -1)
    return points, _lowest_tail(counts, n, (points + 1) / (draws + 1))


def ecdf_band(n: int, draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in (0, 1], and the ECDF's simultaneous band there for uniform ranks."""
    points, null = _null(n, draws)
    tail = np.quantile(null, 1 - level)
    at = (points + 1) / (draws + 1)
    low, high = stats.binom.ppf(tail / 2, n, at) / n, stats.binom.ppf(1 - tail / 2, n, at) / n
    return at, low, high


def calibration(
    labels: list[str],
    found: Int[np.ndarray, "simulation scalar"],
    draws: int,
    levels: tuple[float, ...] = LEVELS,
) -> list[dict[str, Any]]:
    """A row per scalar: p-values of uniformity (ECDF band, chi squared), and coverage of central intervals.

    Args:
        found: ranks among ``draws`` draws.
        levels: of the intervals.

    Raises:
        InputError: with fewer than 20 simulations.
    """
    n = len(found)
    if n < 20:
        raise InputError("simulations", n, "20 or more")
    points, null = _null(n, draws)
    bins = int(np.clip(n // 10, 2, 20))
    rows = []
    for label, column in zip(labels, found.T, strict=True):
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


def sbc_figure(labels: list[str], found: Int[np.ndarray, "simulation scalar"], draws: int) -> Figure:
    """Histograms of ranks with their 95% range, and ECDFs less the uniform one in their simultaneous band."""
    n, bins = len(found), int(np.clip(len(found) // 10, 2, 20))
    figure = Figure(figsize=(8, 1.7 * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), 2, squeeze=False)
    at, low, high = ecdf_band(n, draws)
    band = stats.binom.ppf((0.025, 0.975), n, 1 / bins)
    for (left, right), label, column in zip(axes, labels, found.T, strict=True):
        left.hist(column, bins=bins, range=(-0.5, draws + 0.5), color="#0072b2", alpha=0.7)
        left.axhspan(*band, color="black", alpha=0.12)
        left.set_title(label, fontsize=8, loc="left")
        ecdf = (column[:, None] <= at * (draws + 1) - 1 + 1e-9).mean(0)
        right.fill_between(at, low - at, high - at, color="black", alpha=0.12, step="post")
        right.step(at, ecdf - at, color="#d55e00", where="post")
        for ax in (left, right):
            ax.tick_params(labelsize=6)
    return figure
