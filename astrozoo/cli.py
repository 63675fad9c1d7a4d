"""The ``astrozoo`` command: a thin layer over the library. Each command imports what it needs when it runs.

Exit codes: 0 done; 1 something unexpected, or a method of ``compare`` failed; 2 bad input or usage; 3 data
missing or unreadable; 4 output cannot be written; 5 not converged or does not fit, with ``--strict``; 6 parts
of a survey failed; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import astrozoo
from astrozoo import registry
from astrozoo._console import print_rows, print_table, say
from astrozoo._launcher import check_alone, rank_of_launcher
from astrozoo._model_command import ModelCommand, own_options
from astrozoo.errors import (
    AstrozooError,
    CaptureError,
    DataError,
    InputError,
    OutputError,
    UnknownNameError,
)

__all__ = ["app", "main"]

_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 bad input, 3 data missing, 4 cannot write, "
    "5 not converged or does not fit (with --strict), 6 parts of a survey failed, 130 interrupted."
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

_REFERENCE = "A saved result of the same problem, such as that of a long run, to grade all methods against."
_Model = Annotated[str, typer.Argument(help="A name that `astrozoo list` shows.")]
_Out = Annotated[Path, typer.Option("--out", help="Folder for the results. It is made if it does not exist.")]
_Data = Annotated[
    Path | None, typer.Option("--data", help="Files to fit. Without them, the demonstration is run.")
]
_Fields = Annotated[
    Path | None, typer.Option("--data", help="A folder with a folder for each field, or a table of fields.")
]
_Method = Annotated[
    str | None, typer.Option("--method", help="Inference method. `astrozoo show MODEL` lists them.")
]
_Guide = Annotated[str | None, typer.Option("--guide", help="Guide of the variational methods.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the simulation and the inference.")]
_PRECISION = "32-true, 64-true, 16-mixed or bf16-mixed."
_Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")]
_SHARD = "What processes of torchrun or mpiexec divide: data, chains, or problems of a batch."
_Shard = Annotated[str | None, typer.Option("--shard", metavar="data|chains|problems", help=_SHARD)]
_Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 5 if the run does not converge or the model does not fit.")
]


def _version(requested: bool) -> None:
    if requested:
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
    rows = []
    for entry in registry.list_models():
        job = entry.job("run")
        rows.append((entry.name, entry.summary, job.method or ", ".join(entry.methods)))
    print_table(rows, ("name", "summary", "methods of run"))


@app.command(epilog="Example: [bold]astrozoo show celeste[/]")
def show(model: _Model) -> None:
    """Show what a model is, what its commands take, and its units."""
    entry = registry.get(model)
    job = entry.job("run")
    rows = {
        "name": entry.name,
        "summary": entry.summary,
        "citation": entry.citation,
        "keywords": ", ".join(entry.keywords),
        "dimensions": entry.dimensions,
        "data sets": ", ".join(entry.data_sets),
        "code": entry.model,
    }
    methods = ", ".join(entry.methods)
    guides = ", ".join(entry.guides)
    if job.method:
        rows[f"run: method {job.method}"] = f"{job.summary} (the only one)"
    if "method" in job.takes:
        for name in entry.methods:
            default = " (default)" if name == entry.default_method else ""
            rows[f"run --method {name}"] = registry.METHODS[name].summary + default
    if "guide" in job.takes:
        rows["run --guide"] = f"{guides} (default {entry.default_guide})"
    for option in job.options:
        rows[f"run {option.usage}"] = option.help
    if entry.has("train"):
        trained = entry.job("train")
        rows["train"] = f"{trained.summary}. `astrozoo train --help` shows the options of every model"
        for option in trained.options:
            rows[f"train {option.usage}"] = option.help
    rows["compare, sbc, astrozoo.infer"] = f"methods {methods}; guides {guides}"
    print_rows(rows | {f"site {site}": unit for site, unit in entry.units.items()})


@data_app.command("list", epilog="Example: [bold]astrozoo data list[/]")
def data_list() -> None:
    """List the data sets that can be fetched."""
    from astrozoo.data.fetch import datasets

    print_table(datasets().items(), ("name", "summary"))


@data_app.command("fetch", epilog="Example: [bold]astrozoo data fetch sdss-2583-2-136[/]")
def data_fetch(name: Annotated[str, typer.Argument(help="A name that `astrozoo data list` shows.")]) -> None:
    """Download a data set, check it, and print the folder that it is in."""
    from astrozoo.data.fetch import fetch

    typer.echo(fetch(name))


@app.command(
    cls=ModelCommand,
    epilog="Examples: [bold]astrozoo run celeste --demo --out demo[/]; "
    "[bold]astrozoo run strong_lens --data FOLDER --out results[/]; "
    "[bold]torchrun --nproc-per-node 4 -m astrozoo run mass_map --demo --shard chains --out map[/]",
)
def run(
    context: typer.Context,
    model: _Model,
    out: _Out,
    data: _Data = None,
    method: _Method = None,
    guide: _Guide = None,
    seed: _Seed = 0,
    device: _Device = "cpu",
    demo: Annotated[bool, typer.Option("--demo", help="Fit the model's small demonstration.")] = False,
    shard: _Shard = None,
    strict: _Strict = False,
) -> None:
    """Fit a model, and write posterior.nc, report.html and summary.json."""
    entry = registry.get(model)
    job = entry.job("run")
    common = {"method": _method(entry, method), "guide": _guide(entry, guide), "device": device}
    if demo and data is not None:
        raise InputError("--demo", "--data too", "one of them")
    _check_data(data)
    with _processes(entry, shard, device, out) as (first, folder, own_device):
        _check_out(folder)
        if "device" in job.takes:
            _check_device(own_device)
        from astrozoo import _jobs

        common["device"] = own_device
        settings = {name: common[name] for name in job.takes} | own_options(context)
        try:
            with _alone(folder):
                outcome = _jobs.run(entry, out=folder, path=data, demo=demo, seed=seed, **settings)
                if first:
                    _jobs.write(outcome, folder)
        except KeyboardInterrupt:
            if first and any((folder / _jobs.CHECKPOINT).glob("*")):
                say(f"the work so far is kept in {folder / _jobs.CHECKPOINT}: the same command continues it")
            raise
    if strict and not outcome.result.ok:
        raise typer.Exit(5)


@contextlib.contextmanager
def _processes(
    entry: registry.Entry, shard: str | None, device: str, out: Path
) -> Iterator[tuple[bool, Path, str]]:
    """The processes that share a run: whether this one is the first, its folder, and its device."""
    if shard is None:
        check_alone()
        yield True, out, device
        return
    if shard not in ("data", "chains", "problems"):
        raise InputError("--shard", repr(shard), "data, chains or problems")
    if not entry.job("run").shared:
        raise InputError("--shard", shard, f"none: the work of `astrozoo run {entry.name}` is not divided so")
    from astrozoo.dist.command import shared_command

    with shared_command(shard, device, out) as (comm, folder):  # type: ignore[arg-type]
        yield comm.rank == 0, folder, str(comm.device)


@app.command(
    cls=ModelCommand, epilog="Example: [bold]astrozoo compare celeste --methods svi,hmc --out compared[/]"
)
def compare(
    context: typer.Context,
    model: _Model,
    methods: Annotated[str, typer.Option("--methods", help="Names, separated by commas.")],
    out: _Out,
    data: _Data = None,
    guide: _Guide = None,
    seed: _Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds, from --seed on.")] = 1,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="RESULT.nc", help=_REFERENCE)
    ] = None,
    device: _Device = "cpu",
    strict: _Strict = False,
) -> None:
    """Fit one problem with several methods and seeds, and write tables, report.html and METHOD.nc of each."""
    entry = registry.get(model)
    names = [_method(entry, name.strip()) for name in methods.split(",")]
    guide = _guide(entry, guide)
    _check_data(data)
    _check_data(reference, "--reference")
    _check_out(out)
    _check_device(device)
    from astrozoo import _jobs

    settings: dict[str, Any] = {"guide": guide, "seed": seed, "seeds": seeds, "device": device}
    with _alone(out):
        results, failures = _jobs.compare(
            entry, names, data, out, reference=reference, options=own_options(context), **settings
        )
    for name, message in failures.items():
        say(f"{name} failed: {message}")
    if failures:
        raise typer.Exit(1)
    if strict and not all(result.ok for result in results.values()):
        raise typer.Exit(5)


@app.command(
    cls=ModelCommand,
    epilog="Example: [bold]astrozoo sbc strong_lens --method laplace --out sbc[/]",
)
def sbc(
    context: typer.Context,
    model: _Model,
    out: _Out,
    simulations: Annotated[int, typer.Option("--simulations", min=20, help="Number of data sets.")] = 100,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Data sets that are fitted at once.")] = 20,
    method: _Method = None,
    guide: _Guide = None,
    seed: _Seed = 0,
    device: _Device = "cpu",
) -> None:
    """Check calibration on simulated data, and write calibration.csv, ranks.csv and report.html."""
    entry = registry.get(model)
    method, guide = _method(entry, method), _guide(entry, guide)
    _check_out(out)
    _check_device(device)
    from astrozoo import _jobs

    settings: dict[str, Any] = {"method": method, "guide": guide, "seed": seed, "device": device}
    with _alone(out):
        _jobs.sbc(entry, out, simulations=simulations, batch=batch, options=own_options(context), **settings)


@app.command(
    cls=ModelCommand,
    epilog="Example: [bold]astrozoo train strong_lens --out weights[/]; the same command continues a run "
    "that was stopped.",
)
def train(
    context: typer.Context,
    model: _Model,
    out: _Out,
    data: _Data = None,
    seed: _Seed = 0,
    device: _Device = "cpu",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Length of the run.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="The same, in passes.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Elements of a minibatch.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help=_PRECISION)] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="How many work together.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read data.")] = 0,
) -> None:
    """Fit the weights of a model's networks, and write weights.safetensors, report.html and summary.json."""
    entry = registry.get(model)
    _check_data(data)
    _check_out(out)
    _check_device(device)
    from astrozoo import _train_command

    settings: dict[str, Any] = {"steps": steps, "epochs": epochs, "batch": batch, "learning_rate": rate}
    settings |= {"precision": precision, "devices": devices, "workers": workers}
    alone = _alone(out) if _train_command.is_first_process() else contextlib.nullcontext()
    try:
        with alone:
            _train_command.train(
                entry,
                out=out,
                path=data,
                seed=seed,
                device=device,
                options=own_options(context),
                **settings,
            )
    except KeyboardInterrupt:
        kept = out / _train_command.CHECKPOINT
        if kept.is_file():
            say(f"the work so far is kept in {kept}: the same command continues it")
        raise


@app.command(
    cls=ModelCommand,
    epilog="Example: [bold]astrozoo survey celeste --data FOLDER_OF_FIELDS --workers 8 --out sky[/]; the "
    "same command continues a survey that was stopped.",
)
def survey(
    context: typer.Context,
    model: _Model,
    out: _Out,
    data: _Fields = None,
    seed: _Seed = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine.")] = 2,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler instead.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Of each worker, such as 4GB.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="A small simulated sky.")] = False,
) -> None:
    """Run a model over a sky, and write its catalogue, report.html and summary.json."""
    entry = registry.get(model)
    _check_data(data)
    _check_out(out)
    from astrozoo import _survey_command

    settings: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "memory": memory}
    try:
        with _alone(out):
            summary = _survey_command.survey(
                entry, out=out, path=data, demo=demo, seed=seed, **settings, **own_options(context)
            )
    except KeyboardInterrupt:
        say(f"the work so far is kept in {out / 'work'}: the same command continues it")
        raise
    if summary["failures"]:
        raise typer.Exit(6)


@app.command("report", epilog="Example: [bold]astrozoo report results/posterior.nc --out report.html[/]")
def report_command(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A saved result (.nc), or weights.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
) -> None:
    """Write the general report of a saved result."""
    from astrozoo.data.weights import load_weights
    from astrozoo.diagnostics.report import report
    from astrozoo.types import load

    _check_out(out.parent)
    read = load_weights if result.suffix == ".safetensors" else load
    typer.echo(f"written to {report(read(result), out)}")


def _method(entry: registry.Entry, name: str | None) -> str:
    if name is None:
        return entry.default_method
    if name in entry.unsuited:
        got = f"{name!r}, which does not suit {entry.name} ({entry.unsuited[name]})"
        raise InputError("method", got, f"one of {', '.join(entry.methods)}")
    if name not in entry.methods:
        raise UnknownNameError(f"method of {entry.name}", name, entry.methods)
    return name


def _guide(entry: registry.Entry, name: str | None) -> str:
    if name is None:
        return entry.default_guide
    if name not in {*entry.guides, *registry.GUIDES}:
        raise UnknownNameError(f"guide of {entry.name}", name, {*entry.guides, *registry.GUIDES})
    return name


def _check_data(path: Path | None, option: str = "--data") -> None:
    if path is not None and not path.exists():
        raise DataError(f"{option} {path}", "nothing there", "an existing file or folder")


def _check_out(folder: Path) -> None:
    """Make the folder and write to it before any work, so that no work is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"astrozoo")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder: a second run must not write into it, nor continue the same checkpoint."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another run is writing into {folder}: wait for it, or give another --out"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows does not remove a file that is open
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            "--device", f"{name!r} ({reason})", "a device of this machine, such as cpu"
        ) from error


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


def _report(error: BaseException, code: int, message: str) -> None:
    """Print the message, once if several processes of a launcher share the command."""
    if rank_of_launcher() is not None and "astrozoo.dist.command" in sys.modules:
        from astrozoo.dist.command import end_together

        end_together(error, code, say, message)
    if not rank_of_launcher():  # before processes share a command, all of them have the same error
        say(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and exit with its code; errors are one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="astrozoo", standalone_mode=False) or 0
        if code == 130:  # the parser has caught Ctrl-C
            raise KeyboardInterrupt
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
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
        message = "interrupted" if code == 130 else str(error)
        if code == 1 and not isinstance(error, AstrozooError):
            message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        _report(error, code, message)
    sys.exit(code)
