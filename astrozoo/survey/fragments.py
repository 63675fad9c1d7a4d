"""Fragments of large sources: parts of a blend that do not stand out of the smooth light of a larger part.

SEP splits a blend wherever the light has two peaks. Across a large galaxy, noise makes many peaks, and the
low contrast that neighbours of bright stars need makes a source of each. Here the light of each large source
is described by its median on concentric ellipses. A part whose excess over this light is not significant is
joined to the large source that is brightest there. The noise of the excess has three parts: that of the sky,
that of the photons of the smooth light, and an error of the ellipses. A blend that is not constant on
ellipses keeps all its parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import convolve, label

__all__ = ["join_fragments"]

_MIN_SIZE = 2.0
"""Semi-major rms extent of a source, relative to the PSF's, above which its smooth light is described.

Smaller sources have no room for fragments beyond the width of the PSF."""
_MIN_EXCESS = 5.0
"""Signal to noise of the excess of a part over the smooth light, above which it is a source.

A galaxy covers thousands of pixels, of which noise alone lifts some above 4."""
_ELLIPSE_ERROR = 0.1
"""Error of the smooth light, relative to it: real galaxies change their axis ratio and angle with radius."""
_MIN_LIGHT = 1.0
"""Signal to noise of the smooth light, filtered by the PSF, above which parts of it may be fragments."""
_MAX_ROUGHNESS = 1.5
"""Median deviation from its ellipses, relative to the noise, below which a source is smooth.

That of noise is 0.7. Blends of many stars, as in a globular cluster, are not smooth."""
_GROWTH = 1.1
"""Ratio of the radii of successive ellipses, where these are more than a pixel apart."""
_REACH = 6.0
"""Radius of the largest ellipse [rms extents of the source]: 1e-3 of an exponential disc is beyond."""
_KERNEL = 4
"""Half size of the filter [px]: SDSS's PSF has nine tenths of its light in it."""

_DEBLENDED = 1
"""Bit of SEP's flag of an object that was a part of a blend."""


@dataclass(frozen=True)
class _Ellipses:
    """Light that is constant on ellipses, and falls outwards; zero beyond the last one."""

    x: float
    y: float
    box: tuple[slice, slice]
    axes: Float[np.ndarray, "2 2"]
    radius: Float[np.ndarray, "n"]
    light: Float[np.ndarray, "n"]

    def __call__(self, box: tuple[slice, slice]) -> Float[np.ndarray, "y x"]:
        return np.interp(_radius(box, self.x, self.y, self.axes), self.radius, self.light, right=0.0)

    def meets(self, box: tuple[slice, slice]) -> bool:
        return all(a.start < b.stop and b.start < a.stop for a, b in zip(self.box, box, strict=True))


def join_fragments(
    image: Float[np.ndarray, "y x"],
    photons: Float[np.ndarray, "y x"],
    objects: np.ndarray,
    segments: Int[np.ndarray, "y x"],
    psf: Float[np.ndarray, "n n"],
) -> tuple[np.ndarray, Int[np.ndarray, "y x"]]:
    """Join fragments to the sources that they are parts of.

    Args:
        image: light without the sky, in standard deviations of the noise of empty pixels; 0 without data.
        photons: the variance that the photons of a unit of light add to a pixel: that of ``image`` is
            ``1 + photons * image``.
        objects: SEP's objects.
        segments: SEP's segmentation map: for each pixel the number of its object, from 1, or 0.
        psf: the PSF, in the middle of an odd square.

    Returns:
        the objects that are no fragments, and their segmentation map.
    """
    owner = _owners(image, photons, objects, segments, psf)
    kept = np.flatnonzero(owner == np.arange(len(objects)))
    number = np.concatenate(([0], np.searchsorted(kept, owner) + 1)).astype(segments.dtype)
    blends, _ = label(segments > 0, np.ones((3, 3)))
    blend = blends[objects["ypeak"][kept], objects["xpeak"][kept]]
    whole = (np.bincount(blend)[blend] == 1) & (np.bincount(owner)[kept] > 1)
    out = objects[kept]
    out["flag"][whole] &= ~_DEBLENDED
    return out, number[segments]


def _owners(
    image: Float[np.ndarray, "y x"],
    photons: Float[np.ndarray, "y x"],
    objects: np.ndarray,
    segments: Int[np.ndarray, "y x"],
    psf: Float[np.ndarray, "n n"],
) -> Int[np.ndarray, "source"]:
    """For each object, brightest first, the one that it is a fragment of, or itself."""
    owner, smooth = np.arange(len(objects)), dict[int, _Ellipses]()
    kernel = psf[_around(len(psf) // 2, len(psf) // 2, _KERNEL, psf.shape)]
    large = objects["a"] > _MIN_SIZE * _extent(psf)
    for i in np.argsort(-objects["flux"]):
        box, source = _box(objects[i], image.shape), objects[i]
        light = {j: ellipses(box) for j, ellipses in smooth.items() if ellipses.meets(box)}
        if light:
            total = sum(light.values(), np.zeros(image[box].shape))
            smoothed = convolve(total, kernel, mode="nearest")
            noise = convolve(1 + photons[box] * total, kernel**2, mode="nearest")
            noise += (_ELLIPSE_ERROR * smoothed) ** 2
            excess = convolve(image[box] - total, kernel, mode="nearest") / np.sqrt(noise)
            own = segments[box] == i + 1
            covered = smoothed[own].mean() > _MIN_LIGHT * np.sqrt((kernel**2).sum())
            if covered and excess[own].max() < _MIN_EXCESS:
                owner[i] = max(light, key=lambda j: light[j][own].sum())
                continue
        if large[i]:
            ellipses = _ellipses(image, segments > 0, source, list(smooth.values()))
            if _roughness(image, photons, ellipses, list(smooth.values())) < _MAX_ROUGHNESS:
                smooth[int(i)] = ellipses
    return owner


def _roughness(
    image: Float[np.ndarray, "y x"],
    photons: Float[np.ndarray, "y x"],
    ellipses: _Ellipses,
    others: list[_Ellipses],
) -> float:
    """Median deviation of pixels from a source's ellipses, relative to the noise."""
    box = ellipses.box
    light = ellipses(box)
    total = light + sum((other(box) for other in others if other.meets(box)), np.zeros(light.shape))
    deviation = np.abs(image[box] - total) / np.sqrt(1 + photons[box] * total + (_ELLIPSE_ERROR * total) ** 2)
    bright = light > 1
    return float(np.median(deviation[bright])) if bright.any() else 0.0


def _ellipses(
    image: Float[np.ndarray, "y x"], seen: Bool[np.ndarray, "y x"], source: np.void, others: list[_Ellipses]
) -> _Ellipses:
    """The median light of a source on concentric ellipses, without that of others."""
    reach = int(_REACH * source["a"]) + 1
    x, y, box = float(source["x"]), float(source["y"]), _around(source["y"], source["x"], reach, image.shape)
    light = image[box] - sum((other(box) for other in others if other.meets(box)), np.zeros(image[box].shape))
    axes = _axes(np.where(seen[box], light, 0.0), round(y) - box[0].start, round(x) - box[1].start)
    radius = _radius(box, x, y, axes)
    edges = [0.0, 1.0]
    while edges[-1] < reach:
        edges.append(max(edges[-1] + 1.0, _GROWTH * edges[-1]))
    ring = np.searchsorted(edges, radius.ravel(), side="right") - 1
    order = np.argsort(ring, kind="stable")
    rings = np.split(light.ravel()[order], np.searchsorted(ring[order], np.arange(1, len(edges))))[:-1]
    filled = [k for k, pixels in enumerate(rings) if len(pixels)]
    medians = np.minimum.accumulate([np.median(rings[k]) for k in filled])
    middles = np.array([(edges[k] + edges[k + 1]) / 2 for k in filled])
    return _Ellipses(x, y, box, axes, middles, medians.clip(min=0.0))


def _axes(light: Float[np.ndarray, "y x"], y: int, x: int) -> Float[np.ndarray, "2 2"]:
    """The map from (dx, dy) to a circle that makes the second moments around a pixel round.

    A pixel counts as the fainter one of it and its opposite, so that neighbours do not count.
    """
    half = min(y, x, light.shape[0] - 1 - y, light.shape[1] - 1 - x)
    part = light[y - half : y + half + 1, x - half : x + half + 1]
    symmetric = np.minimum(part, part[::-1, ::-1]).clip(min=0.0)
    d = np.arange(-half, half + 1)
    xx, yy, xy = symmetric.sum(0) @ d**2, symmetric.sum(1) @ d**2, d @ symmetric @ d
    if not xx * yy > xy**2:  # a line, or no light
        return np.eye(2)
    (minor, major), vectors = np.linalg.eigh(np.array([[xx, xy], [xy, yy]]))
    return np.array([vectors[:, 1], vectors[:, 0] * np.sqrt(major / minor)])


def _radius(
    box: tuple[slice, slice], x: float, y: float, axes: Float[np.ndarray, "2 2"]
) -> Float[np.ndarray, "y x"]:
    """Semi-major axis of the ellipse through each pixel [px]."""
    dy, dx = np.ogrid[box[0], box[1]]
    return np.hypot(*(along * (dx - x) + across * (dy - y) for along, across in axes))


def _box(source: np.void, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The pixels of a source and those next to them that the filter needs."""
    (low_y, high_y), (low_x, high_x) = (
        (max(0, source[f"{c}min"] - _KERNEL), min(side, source[f"{c}max"] + _KERNEL + 1))
        for c, side in zip("yx", shape, strict=True)
    )
    return slice(low_y, high_y), slice(low_x, high_x)


def _around(y: float, x: float, half: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A square around the pixel next to a position, as far as it lies in an array."""
    rows, columns = (
        slice(max(0, round(at) - half), min(side, round(at) + half + 1))
        for at, side in zip((y, x), shape, strict=True)
    )
    return rows, columns


def _extent(psf: Float[np.ndarray, "n n"]) -> float:
    """Standard deviation of a Gaussian with the peak of the PSF [px]."""
    return float(np.sqrt(psf.sum() / (2 * np.pi * psf.max())))
