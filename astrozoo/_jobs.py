"""What the commands ``run`` and ``compare`` do: fit, and write the results into a folder."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo.diagnostics.metrics import diagnose, z_scores
from astrozoo.diagnostics.report import comparison_report, report, write_comparison
from astrozoo.errors import AstrozooError, OutputError
from astrozoo.infer import infer
from astrozoo.registry import Entry
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["CHECKPOINT", "compare", "plain", "write"]

CHECKPOINT = "checkpoint"
"""Folder below that of the results where a job may keep work in progress; gone once all is written."""


def problem_of(entry: Entry, path: Path | None, seed: int, device: str) -> tuple[Problem, dict[str, Any]]:
    """The problem on its device, and the truth where it was simulated."""
    if path is None:
        print(f"no --data: simulating {entry.name} with seed {seed}")
        data, truth = entry.simulate(seed)
    else:
        data, truth = entry.read(path), {}
    return entry.problem(data).to(device=device), truth


def plain(entry: Entry, path: Path | None, *, method: str, guide: str, seed: int, device: str) -> Outcome:
    """Read or simulate, infer; with the distance from the truth where that is known."""
    problem, truth = problem_of(entry, path, seed, device)
    result = infer(problem, method, guide, seed=seed, **entry.options.get(method, {}))
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
) -> tuple[dict[str, Result], dict[str, str]]:
    """Fit one problem with several methods; write comparison.csv, report.html and METHOD.nc of each.

    Returns:
        The results by method, and what those said that failed.
    """
    problem, _ = problem_of(entry, path, seed, device)
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    for name in methods:
        try:
            results[name] = infer(problem, name, guide, seed=seed, **entry.options.get(name, {}))
        except (AstrozooError, ArithmeticError, RuntimeError) as error:  # told by the exit code
            failures[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: failed")
            continue
        results[name].save(out / f"{name}.nc")
        print(f"{name}: {results[name].status.value}")
    write_comparison(results, out / "comparison.csv", failures)
    if results:
        comparison_report(results, out / "report.html", failures)
    print(f"written to {out}")
    return results, failures


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
    _write_json(told, out / "summary.json")
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


def _write_json(told: Mapping[str, Any], path: Path) -> None:
    def plain(value: Any) -> Any:  # JSON has no NaN
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(plain(told), indent=2, default=str) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}") from error
