"""What ``astrozoo run lens_finder`` does: from a folder of stamps to a ranked table, a gallery and
candidates."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from astrozoo import registry
from astrozoo._files import replacing
from astrozoo._jobs import unless_interrupted
from astrozoo.data.finder_files import LensStamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_survey import SURVEYS
from astrozoo.data.simulate_lens_stamps import simulate_lens_stamps
from astrozoo.errors import InputError
from astrozoo.finder.candidates import Optics, write_candidates
from astrozoo.finder.pictures import GALLERY, SCORES, gallery, score_figure
from astrozoo.finder.ranking import INTERVAL, probabilities, ranking
from astrozoo.finder.scores import auroc, auroc_interval, calibration_error, calibration_table
from astrozoo.infer import infer
from astrozoo.models.lens_finder import log_odds
from astrozoo.models.lens_reference import Finder, cropped, load
from astrozoo.types import Outcome, Page

__all__ = ["DEMO_STAMPS", "run"]

DEMO_STAMPS = 96
"""Stamps of the demonstration, of which about half are lenses."""
_DEMO_SEED = 1_000_000
"""Added to the seed for these stamps, which the shipped weights were not trained on."""
_SHOWN = 48
"""Stamps of the gallery. More make the report long."""
_LABELLED = 10
"""Fewest lenses, and fewest other stamps, whose scores are plotted."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "laplace",
    guide: str = "full_rank",
    seed: int = 0,
    device: str = "cpu",
    weights: Path | None = None,
    prevalence: float | None = None,
    candidates: int = 3,
    pixel_scale: float | None = None,
    psf_fwhm: float | None = None,
    **options: Any,
) -> Outcome:
    """Rank stamps, and write ``ranking.parquet``, the gallery and the files of the best candidates.

    Args:
        out: folder, which exists.
        path: see :func:`astrozoo.data.finder_files.read_stamps`. Without it, the demonstration.
        demo: the demonstration: simulated stamps.
        weights: a file of trained weights; None: the package's.
        prevalence: fraction of lenses among such stamps; None: 0.001, or 0.5 in the demonstration.
        candidates: number of stamps that are written for ``strong_lens``.
        pixel_scale, psf_fwhm: of the stamps [arcsec], for these files.
        options: those of the entry's ``reading``.

    Raises:
        InputError: options that do not fit together.
        DataError: files that are missing or unreadable, or stamps that do not fit the weights.
    """
    entry = registry.get("lens_finder")
    reading, _ = entry.split(options)
    chance = prevalence if prevalence is not None else 0.5 if path is None else 0.001
    log_odds(chance)
    finder = load("lens_finder" if weights is None else weights)
    optics = Optics(pixel_scale, psf_fwhm)
    if path is not None:
        stamps, origin = entry.read(path, **reading), str(path)
    else:
        entry.refuse_reading(reading)
        stamps, optics, origin = demonstration(finder, seed)
    print(f"{origin}: {len(stamps)} stamps, bands {', '.join(stamps.bands)}")
    described = finder.describe(stamps)
    problem = entry.problem(stamps, weights=finder).to(device=device)
    settings = entry.options.get(method, {})
    result = unless_interrupted(infer(problem, method, guide, seed=seed, **settings))
    table = ranking(stamps, finder, described, result, chance)
    with replacing(out / "ranking.parquet") as partial:
        table.write(partial, format="parquet", overwrite=True)
    image = prepare(cropped(stamps.image, finder.size), stamps.names).image.numpy()
    written = write_candidates(out / "candidates", stamps, table[:candidates], finder.bands, optics)
    pages = [Page("Candidates", [(gallery(table, image, _SHOWN), GALLERY), _rows(table)])]
    unlike = int(table["unlike_training"].sum())
    summary: dict[str, Any] = {
        "data": origin,
        "stamps": len(table),
        "prevalence": chance,
        "expected lenses": round(float(table["probability"].sum()), 2),
        "unlike the training": unlike,
    }
    if unlike > max(3, 0.2 * len(table)):
        warning = (
            f"{unlike} of {len(table)} stamps are unlike those that the weights were trained on: another "
            "instrument, unit or depth, or corrupted images. Their probabilities mean little."
        )
        pages[0] = Page("Candidates", [warning, *pages[0].parts])
        summary["warning"] = warning
    if stamps.label is not None and 0 < stamps.label.sum() < len(stamps):
        page, scores = _labelled(finder, described, result, stamps.label.numpy())
        pages.append(page)
        summary |= scores
    files = {"ranking.parquet": f"one row per stamp, best first, with {INTERVAL:.0%} intervals"}
    if written:
        summary["model the best candidate"] = _command(written[0], out, optics)
        files["candidates"] = f"{len(written)} best stamps for strong_lens"
    return Outcome(result, pages, summary, files)


def demonstration(finder: Finder, seed: int) -> tuple[LensStamps, Optics, str]:
    """Simulated stamps in the bands of the weights.

    Raises:
        InputError: no survey of the simulator has these bands.
    """
    survey = next((s for s in SURVEYS.values() if s.bands == finder.bands), None)
    if survey is None:
        known = "; ".join(", ".join(s.bands) for s in SURVEYS.values())
        raise InputError("--demo", f"weights of the bands {', '.join(finder.bands)}", f"bands {known}")
    scale, width = (sum(survey.pixel_scale) / 2, [sum(between) / 2 for between in survey.fwhm])
    fixed = replace(survey, pixel_scale=(scale, scale), fwhm=tuple((w, w) for w in width))
    drawn = simulate_lens_stamps(fixed, DEMO_STAMPS, seed=seed + _DEMO_SEED)
    names = tuple(f"stamp-{i:03d}" for i in range(DEMO_STAMPS))
    stamps = LensStamps(drawn.image, names, survey.bands, (drawn.truth.kind == 0).float())
    return stamps, Optics(scale, width[0]), f"demonstration: stamps simulated with seed {seed}"


def _rows(table: Table) -> list[dict[str, Any]]:
    names = ["rank", "name", "probability", "low", "high", "log_ratio", "distance", "unlike_training"]
    shown = [{name: row[name] for name in names} for row in table[:_SHOWN]]
    return [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in shown]


def _labelled(finder: Finder, described: Any, result: Any, label: np.ndarray) -> tuple[Page, dict[str, Any]]:
    """Scores of labelled stamps, at the odds of their labels."""
    fraction = float(label.mean())
    found = probabilities(result, described.features.numpy(), fraction, float(finder.reference.label.mean()))
    lens = label > 0.5
    low, high = auroc_interval(found.log_ratio, lens)
    scores = {"AUROC": round(auroc(found.log_ratio, lens), 4), "AUROC 95 %": [round(low, 4), round(high, 4)]}
    scores["lenses among them"] = int(lens.sum())
    parts: list[Any] = [[scores]]
    if min(lens.sum(), (~lens).sum()) >= _LABELLED:
        scores["calibration error"] = round(calibration_error(found.mean, lens), 4)
        figure = score_figure(found.log_ratio, label, calibration_table(found.mean, lens))
        parts.append((figure, SCORES))
    return Page("Labelled stamps", parts), scores


def _command(file: Path, out: Path, optics: Optics) -> str:
    """The command that models a candidate."""
    words = ["astrozoo", "run", "strong_lens", "--data", str(file), "--out", str(out / "strong_lens")]
    if not optics.complete:
        words += ["--pixel-scale", "ARCSEC", "--psf", "FILE"]
    return shlex.join(words)
