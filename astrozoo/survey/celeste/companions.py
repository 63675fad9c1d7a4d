"""The search of residuals for companions: parts of blends that detection took for one source.

Errors of a model leave residuals too, which must not become sources. Residuals are therefore divided by a
noise that contains three errors: a fraction of the modelled light of every source; for stars, an error of the
PSF at each distance that is measured on the residuals of the field's bright stars; and nothing is searched
where a source has not been fitted since its patch grew.

What is detected in the residuals at the end of a fit is not modelled. :func:`unmodelled` lists it, and marks
the sources whose light overlaps with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from astrozoo.data.images import Field, Image
from astrozoo.survey.celeste.canvas import dispersion
from astrozoo.survey.celeste.modes import Modes
from astrozoo.survey.celeste.pairs import PAIR_REACH, may_be_pairs
from astrozoo.survey.detect import detect

__all__ = ["companions", "unmodelled"]

_LIGHT_ERROR = 0.2
"""Error of the modelled light, relative to it.

It is five times that of the PSF, so that residuals of an imperfect PSF are not detected as sources."""
_SNR = 5.0
"""Signal to noise of a pixel, above which a residual may be a companion."""
_MIN_DISTANCE = 1.5
"""Smallest distance of a companion from a known source [px]: about the radius of the PSF's core."""
_RINGS = np.array([0.0, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0])
"""Radii between which residuals of stars are compared [px]: a PSF's structure is about as wide as these."""
_MIN_PEAK_SNR = 20.0
"""Signal to noise of the brightest pixel of a star that shows errors of the PSF."""
_MOST_STARS = 300
"""Largest number of stars, the brightest first, whose surroundings are searched with the PSF's error.

Fainter ones add little to it, and each takes a millisecond per image."""
_COHERENCE = 3.0
"""Ratio of the noise of a PSF's residuals, as detection filters them, to their typical size in a pixel.

Neighbouring pixels have residuals of the same sign, which a filter does not average out."""
_NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a standard normal."""
_OVERLAP = 0.3
"""Light of a source at the place of a residual above which the source is marked [sigma of a pixel's noise].

It is the light at which a patch ends: what lies farther out does not enter the source's fit."""


def companions(job: Modes) -> Table:
    """Sources that are detected in the residuals; rows like those of detection."""
    table, xy = _in_residuals(job)
    if not len(table):
        return table
    known = job.sources.xy[0]
    distance = cKDTree(known).query(xy)[0] if len(known) else np.full(len(table), np.inf)
    keep = (distance > _MIN_DISTANCE) & ~_in_unsettled_patches(job, xy) & ~_in_pairs(job, xy)
    for flag in ("saturated", "edge"):
        keep &= ~np.asarray(table[flag], bool)
    table["blended"] = True
    return table[keep]


def unmodelled(job: Modes) -> tuple[Table, Bool[np.ndarray, "s"]]:
    """What the residuals of a fit contain that no source explains.

    Returns:
        a row per detection in the residuals, like those of :func:`astrozoo.survey.detect.detect`; and True
        for each source that has light in the pixel of such a detection.
    """
    table, _ = _in_residuals(job)
    marked = np.zeros(len(job.sources), bool)
    for ra_dec in zip(table["ra"], table["dec"], strict=True):
        marked |= _shines_at(job, *ra_dec)
    return table, marked


def _in_residuals(job: Modes) -> tuple[Table, Float[np.ndarray, "n 2"]]:
    """Detections in the scaled residuals, and their places in the first image [px]."""
    left = tuple(_scaled(job, k) for k in range(len(job.images.images)))
    table = detect(Field(left, job.images.name), threshold=_SNR)
    return table, np.stack(job.images.images[0].wcs.all_world2pix(table["ra"], table["dec"], 0), -1)


def _shines_at(job: Modes, ra: float, dec: float) -> Bool[np.ndarray, "s"]:
    """Which sources have light at a position, in any image."""
    out = np.zeros(len(job.sources), bool)
    for k, image in enumerate(job.images):
        x, y = (float(value) for value in image.wcs.all_world2pix(ra, dec, 0))
        offset = np.rint(np.array((x, y)) - np.rint(job.sources.xy[k])).astype(int)
        for row in np.flatnonzero((np.abs(offset) <= job.sources.half[:, None]).all(1) & ~out):
            at, around = np.array([row]), torch.from_numpy(offset[row])[:, None]
            light = job.light_at(job.canvas.around(at, around), at)
            out[row] = bool(light[0, k, 0] > _OVERLAP * job.canvas.sky[k].median().sqrt())
    return out


def _scaled(job: Modes, k: int) -> Image:
    """An image whose residuals are divided by the errors of the model."""
    image, canvas = job.images.images[k], job.canvas
    sky = canvas.sky[k]
    expected = sky + canvas.model[k]
    model = canvas.unpadded(expected, k)
    residual = np.where(image.valid, image.counts - model, 0.0)
    excess = canvas.unpadded(dispersion(expected, sky, _LIGHT_ERROR), k)
    scale = np.sqrt(excess + _psf_variance(job, k, residual, model) / model)
    return replace(image, counts=model + residual / scale, sky=model)


def _psf_variance(
    job: Modes, k: int, residual: Float[np.ndarray, "y x"], model: Float[np.ndarray, "y x"]
) -> Float[np.ndarray, "y x"]:
    """The variance of an image's residuals that errors of the PSF add around bright stars.

    In each ring of pixels, the squared residuals of bright stars are proportional to their squared fluxes.
    The median of a ring measures them, so that a companion in a part of it does not count.
    """
    variance, state, image = np.zeros_like(model), job.state, job.images.images[k]
    star = (state.evidence["star"] > state.evidence["galaxy"]).numpy()
    peak = np.array([0.0 if light is None else float(light[k].max()) for light in state.light])
    xy, reach = job.sources.xy[k], int(_RINGS[-1])
    near = ((xy > -reach) & (xy < np.array(image.shape[::-1]) + reach - 1)).all(1)  # not on this image at all
    bright = np.flatnonzero(near & star & (peak > _MIN_PEAK_SNR * np.sqrt(np.median(image.sky))))
    bright = bright[np.argsort(-peak[bright])][:_MOST_STARS]
    boxes = [_box(job.sources.xy[k, row], image.shape) for row in bright]
    n = len(_RINGS) - 1
    above, weight = np.zeros(n), np.zeros(n)
    for row, (box, ring) in zip(bright, boxes, strict=True):
        seen = image.valid[box] & (ring < n)
        for j in np.unique(ring[seen]):
            pixels = seen & (ring == j)
            spread = np.median(np.abs(residual[box][pixels])) / _NORMAL_MEDIAN
            above[j] += peak[row] ** 2 * (spread**2 - np.median(model[box][pixels]))
            weight[j] += peak[row] ** 4
    error = np.append(np.divide(above, weight, out=np.zeros(n), where=weight > 0).clip(min=0), 0.0)
    for row, (box, ring) in zip(bright, boxes, strict=True):
        variance[box] += _COHERENCE**2 * peak[row] ** 2 * error[ring]
    return variance


def _box(
    xy: Float[np.ndarray, "2"], shape: tuple[int, int]
) -> tuple[tuple[slice, slice], Int[np.ndarray, "y x"]]:
    """The pixels around a star, and the number of the ring of each; ``len(_RINGS) - 1`` is outside."""
    reach = int(_RINGS[-1])
    low = np.clip(np.rint(xy).astype(int) - reach, 0, None)
    high = np.clip(np.rint(xy).astype(int) + reach + 1, 0, shape[::-1])
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    ring = np.searchsorted(_RINGS, np.hypot(x - xy[0], y - xy[1]), side="right") - 1
    return (slice(low[1], high[1]), slice(low[0], high[0])), ring


def _in_unsettled_patches(job: Modes, xy: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
    """Whether positions lie in the patch of a source that has not been fitted as it now is."""
    inside = np.zeros(len(xy), bool)
    for row in np.flatnonzero(job.state.unsettled):
        inside |= (np.abs(xy - job.sources.xy[0, row]) <= job.sources.half[row]).all(1)
    return inside


def _in_pairs(job: Modes, xy: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
    """Whether positions are near a source that has yet to be examined as two stars.

    A pair that is fitted as one galaxy leaves a residual at each of its stars.
    """
    pairs = may_be_pairs(job)
    if not pairs.any():
        return np.zeros(len(xy), bool)
    return cKDTree(job.sources.xy[0, pairs]).query(xy)[0] < PAIR_REACH
