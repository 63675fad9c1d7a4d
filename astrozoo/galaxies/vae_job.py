"""What ``astrozoo run galaxy_vae`` does: from stamps of galaxies to their latents, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from astrozoo import registry
from astrozoo._jobs import case_of, truth_page, unless_interrupted, with_data
from astrozoo.galaxies.pictures import CAPTION, Fitted, galaxy_figure
from astrozoo.infer import infer
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["fitted", "run"]

_SHOWN = 8
"""Galaxies that the report shows. More make it long."""
_DEMO = 6
"""Galaxies of the demonstration."""
_DRAWS = 64
"""Draws that the mean and the SD of the image are taken over: the SD is then known to a tenth."""


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
    """Read stamps, fit the latents of every galaxy, and show data, mean, SD and residual.

    Args:
        out: folder, which exists.
        path: file or folder of stamps. Without it, the demonstration: galaxies that the model draws.
        demo: the demonstration.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together.
        DataError: files that are missing, unreadable or without stamps.
    """
    entry = registry.get("galaxy_vae")
    case = case_of(entry, path, seed, device, options, drawn={"galaxies": _DEMO})
    settings = entry.options.get(method, {})
    result = unless_interrupted(infer(case.problem, method, guide, seed=seed, **settings))
    fits = fitted(case.problem, result, _SHOWN)
    pages = [Page("Galaxies", [(galaxy_figure(fits, [str(i) for i in range(len(fits))]), CAPTION)])]
    if case.truth:
        pages.append(truth_page(result, case))
    chi2 = [float(np.nanmean(fit["residual"] ** 2)) for fit in fitted(case.problem, result)]
    pages.append(Page("Fits", [[{"galaxy": i, "chi2 per pixel": c} for i, c in enumerate(chi2)]]))
    summary = {"data": case.origin, "galaxies": len(chi2), "median chi2 per pixel": float(np.median(chi2))}
    return Outcome(with_data(case.problem, result), pages, summary)


@torch.no_grad()
def fitted(problem: Problem, result: Result, most: int | None = None) -> list[Fitted]:
    """Data, posterior mean and SD of the noiseless image, and residual, of the first galaxies."""
    model: Any = problem.model
    stamp = (
        problem.args[0]
        if problem.batch is not None
        else type(problem.args[0])(*(x[None] for x in problem.args[0]))
    )
    z = torch.as_tensor(result.draws["z"]).to(stamp.image).flatten(0, 1)
    z = z.reshape(len(z), len(stamp.image), -1)
    z = z[torch.linspace(0, len(z) - 1, min(_DRAWS, len(z))).round().long()]
    fits: list[Fitted] = []
    for i, (image, noise, used) in enumerate(zip(*stamp, strict=True)):
        if i == most:
            break
        drawn, variance = model.nets.decoder(z[:, i])
        mean, predicted = drawn.mean(0), (noise**2 + variance.mean(0)).sqrt()
        fits.append(
            {
                "data": torch.where(used, image, torch.nan).numpy(),
                "mean": mean.numpy(),
                "sd": drawn.std(0).numpy(),
                "residual": torch.where(used, (image - mean) / predicted, torch.nan).numpy(),
            }
        )
    return fits
