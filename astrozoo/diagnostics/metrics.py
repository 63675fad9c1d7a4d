"""Numbers that tell what a result is worth."""

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
"""Scalars that are compared one by one: where there are more, a table has so many rows for each method."""
MOST_VALUES = 6
"""Values of a parameter that a table shows one by one: as many as fit in a cell."""


@dataclass(frozen=True)
class Scalars:
    """Draws flattened to scalars.

    Attributes:
        labels: such as ``colour[problem=2, band=g]``.
        draws: of each.
    """

    labels: list[str]
    draws: Float[np.ndarray, "chain draw scalar"]

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, most: int) -> Scalars:
        """At most that many, evenly chosen."""
        if len(self) <= most:
            return self
        kept = np.linspace(0, len(self) - 1, most).round().astype(int)
        return Scalars([self.labels[i] for i in kept], self.draws[..., kept])


def is_chain(result: Result) -> bool:
    """True where draws are those of Markov chains; False where they are independent (a fitted guide's)."""
    return bool(_CHAIN_STATS & result.sample_stats.keys())


def count_scalars(result: Result) -> int:
    """The number of scalars in a draw."""
    return sum(math.prod(draws.shape[2:]) for draws in result.draws.values())


def scalars(result: Result, most: int | None = None, *, evenly: bool = False) -> Scalars:
    """The draws of a result, scalar by scalar; labels and draws are made of those that are chosen alone.

    Infinite values become NaN.

    Args:
        most: at most so many, about equally many of every site.
        evenly: choose them evenly among all scalars instead.
    """
    posterior = result.groups()["posterior"]
    labels, columns = [], []
    share = None if most is None else max(1, most // max(1, len(posterior.data_vars)))
    total, first = count_scalars(result), 0
    chosen = np.arange(total)
    if evenly and most is not None and most < total:
        chosen = np.linspace(0, total - 1, most).round().astype(int)
    for name, variable in posterior.data_vars.items():
        size = math.prod(variable.shape[2:])
        kept = chosen[(chosen >= first) & (chosen < first + size)] - first
        if share is not None and not evenly and share < size:
            kept = np.linspace(0, size - 1, share).round().astype(int)
        first += size
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
    found = []
    for at in zip(*np.unravel_index(kept, variable.shape[2:]), strict=True):
        marks = (i if tick is None else tick[i] for tick, i in zip(ticks, at, strict=True))
        found.append(f"{name}[{', '.join(f'{a}={mark}' for a, mark in zip(axes, marks, strict=True))}]")
    return found


def standard_errors(result: Result, of: Scalars) -> Float[np.ndarray, "scalar"]:
    """Monte-Carlo standard errors of the means."""
    if is_chain(result):
        return mcse(of.draws)
    known = np.isfinite(of.draws).sum((0, 1))
    return _known(np.nanstd, of.draws) / np.sqrt(np.maximum(known, 1))


def _known(function: Any, draws: np.ndarray, *settings: Any) -> np.ndarray:
    """A statistic of the draws that are not NaN (shapes of a star are); NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns that are all NaN
        return function(draws, *settings, axis=(0, 1))


def summary(result: Result, most: int = 60) -> list[dict[str, Any]]:
    """Mean, SD, 90% interval and Monte-Carlo error of each scalar; of chains, ESS and R-hat too.

    Draws that are NaN, such as the shape of what is a star in that draw, are left out.
    """
    held = scalars(result, most)
    low, high = _known(np.nanquantile, held.draws, (0.05, 0.95))
    columns: dict[str, Any] = {
        "parameter": held.labels,
        "mean": _known(np.nanmean, held.draws),
        "sd": _known(np.nanstd, held.draws),
        "5%": low,
        "95%": high,
        "mcse": standard_errors(result, held),
    }
    if is_chain(result):
        columns["ess bulk"] = ess(held.draws, "bulk")
        columns["ess tail"] = ess(held.draws, "tail")
        columns["r-hat"] = r_hat(held.draws)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def el2o_value(log_ratios: Float[np.ndarray, "*shape draw"]) -> Float[np.ndarray, "*shape"]:
    """``Var_q[ln p - ln q]``, from ln p - ln q of draws of q: 0 where q is the posterior.

    It is the value part of EL2O, ln Z being free, and about twice the KL divergence while it is small.

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
    """(mean - truth) / SD of the sites that both have, shaped as the site.

    Raises:
        InputError: a truth is not shaped as its site.
    """
    found = {}
    for name in result.draws.keys() & truth.keys():
        draws, true = result.draws[name], np.asarray(truth[name], dtype=float)
        if true.shape != draws.shape[2:]:
            raise InputError(f"truth of {name!r}", f"shape {true.shape}", f"{draws.shape[2:]}")
        draws = np.where(np.isfinite(draws), draws, np.nan)
        spread = _known(np.nanstd, draws)
        off = _known(np.nanmean, draws) - true
        found[name] = np.divide(off, spread, out=np.where(off == 0, 0.0, np.inf), where=spread > 0)
    return found


def reference_of(results: Mapping[str, Result]) -> str:
    """The first result of Markov chains, else the first.

    Raises:
        InputError: there are no results.
    """
    if not results:
        raise InputError("results", "none", "one or more")
    return next((name for name in results if is_chain(results[name])), next(iter(results)))


def compare(results: Mapping[str, Result], reference: str | None = None) -> list[dict[str, Any]]:
    """Every scalar under every method, beside a reference: the first chain-based result, else the first.

    Of more than ``MOST_COMPARED`` scalars so many are compared, evenly chosen.

    Columns: mean, sd, Monte-Carlo standard error; ``z``, the difference of means in units of its Monte-Carlo
    error; ``shift``, the same in posterior SDs of the reference; ``sd ratio``.

    Args:
        reference: name of another reference.

    Raises:
        InputError: there are no results, or they are not of one problem.
    """
    if not results:
        raise InputError("results", "none", "one or more")
    digests = {result.digest for result in results.values()}
    if len(digests) > 1:
        raise InputError("results", f"digests {sorted(digests)}", "results of one problem")
    first = reference or reference_of(results)
    held = {name: scalars(result, MOST_COMPARED, evenly=True) for name, result in results.items()}
    moments = {name: _moments(results[name], of) for name, of in held.items()}
    rows = []
    for name, of in held.items():
        for label in of.labels:
            if label not in moments[first]:
                continue
            (mean, sd, error), (mean_0, sd_0, error_0) = moments[name][label], moments[first][label]
            both = np.hypot(error, error_0)
            row = {"method": name, "parameter": label, "mean": mean, "sd": sd, "mcse": error}
            row |= {"z": np.nan, "shift": np.nan, "sd ratio": np.nan}
            if name != first:
                row["z"] = (mean - mean_0) / both if both > 0 else np.nan
                row["shift"] = (mean - mean_0) / sd_0 if sd_0 > 0 else np.nan
                row["sd ratio"] = sd / sd_0 if sd_0 > 0 else np.nan
            rows.append(row)
    return rows


def _moments(result: Result, of: Scalars) -> dict[str, tuple[float, float, float]]:
    values = _known(np.nanmean, of.draws), _known(np.nanstd, of.draws), standard_errors(result, of)
    columns = (column.tolist() for column in values)
    return {label: (m, s, e) for label, m, s, e in zip(of.labels, *columns, strict=True)}
