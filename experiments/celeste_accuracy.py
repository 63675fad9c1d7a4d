"""Celeste's accuracy and calibration on simulated SDSS fields, beside the published figures and SEP.

Each field is simulated (GalSim, non-Gaussian PSF) from one of the shipped priors (that of the published
code by default, so that its figures may be compared), measured by SEP and fitted; its catalogues are kept in
``OUT/fields``, and a run that was interrupted goes on from what is there. For colours and angles, the column
``expected`` is the mean absolute error that the posteriors of the same sources state. Writes
``accuracy.csv``, ``paired.csv`` (Celeste minus SEP on shared sources), ``coverage.csv`` and ``coverage.png``.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from astropy.table import Table, vstack

from astrozoo._files import replacing, write_json
from astrozoo.data.images import Field, reference_image
from astrozoo.data.simulate import load_priors, simulate_field
from astrozoo.diagnostics.scoring import PUBLISHED, coverage, errors, match, paired_differences, score
from astrozoo.errors import AstrozooError, DataError
from astrozoo.models.celeste import PRIORS, load_prior
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.fit import FieldFit, fit_field
from astrozoo.survey.detect import detect

matplotlib.use("agg")
import matplotlib.pyplot as plt

_NOMINAL = (0.6827, 0.9545, 0.9973)
_COMPARED = ("Photo", "Celeste VI", "VI synthetic", "MCMC synthetic")
_EXAMPLES = (
    "Examples: `python experiments/celeste_accuracy.py --out runs/accuracy` ·"
    " `python experiments/celeste_accuracy.py --fields 8 --sources 60 --blends 0.2 --out runs/blends`"
)

app = typer.Typer(add_completion=False)


def sep_catalogue(field: Field) -> Table:
    """SEP's measurements under the names that scoring expects: what the images give without a model."""
    table = detect(field)
    jacobian = reference_image(field).wcs.pixel_scale_matrix  # (x, y) -> (east, north)
    along = np.stack([np.cos(table["theta"]), np.sin(table["theta"])])
    east, north = jacobian @ along
    table["p_star"] = np.asarray(table["is_star"], float)
    table["radius"] = table["half_light_radius"]
    table["axis_ratio"] = table["b"] / table["a"]
    table["angle"] = np.degrees(np.arctan2(east, north)) % 180
    return table


def with_expected(fit: FieldFit) -> Table:
    """The catalogue, with the absolute error of each colour [mag] and angle [deg] that the draws imply."""
    table = catalogue(fit)
    colours = 2.5 / np.log(10) * np.asarray(fit.draws["colour"], float)
    for k, (a, b) in enumerate(pairwise(fit.prior.bands)):
        table[f"expected {a}-{b}"] = np.abs(
            colours[..., k] - np.asarray(table[f"colour_{a}{b}"])[:, None]
        ).mean(1)
    eta = np.moveaxis(np.asarray(fit.draws["ellipticity"], float), -1, 0)
    turn = np.rad2deg(0.5 * np.arctan2(eta[1], eta[0])) - np.asarray(table["angle"])[:, None]
    galaxy = np.where(fit.draws["is_star"] < 0.5, np.abs((turn + 90) % 180 - 90), np.nan)
    number = np.isfinite(galaxy).sum(1)
    table["expected angle"] = np.where(number > 0, np.nansum(galaxy, 1) / np.maximum(number, 1), np.nan)
    return table


def _write(table: Table, path: Path) -> None:
    with replacing(path) as partial:
        table.write(partial, overwrite=True, format="ascii.ecsv" if path.suffix == ".ecsv" else "ascii.csv")


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the settings beside the fields, and refuse a folder made with others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists() and (held := json.loads(path.read_text())) != settings:
        raise DataError(str(folder), f"fields made with {held}", f"a new folder, or {settings}")
    write_json(settings, path)


def run_field(folder: Path, number: int, settings: dict[str, Any]) -> dict[str, Table]:
    """Simulate, measure and fit one field, or read what an earlier run left; tables by name."""
    seed = settings["seed"] * 100_000 + number
    field, truth = simulate_field(
        n_sources=settings["sources"],
        seed=seed,
        shape=(settings["size"], settings["size"]),
        psf=settings["psf"],
        r_range=tuple(settings["r_range"]),
        min_separation=settings["separation"],
        blend_fraction=settings["blends"],
        priors=load_priors(settings["population"]),
    )
    prior = load_prior(settings["population"])
    makers = {
        "truth": lambda: truth,
        "sep": lambda: sep_catalogue(field),
        "celeste": lambda: with_expected(fit_field(field, prior=prior, seed=seed, progress=False)),
    }
    tables = {}
    for name, make in makers.items():
        path = folder / f"{number:04d}-{name}.ecsv"
        if not path.exists():
            started = time.perf_counter()
            table = make()
            table.meta["seconds"] = time.perf_counter() - started
            _write(table, path)
        tables[name] = Table.read(path, format="ascii.ecsv")
    return tables


def _separate(tables: list[Table]) -> Table:
    """Fields stacked into one table, each half a degree further east: all were drawn on one patch of sky."""
    moved = []
    for i, table in enumerate(tables):
        table = table.copy()
        table["ra"] = (table["ra"] + 0.5 * i) % 360
        table.meta = {}
        moved.append(table)
    return vstack(moved)


def picture(table: Table, path: Path) -> None:
    """Coverage at 1, 2 and 3 standard deviations with binomial errors, against the nominal shares."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    place = np.arange(len(table))
    for k, (nominal, colour) in enumerate(zip(_NOMINAL, ("C0", "C1", "C2"), strict=True), start=1):
        error = table[f"standard_error_{k}"]
        axes.errorbar(place, table[f"within_{k}"], error, fmt="o", color=colour, capsize=3, label=f"{k} SD")
        axes.axhline(nominal, color=colour, ls=":", lw=1)
    axes.set_xticks(place, list(table["quantity"]), rotation=40, ha="right")
    axes.set_ylabel("share of sources (dotted: nominal)")
    axes.set_ylim(0, 1.03)
    axes.legend(loc="lower right")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)


def report(fields: list[dict[str, Table]], out: Path) -> None:
    """Score all fields together; write and print the tables."""
    truth, sep, celeste = (
        _separate([tables[name] for tables in fields]) for name in ("truth", "sep", "celeste")
    )
    ours, theirs = score(truth, celeste), score(truth, sep)
    table = ours.copy()
    table.rename_columns(["error", "standard_error", "n"], ["astrozoo", "astrozoo_se", "astrozoo_n"])
    table["sep"], table["sep_se"], table["sep_n"] = theirs["error"], theirs["standard_error"], theirs["n"]
    rows, partners = match(truth, celeste)
    table["expected"] = np.nan
    for row in table:
        if (name := f"expected {row['quantity']}") in celeste.colnames:
            scored = np.isfinite(errors(truth, celeste)[row["quantity"]][rows])
            row["expected"] = np.nanmean(np.asarray(celeste[name], float)[partners][scored])
    for column in _COMPARED:
        table[column] = [PUBLISHED[quantity][column] for quantity in table["quantity"]]
    paired, calibrated = paired_differences(truth, celeste, sep), coverage(truth, celeste)
    seconds = sum(tables["celeste"].meta["seconds"] for tables in fields)
    typer.echo(
        f"{len(fields)} fields, {len(truth)} true sources, {len(celeste)} fitted, {seconds:.0f} s of fitting"
    )
    titles = ("Mean absolute errors", "astrozoo minus SEP, shared sources", "Coverage (.683, .954, .997)")
    for title, name, part in zip(
        titles, ("accuracy", "paired", "coverage"), (table, paired, calibrated), strict=True
    ):
        _write(part, out / f"{name}.csv")
        for column in part.colnames:
            if part[column].dtype.kind == "f":
                part[column].format = ".4g"
        typer.echo(f"\n{title}\n" + "\n".join(part.pformat(max_lines=-1, max_width=-1)))
    picture(calibrated, out / "coverage.png")


@app.command(epilog=_EXAMPLES)
def main(
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")],
    fields: Annotated[int, typer.Option(min=1, help="Number of fields.")] = 8,
    sources: Annotated[int, typer.Option(min=1, help="Sources per field.")] = 60,
    size: Annotated[int, typer.Option(min=64, help="Side of a field (px).")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    population: Annotated[
        str, typer.Option(help=f"Prior that sources are drawn from, and fitted with: {' or '.join(PRIORS)}.")
    ] = "regier2019",
    psf: Annotated[str, typer.Option(help="moffat or kolmogorov.")] = "moffat",
    bright: Annotated[float, typer.Option(help="Brightest r (mag).")] = 15.5,
    faint: Annotated[float, typer.Option(help="Faintest r (mag).")] = 22.5,
    separation: Annotated[float, typer.Option(help="Smallest distance of sources (px).")] = 0.0,
    blends: Annotated[
        float, typer.Option(min=0, max=1, help="Share of sources put 2-6 px from another.")
    ] = 0.0,
) -> None:
    """Accuracy and coverage of Celeste on simulated fields; continues an interrupted run."""
    settings = {
        "sources": sources,
        "size": size,
        "seed": seed,
        "population": population,
        "psf": psf,
        "r_range": [bright, faint],
        "separation": separation,
        "blends": blends,
    }
    folder = out / "fields"
    _settle(folder, settings)
    done = []
    for number in range(fields):
        started = time.perf_counter()
        done.append(run_field(folder, number, settings))
        typer.echo(f"field {number + 1} of {fields}: {time.perf_counter() - started:.1f} s", err=True)
    report(done, out)


if __name__ == "__main__":
    try:
        app()
    except AstrozooError as error:
        raise SystemExit(f"error: {error}") from None
