"""What ``astrozoo run psf_vae`` does: from stamps to deconvolved galaxies, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo import registry
from astrozoo._jobs import case_of, truth_page, unless_interrupted, with_data
from astrozoo.galaxies.psf_maps import maps_of, shapes_of
from astrozoo.galaxies.psf_pictures import CAPTION, maps_figure
from astrozoo.infer import infer
from astrozoo.types import Outcome, Page, Problem

__all__ = ["run"]

_SHOWN = 8
"""Galaxies that the report shows. More make it long."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "laplace",
    guide: str = "encoder",
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Outcome:
    """Read stamps, fit each galaxy, and show data, model, residual, and the galaxy without PSF and noise.

    Args:
        out: folder, which exists.
        path: see :func:`astrozoo.models.psf_vae.read`. Without it, the demonstration: a galaxy of the model.
        demo: the demonstration.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options or stamps that do not fit together.
        DataError: files that are missing or unreadable, or weights that are.
    """
    entry = registry.get("psf_vae")
    case = case_of(entry, path, seed, device, options)
    settings = entry.options.get(method, {})
    result = unless_interrupted(infer(case.problem, method, guide, seed=seed, **settings))
    galaxies = maps_of(case.problem, result)
    pages = [Page("Galaxies", [(maps_figure(galaxies[:_SHOWN]), CAPTION), *_notes(case.problem)])]
    rows = [
        {"galaxy": i, "exposure": k, "chi2 per pixel": chi2}
        for i, maps in enumerate(galaxies)
        for k, chi2 in enumerate(maps.chi2)
    ]
    shapes = [shapes_of(case.problem, result, i) for i in range(len(galaxies))]
    pages.append(Page("Shapes and fits", [[_row(i, s) for i, s in enumerate(shapes)], _SHAPES, rows]))
    if case.truth:
        pages.append(truth_page(result, case))
    summary: dict[str, Any] = {"data": case.origin, "galaxies": len(galaxies)}
    summary["median chi2 per pixel"] = round(float(np.median([c for m in galaxies for c in m.chi2])), 4)
    if len(galaxies) == 1:
        summary |= {
            name: {"mean": float(f"{x.mean():.5g}"), "sd": float(f"{x.std():.3g}")}
            for name, x in shapes[0].items()
        }
    return Outcome(with_data(case.problem, result), pages, summary)


_SHAPES = (
    "Of the galaxy without PSF and noise: the flux is in the unit of the first image, the half-light radius "
    "in its pixels, in circles around the centroid, and e1 and e2 are reduced shears from unweighted second "
    "moments."
)


def _row(number: int, shape: Mapping[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {"galaxy": number}
    for name, values in shape.items():
        row |= {name: values.mean(), f"SD of {name}": values.std()}
    return row


def _notes(problem: Problem) -> list[str]:
    """Lines on the noise of the exposures."""
    model: Any = problem.model
    labels = model.noise_labels(problem.args[0])
    return [f"Exposure {k}: {label}." for k, label in enumerate(labels)]
