"""Runs whose result is an image, summaries of its posterior, and their files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo import registry
from astrozoo._files import replacing
from astrozoo._jobs import CHECKPOINT
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.types import Problem, Result

__all__ = ["QUANTILES", "against_truth", "chosen_draws", "inferred", "posterior_images", "write_images"]

QUANTILES = {"Q025": 0.025, "Q16": 0.16, "Q50": 0.5, "Q84": 0.84, "Q975": 0.975}
"""Quantiles that are written, by the name of their HDU: the median, and the limits of 68 % and of 95 %."""
_KEPT = 1000
"""Most draws that are kept. A run has converged if 400 of them are effective."""
_WRITTEN = 50
"""Draws that are written as FITS."""


def inferred(
    entry: registry.Entry,
    problem: Problem,
    method: str,
    guide: str,
    seed: int,
    out: Path,
    given: dict[str, Any],
    settings: dict[str, Any],
) -> Result:
    """Infer the site ``image``, with a checkpoint in ``out``.

    Args:
        given: options of the method, None where the entry's apply.
        settings: of the problem, which the method may require.

    Raises:
        InputError: settings that the method does not take.
    """
    for name, value in entry.required.get(method, {}).items():
        if settings.get(name, value) != value:
            raise InputError(f"--method {method}", f"--{name} {settings[name]}", f"it with --{name} {value}")
    options = dict(entry.options.get(method, {})) | {name: n for name, n in given.items() if n is not None}
    if method in ("hmc", "mclmc"):
        options |= {"thin": max(1, math.ceil(options["draws"] * options["chains"] / _KEPT))}
    if method != "wiener":
        (out / CHECKPOINT).mkdir(exist_ok=True)
        options["checkpoint"] = out / CHECKPOINT / f"{method}.npz"
    return infer(problem, method, guide, seed=seed, keep=["image"], **options)


def posterior_images(problem: Problem, result: Result) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Mean, SD and :data:`QUANTILES` of the site ``image``, by name.

    The mean of method ``wiener`` is exact.
    """
    draws = result.draws["image"]
    flat = draws.reshape(-1, *draws.shape[2:])
    images = {"MEAN": flat.mean(0), "SD": flat.std(0)}
    if result.method == "wiener" and result.location is not None:
        model: Any = problem.model
        field = type(problem.args[1])(*(x.cpu() for x in problem.args[1]))
        white = torch.as_tensor(result.location[0]).view(flat.shape[1:])
        images["MEAN"] = model.prior.image(white, field).numpy()
    return images | dict(zip(QUANTILES, np.quantile(flat, list(QUANTILES.values()), axis=0), strict=True))


def chosen_draws(draws: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "m *shape"]:
    """Some of the draws, evenly spaced."""
    return draws[np.linspace(0, len(draws) - 1, min(_WRITTEN, len(draws))).round().astype(int)]


def against_truth(
    truth: Float[np.ndarray, "*shape"],
    images: dict[str, Float[np.ndarray, "*shape"]],
    chosen: Bool[np.ndarray, "*shape"],
) -> dict[str, float]:
    """Error of the mean, and coverage of quantile intervals, of the pixels chosen."""
    row = {"rms error": float(np.sqrt(np.mean((images["MEAN"] - truth)[chosen] ** 2)))}
    for level, low, high in (("68 %", "Q16", "Q84"), ("95 %", "Q025", "Q975")):
        inside = (images[low] < truth) & (truth < images[high])
        row[f"coverage of {level}"] = float(inside[chosen].mean())
    return {name: round(value, 4) for name, value in row.items()}


def write_images(path: Path, images: dict[str, np.ndarray], wcs: WCS | None, comment: str) -> None:
    """Write images as HDUs of one FITS file, in single precision. Axes before y and x may come first."""
    cards = wcs.to_header() if wcs is not None else fits.Header()
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["COMMENT"] = comment
    for name, values in images.items():
        hdus.append(fits.ImageHDU(np.asarray(values, np.float32), header=cards, name=name))
    with replacing(path) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)
