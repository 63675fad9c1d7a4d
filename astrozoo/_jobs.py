"""What the commands ``run``, ``compare`` and ``sbc`` do: fit, and write the results into a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from astrozoo._console import print_rows
from astrozoo._files import write_json
from astrozoo._predictive import predictive
from astrozoo.diagnostics.metrics import compare as comparison_rows
from astrozoo.diagnostics.metrics import diagnose, parameter_table, z_scores
from astrozoo.diagnostics.report import comparison_report, render, report, write_comparison, write_rows
from astrozoo.diagnostics.runs import runs
from astrozoo.diagnostics.sbc import RANKED, calibration, in_batches, ranks_of, sbc_figure
from astrozoo.entry import Entry, resolve
from astrozoo.errors import AstrozooError, CaptureError, InputError
from astrozoo.infer import infer
from astrozoo.infer.progress import progress_bar
from astrozoo.types import Outcome, Page, Problem, Result, Status, load, stack

__all__ = [
    "CHECKPOINT",
    "Case",
    "case_of",
    "compare",
    "fit",
    "infer_kept",
    "run",
    "sbc",
    "truth_page",
    "unless_interrupted",
    "with_data",
    "write",
]

CHECKPOINT = "checkpoint"
"""Folder, below that of the results, for work in progress. It is removed when all results are written."""


def run(entry: Entry, **settings: Any) -> Outcome:
    """Do what ``astrozoo run`` does for an entry: its own job, or :func:`fit`."""
    job = entry.job("run")
    return resolve(job.function)(**settings) if job.function else fit(entry, **settings)


class Case(NamedTuple):
    """A problem, the truth if the data are simulated, and one line on where the data come from."""

    problem: Problem
    truth: dict[str, Any]
    origin: str


def case_of(
    entry: Entry,
    path: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, Any],
    *,
    drawn: Mapping[str, Any] | None = None,
) -> Case:
    """The problem of the data at a path or, without one, of the entry's demonstration.

    Args:
        drawn: options of ``simulate`` for the demonstration that ``problem`` does not take.

    Raises:
        InputError: options on how to read data, and no data.
    """
    reading, settings = entry.split(options)
    if path is not None:
        data = entry.read(path, **reading)
        return Case(entry.problem(data, **settings).to(device=device), {}, str(path))
    entry.refuse_reading(reading)
    print(f"demonstration: simulating {entry.name} with seed {seed}")
    settings = {**entry.simulated, **entry.demo, **settings}
    data, truth = entry.simulate(seed, **settings, **(drawn or {}))
    origin = f"simulated by the model itself, seed {seed}"
    return Case(entry.problem(data, **settings).to(device=device), truth, origin)


def with_data(problem: Problem, result: Result) -> Result:
    """The result with log likelihoods and replicated data.

    If these cannot be computed, the result is returned without them, and its notes
    say why: they are no reason to lose a fit.
    """
    try:
        return predictive(problem, result)
    except (CaptureError, InputError) as error:
        note = f"no replicated data: {error}"
    return replace(result, stats={**result.stats, "notes": [*result.stats.get("notes", ()), note]})


def fit(
    entry: Entry,
    *,
    out: Path,
    path: Path | None,
    demo: bool,
    method: str,
    guide: str,
    seed: int,
    device: str,
    **options: Any,
) -> Outcome:
    """Read data and infer, for any model; without a path, fit the demonstration, simulated by the model.

    The report of simulated data has the distance of the posterior from the truth.
    """
    case = case_of(entry, path, seed, device, options)
    settings = dict(entry.options.get(method, {}))
    if method != "wiener":  # it is exact, and has no state to continue from
        (out / CHECKPOINT).mkdir(exist_ok=True)
        settings["checkpoint"] = out / CHECKPOINT / f"{method}.npz"
    result = unless_interrupted(infer(case.problem, method, guide, seed=seed, **settings))
    result = with_data(case.problem, result)
    pages = [truth_page(result, case)] if case.truth else []
    return Outcome(result, pages, {"data": case.origin})


def infer_kept(
    entry: Entry,
    problem: Problem,
    method: str,
    guide: str,
    *,
    seed: int,
    out: Path,
    given: Mapping[str, Any],
    keep: Sequence[str],
    most: int,
    **options: Any,
) -> Result:
    """Infer large sites with the entry's options, keeping some of the draws, with a checkpoint below ``out``.

    Args:
        given: options of the method; None where the entry's apply.
        keep: sites whose draws are kept.
        most: number of draws of all chains above which chains are thinned.
        options: further ones, of chains only.
    """
    settings = dict(entry.options.get(method, {})) | {k: v for k, v in given.items() if v is not None}
    if method in ("hmc", "mclmc", "annealed"):
        settings |= {"thin": -(-settings["draws"] * settings["chains"] // most), **options}
    if method != "wiener":
        (out / CHECKPOINT).mkdir(exist_ok=True)
        settings["checkpoint"] = out / CHECKPOINT / f"{method}.npz"
    return unless_interrupted(infer(problem, method, guide, seed=seed, keep=list(keep), **settings))


def unless_interrupted(result: Result) -> Result:
    """The result of a method in a command, which writes results only when they are whole.

    Raises:
        KeyboardInterrupt: the method was interrupted. Its checkpoint has the work so far.
    """
    if result.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return result


def truth_page(result: Result, case: Case) -> Page:
    """How far the posterior lies from the truth behind simulated data."""
    scores = z_scores(result, case.truth)
    rows = [{"site": name, "largest |mean - truth| / SD": np.abs(z).max()} for name, z in scores.items()]
    return Page("Simulated truth", [f"The data are {case.origin}.", rows])


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
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Fit one problem with several methods; write tables, report.html and RUN.nc of each run.

    ``runs.csv`` and ``runs.parquet`` have a row per run, ``comparison.csv`` and ``.parquet`` one per run and
    parameter. The name of a run is its method; with several seeds, ``METHOD-SEED``.

    Args:
        seed, seeds: the first seed, and the number of seeds.
        reference: a saved result of the same problem to grade all runs against. It is the first row.
        options: values of the entry's own options.

    Returns:
        The results by run, and the error messages of the runs that failed.

    Raises:
        InputError: the reference is of another problem.
    """
    problem, truth, _ = case_of(entry, path, seed, device, options or {})
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
        except (AstrozooError, ArithmeticError, RuntimeError) as error:  # the exit code says so
            failures[label] = f"{type(error).__name__}: {error}"
            print(f"{label}: failed")
            continue
        results[label].save(out / f"{label}.nc")
        print(f"{label}: {results[label].verdict}")
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
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Simulation-based calibration: simulate data, fit them, rank the truth among the draws, many times.

    Writes ``calibration.csv``, ``ranks.csv`` and ``report.html``. The ranks of each batch are saved in the
    folder ``simulations``, from which the same command continues. Fits that did not converge are counted and
    are not left out, which would flatter the method.

    Args:
        batch: number of simulations that are fitted at once.
        options: values of the entry's own options.

    Returns:
        the rows of :func:`astrozoo.diagnostics.sbc.calibration`.

    Raises:
        InputError: with fewer than 20 simulations, a folder of other ones, or with simulations whose shapes
            differ and a batch of several.
    """
    if simulations < 20:
        raise InputError("--simulations", simulations, "20 or more")
    folder = out / "simulations"
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    with progress_bar("simulations", simulations, True) as report:
        _, model = entry.split(options or {})
        key = {"entry": entry.name, "method": method, "guide": guide, "draws": RANKED, **model}
        fit = partial(_simulations, entry, method=method, guide=guide, device=device, options=model)
        for part in in_batches(folder, range(seed, seed + simulations), batch, key, fit):
            rows += part["simulations"]
            report(len(rows), f"{sum(row['status'] == 'converged' for row in rows)} converged")
    labels = list(rows[0]["ranks"])
    ranks = np.asarray([[row["ranks"][label] for label in labels] for row in rows])
    table = calibration(labels, ranks, RANKED)
    write_rows(table, out / "calibration.csv")
    write_rows([row["ranks"] for row in rows], out / "ranks.csv")
    statuses = [row["status"] for row in rows]
    ended = [{"status": name, "simulations": statuses.count(name)} for name in sorted(set(statuses))]
    worst = sorted(range(len(table)), key=lambda i: table[i]["p (ecdf)"])[:12]
    figure = sbc_figure([labels[i] for i in worst], ranks[:, worst], RANKED)
    caption = "Ranks of the truth, and their ECDF minus that of uniform ranks, for the parameters with the "
    caption += "smallest p-values. 95% of calibrated runs lie in the grey band."
    by_chance = f"By chance alone the smallest of {len(table)} p-values is about {1 / (len(table) + 1):.2g}."
    pages = [Page("Runs", [ended]), Page("Calibration", [table, by_chance, (figure, caption)])]
    smallest = min(row["p (ecdf)"] for row in table)
    passed = smallest * len(table) > 0.05
    banner = {"kind": "good" if passed else "bad", "head": "Calibrated." if passed else "Not calibrated."}
    banner["text"] = f"Smallest p-value {smallest:.2g} of {len(table)}, {simulations} simulations."
    render(out / "report.html", f"{entry.name}: calibration of {method}", [banner], pages)
    print(f"{banner['head']} {banner['text']}\nwritten to {out}")
    return table


def _simulations(
    entry: Entry, seeds: Sequence[int], *, method: str, guide: str, device: str, options: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Simulate a batch and fit it at once. A row for each simulation has its status and the truth's ranks."""
    options = {**entry.simulated, **options}
    data, truths = zip(*(entry.simulate(seed, **options) for seed in seeds), strict=True)
    problem = stack([entry.problem(part, **options) for part in data]).to(device=device)
    settings = {"progress": False, **entry.options.get(method, {})}
    result = infer(problem, method, guide, seed=seeds[0], **settings)
    fits = zip(seeds, truths, (result.take(i) for i in range(len(seeds))), strict=True)
    rows = [
        {"seed": seed, "status": fit.status.value, "ranks": ranks_of(fit, truth, seed)}
        for seed, truth, fit in fits
    ]
    return {"simulations": rows}


def write(outcome: Outcome, out: Path) -> None:
    """Write posterior.nc, report.html and summary.json; then remove the work in progress.

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
    costs = ("run_seconds", "compile_seconds", "iterations", "counts", "notes")
    record = {name: getattr(result, name) for name in ("model", "method", "guide", "seed", "digest")}
    record |= {
        "status": result.status.value,
        "fits": None,
        **{k: v for k, v in result.stats.items() if k in costs},
    }
    if result.goodness is not None:
        record["fits"] = result.goodness.ok
        record["chi2"] = {
            "value": result.goodness.chi2,
            "limit": result.goodness.limit,
            **result.goodness.parts,
        }
    if result.statuses:
        record["statuses"] = {s.value: result.statuses.count(s) for s in sorted(set(result.statuses))}
    if result.parameters:
        record["parameters"] = parameter_table(result)
    record |= {"diagnostics": diagnose(result), **summary, "environment": result.environment}
    write_json(record, out / "summary.json")
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    files = {
        **outcome.files,
        "posterior.nc": "draws",
        "summary.json": "status, cost and diagnostics",
        "report.html": "report",
    }
    print()
    print_rows({"status": result.verdict, **summary})
    print()
    print_rows({str(out / name): what for name, what in files.items()})
