"""A source of pixels behind a lens that was fitted with a simpler source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from astrozoo._goodness import goodness_of
from astrozoo.density import layout_of
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.lens.gauss_newton import gauss_newton, log_evidence
from astrozoo.models.pixelated_lens import PixelatedLens, regularised
from astrozoo.physics import imaging
from astrozoo.types import Problem, Result

__all__ = ["at_location", "check_pixels", "pixelated_mode", "posterior_around"]

_ANCHORS = 100
"""Number of points of the arcs that the source's grid is anchored to: their mean and covariance need no more.
It is the same for all lenses, so that they share compiled graphs."""
_SIGNIFICANT = 3.0
"""[SD of a pixel] Smoothed light beyond the lens's that is traced back to place the grid."""
_MARGIN = 1.5
"""[extent of the traced pixels] Side of the source's grid."""
_LENGTH = 5.0
"""Least length of trajectories. Mass and light of the lens are wider than the curvature at the mode says (by
half, on a Euclid lens), and curved. The pixels are not, and they are the many that adapt the length."""
_CHAINS, _WARMUP = 8, 120
"""Of the sampler, unless the user sets them: the docs' real lenses then have R-hats of 1.02 or less."""


def at_location(problem: Problem, result: Result) -> Result:
    """The result with a single draw, its mode or mean, and the goodness of fit there."""
    values = layout_of(problem).constrain(torch.as_tensor(result.location)[0])
    single = replace(result, draws={name: value[None, None].numpy() for name, value in values.items()})
    return replace(single, goodness=goodness_of(problem, single))


def check_pixels(problem: Problem) -> None:
    """Raise an error if a source of pixels cannot be fitted, before any work.

    Raises:
        InputError: the problem is a batch or has several bands.
    """
    bands = 1 if problem.batch is not None else len(problem.args[0].image)
    if problem.batch is not None or bands > 1:
        got = f"{problem.batch} lenses" if problem.batch is not None else f"{bands} bands"
        raise InputError("a source of pixels", got, "one lens in one band: choose one with --band")


def pixelated_mode(
    problem: Problem, values: Mapping[str, Tensor], *, pixels: int, seed: int
) -> tuple[Problem, Result]:
    """The joint mode of mass, light and a source of pixels, and the normal there.

    The spread and length of the source's prior maximise the evidence, at the given values and once more at
    the first mode. A lens with light is fitted with one and with two components of its light. The one with
    the greater evidence is returned: noise maps that are too large hide from chi2 that one does not fit.

    Args:
        problem: of a :class:`StrongLens` with another source.
        values: latents of that problem to start from.
        pixels: of the source, along a side.

    Raises:
        InputError: as :func:`check_pixels`, or no light comes from a source.
    """
    check_pixels(problem)
    halos = (False, True) if problem.model.lens_light else (False,)  # type: ignore[attr-defined]
    trials = [_mode(problem, values, halo, pixels, seed) for halo in halos]
    return max(trials, key=lambda trial: log_evidence(trial[1]))


def posterior_around(
    problem: Problem, mode: Result, *, draws: int, chains: int = _CHAINS, **options: Any
) -> Result:
    """HMC over mass, light and source together; its mass matrix is the curvature at the mode."""
    settings = {"draws": draws, "chains": chains, "warmup": _WARMUP, "least_length": _LENGTH, **options}
    return infer(problem, "hmc", None, precondition=mode, **settings)


def _mode(
    problem: Problem, values: Mapping[str, Tensor], halo: bool, pixels: int, seed: int
) -> tuple[Problem, Result]:
    data = problem.args[0]
    model = _grid(problem, values, halo, pixels)
    latents = {name: value for name, value in values.items() if not name.startswith("source")}
    latents["source_field"] = torch.zeros(pixels, pixels, dtype=data.image.dtype)
    if halo:  # from a faint one
        faint = {"radius": 2.0, "ellipticity": 1.0, "amplitude": 0.03}
        latents |= {f"halo_{name}": latents[f"lens_{name}"] * factor for name, factor in faint.items()}
    dims = {name: axes for name, axes in problem.dims.items() if name in latents}
    if halo:
        dims |= {f"halo_{name}": dims[f"lens_{name}"] for name in ("ellipticity", "amplitude")}
    for iterations in (5, 60):
        model, field = regularised(model, latents, data)
        latents["source_field"] = field
        task = replace(problem, model=model, start=latents, dims=dims, proposals=None, guides={})
        z = layout_of(task).unconstrain({name: value[None] for name, value in latents.items()})[0]
        mode = gauss_newton(task, z, iterations=iterations, tolerance=0.1, seed=seed)
        latents = layout_of(task).constrain(torch.as_tensor(mode.location)[0])
    return task, mode


def _grid(problem: Problem, values: Mapping[str, Tensor], halo: bool, pixels: int) -> PixelatedLens:
    """A grid around the places that the bright pixels of the arcs are traced to."""
    model: Any = problem.model
    data = problem.args[0]
    scale, mask = float(data.pixel_scale), data.mask[0].numpy()
    excess = (data.image - model.render(values, data, ("lens",)))[0]
    sigma = data.total_variance(data.image)[0].sqrt().numpy()
    bright = mask & (gaussian_filter(np.where(mask, excess.numpy(), 0.0), 1.0) > _SIGNIFICANT * sigma)
    if bright.sum() < 10:
        raise InputError("source='pixelated'", f"{bright.sum()} pixels of arcs", "light of a source")
    x, y = (c[torch.as_tensor(bright)] for c in imaging.pixel_grid(bright.shape, data.pixel_scale))
    ax, ay = model.deflection(values, x, y)
    ends = [np.quantile(b.numpy(), (0.02, 0.98)) for b in (x - ax, y - ay)]
    settings = {name: getattr(model, name) for name in model.__dataclass_fields__}
    grid = PixelatedLens(
        **{**settings, "source": "sersic", "source_weights": None},
        middle=(float(ends[0].mean()), float(ends[1].mean())),
        side=_MARGIN * float(max(end[1] - end[0] for end in ends)),
        pixels=pixels,
        spread=float(np.quantile(excess.numpy()[bright], 0.9)) / scale**2,
        length=0.1,
        halo=halo,
    )
    points = torch.stack((x, y), -1).numpy()
    return grid.anchored(values, points[np.linspace(0, len(points) - 1, _ANCHORS).round().astype(int)])
