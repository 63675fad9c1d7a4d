"""What ``astrozoo run mass_map`` does: from a catalogue or maps of shear to maps of the convergence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._jobs import CHECKPOINT
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.massmap.maps import posterior_maps, write_maps
from astrozoo.massmap.pictures import MAPS, POWER, map_figure, mode_rows, peak_rows, power_figure
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["DEMO_SIZE", "run"]

DEMO_SIZE = 96
"""Side of the demonstration's map [px]."""
_KEPT = 1000
"""Most draws that are kept. A run has converged if 400 of them are effective. Of a map of 360 x 360 they take
1 GB in memory and half of that in the file of the results."""
_WRITTEN = 50
"""Draws that are written as FITS: 26 MB of a map of 360 x 360."""
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
        for option in entry.reading:
            if option.name in reading:
                raise InputError(option.flag, reading[option.name], f"{option.flag} with --data only")
        drawn = {"prior": "lognormal"} if settings.get("prior") == "hybrid" else {}
        data, truth = entry.simulate(seed, size=DEMO_SIZE, **settings | drawn)
    print(data.origin)
    problem = entry.problem(data, **settings).to(device=device)
    result = _inferred(entry, problem, method, guide, seed, out, draws, chains)
    maps = posterior_maps(problem, result)
    kept = result.draws["kappa"].reshape(-1, *maps["MEAN"].shape)
    chosen = kept[np.linspace(0, len(kept) - 1, min(_WRITTEN, len(kept))).round().astype(int)]
    comment = f"convergence from {data.origin}; method {method}, seed {seed}"
    write_maps(out / "kappa.fits", maps, data.wcs, comment)
    write_maps(out / "kappa_draws.fits", {"DRAWS": chosen}, data.wcs, comment)
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


def _inferred(
    entry: registry.Entry,
    problem: Problem,
    method: str,
    guide: str,
    seed: int,
    out: Path,
    draws: int | None,
    chains: int | None,
) -> Result:
    settings = dict(entry.options.get(method, {}))
    settings |= {name: n for name, n in (("draws", draws), ("chains", chains)) if n is not None}
    if method in ("hmc", "mclmc", "annealed"):
        total = settings["draws"] * settings["chains"]
        settings |= {"thin": max(1, math.ceil(total / _KEPT)), "summaries": True}
    (out / CHECKPOINT).mkdir(exist_ok=True)
    kept = out / CHECKPOINT / f"{method}.npz"
    if method != "wiener":
        settings["checkpoint"] = kept
    return infer(problem, method, guide, seed=seed, keep=["kappa"], **settings)


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
    for level, low, high in (("68 %", "Q16", "Q84"), ("95 %", "Q025", "Q975")):
        inside = (maps[low][mask] < true) & (true < maps[high][mask])
        row[f"coverage of {level}"] = float(inside.mean())
    return {name: round(value, 4) for name, value in row.items()}
