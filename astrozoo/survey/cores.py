"""Masked cores of bright sources: they are found by their rims and filled, so that the source is detected.

Filled pixels are for detection only. A fit uses valid pixels, so that a star is measured by its wings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, distance_transform_edt, find_objects, label

from astrozoo.data.images import Image

__all__ = ["fill_cores"]

_MIN_RIM_SNR = 10.0
"""Smallest median signal to noise of the pixels around a hole that may be the core of a source.

A saturated core in SDSS has a rim of hundreds. Holes in the sky, and most of those on faint sources, are
below."""
_MIN_EVENNESS = 0.25
"""Smallest ratio of the 10th to the 90th percentile of the light around a core.

The rim of a core is near an isophote. A hole on the flank of a source is bright on one side only."""
_MIN_FALL = 1.2
"""Smallest ratio of the light next to a core to that one ring of pixels farther out.

It is 1 where a hole lies in the flat part of a galaxy."""
_RISE = 0.2
"""Rise of the filled light per pixel from the rim of a core, relative to the rim: it makes a single peak."""


def fill_cores(image: Image) -> Image:
    """Fill pixels without a value that are marked as saturated, or that look like the core of a source.

    Filled pixels continue the nearest valid pixel, rise towards the middle of the hole, and are marked as
    saturated. Saturated pixels that have a value keep it.
    """
    hole = ~image.valid & ~(image.saturated & np.isfinite(image.counts))
    if not hole.any() or hole.all():
        return image
    filled = (hole & image.saturated) | _cores(image, hole)
    if not filled.any():
        return image
    usable = ~hole & np.isfinite(image.counts)
    depth, nearest = distance_transform_edt(~usable, return_indices=True)
    rim = (image.counts - image.sky)[tuple(nearest)]
    sky = np.where(np.isfinite(image.sky), image.sky, np.median(image.sky[usable]))
    calibration = np.where(
        np.isfinite(image.calibration), image.calibration, image.calibration[usable].mean()
    )
    return replace(
        image,
        counts=np.where(filled, sky + rim * (1 + _RISE * depth), image.counts),
        sky=np.where(filled, sky, image.sky),
        calibration=np.where(filled, calibration, image.calibration),
        saturated=image.saturated | filled,
    )


def _cores(image: Image, hole: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The holes whose rim is bright, even, and falls outwards."""
    numbers, _ = label(hole, np.ones((3, 3)))
    cores = np.zeros_like(hole)
    with np.errstate(invalid="ignore"):
        light = np.where(hole, np.nan, image.counts - image.sky)
        snr = light / np.sqrt(image.sky)
    for k, box in enumerate(find_objects(numbers), start=1):
        around = tuple(slice(max(0, part.start - 2), part.stop + 2) for part in box)
        core = numbers[around] == k
        near = binary_dilation(core, np.ones((3, 3))) & ~hole[around]
        far = binary_dilation(core, np.ones((3, 3)), iterations=2) & ~near & ~hole[around]
        if near.sum() >= 8 and far.any() and _is_rim(light[around], snr[around], near, far):
            cores[around] |= core
    return cores


def _is_rim(
    light: Float[np.ndarray, "y x"],
    snr: Float[np.ndarray, "y x"],
    near: Bool[np.ndarray, "y x"],
    far: Bool[np.ndarray, "y x"],
) -> bool:
    low, middle, high = np.nanpercentile(light[near], (10, 50, 90))
    bright = np.nanmedian(snr[near]) > _MIN_RIM_SNR and low > _MIN_EVENNESS * high
    return bool(bright and middle > _MIN_FALL * np.nanmedian(light[far]))
