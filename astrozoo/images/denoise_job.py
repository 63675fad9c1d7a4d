"""What ``astrozoo run denoise`` does: from an image with noise, or points, to their posterior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._files import replacing
from astrozoo._jobs import infer_kept
from astrozoo.diagnostics.images import spaced_draws, write_images
from astrozoo.errors import InputError
from astrozoo.images.pictures import IMAGES, POINTS, POWER, image_figure, point_figure, power_figure
from astrozoo.images.posterior import against_truth, posterior_images
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["DEMO_SIZE", "run"]

DEMO_SIZE = 96
"""Side of the demonstration's image [px]."""
_KEPT = 1000
"""Most draws that are kept. A run has converged if 400 of them are effective."""
_PRIOR_DRAWS = 20
"""Draws of the prior whose mean power the report shows."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "wiener",
    guide: str = "fourier",
    seed: int = 0,
    device: str = "cpu",
    draws: int | None = None,
    chains: int | None = None,
    **options: Any,
) -> Outcome:
    """Read an image or points, infer them without noise, and write ``image.fits`` or ``points.npz``.

    Args:
        out: folder, which exists.
        path: the data. Without it, the demonstration: data that the model simulates.
        demo: the demonstration.
        draws, chains: of the method.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together or do not fit the data.
        DataError: files that are missing or unreadable.
    """
    entry = registry.get("denoise")
    reading, settings = entry.split(options)
    truth: dict[str, Any] = {}
    if path is not None:
        data = entry.read(path, **reading)
        if data.points:
            settings.setdefault("prior", "two_moons")
    else:
        noise = {"noise": reading.pop("noise")} if "noise" in reading else {}
        entry.refuse_reading(reading)
        data, truth = entry.simulate(seed, size=DEMO_SIZE, **_as_number(noise), **settings)
    print(data.origin)
    problem = entry.problem(data, **settings).to(device=device)
    for name, value in entry.required.get(method, {}).items():
        if settings.get(name, value) != value:
            raise InputError(f"--method {method}", f"--{name} {settings[name]}", f"it with --{name} {value}")
    given = {"draws": draws, "chains": chains}
    result = infer_kept(
        entry, problem, method, guide, seed=seed, out=out, given=given, keep=["image"], most=_KEPT
    )
    tell = _points if data.points else _image
    pages, summary, files = tell(problem, data, result, truth.get("image"), out, seed)
    result = replace(result, draws={name: x.astype(np.float32) for name, x in result.draws.items()})
    return Outcome(result, pages, {"data": data.origin, **summary}, files)


def _as_number(noise: dict[str, Any]) -> dict[str, float]:
    """The noise of simulated data, which is a number."""
    try:
        return {name: float(value) for name, value in noise.items()}
    except ValueError as error:
        raise InputError("--noise", noise["noise"], "a number, or --data") from error


def _image(
    problem: Problem, data: Any, result: Result, truth: Any, out: Path, seed: int
) -> tuple[list[Page], dict[str, Any], dict[str, str]]:
    images = {name: data.cropped(x) for name, x in posterior_images(problem, result).items()}
    kept = data.cropped(result.draws["image"])
    kept = kept.reshape(-1, *kept.shape[2:])
    chosen = spaced_draws(kept)
    comment = (
        f"posterior of the image without noise; data: {data.origin}; method {result.method}, seed {seed}"
    )
    write_images(out / "image.fits", images, data.wcs, comment)
    write_images(out / "image_draws.fits", {"DRAWS": chosen}, data.wcs, comment)
    values, noise, mask = (data.cropped(x).numpy() for x in data.pixels)
    chi2 = float(np.mean([np.mean(((values - draw) / noise)[mask] ** 2) for draw in chosen]))
    true = None if truth is None else data.cropped(truth).numpy()
    picture = image_figure(values, noise, mask, images, chosen[len(chosen) // 2], true)
    generator = torch.Generator().manual_seed(seed)
    shape = (_PRIOR_DRAWS, *data.pixels.values.shape)
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    model: Any = problem.model
    field = type(problem.args[1])(*(x.cpu() for x in problem.args[1]))
    prior = data.cropped(model.prior.image(white, field))
    summary: dict[str, Any] = {
        "chi2 per pixel of draws": round(chi2, 4),
        "median noise": float(f"{np.median(noise[mask]):.4g}"),
        "median SD": float(f"{np.median(images['SD'][mask]):.4g}"),
    }
    pages = [
        Page("Image", [(picture, IMAGES), [summary]]),
        Page("Power", [(power_figure(values, noise, mask, chosen, prior), POWER)]),
    ]
    if true is not None:
        row: dict[str, Any] = against_truth(true, images, np.ones_like(mask))
        row["rms error of the data"] = round(float(np.sqrt(np.mean((values - true)[mask] ** 2))), 4)
        pages.append(Page("Simulated truth", ["All pixels, with and without data:", [row]]))
        summary |= row
    files = {
        "image.fits": "posterior mean, SD and quantiles of the image (FITS images)",
        "image_draws.fits": f"{len(chosen)} draws of the image (FITS cube)",
    }
    return pages, summary, files


def _points(
    problem: Problem, data: Any, result: Result, truth: Any, out: Path, seed: int
) -> tuple[list[Page], dict[str, Any], dict[str, str]]:
    images = posterior_images(problem, result)
    kept = result.draws["image"].reshape(-1, *images["MEAN"].shape)
    arrays = {name.lower(): x for name, x in images.items()} | {"draws": kept.astype(np.float32)}
    with replacing(out / "points.npz") as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    values = data.pixels.values.numpy()
    true = None if truth is None else truth.numpy()
    rows = [
        {
            "point": i,
            "x": round(float(values[i, 0]), 3),
            "y": round(float(values[i, 1]), 3),
            **{
                f"{what} of {axis}": round(float(images[name][i, c]), 3)
                for c, axis in enumerate("xy")
                for what, name in (("mean", "MEAN"), ("SD", "SD"))
            },
        }
        for i in range(len(values))
    ]
    pages = [Page("Points", [(point_figure(values, kept, true), POINTS), rows])]
    summary: dict[str, Any] = {"points": len(values)}
    if true is not None:
        row = against_truth(true, images, np.ones(true.shape, bool))
        pages.append(Page("Simulated truth", [[row]]))
        summary |= row
    return pages, summary, {"points.npz": "posterior mean, SD, quantiles and draws of the points"}
