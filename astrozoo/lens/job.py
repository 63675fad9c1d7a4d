"""What ``astrozoo run strong_lens`` does: from the files of a lens to its posterior, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._goodness import goodness_of, improvable
from astrozoo._jobs import CHECKPOINT, with_data
from astrozoo.density import layout_of
from astrozoo.diagnostics.metrics import z_scores
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.lens.pictures import CAPTION, count_images, draws_of, lens_figure
from astrozoo.lens.pixelated import at_location, pixelated_mode, pixelated_posterior
from astrozoo.models.pixelated_lens import PixelatedLens
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["run"]

_PIXELATED = ("auto", "hmc", "laplace")
"""Methods that a source of pixels can be fitted with."""
_DRAWS = 100
"""Draws of each chain behind a Sersic source, unless the user sets them. The 48 chains then have about 2,000
effective draws; 500 draws took five times as long and had 12,000."""


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
    leaves more than noise, even if it fits within the tolerance, a source of pixels takes its place.

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
        problem, result = _stages(problem, method, source_pixels, source is None, sampling, **shared)
    else:
        settings = {**entry.options.get(method, {}), **sampling}
        kept = out / CHECKPOINT / f"{method}.npz"
        result = infer(problem, method, guide, seed=seed, checkpoint=kept, **settings)
    result = with_data(problem, result)
    pages = [_lens_page(problem, result, parts)]
    if truth:
        pages.append(_truth_page(result, truth, origin))
    return Outcome(result, pages, _summary(problem, result, origin, parts))


def _stages(
    problem: Problem,
    method: str,
    pixels: int,
    choose: bool,
    sampling: Mapping[str, int],
    *,
    seed: int,
    folder: Path,
) -> tuple[Problem, Result]:
    """Fit a Sersic source, then one of pixels; of the latter, the problem is another.

    Args:
        choose: whether the Sersic source is kept if it fits, or fits better.
    """
    mode = infer(problem, "laplace", start="search", draws=1, seed=seed, checkpoint=folder / "search.npz")
    first = at_location(problem, mode)
    print(f"Sersic source, the best of the starts: {first.goodness}")
    if not choose or first.goodness is None or improvable(first.goodness):
        print(f"fitting a source of {pixels} x {pixels} pixels")
        values = layout_of(problem).constrain(torch.as_tensor(mode.location)[0])
        task, normal = pixelated_mode(problem, values, pixels=pixels, seed=seed)
        second = at_location(task, normal)
        print(f"source of pixels, at its mode: {second.goodness}")
        if not choose or _better(second, first):
            if method == "laplace":
                return task, replace(normal, goodness=goodness_of(task, normal))
            kept = folder / "pixelated.npz"
            return task, pixelated_posterior(task, normal, seed=seed, checkpoint=kept, **sampling)
    sampling = {"draws": _DRAWS, **sampling}
    kept = folder / "auto.npz"
    return problem, infer(problem, "auto", None, start=mode, seed=seed, checkpoint=kept, **sampling)


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
    for option in entry.reading:
        if option.name in reading:
            raise InputError(option.flag, reading[option.name], f"{option.flag} with --data only")
    print(f"demonstration: simulating {entry.name} with seed {seed}")
    settings = {**entry.simulated, **entry.demo, **settings}
    lens, truth = entry.simulate(seed, **settings)
    return entry.problem(lens, **settings), truth, f"simulated by the model itself, seed {seed}", {}


def _better(trial: Result, reference: Result) -> bool:
    if trial.goodness is None or reference.goodness is None:
        return False
    return trial.goodness.chi2 < reference.goodness.chi2


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
