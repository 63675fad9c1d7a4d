"""Maps of a posterior of the convergence, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Float

from astrozoo._files import replacing
from astrozoo.infer.recorder import STATISTICS
from astrozoo.types import Problem, Result

__all__ = ["QUANTILES", "posterior_maps", "write_maps"]

QUANTILES = {"Q025": 0.025, "Q16": 0.16, "Q50": 0.5, "Q84": 0.84, "Q975": 0.975}
"""Quantiles that are written, by the name of their HDU: the median, and the limits of 68 % and of 95 %."""


def posterior_maps(problem: Problem, result: Result) -> dict[str, Float[np.ndarray, "y x"]]:
    """Mean, SD and :data:`QUANTILES` of the convergence, by name.

    The mean of method ``wiener`` is exact. Mean and SD of a result with summaries are those of all draws.
    Quantiles are those of the draws that were kept.
    """
    draws = result.draws["kappa"]
    flat = draws.reshape(-1, *draws.shape[2:])
    maps = {"MEAN": flat.mean(0), "SD": flat.std(0)}
    if "kappa" in result.summaries:
        summary = dict(zip(STATISTICS, result.summaries["kappa"], strict=True))
        maps = {"MEAN": summary["mean"], "SD": summary["sd"]}
    if result.method == "wiener" and result.location is not None:
        model: Any = problem.model
        white = torch.as_tensor(result.location[0]).view(flat.shape[1:])
        maps["MEAN"] = model.convergence(
            white, problem.args[1].__class__(*(x.cpu() for x in problem.args[1]))
        ).numpy()
    levels = np.quantile(flat, list(QUANTILES.values()), axis=0)
    return maps | dict(zip(QUANTILES, levels, strict=True))


def write_maps(path: Path, maps: dict[str, np.ndarray], wcs: WCS | None, comment: str) -> None:
    """Write maps as image HDUs of one FITS file, in single precision. Axes before y and x may come first."""
    cards = wcs.to_header() if wcs is not None else fits.Header()
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["COMMENT"] = comment
    for name, values in maps.items():
        hdus.append(fits.ImageHDU(np.asarray(values, np.float32), header=cards, name=name))
    with replacing(path) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)
