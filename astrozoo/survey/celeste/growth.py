"""Patches that grow with what is fitted: until the light of a source at the edge of its patch is negligible.

Detection gives the first size of a patch. It underestimates large galaxies, whose outer parts are below the
threshold, and stars whose core is masked.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from astrozoo.physics.profiles import axis_ratio_and_angle
from astrozoo.survey.celeste.modes import BATCH, Modes
from astrozoo.survey.partition import HALF_SIZES, LARGE_HALF_SIZES, NEGLIGIBLE_LIGHT

__all__ = ["MIN_AXIS_RATIO", "grow"]

MIN_AXIS_RATIO = 0.1
"""Axis ratio below which a galaxy is thin: that of the flattest discs seen edge-on.

Thinner ones are trails and bleeding columns, and the patch does not follow them."""
_LARGE_LIGHT = 0.05
"""Light at the edge of a large patch above which the patch grows [sigma of a pixel's noise].

A de Vaucouleurs galaxy that is cut at 0.3 sigma has 5 to 10 % of its light outside, which raises the sky
around it by 0.05 to 0.1 sigma, and lowers its flux by several of its errors."""
_SIDE = 8
"""Number of points on each side of a patch at which the light is computed."""
_LADDER = (*HALF_SIZES, *LARGE_HALF_SIZES)


def grow(job: Modes) -> Bool[np.ndarray, "s"]:
    """Enlarge the patches of sources whose light is not negligible at the edge of theirs.

    Sources whose light goes on beyond the largest patch are marked as ``outgrown``.

    Returns:
        which sources have got a larger patch.
    """
    state, half = job.state, job.sources.half.copy()
    state.outgrown[:] = False
    with_light = np.flatnonzero(np.array([light is not None for light in state.light], bool))
    for rows in job.sources.batches(with_light[~_thin(job, with_light)], BATCH):
        for size in _LADDER[_LADDER.index(int(half[rows[0]])) :]:
            border = _border(size)
            light = job.light_at(job.canvas.around(rows, border), rows)
            brightness = job.canvas.signal_to_noise(rows, border, light).numpy()
            if size == _LADDER[-1]:
                state.outgrown[rows] = brightness > NEGLIGIBLE_LIGHT
                break
            rows = rows[brightness > (NEGLIGIBLE_LIGHT if size <= HALF_SIZES[-1] else _LARGE_LIGHT)]
            if not len(rows):
                break
            half[rows] = next(larger for larger in _LADDER if larger > size)
    larger = half > job.sources.half
    if larger.any():
        job.enlarge(half)
    return larger


def _thin(job: Modes, rows: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Sources that are more likely galaxies, and thinner than these are."""
    axis_ratio, _ = axis_ratio_and_angle(job.state.mode["galaxy"][rows, 3:5])
    return ((axis_ratio < MIN_AXIS_RATIO) & (job.p_star(rows) < 0.5)).numpy()


@cache
def _border(half: int) -> Int[Tensor, "2 p"]:
    """Pixels around a patch, relative to its middle."""
    along = torch.linspace(-half, half, _SIDE + 1).round().long()[:-1]
    edge = torch.full_like(along, half)
    return torch.cat(
        [torch.stack(xy) for xy in ((along, -edge), (edge, along), (-along, edge), (-edge, -along))], 1
    )
