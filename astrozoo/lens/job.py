"""What ``astrozoo run strong_lens`` does: from the files of a lens to its posterior, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo import registry
from astrozoo._goodness import goodness_of
from astrozoo._jobs import CHECKPOINT, unless_interrupted, with_data
from astrozoo.diagnostics.metrics import z_scores
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.lens.hypotheses import hypotheses
from astrozoo.lens.pictures import CAPTION, count_images, draws_of, lens_figure
from astrozoo.lens.pixelated import check_pixels
from astrozoo.models.pixelated_lens import PixelatedLens
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["run"]

_PIXELATED = ("auto", "hmc", "laplace")
"""Methods that a source of pixels can be fitted with."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "auto",
    guide: str = "full_rank",
    seed: int = 0,
    device: str = "cpu",
    source: str | None = None,
    source_pixels: int = 40,
    draws: int | None = None,
    chains: int | None = None,
    **options: Any,
) -> Outcome:
    """Read a lens, fit it, and show it.

    With the method "auto" and no given source, a Sersic source is fitted first. Where its best solution
    leaves more than noise, even if it fits within the tolerance, a learned source and one of pixels are
    tried. The evidence chooses among them.

    Args:
        out: folder, which exists.
        path: file or folder of the lens. Without it, the demonstration: a lens that the model simulates.
        demo: the demonstration.
        source: "sersic", "learned" or "pixelated".
        source_pixels: pixels of the latter, along a side.
        draws, chains: of the sampler.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together or do not fit the image.
        DataError: files that are missing or unreadable.
    """
    if source == "pixelated" and method not in _PIXELATED:
        raise InputError("--source pixelated", f"--method {method}", f"one of {', '.join(_PIXELATED)}")
    entry = registry.get("strong_lens")
    if source in ("sersic", "learned"):
        options["source"] = source
    problem, truth, origin, parts = _read(entry, path, seed, options)
    problem = problem.to(device=device)
    (out / CHECKPOINT).mkdir(exist_ok=True)
    sampling = {name: n for name, n in (("draws", draws), ("chains", chains)) if n is not None}
    one_image = problem.batch is None and len(problem.args[0].image) == 1
    shared: dict[str, Any] = {"seed": seed, "folder": out / CHECKPOINT}
    if source == "pixelated" or (method == "auto" and source is None and one_image):
        check_pixels(problem)
        problem, result = _chosen(problem, method, source_pixels, source, sampling, **shared)
    else:
        settings = {**entry.options.get(method, {}), **sampling}
        kept = out / CHECKPOINT / f"{method}.npz"
        result = infer(problem, method, guide, seed=seed, checkpoint=kept, **settings)
    result = with_data(problem, unless_interrupted(result))
    pages = [_lens_page(problem, result, parts)]
    if truth:
        pages.append(_truth_page(result, truth, origin))
    return Outcome(result, pages, _summary(problem, result, origin, parts))


def _chosen(
    problem: Problem, method: str, pixels: int, source: str | None, sampling: Mapping[str, int], **shared: Any
) -> tuple[Problem, Result]:
    """Fit sources from the simplest on, and sample the one of greatest evidence, or the one of pixels.

    Args:
        source: "pixelated", or None for that of greatest evidence.
        shared: the seed, and the folder of checkpoints.

    Returns:
        The problem with the source that was chosen, and its result.
    """
    fitted = []
    for hypothesis in hypotheses(problem, pixels=pixels, pixels_only=source is not None, **shared):
        print(hypothesis)
        fitted.append(hypothesis)
    best = fitted[-1] if source is not None else max(fitted, key=lambda one: one.log_evidence)
    if method == "laplace":
        return best.problem, replace(best.mode, goodness=goodness_of(best.problem, best.mode))
    print(f"sampling the posterior of source {best.name}")
    return best.problem, best.posterior(**shared, sampling=sampling)


def _read(
    entry: registry.Entry, path: Path | None, seed: int, options: Mapping[str, Any]
) -> tuple[Problem, dict[str, Any], str, Mapping[str, str]]:
    """The problem, the truth if it is simulated, a line on the data, and where their parts come from."""
    reading, settings = entry.split(options)
    if path is not None:
        lens = entry.read(path, **reading)
        for what, where in lens.provenance.items():
            print(f"{what}: {where}")
        return entry.problem(lens, **settings), {}, str(path), lens.provenance
    entry.refuse_reading(reading)
    print(f"demonstration: simulating {entry.name} with seed {seed}")
    settings = {**entry.simulated, **entry.demo, **settings}
    lens, truth = entry.simulate(seed, **settings)
    return entry.problem(lens, **settings), truth, f"simulated by the model itself, seed {seed}", {}


def _lens_page(problem: Problem, result: Result, parts: Mapping[str, str]) -> Page:
    content: list[Any] = [(lens_figure(problem, result), CAPTION)]
    if result.goodness is not None:
        rows = [
            {"part of the image": name, "chi2 per pixel": chi2}
            for name, chi2 in result.goodness.parts.items()
        ]
        content.append(rows)
    if parts:
        content.append([{"data": what, "": where} for what, where in parts.items()])
    return Page("Lens", content)


def _truth_page(result: Result, truth: Mapping[str, Any], origin: str) -> Page:
    scores = z_scores(result, truth)
    rows = [{"site": name, "largest |mean - truth| / SD": np.abs(z).max()} for name, z in scores.items()]
    return Page("Simulated truth", [f"The data are {origin}.", rows])


def _summary(problem: Problem, result: Result, origin: str, parts: Mapping[str, str]) -> dict[str, Any]:
    source = "pixelated" if isinstance(problem.model, PixelatedLens) else problem.model.source  # type: ignore[attr-defined]
    radius = result.draws["einstein_radius"]
    middle = draws_of(result, 3)[1 if radius.size > 2 else 0]
    return {
        "data": origin,
        "source": source,
        "einstein_radius": {"mean": round(float(radius.mean()), 5), "sd": round(float(radius.std()), 5)},
        "images of the source": count_images(problem.model, middle, problem.args[0]),
        **({"parts": dict(parts)} if parts else {}),
    }
