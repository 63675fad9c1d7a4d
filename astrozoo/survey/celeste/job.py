"""What ``astrozoo run celeste`` does: images of a field in, a catalogue with errors and a report out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from rich.console import Console
from rich.markup import escape

from astrozoo.data.fetch import fetch
from astrozoo.data.images import Field, crop, reference_image
from astrozoo.data.simulate import simulate_field
from astrozoo.data.surveys import read_images
from astrozoo.errors import DataError, InputError
from astrozoo.models.celeste import Prior
from astrozoo.survey.catalogue import read_sources, write_catalogue
from astrozoo.survey.celeste.catalogue import FLAGS, catalogue
from astrozoo.survey.celeste.crowded_job import CHAINS, SAMPLES, CrowdedSettings, run_crowded
from astrozoo.survey.celeste.field_prior import field_notes, prior_of_field
from astrozoo.survey.celeste.fit import FieldFit, fit_field
from astrozoo.survey.celeste.goodness import chi2_by_band
from astrozoo.survey.celeste.pages import not_modelled, report_pages
from astrozoo.survey.crowded.density import crowding
from astrozoo.survey.crowded.fit import OUTSIDE
from astrozoo.survey.detect import detect
from astrozoo.survey.fields import read_box, usable_field
from astrozoo.types import Outcome, Page, Result, Status

__all__ = ["run", "to_result"]

_DEMO = "sdss-2583-2-136"
_DEMO_BOX = "300:556,1400:1656"
_METHOD = "importance"
DRAWS = 512
"""Default number of draws of each source of an ordinary field."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    seed: int = 0,
    survey: str | None = None,
    box: str | None = None,
    catalog: Path | None = None,
    pictures: int | None = 24,
    sweeps: int = 20,
    crowded: bool | None = None,
    stars: bool = False,
    star_fraction: float | None = None,
    position_error: float | None = None,
    chains: int | None = None,
    draws: int | None = None,
    progress: bool = True,
) -> Outcome:
    """Read a field, detect its sources, fit them, and write ``catalog.fits`` and ``catalog.parquet``.

    A run that was interrupted goes on where it was, if it is given the same folder, field and seed: its work
    is kept in ``out/checkpoint``, which the caller removes once all results are saved. A field without any
    source gives an empty catalogue.

    Args:
        out: folder, which exists.
        path: images of a field, or their description (:func:`astrozoo.data.surveys.read_images`). Without it,
            the demonstration.
        demo: the demonstration: 256x256 pixels of a Stripe-82 field, or, where that can be neither found nor
            downloaded, a field simulated by GalSim; the output says which.
        seed: of the draws (and of the simulation).
        survey: name of the survey's ready description; by default it is recognised by the files.
        box: "row:row,column:column", first and last + 1, of the r image (else the first): fit this part only.
        catalog: table with columns ra and dec [deg] of the sources to fit, in place of detection; those
            outside the field are left out.
        pictures: how many of the brightest sources are shown one by one, besides those that fit badly;
            None for all.
        sweeps: passes over the sources, at most: crowded fields end by it. A run that was interrupted may go
            on with more.
        crowded: fit the field as a crowded one (:func:`astrozoo.survey.crowded.fit.fit_crowded`), or not. By
            default the density of its sources decides (:func:`astrozoo.survey.crowded.density.crowding`).
        stars: a crowded field has stars only.
        star_fraction: probability of a star before the pixels are seen; learned from the field by default.
        position_error: SD of a catalogue's positions in each coordinate [arcsec], in place of that of its
            columns.
        chains: of a crowded field.
        draws: of each source; of a crowded field, catalogues kept of each chain.
        progress: show progress on standard error.

    Raises:
        InputError: settings that do not fit together, a box off the field, or a catalogue without any source
            on it.
        DataError: files that are missing or not what they should be.
        OutputError: the catalogue cannot be written.
    """
    if demo and path is not None:
        raise InputError("demo", f"data too ({path})", "one of them")
    if stars and star_fraction is not None:
        raise InputError("--stars", f"--star-fraction {star_fraction:g} too", "one of them")
    if position_error is not None and catalog is None:
        raise InputError("--position-error", position_error, "--catalog with it")
    if crowded is False:
        _check_ordinary(stars, chains)
    if box is not None:
        read_box(box)  # a bad one is an error before files are read
    console = Console(stderr=True, quiet=not progress, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(escape(text))

    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        images, origin = _field(path, survey, box, seed, say)
        masked = [image.name or image.band for image in images if not image.valid.any()]
        images = usable_field(images)
        notes = list(field_notes(images))
        if masked:
            notes.append(f"every pixel masked, so not used: {', '.join(masked)}")
    ny, nx = reference_image(images).shape
    say(f"field: {origin}; {len(images.images)} images ({', '.join(images.bands)}) of about {ny}x{nx} pixels")
    for note in notes:
        say(f"note: {note}")
    sources = None if catalog is None else _given(catalog, images, position_error)
    if sources is not None:
        say(f"sources: the {len(sources)} of {catalog} that are on the field")
    detections = detect(images) if sources is None and crowded is None else None
    crowded, why = _way(crowded, images, detections if sources is None else sources)
    say(f"{why} (--{'no-' if crowded else ''}crowded for the other way)")
    kept = out / "checkpoint"
    going = "going on with an earlier run" if any(kept.glob("*.npz")) else "detecting and fitting sources"
    say(f"{going} (Ctrl-C stops; the same command then goes on from there)")
    if crowded:
        if catalog is not None:
            sources = _given(catalog, images, position_error, OUTSIDE)
        fraction = 1.0 if stars else star_fraction
        settings = CrowdedSettings(seed, chains or CHAINS, draws or SAMPLES, fraction)
        return run_crowded(
            images, sources, origin, why, settings, out=out, progress=progress, say=say, notes=notes
        )
    _check_ordinary(stars, chains)
    if sources is not None and "position_error" in sources.colnames and position_error is None:
        notes.append(
            "The catalogue's position errors are used for crowded fields only; --position-error holds the "
            "positions of this one."
        )
        say(f"note: {notes[-1]}")
    fit = fit_field(
        images,
        sources,
        detections=detections,
        prior=_prior(images, position_error),
        seed=seed,
        draws=draws or DRAWS,
        max_sweeps=sweeps,
        star_fraction=star_fraction,
        progress=progress,
        checkpoint=kept,
    )
    seconds |= fit.stats.get("seconds", {})
    table = catalogue(fit)
    for name in ("catalog.fits", "catalog.parquet"):
        write_catalogue(table, out / name)
    if len(fit.left_over):
        say(f"note: {not_modelled(fit)}")
    say(f"{len(table)} sources in {out / 'catalog.fits'}; now the report")
    with _timed(seconds, "pictures"):
        pages = report_pages(fit, table, origin, pictures)
    if notes:
        pages.append(Page("Notes on the data", notes))
    return Outcome(
        to_result(fit, table, seed),
        pages=pages,
        summary=_summary(fit, table, origin, why)
        | ({"notes": notes} if notes else {})
        | {"seconds": {k: round(v, 1) for k, v in seconds.items()}},
        files={
            "catalog.fits": "catalogue with errors (FITS table)",
            "catalog.parquet": "the same (Parquet)",
        },
    )


def _check_ordinary(stars: bool, chains: int | None) -> None:
    """Raise if options of crowded fields are given for another one.

    Raises:
        InputError: one is given.
    """
    for flag, value in (("--stars", stars), ("--chains", chains)):
        if value:
            raise InputError(flag, value, f"{flag} with a crowded field (--crowded) only")


def _given(catalog: Path, images: Field, position_error: float | None, margin: float = 0.0) -> Table:
    """The sources of a catalogue on the field, with the position error of the command if it has one."""
    sources = read_sources(catalog, images, margin)
    if position_error is not None:
        sources["position_error"] = position_error
    return sources


def _way(crowded: bool | None, images: Field, sources: Table | None) -> tuple[bool, str]:
    """Whether the field is fitted as a crowded one, and why."""
    if crowded is not None:
        return crowded, f"fitted as {'a crowded' if crowded else 'an ordinary'} field, as the command says"
    assert sources is not None  # they are detected where the command does not decide
    measured = crowding(images, sources)
    return measured.crowded, (
        f"fitted as {'a crowded' if measured.crowded else 'an ordinary'} field: it has {measured}"
    )


def _prior(images: Field, position_error: float | None) -> Prior:
    """The prior of an ordinary field, with the command's error of catalogued positions."""
    prior = prior_of_field(images)
    return prior if position_error is None else replace(prior, position_sd=position_error)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _field(
    path: Path | None, survey: str | None, box: str | None, seed: int, say: Callable[[str], None]
) -> tuple[Field, str]:
    """The field, cut to its box, and a line on what it is."""
    if path is not None:
        say(f"reading {path}")
        images = read_images(path, survey)
        cut = images if box is None else crop(images, *read_box(box))
        return cut, f"{images.name} of {path}" + (f", rows and columns {box}" if box else "")
    try:
        folder = fetch(_DEMO, progress=False)
    except DataError as error:
        say(f"no real data ({error})")
        images, _ = simulate_field(n_sources=60, seed=seed, r_range=(15.5, 22.0), min_separation=4)
        cut = images if box is None else crop(images, *read_box(box))
        return cut, f"simulated by GalSim with seed {seed}"
    box = box or _DEMO_BOX
    say(f"reading {folder}")
    images = crop(read_images(folder), *read_box(box))
    return images, f"real: SDSS Stripe 82, run 2583 camcol 2 field 136, rows and columns {box}"


def to_result(fit: FieldFit, table: Table, seed: int) -> Result:
    """The draws as a result of independent problems, one per source: ``{site: [1, draw, source, ...]}``."""
    bands = fit.prior.bands
    statuses = tuple(Status.CONVERGED if done else Status.BUDGET_SPENT for done in fit.converged)
    return Result(
        draws={name: np.moveaxis(values, 1, 0)[None] for name, values in fit.draws.items()},
        status=Status.CONVERGED if all(s.ok for s in statuses) else Status.BUDGET_SPENT,
        seed=seed,
        model="celeste",
        method=_METHOD,
        digest=_digest(fit),
        stats={**fit.stats, **_cost(fit.stats), "k_hat": np.asarray(fit.k_hat, float)},
        statuses=statuses,
        dims={"offset": ("axis",), "colour": ("colour",), "ellipticity": ("component",)},
        coords={
            "problem": np.asarray(table["id"]).tolist(),
            "axis": ["east", "north"],
            "colour": [f"{a}-{b}" for a, b in pairwise(bands)],
            "component": ["eta1", "eta2"],
        },
    )


def _cost(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The names that reports and summaries look for."""
    cost = {"run_seconds": round(sum(stats.get("seconds", {}).values()), 3)}
    if "sweeps" in stats:
        cost["iterations"] = stats["sweeps"]
    return cost | ({"counts": stats["evaluations"]} if "evaluations" in stats else {})


def _digest(fit: FieldFit) -> str:
    h = hashlib.sha256()
    for image in fit.field:
        h.update(image.band.encode() + np.ascontiguousarray(image.counts).tobytes() + image.valid.tobytes())
    for name in ("ra", "dec"):
        h.update(np.asarray(fit.detections[name], float).tobytes())
    return h.hexdigest()[:16]


def _summary(fit: FieldFit, table: Table, origin: str, why: str) -> dict[str, Any]:
    p = np.asarray(table["p_star"])
    chi2 = {str(row["band"]): round(float(str(row["chi2 per pixel"])), 3) for row in chi2_by_band(fit)}
    return {
        "field": origin,
        "way": why,
        "sources": len(table),
        "stars": int((p > 0.5).sum()),
        "galaxies": int((p <= 0.5).sum()),
        "star fraction of the prior": round(fit.prior.prob_star, 3),
        "sampled by chains": int(np.isfinite(fit.r_hat).sum()),
        "not modelled": len(fit.left_over),
        "flagged": {name.replace("_", " "): int(np.sum(table[name])) for name in FLAGS},
        "chi2 per pixel": chi2,
    }
