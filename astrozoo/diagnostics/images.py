"""Images that summarise a posterior, and the FITS files that they are written to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo._files import replacing
from astrozoo.infer.recorder import STATISTICS
from astrozoo.types import Problem, Result

__all__ = ["QUANTILES", "coverage", "image_summaries", "spaced_draws", "write_images"]

QUANTILES = {"Q025": 0.025, "Q16": 0.16, "Q50": 0.5, "Q84": 0.84, "Q975": 0.975}
"""Quantiles that are written, by the name of their HDU: the median, and the limits of 68 % and of 95 %."""
_WRITTEN = 50
"""Draws that are written as FITS: 26 MB of a map of 360 x 360."""


def image_summaries(
    problem: Problem, result: Result, site: str, exact: Callable[[torch.Tensor, Any], torch.Tensor]
) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Mean, SD and :data:`QUANTILES` of a site, by name.

    The mean of method ``wiener`` is exact. Mean and SD of a result with summaries are those of all draws.
    Quantiles are those of the draws that were kept.

    Args:
        problem: whose model takes the modes of the prior as its second argument, a NamedTuple of tensors.
        site: a linear function of the model's white noise.
        exact: the image of white noise, given these modes.
    """
    draws = result.draws[site]
    flat = draws.reshape(-1, *draws.shape[2:])
    images = {"MEAN": flat.mean(0), "SD": flat.std(0)}
    if site in result.summaries:
        summary = dict(zip(STATISTICS, result.summaries[site], strict=True))
        images = {"MEAN": summary["mean"], "SD": summary["sd"]}
    if result.method == "wiener" and result.location is not None:
        white = torch.as_tensor(result.location[0]).view(flat.shape[1:])
        modes = type(problem.args[1])(*(x.cpu() for x in problem.args[1]))
        images["MEAN"] = exact(white, modes).numpy()
    levels = np.quantile(flat, list(QUANTILES.values()), axis=0)
    return images | dict(zip(QUANTILES, levels, strict=True))


def spaced_draws(draws: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "m *shape"]:
    """At most 50 of the draws, evenly spaced: those that are written."""
    return draws[np.linspace(0, len(draws) - 1, min(_WRITTEN, len(draws))).round().astype(int)]


def coverage(
    truth: Float[np.ndarray, "*shape"],
    images: dict[str, Float[np.ndarray, "*shape"]],
    chosen: Bool[np.ndarray, "*shape"],
) -> dict[str, float]:
    """The fraction of the chosen pixels whose quantile intervals contain the truth."""
    row = {}
    for level, low, high in (("68 %", "Q16", "Q84"), ("95 %", "Q025", "Q975")):
        inside = (images[low] < truth) & (truth < images[high])
        row[f"coverage of {level}"] = float(inside[chosen].mean())
    return row


def write_images(path: Path, images: dict[str, np.ndarray], wcs: WCS | None, comment: str) -> None:
    """Write images as HDUs of one FITS file, in single precision. Axes before y and x may come first."""
    cards = wcs.to_header() if wcs is not None else fits.Header()
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["COMMENT"] = comment
    for name, values in images.items():
        hdus.append(fits.ImageHDU(np.asarray(values, np.float32), header=cards, name=name))
    with replacing(path) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)
