"""The ``astrozoo`` command: a thin layer over the library. What is heavy is imported inside each command.

Exit codes: 0 done; 1 something unexpected, or a method of ``compare`` failed; 2 bad input or usage; 3 data
missing or unreadable; 4 output cannot be written; 5 not converged, with ``--strict``; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import astrozoo
from astrozoo import registry
from astrozoo.errors import (
    AstrozooError,
    CaptureError,
    DataError,
    InputError,
    OutputError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from astrozoo.types import Outcome, Problem, Result

__all__ = ["app", "main"]

_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 bad input, 3 data missing, 4 cannot write, "
    "5 not converged (with --strict), 130 interrupted."
)

app = typer.Typer(
    name="astrozoo",
    help="Probabilistic models of astronomical images, and the inference to fit them.",
    epilog=_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Survey data that models read.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_Model = Annotated[str, typer.Argument(help="A name that `astrozoo list` shows.")]
_Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made if need be.")]
_Data = Annotated[Path | None, typer.Option("--data", help="Files to fit. Without: simulated ones.")]
_Guide = Annotated[str | None, typer.Option("--guide", help="Of the variational methods.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the simulation and the inference.")]
_Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")]
_Strict = Annotated[bool, typer.Option("--strict", help="Exit with 5 unless the run converged.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"astrozoo {astrozoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere).")
    ] = False,
) -> None: ...


@app.command("list", epilog="Example: [bold]astrozoo list[/]")
def list_models() -> None:
    """List the models of the zoo."""
    table = _table("name", "summary", "methods")
    for entry in registry.list_models():
        table.add_row(entry.name, entry.summary, ", ".join(entry.methods))
    Console().print(table)


@app.command(epilog="Example: [bold]astrozoo show celeste[/]")
def show(model: _Model) -> None:
    """Show what a model is, what it can be fitted with, and its units."""
    entry = registry.get(model)
    table = _table("", "")
    table.show_header = False
    rows = {
        "name": entry.name,
        "summary": entry.summary,
        "citation": entry.citation,
        "keywords": ", ".join(entry.keywords),
        "dimensions": entry.dimensions,
        "guides": ", ".join(entry.guides) + f" (default {entry.default_guide})",
        "data sets": ", ".join(entry.data_sets),
        "code": entry.model,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for name in entry.methods:
        default = " (default)" if name == entry.default_method else ""
        table.add_row(f"method {name}", registry.METHODS[name] + default)
    for site, unit in entry.units.items():
        table.add_row(f"site {site}", unit)
    Console().print(table)


@data_app.command("list", epilog="Example: [bold]astrozoo data list[/]")
def data_list() -> None:
    """List the data sets that can be fetched."""
    from astrozoo.data.fetch import datasets

    table = _table("name", "summary")
    for name, summary in datasets().items():
        table.add_row(name, summary)
    Console().print(table)


@data_app.command("fetch", epilog="Example: [bold]astrozoo data fetch sdss-2583-2-136[/]")
def data_fetch(name: Annotated[str, typer.Argument(help="A name that `astrozoo data list` shows.")]) -> None:
    """Download a data set, check it, and print the folder that it is in."""
    from astrozoo.data.fetch import fetch

    typer.echo(fetch(name))


@app.command(
    epilog="Examples: [bold]astrozoo run celeste --demo --out demo[/]; "
    "[bold]astrozoo run celeste --data FOLDER --seed 1 --out results --strict[/]"
)
def run(
    model: _Model,
    out: _Out,
    data: _Data = None,
    method: Annotated[str | None, typer.Option("--method", help="See `astrozoo show MODEL`.")] = None,
    guide: _Guide = None,
    seed: _Seed = 0,
    device: _Device = "cpu",
    demo: Annotated[bool, typer.Option("--demo", help="The model's own small demonstration.")] = False,
    strict: _Strict = False,
) -> None:
    """Fit a model, and write posterior.nc, report.html and summary.json."""
    entry = registry.get(model)
    method, guide = _method(entry, method), _guide(entry, guide)
    if demo and data is not None:
        raise InputError("--demo", "--data too", "one of them")
    _check_data(data)
    _check_out(out)
    _check_device(device)
    if entry.job:
        job = registry.resolve(entry.job)
        outcome = job(out=out, path=data, demo=demo, method=method, guide=guide, seed=seed, device=device)
    else:
        outcome = _plain_job(entry, data, method=method, guide=guide, seed=seed, device=device)
    _write(outcome, out)
    if strict and not outcome.result.status.ok:
        raise typer.Exit(5)


@app.command(epilog="Example: [bold]astrozoo compare celeste --methods svi,hmc --out compared[/]")
def compare(
    model: _Model,
    methods: Annotated[str, typer.Option("--methods", help="Names, with commas between.")],
    out: _Out,
    data: _Data = None,
    guide: _Guide = None,
    seed: _Seed = 0,
    device: _Device = "cpu",
    strict: _Strict = False,
) -> None:
    """Fit one problem with several methods, and write comparison.csv, report.html and METHOD.nc of each."""
    from astrozoo.diagnostics.report import comparison_report, write_comparison
    from astrozoo.infer import infer

    entry = registry.get(model)
    names = [_method(entry, name.strip()) for name in methods.split(",")]
    guide = _guide(entry, guide)
    _check_data(data)
    _check_out(out)
    _check_device(device)
    problem, _ = _problem(entry, data, seed, device)
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    for name in names:
        try:
            results[name] = infer(problem, name, guide, seed=seed, **entry.options.get(name, {}))
        except (AstrozooError, ArithmeticError, RuntimeError) as error:  # recorded, and told by the exit code
            failures[name] = f"{type(error).__name__}: {error}"
            _say(f"{name} failed: {failures[name]}")
            continue
        results[name].save(out / f"{name}.nc")
        typer.echo(f"{name}: {results[name].status.value}")
    write_comparison(results, out / "comparison.csv", failures)
    if results:
        comparison_report(results, out / "report.html", failures)
    typer.echo(f"written to {out}")
    if failures:
        raise typer.Exit(1)
    if strict and not all(result.status.ok for result in results.values()):
        raise typer.Exit(5)


@app.command("report", epilog="Example: [bold]astrozoo report results/posterior.nc --out report.html[/]")
def report_command(
    result: Annotated[Path, typer.Argument(metavar="RESULT.nc", help="A saved result.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
) -> None:
    """Write the general report of a saved result."""
    from astrozoo.diagnostics.report import report
    from astrozoo.types import load

    _check_out(out.parent)
    typer.echo(f"written to {report(load(result), out)}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, no_wrap=i == 0)
    return table


def _method(entry: registry.Entry, name: str | None) -> str:
    if name is None:
        return entry.default_method
    if name not in entry.methods:
        raise UnknownNameError(f"method of {entry.name}", name, entry.methods)
    return name


def _guide(entry: registry.Entry, name: str | None) -> str:
    if name is None:
        return entry.default_guide
    if name not in {*entry.guides, *registry.GUIDES}:
        raise UnknownNameError(f"guide of {entry.name}", name, {*entry.guides, *registry.GUIDES})
    return name


def _check_data(path: Path | None) -> None:
    if path is not None and not path.exists():
        raise DataError(f"--data {path}", "nothing there", "an existing file or folder")


def _check_out(folder: Path) -> None:
    """Made and written to before any work, so that no work is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"astrozoo")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise InputError("--device", f"{name!r} ({said})", "a device of this machine, such as cpu") from error


def _problem(
    entry: registry.Entry, path: Path | None, seed: int, device: str
) -> tuple[Problem, dict[str, Any]]:
    """The problem on its device, and the truth where it was simulated."""
    if path is None:
        typer.echo(f"no --data: simulating {entry.name} with seed {seed}")
        data, truth = entry.simulate(seed)
    else:
        data, truth = entry.read(path), {}
    return entry.problem(data).to(device=device), truth


def _plain_job(
    entry: registry.Entry, path: Path | None, *, method: str, guide: str, seed: int, device: str
) -> Outcome:
    import numpy as np

    from astrozoo.diagnostics.metrics import z_scores
    from astrozoo.infer import infer
    from astrozoo.types import Outcome, Page

    problem, truth = _problem(entry, path, seed, device)
    result = infer(problem, method, guide, seed=seed, **entry.options.get(method, {}))
    scores = z_scores(result, truth) if truth else {}
    rows = [{"site": name, "largest |mean - truth| / SD": np.abs(z).max()} for name, z in scores.items()]
    return Outcome(result, pages=[Page("Simulated truth", [rows])] if rows else [])


def _write(outcome: Outcome, out: Path) -> None:
    from astrozoo.diagnostics.metrics import diagnose
    from astrozoo.diagnostics.report import report

    result = outcome.result
    result.save(out / "posterior.nc")
    report(result, out / "report.html", pages=outcome.pages)
    kept = ("run_seconds", "compile_seconds", "iterations", "counts", "notes")
    told = {name: getattr(result, name) for name in ("model", "method", "guide", "seed", "digest")}
    told |= {"status": result.status.value, **{k: v for k, v in result.stats.items() if k in kept}}
    if result.statuses:
        told["statuses"] = {s.value: result.statuses.count(s) for s in sorted(set(result.statuses))}
    told |= {"diagnostics": diagnose(result), **outcome.summary, "environment": result.environment}
    _write_json(told, out / "summary.json")
    files = {
        **outcome.files,
        "posterior.nc": "draws",
        "report.html": "report",
        "summary.json": "status, cost and diagnostics",
    }
    for name, value in {"status": result.status.value, **outcome.summary}.items():
        typer.echo(f"{name}: {value}")
    for name, what in files.items():
        typer.echo(f"{out / name}: {what}")


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


def _say(text: str) -> None:
    print(f"astrozoo: {' '.join(text.split())}", file=sys.stderr)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(error, DataError):
        return 3
    if isinstance(error, InputError | UnknownNameError | CaptureError):
        return 2
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in full):
        return 4
    return 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and exit with its code; errors are one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="astrozoo", standalone_mode=False) or 0
        if code == 130:  # the parser has caught Ctrl-C
            raise KeyboardInterrupt
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        with contextlib.suppress(OSError):
            sys.stdout.close()
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error, of the parser
            error.show()
            sys.exit(error.exit_code)
        if debug:
            traceback.print_exc()
        code = _exit_code(error)
        told = "interrupted" if code == 130 else str(error)
        if code == 1 and not isinstance(error, AstrozooError):
            told = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        _say(told)
    sys.exit(code)
