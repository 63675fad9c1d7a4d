"""Diagnostics and summaries of a result, and comparisons of several results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from astrozoo.diagnostics.arviz import ess, k_hat, mcse, r_hat
from astrozoo.errors import InputError
from astrozoo.infer.convergence import e_bfmi, mixing_of

if TYPE_CHECKING:
    from astrozoo.types import Result

__all__ = [
    "POOR_K_HAT",
    "Scalars",
    "compare",
    "count_scalars",
    "diagnose",
    "el2o_value",
    "is_chain",
    "not_finite",
    "parameter_table",
    "reference_of",
    "scalars",
    "standard_errors",
    "summary",
    "z_scores",
]

POOR_K_HAT = 0.7
"""Pareto k-hat above which importance weights, and the guide that was fitted, cannot be trusted (Vehtari et
al. 2024)."""

_CHAIN_STATS = {"acceptance_rate", "diverging", "energy", "tree_depth"}
MOST_COMPARED = 10_000
"""The most scalars that are compared one by one. It limits the rows of a comparison table per method; of more
scalars, evenly chosen ones are compared."""
MOST_VALUES = 6
"""Values of a parameter that a table shows one by one: as many as fit in a cell."""


@dataclass(frozen=True)
class Scalars:
    """The draws of a selection of scalars.

    Attributes:
        labels: a label for each scalar, such as ``colour[problem=2, band=g]``.
        draws: the draws of each scalar.
    """

    labels: list[str]
    draws: Float[np.ndarray, "chain draw scalar"]

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, most: int) -> Scalars:
        """At most ``most`` of the scalars, evenly chosen."""
        if len(self) <= most:
            return self
        kept = np.linspace(0, len(self) - 1, most).round().astype(int)
        return Scalars([self.labels[i] for i in kept], self.draws[..., kept])


def is_chain(result: Result) -> bool:
    """True if the draws are from Markov chains; False if they are independent draws of a fitted guide."""
    return bool(_CHAIN_STATS & result.sample_stats.keys())


def count_scalars(result: Result) -> int:
    """The number of scalars in a draw."""
    return sum(math.prod(draws.shape[2:]) for draws in result.draws.values())


def scalars(result: Result, most: int | None = None, *, evenly: bool = False) -> Scalars:
    """The draws of all scalars of a result, or of a selection; infinite values become NaN.

    Labels and draws are computed for the selected scalars only, which keeps results with many scalars cheap.

    Args:
        result: with draws.
        most: the most scalars; by default all. About equally many are chosen from every site.
        evenly: choose evenly among all scalars instead.
    """
    posterior = result.groups()["posterior"]
    labels, columns = [], []
    share = None if most is None else max(1, most // max(1, len(posterior.data_vars)))
    total, start = count_scalars(result), 0
    chosen = np.arange(total)
    if evenly and most is not None and most < total:
        chosen = np.linspace(0, total - 1, most).round().astype(int)
    for name, variable in posterior.data_vars.items():
        size = math.prod(variable.shape[2:])
        kept = chosen[(chosen >= start) & (chosen < start + size)] - start
        if share is not None and not evenly and share < size:
            kept = np.linspace(0, size - 1, share).round().astype(int)
        start += size
        labels += _labels(str(name), variable, kept)
        columns.append(variable.to_numpy().reshape(*variable.shape[:2], -1)[..., kept])
    draws = np.concatenate(columns, axis=-1)
    return Scalars(labels, np.where(np.isfinite(draws), draws, np.nan))


def parameter_table(result: Result) -> dict[str, dict[str, Any]]:
    """The fitted parameters of the model: the shape of each, and its values or (of many) their statistics.

    Returns:
        ``{name: {"shape": [...], "values": ...}}``, with ``"mean"``, ``"min"`` and ``"max"`` in place of
        ``"values"`` above :data:`MOST_VALUES` values.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, value in result.parameters.items():
        if value.size <= MOST_VALUES:
            shown = {"values": value.tolist()}
        else:
            shown = {"mean": float(value.mean()), "min": float(value.min()), "max": float(value.max())}
        table[name] = {"shape": list(value.shape), **shown}
    return table


def not_finite(result: Result) -> dict[str, int]:
    """The number of draws with a value that is NaN or infinite, by site; only sites that have any."""
    counts = {}
    for name, draws in result.draws.items():
        bad = ~np.isfinite(draws.reshape(*draws.shape[:2], -1)).all(-1)
        if bad.any():
            counts[name] = int(bad.sum())
    return counts


def _labels(name: str, variable: Any, kept: Int[np.ndarray, "scalar"]) -> list[str]:
    axes = variable.dims[2:]
    if not axes:
        return [name]
    ticks = [variable.coords[a].values.tolist() if a in variable.coords else None for a in axes]
    labels = []
    for index in zip(*np.unravel_index(kept, variable.shape[2:]), strict=True):
        marks = (i if tick is None else tick[i] for tick, i in zip(ticks, index, strict=True))
        labels.append(f"{name}[{', '.join(f'{a}={mark}' for a, mark in zip(axes, marks, strict=True))}]")
    return labels


def standard_errors(result: Result, of: Scalars) -> Float[np.ndarray, "scalar"]:
    """Monte-Carlo standard errors of the means."""
    if is_chain(result):
        return mcse(of.draws)
    known = np.isfinite(of.draws).sum((0, 1))
    return _known(np.nanstd, of.draws) / np.sqrt(np.maximum(known, 1))


def _known(function: Any, draws: np.ndarray, *settings: Any) -> np.ndarray:
    """A statistic of the draws that are not NaN; NaN if all are. (The shape of a star is NaN.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns that are all NaN
        return function(draws, *settings, axis=(0, 1))


def summary(result: Result, most: int = 60) -> list[dict[str, Any]]:
    """Mean, SD, 90% interval and Monte-Carlo error of each scalar; for chains, also ESS and R-hat.

    Draws that are NaN are left out, such as the shape of a source that is a star in that draw.
    """
    shown = scalars(result, most)
    low, high = _known(np.nanquantile, shown.draws, (0.05, 0.95))
    columns: dict[str, Any] = {
        "parameter": shown.labels,
        "mean": _known(np.nanmean, shown.draws),
        "sd": _known(np.nanstd, shown.draws),
        "5%": low,
        "95%": high,
        "mcse": standard_errors(result, shown),
    }
    if is_chain(result):
        columns["ess bulk"] = ess(shown.draws, "bulk")
        columns["ess tail"] = ess(shown.draws, "tail")
        columns["r-hat"] = r_hat(shown.draws)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def el2o_value(log_ratios: Float[np.ndarray, "*shape draw"]) -> Float[np.ndarray, "*shape"]:
    """``Var_q[ln p - ln q]`` from the log ratios ln p - ln q of draws of q: 0 if q is the posterior.

    This is the value term of EL2O with ln Z as a free constant. It is about twice the KL divergence if small.

    References:
        Seljak & Yu 2019, arXiv 1901.04454, eq. 10.
    """
    with np.errstate(invalid="ignore"):  # of ratios that are not finite: the value is NaN
        return np.var(log_ratios, axis=-1, ddof=1)


def diagnose(result: Result) -> dict[str, Any]:
    """The worst of each diagnostic that the result allows; scalars, by name.

    Of chains: the R-hat that exceeds its limit most (:mod:`astrozoo.infer.convergence`) and that limit, the
    smallest ESS, divergences, smallest E-BFMI, mean acceptance. Of an approximation
    with ``log_ratio`` (log p - log q of each draw) among its ``sample_stats``, or ``k_hat`` of each problem
    among its ``stats``: the largest k-hat, of how many problems it is poor, and the largest EL2O value. Where
    draws are NaN or infinite: the sites and the number of draws. Statistics of draws leave these out.
    """
    found: dict[str, Any] = {}
    bad = not_finite(result)
    if bad:
        found["draws that are not finite"] = "; ".join(f"{name}: {n:,}" for name, n in bad.items())
    stats = result.sample_stats
    if is_chain(result):
        measured, total = mixing_of(result.draws, bool(result.statuses)), count_scalars(result)
        found |= measured.worst()
        if measured.r_hat.numel() < total:
            found["scalars looked at"] = f"{measured.r_hat.numel()} of {total}, evenly chosen"
    if "diverging" in stats:
        found["divergences"] = int(stats["diverging"].sum())
    if "energy" in stats and stats["energy"].shape[1] > 1:
        energy = torch.as_tensor(np.moveaxis(stats["energy"], 1, -1))
        found["smallest e-bfmi"] = _worst(np.min, e_bfmi(energy).numpy())
    if "acceptance_rate" in stats:
        rates = stats["acceptance_rate"]
        found["mean acceptance"] = _worst(np.mean, rates)
    shapes = np.asarray(result.stats.get("k_hat", ()), float)
    if "log_ratio" in stats:
        ratios = stats["log_ratio"].reshape(-1, *stats["log_ratio"].shape[2:])
        shapes = np.asarray(k_hat(np.moveaxis(ratios, 0, -1)))
        found["largest el2o value"] = _worst(np.max, el2o_value(np.moveaxis(ratios, 0, -1)))
    if shapes.size:
        found["largest k-hat"] = _worst(np.max, shapes)
    if shapes.size > 1:
        found["problems with a poor k-hat"] = int((~(shapes <= POOR_K_HAT)).sum())  # NaN is poor too
    return found


def _worst(of: Any, values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(of(finite)) if finite.size else float("nan")


def z_scores(result: Result, truth: Mapping[str, Any]) -> dict[str, Float[np.ndarray, "..."]]:
    """(mean - truth) / SD of every site of the result for which there is a truth, in the shape of the site.

    Raises:
        InputError: the shape of a truth is not that of its site.
    """
    scores = {}
    for name in result.draws.keys() & truth.keys():
        draws, true = result.draws[name], np.asarray(truth[name], dtype=float)
        if true.shape != draws.shape[2:]:
            raise InputError(f"truth of {name!r}", f"shape {true.shape}", f"{draws.shape[2:]}")
        draws = np.where(np.isfinite(draws), draws, np.nan)
        spread = _known(np.nanstd, draws)
        error = _known(np.nanmean, draws) - true
        scores[name] = np.divide(error, spread, out=np.where(error == 0, 0.0, np.inf), where=spread > 0)
    return scores


def reference_of(results: Mapping[str, Result]) -> str:
    """The name of the first result from Markov chains; without any, the name of the first result.

    Raises:
        InputError: there are no results.
    """
    if not results:
        raise InputError("results", "none", "one or more")
    return next((name for name in results if is_chain(results[name])), next(iter(results)))


def compare(results: Mapping[str, Result], reference: str | None = None) -> list[dict[str, Any]]:
    """Compare every scalar under every method with a reference.

    At most ``MOST_COMPARED`` scalars are compared, evenly chosen.

    Args:
        results: by method.
        reference: name of the reference; by default :func:`reference_of` chooses it.

    Returns:
        a row per method and scalar: mean, sd, Monte-Carlo standard error; ``z``, the difference of the
        means in units of its Monte-Carlo error; ``shift``, the same in posterior SDs of the reference;
        ``sd ratio``.

    Raises:
        InputError: there are no results, or they are of different problems.
    """
    if not results:
        raise InputError("results", "none", "one or more")
    digests = {result.digest for result in results.values()}
    if len(digests) > 1:
        raise InputError("results", f"digests {sorted(digests)}", "results of one problem")
    first = reference or reference_of(results)
    compared = {name: scalars(result, MOST_COMPARED, evenly=True) for name, result in results.items()}
    moments = {name: _moments(results[name], of) for name, of in compared.items()}
    rows = []
    for name, of in compared.items():
        for label in of.labels:
            if label not in moments[first]:
                continue
            (mean, sd, error), (mean_0, sd_0, error_0) = moments[name][label], moments[first][label]
            combined = np.hypot(error, error_0)
            row = {"method": name, "parameter": label, "mean": mean, "sd": sd, "mcse": error}
            row |= {"z": np.nan, "shift": np.nan, "sd ratio": np.nan}
            if name != first:
                row["z"] = (mean - mean_0) / combined if combined > 0 else np.nan
                row["shift"] = (mean - mean_0) / sd_0 if sd_0 > 0 else np.nan
                row["sd ratio"] = sd / sd_0 if sd_0 > 0 else np.nan
            rows.append(row)
    return rows


def _moments(result: Result, of: Scalars) -> dict[str, tuple[float, float, float]]:
    values = _known(np.nanmean, of.draws), _known(np.nanstd, of.draws), standard_errors(result, of)
    columns = (column.tolist() for column in values)
    return {label: (m, s, e) for label, m, s, e in zip(of.labels, *columns, strict=True)}
