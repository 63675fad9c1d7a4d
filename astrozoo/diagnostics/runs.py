"""A table with a row per run: its cost, its distance from a reference, and how well it predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from astrozoo.diagnostics.arviz import ess, loo
from astrozoo.diagnostics.metrics import diagnose, is_chain, reference_of, scalars, standard_errors
from astrozoo.diagnostics.two_sample import c2st, mmd, wasserstein
from astrozoo.types import Result

__all__ = ["cost", "gradient_equivalents", "runs", "score"]

_DRAWS = 500
"""The most draws of each result in a two-sample test, whose time and memory are quadratic in this number. Of
Markov chains, at most their effective sample size is used."""
_SCALARS = 200
"""The most scalars of a result that are scored against a reference, evenly chosen."""


def cost(result: Result) -> dict[str, Any]:
    """Status, seconds (compilation separately), iterations and evaluations of a run."""
    row: dict[str, Any] = {"status": result.status.value}
    if result.goodness is not None:
        row["fit"] = str(result.goodness)
    row |= {"guide": result.guide, "seed": result.seed}
    for name in ("run_seconds", "compile_seconds", "iterations"):
        row[name.replace("_", " ")] = result.stats.get(name, math.nan)
    return row | {f"{name} evaluations": n for name, n in result.stats.get("counts", {}).items()}


def gradient_equivalents(counts: Mapping[str, int], parameters: int) -> float:
    """The cost of evaluations in units of a gradient.

    A value costs a third, a Hessian-vector product two, and a Hessian one per parameter and one more.
    """
    weights = {"value": 1 / 3, "gradient": 1.0, "hvp": 2.0, "hessian": parameters + 1.0}
    return sum(weights[name] * n for name, n in counts.items() if name in weights)


def runs(
    results: Mapping[str, Result], truth: Mapping[str, Any] | None = None, reference: str | None = None
) -> list[dict[str, Any]]:
    """A row per run with its cost, diagnostics, predictions and distances from the reference.

    The reference has no distances, because a run is never graded against itself.

    Args:
        results: by the name of the run. A method may have several runs, with different seeds.
        truth: values of simulated data, by site. The share that 90% intervals contain is then reported.
        reference: name of the reference; by default that of :func:`~.metrics.compare`.
    """
    first = reference or reference_of(results)
    rows = []
    for name, result in results.items():
        row: dict[str, Any] = {"run": name, "method": result.method} | cost(result)
        row |= {
            "k-hat": math.nan,
            "el2o value": math.nan,
            "elbo": math.nan,
            "elbo se": math.nan,
            "elpd": math.nan,
            "elpd se": math.nan,
        }
        row |= {"largest r-hat": math.nan, "smallest bulk ess": math.nan}
        diagnostics = diagnose(result)
        row["k-hat"] = diagnostics.get("largest k-hat", math.nan)
        row["el2o value"] = diagnostics.get("largest el2o value", math.nan)
        for key in ("largest r-hat", "smallest bulk ess"):
            row[key] = diagnostics.get(key, math.nan)
        if "elbo" in result.stats:
            row["elbo"] = float(np.sum(result.stats["elbo"]))
            row["elbo se"] = float(np.linalg.norm(result.stats["elbo_se"]))
        observed = [result.log_likelihood[n] for n in result.log_likelihood if n in result.observed]
        if observed:
            predictions = [loo(log_likelihood) for log_likelihood in observed]
            row["elpd"] = sum(site["elpd"] for site in predictions)
            row["elpd se"] = math.sqrt(sum(site["se"] ** 2 for site in predictions))
        row["coverage of 90%"] = _coverage(result, truth or {})
        row |= score(result, None if name == first else results[first])
        rows.append(row)
    return rows


def score(result: Result, reference: Result | None) -> dict[str, float]:
    """Distances from a reference; without a reference, all are NaN.

    Shifts of the means and Wasserstein distances (``w1``) are in the reference's SDs. ``z`` is the difference
    of the means in its Monte-Carlo error. MMD and C2ST are those of all scalars jointly (at most
    ``_SCALARS``, evenly chosen), with the 95% quantiles of their null distributions.
    """
    names: tuple[str, ...] = ("median shift", "largest shift", "median sd error", "largest z", "median w1")
    names += ("mmd", "mmd null", "c2st", "c2st null")
    if reference is None:
        return dict.fromkeys(names, math.nan)
    ours, theirs = (scalars(r, _SCALARS, evenly=True) for r in (result, reference))
    shared = [label for label in theirs.labels if label in ours.labels]
    a = ours.draws[..., [ours.labels.index(label) for label in shared]]
    b = theirs.draws[..., [theirs.labels.index(label) for label in shared]]
    keep = np.isfinite(a).all((0, 1)) & np.isfinite(b).all((0, 1)) & (b.std((0, 1)) > 0)
    if not keep.any():
        return dict.fromkeys(names, math.nan)
    labels = [shared[i] for i in np.flatnonzero(keep)]
    a, b = a[..., keep], b[..., keep]
    sd = b.std((0, 1))
    shift = np.abs(a.mean((0, 1)) - b.mean((0, 1))) / sd
    errors = [
        standard_errors(r, of)[[of.labels.index(label) for label in labels]]
        for r, of in ((result, ours), (reference, theirs))
    ]
    combined = np.hypot(*errors) / sd
    z = np.divide(shift, combined, out=np.full_like(shift, np.nan), where=combined > 0)
    x, y = _independent(result, a), _independent(reference, b)
    distances = [np.median(shift), shift.max(), np.median(np.abs(a.std((0, 1)) / sd - 1)), np.nanmax(z)]
    distances.append(np.median(wasserstein(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])) / sd))
    distances += [*mmd(x, y), *c2st(x, y)]
    return dict(zip(names, map(float, distances), strict=True))


def _independent(result: Result, draws: Float[np.ndarray, "chain draw d"]) -> Float[np.ndarray, "n d"]:
    flat = draws.reshape(-1, draws.shape[-1])
    n = min(_DRAWS, len(flat))
    if is_chain(result):
        effective = ess(draws, "bulk")
        n = int(np.clip(np.nanmin(effective, initial=n), 20, n))
    return flat[np.linspace(0, len(flat) - 1, n).round().astype(int)]


def _coverage(result: Result, truth: Mapping[str, Any]) -> float:
    inside = []
    for name in result.draws.keys() & truth.keys():
        draws = result.draws[name]
        if not np.isfinite(draws).all():
            return math.nan
        low, high = np.quantile(draws, (0.05, 0.95), axis=(0, 1))
        true = np.asarray(truth[name], float)
        inside.append(((low <= true) & (true <= high)).ravel())
    return float(np.concatenate(inside).mean()) if inside else math.nan
