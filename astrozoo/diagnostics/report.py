"""Self-contained HTML reports of one result, or of several results side by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow
import pyarrow.parquet
from matplotlib.figure import Figure

from astrozoo._files import replacing
from astrozoo._trained import Trained
from astrozoo.diagnostics import plots
from astrozoo.diagnostics.arviz import loo, prior_sensitivity
from astrozoo.diagnostics.metrics import (
    MOST_COMPARED,
    POOR_K_HAT,
    Scalars,
    compare,
    count_scalars,
    diagnose,
    is_chain,
    not_finite,
    parameter_table,
    scalars,
    summary,
)
from astrozoo.diagnostics.runs import cost, gradient_equivalents, runs
from astrozoo.errors import InputError
from astrozoo.infer.convergence import LEAST_ESS
from astrozoo.types import Page, Result, Status

__all__ = ["comparison_report", "render", "report", "write_comparison", "write_rows"]

_ROWS = 60
"""The most rows of a table of parameters. It limits the length of a report."""
_MOST_LOO = 20_000
"""The most observations of a site for which leave-one-out predictions are computed. Each takes 0.3 ms."""
SENSITIVE = 0.05
"""Sensitivity to the prior above which a parameter is marked: the threshold of Kallioinen et al. (2024)."""
_MEANING = {
    Status.CONVERGED: ("good", "The stopping rule of the method was met."),
    Status.BUDGET_SPENT: (
        "warn",
        "The budget ran out before the stopping rule was met: the numbers below may still change.",
    ),
    Status.DIVERGED: ("bad", "The run diverged: do not use these numbers."),
    Status.INTERRUPTED: (
        "bad",
        "The run was stopped by the user: the numbers are those of an unfinished run.",
    ),
}


def report(
    result: Result | Trained, path: str | Path, *, pages: Sequence[Page] = (), title: str | None = None
) -> Path:
    """Write a self-contained, printable HTML report.

    Args:
        result: of any backend, or of training. A section is shown if the result has the data for it. The
            summary, the data and the posterior are left out for independent problems whose model has pages.
        path: of the file. An existing file is replaced only when the new one is complete.
        pages: sections of the model, which come first.
        title: of the page; by default the names of the model and the method.

    Raises:
        OutputError: the file cannot be written.
    """
    if isinstance(result, Trained):
        from astrozoo.diagnostics.training import training_report

        return training_report(result, path, pages=pages, title=title)
    found = diagnose(result)
    empty = not any(draws.size for draws in result.draws.values())
    pages_only = empty or bool(result.statuses and pages)
    sections = [*pages] if pages_only else [*pages, _summary_page(result, found)]
    if is_chain(result) and not empty:
        sections += _chain_pages(result)
    if result.parameters:
        sections.append(_parameters_page(result))
    if result.trace:
        sections.append(_progress_page(result))
    if result.log_likelihood and not pages_only:
        sections.append(_data_page(result))
    if not pages_only:
        sections.append(_posterior_page(result))
    sections.append(_provenance_page(result, found if pages_only else {}))
    title = title or f"{result.model}: {result.method}" + (f" ({result.guide})" if result.guide else "")
    return render(path, title, _banners(result, found), sections)


def _banners(result: Result, found: Mapping[str, Any]) -> list[dict[str, str]]:
    kind, text = _MEANING[result.status]
    if result.statuses:
        counts = {s: result.statuses.count(s) for s in Status if s in result.statuses}
        text = f"{len(result.statuses)} problems: " + ", ".join(f"{n} {s.value}" for s, n in counts.items())
        kind = "warn" if 0 < counts.get(Status.CONVERGED, 0) < len(result.statuses) else kind
        text += "."
    head = f"{result.status.value.capitalize()}."
    if result.goodness is not None:
        head += f" {str(result.goodness).capitalize()}."
        if not result.goodness.ok:
            kind = "warn" if kind == "good" else kind
            text += f" The model does not explain the images: chi2 is above {result.goodness.limit:.2f}."
    banners = [{"kind": kind, "head": head, "text": text}]
    doubts = [
        (
            found.get("largest r-hat", 0) > found.get("r-hat limit", 0),
            f"The chains disagree (R-hat above {found.get('r-hat limit', 0):.3f}): run longer.",
        ),
        (
            min(found.get("smallest bulk ess", LEAST_ESS), found.get("smallest tail ess", LEAST_ESS))
            < LEAST_ESS,
            f"Fewer than {LEAST_ESS} effective draws: means and intervals are uncertain.",
        ),
        (found.get("divergences", 0) > 0, "There were divergences: parts of the posterior may be missed."),
        (found.get("smallest e-bfmi", 1) < 0.3, "E-BFMI below 0.3: the tails are explored slowly."),
    ]
    bad = {} if result.statuses else not_finite(result)
    if bad:
        sites = ", ".join(
            f"{name} ({n:,} of {math.prod(result.draws[name].shape[:2]):,} draws)" for name, n in bad.items()
        )
        doubts.append((True, f"Values are NaN or infinite at {sites}; statistics leave them out."))
    poor = found.get("problems with a poor k-hat", 0)
    if poor:
        text = f"{poor} of {len(result.statuses)} problems have a k-hat above {POOR_K_HAT}"
        doubts.append((True, f"{text}: their means and standard deviations cannot be trusted."))
    elif found.get("largest k-hat", 0) > POOR_K_HAT:
        doubts.append((True, f"k-hat above {POOR_K_HAT}: the guide is far from the posterior."))
    return banners + [{"kind": "warn", "head": "Warning.", "text": text} for holds, text in doubts if holds]


def _summary_page(result: Result, found: Mapping[str, Any]) -> Page:
    rows = summary(result, _ROWS)
    total = sum(math.prod(draws.shape[2:]) for draws in result.draws.values())
    parts: list[Any] = []
    if found:
        parts.append([{"diagnostic": name, "value": value} for name, value in found.items()])
    if not is_chain(result):
        parts.append(
            "The draws are independent draws of the fitted guide. R-hat and ESS do not apply to them."
        )
    parts.append(rows)
    if total > len(rows):
        parts.append(f"{len(rows)} of {total} parameters are shown, about equally many from every site.")
    return Page("Summary", parts)


def _parameters_page(result: Result) -> Page:
    rows = []
    for name, row in parameter_table(result).items():
        values = np.ravel(row["values"]) if "values" in row else ()
        shape = "x".join(map(str, row["shape"])) or "scalar"
        shown = {"parameter": name, "shape": shape, "values": ", ".join(map(_number, values))}
        rows.append(shown | {statistic: row.get(statistic, math.nan) for statistic in ("mean", "min", "max")})
    return Page("Parameters of the model", [rows, "Parameters have no prior: they are estimates, not draws."])


def _chain_pages(result: Result) -> list[Page]:
    few = scalars(result, 8).some(8)
    shown = "" if len(few) == count_scalars(result) else " Only some parameters are shown."
    parts: list[Any] = [(plots.trace(few), f"Marginals and draws of each chain.{shown}")]
    if few.draws.shape[0] > 1:
        caption = "Ranks of each chain's draws among all draws: flat if the chains agree."
        parts.append((plots.rank(few), caption))
    if few.draws.shape[1] >= 8:
        caption = "Bulk (solid) and tail (dashed) ESS against draws: straight if chains mix."
        parts.append((plots.ess_evolution(few.some(4)), caption))
    energy = result.sample_stats.get("energy")
    if energy is not None and energy.ndim == 2 and energy.shape[1] > 1:
        parts.append((plots.energy(energy), "Energies and their changes: alike if tails are explored."))
    return [Page("Chains", parts)]


_MAXIMISED = ("elbo_fixed_draws", "elbo_fresh_draws", "objective")
"""Names in a trace of the objective that a variational method maximises, or of an estimate of it."""


def _progress_page(result: Result) -> Page:
    first = {name: result.trace[name] for name in _MAXIMISED if name in result.trace}
    rest = {name: values for name, values in result.trace.items() if name not in first and values.size}
    caption = "The run, iteration by iteration"
    caption += "; of independent problems, the median and the middle 90%." if result.statuses else "."
    if "elbo_fixed_draws" in first:
        caption += " The mean over fixed draws is what the run maximises; it exceeds the ELBO on fresh draws."
    return Page("Progress", [(plots.elbo({**first, **rest}), caption)])


def _data_page(result: Result) -> Page:
    """Leave-one-out predictions, replicated data, and the sensitivity to prior and likelihood."""
    rows = []
    for name, values in result.log_likelihood.items():
        if name in result.observed and np.prod(values.shape[2:]) <= _MOST_LOO:
            predictions = loo(values)
            poor = int((~(predictions["k_hat"] <= POOR_K_HAT)).sum())
            row = {"site": name, "elpd (LOO)": predictions["elpd"], "standard error": predictions["se"]}
            row |= {"effective parameters": predictions["p"], "observations": len(predictions["pointwise"])}
            rows.append(row | {"of these with a poor k-hat": poor})
    parts: list[Any] = []
    if rows:
        caption = "Expected log predictive density of each observation given the others"
        parts += [rows, f"{caption}. Where k-hat is above {POOR_K_HAT}, it cannot be trusted."]
    for name, replicated in result.predictive.items():
        figure = plots.replicated(result.observed[name], replicated)
        parts.append((figure, f"{name}: the data (black), and data replicated under 40 draws."))
    rows = _sensitivity(result)
    if rows:
        caption = "Change of the marginals when prior or likelihood is raised to a power, per doubling of"
        parts += [rows, f"{caption} the power. Parameters above {SENSITIVE} for the prior are marked."]
    return Page("Data and prior", parts or ["There are too many observations for leave-one-out predictions."])


def _sensitivity(result: Result) -> list[dict[str, Any]]:
    if result.statuses or not result.log_prior:
        return []
    shown = scalars(result, 20).some(20)
    sums = [
        sum(x.reshape(*x.shape[:2], -1).sum(-1) for x in group.values())
        for group in (result.log_prior, result.log_likelihood)
    ]
    draws = shown.draws
    if sums[0].shape != draws.shape[:2]:  # densities are recorded for a part of the draws only
        kept = np.linspace(0, draws.shape[1] - 1, sums[0].shape[1]).round().astype(int)
        draws = draws[:, kept]
    prior, likelihood = (prior_sensitivity(draws, part) for part in sums)
    marked = ["prior matters" if p > SENSITIVE else "" for p in prior]
    columns = zip(shown.labels, prior, likelihood, marked, strict=True)
    return [{"parameter": n, "prior": p, "likelihood": x, "": m} for n, p, x, m in columns]


def _posterior_page(result: Result) -> Page:
    shown = scalars(result, 40).some(40)
    known = np.flatnonzero(np.isfinite(shown.draws).all((0, 1)))
    shown = Scalars([shown.labels[i] for i in known], shown.draws[..., known])
    sites: dict[str, list[int]] = {}
    for i, label in enumerate(shown.labels):
        sites.setdefault(label.partition("[")[0], []).append(i)
    if not sites:
        return Page("Posterior", ["No parameter has a value in every draw."])
    parts: list[Any] = [(plots.forest(shown, sites), "Medians with 50% and 90% intervals.")]
    varying = [i for i in range(len(shown)) if np.ptp(shown.draws[..., i]) > 0][:5]
    if len(varying) > 1:
        few = Scalars([shown.labels[i] for i in varying], shown.draws[..., varying])
        diverging = result.sample_stats.get("diverging")
        if diverging is not None and diverging.ndim != 2:
            diverging = None
        parts.append(
            (plots.pair(few, diverging), "Joint draws of some parameters; divergent draws are orange.")
        )
    return Page("Posterior", parts)


def _provenance_page(result: Result, found: Mapping[str, Any]) -> Page:
    rows: dict[str, Any] = {
        "method": result.method,
        "guide": result.guide,
        "seed": result.seed,
        "data": result.digest,
    }
    if result.goodness is not None:
        rows |= {f"chi2 of {name}": value for name, value in result.goodness.parts.items()}
    rows |= dict(found) | dict(flatten(result.stats)) | result.environment
    return Page("Cost and provenance", [[{"what": k, "value": _short(v)} for k, v in rows.items()]])


def flatten(stats: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The entries of nested mappings, with names such as ``outer.inner``."""
    entries: list[tuple[str, Any]] = []
    for name, value in stats.items():
        entries += (
            flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
        )
    return entries


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        size = np.size(np.asarray(value, dtype=object)) if len(value) else 0
        if size == 0 or all(isinstance(item, str) for item in value):
            return "; ".join(map(str, value)) or "none"
        return ", ".join(map(_number, value)) if np.ndim(value) == 1 and size <= 6 else f"{len(value)} values"
    return value


def write_comparison(
    results: Mapping[str, Result], path: str | Path, failures: Mapping[str, str] | None = None
) -> Path:
    """Write a CSV with a row per method and parameter (:func:`~.metrics.compare`), and the cost of the run.

    Args:
        results: by method.
        path: of the file.
        failures: messages of methods that failed, by method. Each has a row.

    Raises:
        OutputError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    costs = {name: cost(result) for name, result in results.items()}
    for row in compare(results) if results else []:
        rows.append(row | costs[row["method"]])
    rows += [{"method": name, "status": f"failed: {message}"} for name, message in (failures or {}).items()]
    return write_rows(rows, path)


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write a table as Parquet if the name ends in ``.parquet``, else as CSV.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as partial:
        if path.suffix == ".parquet":
            columns = {name: [row.get(name) for row in rows] for name in names}
            pyarrow.parquet.write_table(pyarrow.table(columns), partial)
        else:
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
    return path


def comparison_report(
    results: Mapping[str, Result],
    path: str | Path,
    failures: Mapping[str, str] | None = None,
    table: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write an HTML report of several results of one problem.

    Args:
        results: by method.
        path: of the file.
        failures: messages of methods that failed, by method.
        table: of :func:`~.runs.runs`; by default it is computed here, without a truth.

    Raises:
        InputError: there are no results, or they are of different problems.
        OutputError: the file cannot be written.
    """
    if not results:
        raise InputError("results", "none", "at least one method that did not fail")
    rows = compare(results)
    marginals = {name: scalars(result, MOST_COMPARED, evenly=True) for name, result in results.items()}
    labels = next(iter(marginals.values())).some(12).labels
    table = runs(results) if table is None else table
    costs = [{"method": name} | cost(result) for name, result in results.items()]
    graded = [{k: v for k, v in row.items() if k == "run" or k not in costs[0]} for row in table]
    compared = [row for row in rows if np.isfinite(row["shift"])]
    worst = sorted(compared, key=lambda row: -abs(row["shift"]))[:_ROWS]
    agreement = []
    for name in results:
        method_rows = [row for row in compared if row["method"] == name]
        if method_rows:
            shifts = np.abs([row["shift"] for row in method_rows])
            ratios = [row["sd ratio"] for row in method_rows]
            low, middle, high = np.nanquantile(ratios, (0.05, 0.5, 0.95))
            agreement.append(
                {"method": name, "median shift [SD]": np.median(shifts), "largest shift [SD]": shifts.max()}
                | {"SD ratio 5%": low, "median SD ratio": middle, "SD ratio 95%": high}
            )
    explained = (
        "shift: difference of the means in the reference's posterior SDs; z: the same in Monte-Carlo errors. "
        "The reference is the first method that runs Markov chains, else the first."
    )
    pages = [
        Page("Cost", [costs]),
        Page("Distances and predictions", [graded, _SCORES, *_curves(results)]),
        Page("Agreement", [*([agreement] if agreement else []), explained]),
        Page(
            "Marginals",
            [(plots.overlay(marginals, labels), "Marginals of some parameters under each method.")],
        ),
        Page("Parameter by parameter", [worst or rows[:_ROWS], "Largest shifts first."]),
    ]
    banners = [
        {
            "kind": _MEANING[r.status][0] if r.ok or not r.status.ok else "warn",
            "head": f"{name}: {r.verdict}.",
            "text": _MEANING[r.status][1],
        }
        for name, r in results.items()
    ]
    banners += [
        {"kind": "bad", "head": f"{name}: failed.", "text": text} for name, text in (failures or {}).items()
    ]
    return render(path, f"{next(iter(results.values())).model}: {', '.join(results)}", banners, pages)


_SCORES = (
    "Distances from the reference are in its posterior SDs; z is in Monte-Carlo errors. mmd and c2st are "
    "shown with the 95% quantiles of their null distributions. A k-hat above 0.7 means that the guide is far "
    "from the posterior. elpd is that of leave-one-out cross-validation."
)


def _curves(results: Mapping[str, Result]) -> list[Any]:
    """A figure of the objective against cost, for the results that have a trace of it."""
    traces, labels = {}, {}
    for name, result in results.items():
        maximised = next((key for key in _MAXIMISED if result.trace.get(key, np.zeros(0)).size), None)
        if maximised is not None:
            traces[name] = result.trace[maximised]
            labels[name] = f"{name}: {maximised.replace('_', ' ')}"
    if not traces:
        return []
    caption = (
        "The objective against evaluations and against seconds without compilation. Evaluations are counted "
        "in gradients: a value is a third, a Hessian-vector product two, a Hessian one per parameter and one "
        "more. Iterations are assumed to cost the same, except for seconds of methods that record the time."
    )
    clocks = {name: results[name].trace["seconds"] for name in traces if "seconds" in results[name].trace}
    totals = {name: _work(results[name]) for name in traces}
    return [(plots.convergence(traces, totals, clocks, labels), caption)]


def _work(result: Result) -> tuple[float, float]:
    counts = result.stats.get("counts", {})
    parameters = np.shape([[0.0]] if result.guide_parameters is None else result.guide_parameters)[-1]
    return gradient_equivalents(counts, parameters), float(result.stats.get("run_seconds", math.nan))


def _number(value: Any) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float | np.floating):
        return str(value)
    x = float(value)
    if math.isnan(x):
        return "–"
    return f"{x:.4g}" if 1e-4 <= abs(x) < 1e6 or x == 0 else f"{x:.3e}"


def _prepared(part: Any) -> tuple[str, Any, str]:
    """(kind, content, caption) for the template."""
    if isinstance(part, str):
        return "text", part, ""
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Figure):
        return "figure", plots.encode(part[0]), part[1]
    if isinstance(part, Sequence) and part and all(isinstance(row, Mapping) for row in part):
        return "table", part, ""
    raise InputError("part of a page", type(part).__name__, "a str, (Figure, caption), or rows (mappings)")


def render(path: str | Path, title: str, banners: Sequence[Mapping[str, str]], pages: Sequence[Page]) -> Path:
    """Write a page of banners ("kind": good, warn or bad, "head", "text") and sections.

    Raises:
        OutputError: the file cannot be written.
    """
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("astrozoo.diagnostics", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["number"] = _number
    try:
        ours = version("astrozoo")
    except PackageNotFoundError:  # astrozoo is run from a checkout and not installed
        ours = "(a checkout)"
    html = env.get_template("report.html.jinja").render(
        title=title,
        banners=banners,
        pages=[{"title": page.title, "parts": [_prepared(part) for part in page.parts]} for page in pages],
        version=ours,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return Path(path)
