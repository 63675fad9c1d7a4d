"""What the commands ``run``, ``compare`` and ``sbc`` do: fit, and write the results into a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo._files import write_json
from astrozoo._predictive import predictive
from astrozoo.diagnostics.metrics import compare as comparison_rows
from astrozoo.diagnostics.metrics import diagnose, z_scores
from astrozoo.diagnostics.report import comparison_report, render, report, write_comparison, write_rows
from astrozoo.diagnostics.runs import runs
from astrozoo.diagnostics.sbc import RANKED, calibration, in_batches, ranks_of, sbc_figure
from astrozoo.errors import AstrozooError, CaptureError, InputError
from astrozoo.infer import infer
from astrozoo.infer._common import progress_bar
from astrozoo.registry import Entry
from astrozoo.types import Outcome, Page, Problem, Result, load, stack

__all__ = ["CHECKPOINT", "compare", "sbc", "write"]

CHECKPOINT = "checkpoint"
"""Folder below that of the results where a job may keep work in progress; gone once all is written."""
_HELD = 20_000_000
"""Data times draws up to which log likelihoods and replicated data are computed."""


def problem_of(entry: Entry, path: Path | None, seed: int, device: str) -> tuple[Problem, dict[str, Any]]:
    """The problem on its device, and the truth where it was simulated."""
    if path is None:
        print(f"no --data: simulating {entry.name} with seed {seed}")
        data, truth = entry.simulate(seed)
    else:
        data, truth = entry.read(path), {}
    return entry.problem(data).to(device=device), truth


def with_data(problem: Problem, result: Result) -> Result:
    """With log likelihoods and replicated data, where these can be had and are not too many to hold.

    Why they are missing is told in the result's notes: a fit is not given up for want of them.
    """
    elements = sum(t.numel() for t in problem.tensors)
    draws = max((x.shape[0] * x.shape[1] for x in result.draws.values()), default=0)
    if elements * min(draws, 1000) > _HELD:
        note = f"no replicated data: {elements} data times {min(draws, 1000)} draws are more than {_HELD}"
    else:
        try:
            return predictive(problem, result)
        except (CaptureError, InputError) as error:
            note = f"no replicated data: {error}"
    return replace(result, stats={**result.stats, "notes": [*result.stats.get("notes", ()), note]})


def plain(entry: Entry, path: Path | None, *, method: str, guide: str, seed: int, device: str) -> Outcome:
    """Read or simulate, infer; with the distance from the truth where that is known."""
    problem, truth = problem_of(entry, path, seed, device)
    result = with_data(problem, infer(problem, method, guide, seed=seed, **entry.options.get(method, {})))
    scores = z_scores(result, truth) if truth else {}
    rows = [{"site": name, "largest |mean - truth| / SD": np.abs(z).max()} for name, z in scores.items()]
    return Outcome(result, pages=[Page("Simulated truth", [rows])] if rows else [])


def compare(
    entry: Entry,
    methods: Sequence[str],
    path: Path | None,
    out: Path,
    *,
    guide: str,
    seed: int,
    device: str,
    seeds: int = 1,
    reference: Path | None = None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Fit one problem with several methods; write tables, report.html and RUN.nc of each run.

    ``runs.csv`` and ``runs.parquet`` have a row per run, ``comparison.csv`` and ``.parquet`` one per run and
    parameter. A run is called as its method; with several seeds, ``METHOD-SEED``.

    Args:
        seed, seeds: the first seed, and how many.
        reference: a saved result of the same problem to grade all runs against; it comes first.

    Returns:
        The results by run, and what those said that failed.

    Raises:
        InputError: the reference is of another problem.
    """
    problem, truth = problem_of(entry, path, seed, device)
    results: dict[str, Result] = {}
    if reference is not None:
        results["reference"] = load(reference)
        if results["reference"].digest != problem.digest:
            raise InputError("--reference", f"a result of {results['reference'].digest}", problem.digest)
    failures: dict[str, str] = {}
    for name, at in [(name, at) for name in methods for at in range(seed, seed + seeds)]:
        label = name if seeds == 1 else f"{name}-{at}"
        try:
            result = infer(problem, name, guide, seed=at, **entry.options.get(name, {}))
            results[label] = with_data(problem, result)
        except (AstrozooError, ArithmeticError, RuntimeError) as error:  # told by the exit code
            failures[label] = f"{type(error).__name__}: {error}"
            print(f"{label}: failed")
            continue
        results[label].save(out / f"{label}.nc")
        print(f"{label}: {results[label].status.value}")
    write_comparison(results, out / "comparison.csv", failures)
    if results:
        first = "reference" if reference is not None else None
        table = runs(results, truth, first)
        write_rows(table, out / "runs.csv")
        write_rows(table, out / "runs.parquet")
        write_rows(comparison_rows(results, first), out / "comparison.parquet")
        comparison_report(results, out / "report.html", failures, table)
    print(f"written to {out}")
    return results, failures


def sbc(
    entry: Entry,
    out: Path,
    *,
    method: str,
    guide: str,
    simulations: int,
    batch: int,
    seed: int,
    device: str,
) -> list[dict[str, Any]]:
    """Simulation-based calibration: simulate, fit, and rank the truth among draws, again and again.

    Writes ``calibration.csv``, ``ranks.csv`` and ``report.html``. Each batch's ranks are kept in the
    folder ``simulations``: the same command goes on from there. A fit that fails or does not converge counts:
    leaving it out would flatter the method; its number is told.

    Args:
        batch: simulations that are fitted at once.

    Returns:
        the rows of :func:`astrozoo.diagnostics.sbc.calibration`.

    Raises:
        InputError: with fewer than 20 simulations, a folder of other ones, or with simulations whose shapes
            differ and a batch of several.
    """
    if simulations < 20:
        raise InputError("--simulations", simulations, "20 or more")
    kept = out / "simulations"
    kept.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    with progress_bar("simulations", simulations, True) as report:
        asked = {"entry": entry.name, "method": method, "guide": guide, "draws": RANKED}
        fit = partial(_simulations, entry, method=method, guide=guide, device=device)
        for held in in_batches(kept, range(seed, seed + simulations), batch, asked, fit):
            rows += held["simulations"]
            report(len(rows), f"{sum(row['status'] == 'converged' for row in rows)} converged")
    labels = list(rows[0]["ranks"])
    found = np.asarray([[row["ranks"][label] for label in labels] for row in rows])
    table = calibration(labels, found, RANKED)
    write_rows(table, out / "calibration.csv")
    write_rows([row["ranks"] for row in rows], out / "ranks.csv")
    statuses = [row["status"] for row in rows]
    ended = [{"status": name, "simulations": statuses.count(name)} for name in sorted(set(statuses))]
    worst = sorted(range(len(table)), key=lambda i: table[i]["p (ecdf)"])[:12]
    figure = sbc_figure([labels[i] for i in worst], found[:, worst], RANKED)
    caption = "Ranks of the truth, and their ECDF less that of uniform ones; grey: where 95% of calibrated "
    caption += "runs lie. The parameters with the smallest p-values."
    said = f"By chance alone the smallest of {len(table)} p-values is about {1 / (len(table) + 1):.2g}."
    pages = [Page("Runs", [ended]), Page("Calibration", [table, said, (figure, caption)])]
    smallest = min(row["p (ecdf)"] for row in table)
    passed = smallest * len(table) > 0.05
    banner = {"kind": "good" if passed else "bad", "head": "Calibrated." if passed else "Not calibrated."}
    banner["text"] = f"Smallest p-value {smallest:.2g} of {len(table)}, {simulations} simulations."
    render(out / "report.html", f"{entry.name}: calibration of {method}", [banner], pages)
    print(f"{banner['head']} {banner['text']}\nwritten to {out}")
    return table


def _simulations(
    entry: Entry, seeds: Sequence[int], *, method: str, guide: str, device: str
) -> dict[str, list[dict[str, Any]]]:
    """Simulate and fit, all at once; of each how it ended, and the ranks of its truth."""
    data, truths = zip(*(entry.simulate(seed) for seed in seeds), strict=True)
    problem = stack([entry.problem(one) for one in data]).to(device=device)
    result = infer(
        problem, method, guide, seed=seeds[0], **{"progress": False, **entry.options.get(method, {})}
    )
    fits = zip(seeds, truths, (result.take(i) for i in range(len(seeds))), strict=True)
    rows = [
        {"seed": seed, "status": fit.status.value, "ranks": ranks_of(fit, truth, seed)}
        for seed, truth, fit in fits
    ]
    return {"simulations": rows}


def write(outcome: Outcome, out: Path) -> None:
    """Write posterior.nc, report.html and summary.json; then the work in progress can go.

    Raises:
        OutputError: a file cannot be written; the work in progress stays.
    """
    started = time.perf_counter()
    result = outcome.result
    result.save(out / "posterior.nc")
    report(result, out / "report.html", pages=outcome.pages)
    summary = dict(outcome.summary)
    if "seconds" in summary:
        summary["seconds"] = {**summary["seconds"], "report": round(time.perf_counter() - started, 1)}
    kept = ("run_seconds", "compile_seconds", "iterations", "counts", "notes")
    told = {name: getattr(result, name) for name in ("model", "method", "guide", "seed", "digest")}
    told |= {"status": result.status.value, **{k: v for k, v in result.stats.items() if k in kept}}
    if result.statuses:
        told["statuses"] = {s.value: result.statuses.count(s) for s in sorted(set(result.statuses))}
    told |= {"diagnostics": diagnose(result), **summary, "environment": result.environment}
    write_json(told, out / "summary.json")
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    files = {
        **outcome.files,
        "posterior.nc": "draws",
        "summary.json": "status, cost and diagnostics",
        "report.html": "report",
    }
    _table({"status": result.status.value, **summary})
    _table({str(out / name): what for name, what in files.items()})


def _table(rows: Mapping[str, Any]) -> None:
    wide = max(map(len, rows))
    print()
    for name, value in rows.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        print(f"{name:<{wide}}  {value}")
