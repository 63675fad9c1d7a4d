"""What ``astrozoo run mass_map`` does: from a catalogue or maps of shear to maps of the convergence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._jobs import infer_kept
from astrozoo.diagnostics.images import coverage, spaced_draws, write_images
from astrozoo.errors import InputError
from astrozoo.massmap.maps import posterior_maps
from astrozoo.massmap.pictures import MAPS, POWER, map_figure, mode_rows, peak_rows, power_figure
from astrozoo.types import Outcome, Page, Problem

__all__ = ["DEMO_SIZE", "run"]

DEMO_SIZE = 96
"""Side of the demonstration's map [px]."""
_KEPT = 1000
"""Most draws that are kept. A run has converged if 400 of them are effective. Of a map of 360 x 360 they take
1 GB in memory and half of that in the file of the results."""
_PRIOR_DRAWS = 20
"""Draws of the prior whose mean power the report shows."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "hmc",
    guide: str = "fourier",
    seed: int = 0,
    device: str = "cpu",
    draws: int | None = None,
    chains: int | None = None,
    **options: Any,
) -> Outcome:
    """Read shear, infer the convergence, and write ``kappa.fits``, ``kappa_draws.fits`` and the report.

    Args:
        out: folder, which exists.
        path: catalogue or map. Without it, the demonstration: a map that the model simulates, with the
            log-normal prior if --prior is hybrid, which has no direct draws.
        demo: the demonstration.
        draws, chains: of the method.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together or do not fit the data.
        DataError: files that are missing or unreadable.
    """
    entry = registry.get("mass_map")
    reading, settings = entry.split(options)
    for name, value in entry.required.get(method, {}).items():
        if settings.get(name) != value:
            raise InputError(f"--method {method}", f"without --{name} {value}", f"it with --{name} {value}")
    truth: dict[str, Any] = {}
    if path is not None:
        data = entry.read(path, **reading)
    else:
        entry.refuse_reading(reading)
        drawn = {"prior": "lognormal"} if settings.get("prior") == "hybrid" else {}
        data, truth = entry.simulate(seed, size=DEMO_SIZE, **settings | drawn)
    print(data.origin)
    problem = entry.problem(data, **settings).to(device=device)
    given = {"draws": draws, "chains": chains}
    result = infer_kept(
        entry, problem, method, guide,
        seed=seed, out=out, given=given, keep=["kappa"], most=_KEPT, summaries=True,
    )  # fmt: skip
    maps = posterior_maps(problem, result)
    kept = result.draws["kappa"].reshape(-1, *maps["MEAN"].shape)
    chosen = spaced_draws(kept)
    comment = f"convergence from {data.origin}; method {method}, seed {seed}"
    write_images(out / "kappa.fits", maps, data.wcs, comment)
    write_images(out / "kappa_draws.fits", {"DRAWS": chosen}, data.wcs, comment)
    pages, summary = _pages(problem, data, maps, chosen, seed)
    if truth:
        row = _against(truth["kappa"].numpy(), maps, kept, data.pixels.mask.numpy())
        pages.append(Page("Simulated truth", [f"The data are {data.origin}. Inside the mask:", [row]]))
        summary |= row
    files = {
        "kappa.fits": "posterior mean, SD and quantiles of the convergence (FITS images)",
        "kappa_draws.fits": f"{len(chosen)} draws of the convergence (FITS cube)",
    }
    result = replace(result, draws={name: x.astype(np.float32) for name, x in result.draws.items()})
    return Outcome(result, pages, {"data": data.origin, **summary}, files)


def _pages(
    problem: Problem, data: Any, maps: dict[str, np.ndarray], draws: np.ndarray, seed: int
) -> tuple[list[Page], dict[str, Any]]:
    """The sections of the report, and what they say in short."""
    model: Any = problem.model
    found, rows = peak_rows(data.pixels, data.pixel, maps, data.wcs)
    modes = mode_rows(data.pixels, data.pixel, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (_PRIOR_DRAWS, *maps["MEAN"].shape)
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    filters = type(problem.args[1])(*(x.cpu() for x in problem.args[1]))
    prior = model.convergence(white, filters)
    picture = map_figure(data.pixels, data.pixel, maps, draws[len(draws) // 2], found)
    power = power_figure(data.pixel, maps["MEAN"], draws, prior)
    pages = [
        Page("Convergence", [(picture, MAPS)]),
        Page("Peaks", [rows or "The aperture mass has no peak above the threshold."]),
        Page("E and B modes", [modes]),
        Page("Power", [(power, POWER)]),
    ]
    summary = {
        "peaks": len(found.height),
        "B variance / noise": modes[1]["variance / that of noise"],
        "E variance / noise": modes[0]["variance / that of noise"],
    }
    return pages, summary


def _against(
    truth: np.ndarray, maps: dict[str, np.ndarray], draws: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Error, correlation and coverage of the posterior of simulated data, inside the mask."""
    true, mean = truth[mask], maps["MEAN"][mask]
    row = {
        "rmse": float(np.sqrt(np.mean((mean - mean.mean() - true + true.mean()) ** 2))),
        "correlation": float(np.corrcoef(mean, true)[0, 1]),
    }
    row |= coverage(truth, maps, mask)
    return {name: round(value, 4) for name, value in row.items()}
