"""What ``astrozoo run nbody`` does: from data on a grid to initial conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._files import replacing
from astrozoo._jobs import infer_kept
from astrozoo.errors import InputError
from astrozoo.nbody.pictures import SLICES, SPECTRA, cosmology_figure, slice_figure, spectra_figure
from astrozoo.nbody.spectra import Scales, by_scale, rows
from astrozoo.physics.modes import make_shells
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["DEMO_SIZE", "run"]

DEMO_SIZE = 32
"""Cells along an axis of the demonstration's box."""
_KEPT = 400
"""Most draws that are kept: 26 MB for each field of a box of 32^3."""
_LAYERS = 4
"""Layers of which a slice is the mean."""
_SIGNAL = 3.0
"""Power of the posterior mean over the spread above which a scale counts as measured."""
_COSMOLOGY = ("omega_m", "sigma8")


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "hmc",
    guide: str = "fourier",
    seed: int = 0,
    device: str = "cpu",
    size: int | None = None,
    draws: int | None = None,
    chains: int | None = None,
    warmup: int | None = None,
    **options: Any,
) -> Outcome:
    """Read a grid, infer the initial conditions, and write ``initial_conditions.npz`` and the report.

    Args:
        out: folder, which exists.
        path: the grid. Without it, the demonstration: a box that the model simulates.
        demo: the demonstration.
        size: cells along an axis of the simulated box.
        draws, chains, warmup: of the method.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together or do not fit the data.
        DataError: files that are missing or unreadable.
    """
    entry = registry.get("nbody")
    reading, settings = entry.split(options)
    truth: dict[str, Any] = {}
    if path is not None:
        if size is not None:
            raise InputError("--size", size, "it without --data")
        data = entry.read(path, **reading)
    else:
        drawn = {name: reading.pop(name) for name in ("kind", "box", "mean", "noise") if name in reading}
        entry.refuse_reading(reading)
        data, truth = entry.simulate(seed, size=size or DEMO_SIZE, **drawn, **settings)
    print(data.origin)
    problem = entry.problem(data, **settings).to(device=device)
    free = _COSMOLOGY if getattr(problem.model, "free", False) else ()
    keep = ["white", "linear", "density", *free]
    given = {"draws": draws, "chains": chains, "warmup": warmup}
    result = infer_kept(entry, problem, method, guide, seed=seed, out=out, given=given, keep=keep, most=_KEPT)
    pages, summary = _pages(problem, data, result, truth)
    linear = result.draws["linear"].reshape(-1, *data.shape)
    density = result.draws["density"].reshape(-1, *data.shape)
    with replacing(out / "initial_conditions.npz") as partial, partial.open("wb") as file:
        np.savez(
            file,
            box=data.box,
            linear_mean=linear.mean(0).astype(np.float32),
            linear_sd=linear.std(0).astype(np.float32),
            density_mean=density.mean(0).astype(np.float32),
            density_sd=density.std(0).astype(np.float32),
            linear_draw=linear[-1].astype(np.float32),
        )
    files = {
        "initial_conditions.npz": "mean and SD of the linear density today and of the density, and one draw"
    }
    result = replace(result, draws={name: x.astype(np.float32) for name, x in result.draws.items()})
    return Outcome(result, pages, {"data": data.origin, **summary}, files)


def _pages(
    problem: Problem, data: Any, result: Result, truth: dict[str, Any]
) -> tuple[list[Page], dict[str, Any]]:
    """The sections of the report, and what they say in short."""
    modes = problem.args[1].modes
    modes = type(modes)(*(x.cpu() for x in modes))
    shells = make_shells(modes, data.shape[2])
    draws = torch.as_tensor(result.draws["linear"]).double().flatten(0, 1)
    true = truth["linear"] if truth else None
    scales = by_scale(draws, shells, float(modes.cell) ** 3, true)
    pages = [
        Page("Slices", [(_slices(data, result, truth), SLICES.format(layers=_LAYERS))]),
        Page("Scales", [(spectra_figure(scales, shells.size.numpy()), SPECTRA), rows(scales)]),
    ]
    summary = _in_short(scales)
    if "omega_m" in result.draws:
        of_cosmology = {name: result.draws[name].ravel() for name in _COSMOLOGY}
        true_values = {name: float(truth[name]) for name in _COSMOLOGY} if truth else {}
        pages.append(
            Page("Cosmology", [(cosmology_figure(of_cosmology, true_values), "Draws of the posterior.")])
        )
        summary |= {name: round(float(x.mean()), 4) for name, x in of_cosmology.items()}
        summary |= {f"SD of {name}": round(float(x.std()), 4) for name, x in of_cosmology.items()}
    return pages, summary


def _in_short(scales: Scales) -> dict[str, Any]:
    """Least correlation of the scales that are measured, and the range of the calibration."""
    measured = scales.signal > _SIGNAL
    summary: dict[str, Any] = {"shells that are measured": int(measured.sum())}
    if measured.any():
        summary["smallest measured scale [h/Mpc]"] = round(float(scales.k[measured].max()), 3)
    if scales.correlation is not None and scales.z is not None:
        if measured.any():
            summary["least r of measured shells"] = round(float(scales.correlation[measured].min()), 3)
        summary["SD of z-scores, least"] = round(float(scales.z.min()), 3)
        summary["SD of z-scores, most"] = round(float(scales.z.max()), 3)
    return summary


def _slices(data: Any, result: Result, truth: dict[str, Any]) -> Any:
    middle = data.shape[2] // 2

    def slab(field: Any) -> np.ndarray:
        return np.asarray(field)[..., middle : middle + _LAYERS].mean(-1)

    values = np.where(data.cells.mask.numpy(), data.cells.values.numpy(), np.nan)
    shown = values if data.kind == "kappa" else slab(values)
    if data.kind == "counts":
        shown = shown / float(data.cells.mean)
    elif data.kind == "density":
        shown = shown + 1
    fields: dict[str, dict[str, np.ndarray]] = {}
    for name in ("density", "linear"):
        every = result.draws[name].reshape(-1, *data.shape)
        panels = {"truth": slab(truth[name])} if truth else {}
        if name == "density" and data.kind != "kappa":
            panels["data"] = shown
        slabs = slab(every)
        panels |= {"posterior mean": slabs.mean(0), "SD": slabs.std(0), "one draw": slabs[-1]}
        fields[name] = panels
    top = float(np.quantile(fields["density"]["one draw"], 0.995))
    edge = float(np.quantile(np.abs(fields["linear"]["one draw"]), 0.995))
    return slice_figure(data.box, _LAYERS, fields, {"density": (0.0, top), "linear": (-edge, edge)})
