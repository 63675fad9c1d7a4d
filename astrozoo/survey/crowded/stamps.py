"""Images of unit stars and their derivatives, and linear algebra on them: sums, projections, products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.spatial import cKDTree

from astrozoo.survey.crowded.scene import Scene, galaxy_gaussians, stamp_of_table, star_stamp

__all__ = ["Stamps", "close_pairs", "cross_products", "make_stamps", "reaches"]

_FAINTEST_LIGHT = 0.02
"""[sigma of the sky's noise] A star's stamp ends where its light in a pixel falls below this."""
_MIN_REACH = 6
"""[px] Least reach of a stamp: some four times the sigma of a ground-based PSF."""
_GALAXY_REACH = 4.0
"""[half-light radius] Added to the reach of a galaxy: 99.7 % of an exponential disc lies within."""


@dataclass(frozen=True)
class Stamps:
    """Images of stars of 1 nMgy in each image of a scene, in electrons, and derivatives by their position.

    Each star has a box of pixels per image. Its stamps are stored one after another.

    Args:
        box: (y0, y1, x0, x1) of each star's pixels; empty (all zero) if it lies outside the image.
        start: index of each star's first pixel in ``values``.
        values: per image, rows: the star's image, d/dx and d/dy by the position in the reference image.
        shape: (rows, columns) of each image.
        reach: half the side of each star's box [px].
    """

    box: Int[np.ndarray, "k s 4"]
    start: Int[np.ndarray, "k s+1"]
    values: tuple[Float[np.ndarray, "3 p"], ...]
    shape: tuple[tuple[int, int], ...]
    reach: Int[np.ndarray, "s"]

    def __len__(self) -> int:
        return self.box.shape[1]

    def image(self, k: int, coefficients: Float[np.ndarray, "s 3"]) -> Float[np.ndarray, "y x"]:
        """The sum over stars of stamp, d/dx and d/dy, each times its coefficient."""
        out = np.zeros(self.shape[k])
        _forward(self.values[k], self.start[k], self.box[k], np.ascontiguousarray(coefficients), out)
        return out

    def light(self, k: int, flux: Float[np.ndarray, "s"]) -> Float[np.ndarray, "y x"]:
        """The light of all stars in image k [electrons]."""
        return self.image(k, np.column_stack([flux, np.zeros((len(flux), 2))]))

    def project(self, k: int, image: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "s 3"]:
        """The transpose of :meth:`image`: the sum over pixels of an image times each star's three stamps."""
        return _adjoint(self.values[k], self.start[k], self.box[k], np.ascontiguousarray(image))

    def products(
        self, k: int, weight: Float[np.ndarray, "y x"], pairs: Int[np.ndarray, "p 2"]
    ) -> Float[np.ndarray, "p 3 3"]:
        """For pairs of stars, the weighted sums over pixels of the products of their stamps."""
        return cross_products(self, self, k, weight, pairs)


def cross_products(
    first: Stamps, second: Stamps, k: int, weight: Float[np.ndarray, "y x"], pairs: Int[np.ndarray, "p 2"]
) -> Float[np.ndarray, "p 3 3"]:
    """For pairs of a star of ``first`` and one of ``second``, the weighted sums of their stamps' products."""
    return _products(
        first.values[k],
        first.start[k],
        first.box[k],
        second.values[k],
        second.start[k],
        second.box[k],
        np.ascontiguousarray(weight),
        np.ascontiguousarray(pairs),
    )


def make_stamps(
    scene: Scene,
    xy: Float[np.ndarray, "s 2"],
    reach: Int[np.ndarray, "s"],
    shape: Float[np.ndarray, "s 3"] | None = None,
) -> Stamps:
    """Stamps of sources at positions of the reference image, out to a distance ``reach`` [px] of each.

    Args:
        scene: the images.
        xy: positions.
        reach: of stars; a galaxy's box is wider by its size.
        shape: of galaxies, NaN for stars (:class:`astrozoo.survey.crowded.scene.Sources`); default all stars.
    """
    galaxy = np.zeros(len(xy), bool) if shape is None else ~np.isnan(shape[:, 0])
    reach = np.array(reach, dtype=np.int64)
    if shape is not None:
        reach[galaxy] += np.ceil(_GALAXY_REACH * shape[galaxy, 0]).astype(np.int64)
    boxes, starts, values = [], [], []
    for k in range(len(scene.band)):
        place = np.ascontiguousarray(scene.image_xy(k, xy))
        affine = np.ascontiguousarray(scene.affine[k, :, :2])
        box, start, value = _build(
            scene.psf[k], scene.oversampling, place, reach, galaxy, affine, scene.calibration[k]
        )
        if shape is not None:
            for s in np.flatnonzero(galaxy):
                gaussians = galaxy_gaussians(scene, k, shape[s])
                _fill_galaxy(value, start[s], box[s], place[s], *gaussians, affine, scene.calibration[k])
        boxes.append(box)
        starts.append(start)
        values.append(value)
    sides = tuple((counts.shape[0], counts.shape[1]) for counts in scene.counts)
    return Stamps(np.stack(boxes), np.stack(starts), tuple(values), sides, reach)


def reaches(scene: Scene, flux: Float[np.ndarray, "s band"]) -> Int[np.ndarray, "s"]:
    """Distance from each star beyond which its light is lost in the sky's noise, in every image [px]."""
    reach = np.full(len(flux), _MIN_REACH)
    for k, column in enumerate(scene.column):
        stamp = np.abs(stamp_of_table(scene.psf[k], scene.oversampling))
        middle = len(stamp) // 2
        distance = np.abs(np.arange(len(stamp)) - middle)
        rings = np.maximum.outer(distance, distance).ravel()
        brightest = np.zeros(middle + 1)
        np.maximum.at(brightest, rings, stamp.ravel())
        brightest = np.maximum.accumulate(brightest[::-1])[::-1]  # at or beyond a distance
        faint = _FAINTEST_LIGHT * np.sqrt(np.median(scene.sky[k])) / np.median(scene.calibration[k])
        lost = faint / np.maximum(flux[:, column], 1e-12)
        reach = np.maximum(reach, np.searchsorted(-brightest, -lost))
    return np.minimum(reach, min(len(table) for table in scene.psf) // (2 * scene.oversampling))


def close_pairs(
    xy: Float[np.ndarray, "s 2"], distance: float, reach: Int[np.ndarray, "s"] | None = None
) -> Int[np.ndarray, "p 2"]:
    """Pairs (i, j) with i <= j, each source with itself included, sorted.

    Two sources are a pair if they are closer than ``distance`` [px], or, where ``reach`` is given, if their
    squares of that half-side overlap.
    """
    itself = np.repeat(np.arange(len(xy))[:, None], 2, axis=1)
    if len(xy) < 2:
        return itself
    if reach is not None:
        distance = 2.0 * float(reach.max()) + 2
        pairs = cKDTree(xy).query_pairs(distance, p=np.inf, output_type="ndarray")
        apart = np.abs(xy[pairs[:, 0]] - xy[pairs[:, 1]]).max(axis=1)
        pairs = pairs[apart <= reach[pairs[:, 0]] + reach[pairs[:, 1]] + 2]
    else:
        pairs = cKDTree(xy).query_pairs(distance, output_type="ndarray")
    pairs = np.concatenate([itself, np.sort(pairs, axis=1)])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@njit(cache=True)
def _build(table, oversampling, xy, reach, galaxy, affine, calibration):  # type: ignore[no-untyped-def]
    """Boxes, starts and values of all stamps of one image."""
    count, shape = len(xy), calibration.shape
    largest = 0
    for s in range(count):
        largest = max(largest, reach[s])
    scratch = np.empty((3, 2 * largest + 2, 2 * largest + 2))
    box, start = np.zeros((count, 4), np.int64), np.zeros(count + 1, np.int64)
    capacity = 0
    for s in range(count):
        capacity += (2 * reach[s] + 1) ** 2
    values = np.empty((3, capacity))
    at = 0
    for s in range(count):
        if galaxy[s]:
            y0, y1 = max(0, int(xy[s, 1]) - reach[s]), min(shape[0], int(xy[s, 1]) + reach[s] + 1)
            x0, x1 = max(0, int(xy[s, 0]) - reach[s]), min(shape[1], int(xy[s, 0]) + reach[s] + 1)
            if y1 <= y0 or x1 <= x0:
                y0, y1, x0, x1 = 0, 0, 0, 0
            scratch[:, : y1 - y0, : x1 - x0] = 0.0
        else:
            y0, y1, x0, x1 = star_stamp(table, oversampling, xy[s, 0], xy[s, 1], reach[s], shape, scratch)
        box[s, 0], box[s, 1], box[s, 2], box[s, 3] = y0, y1, x0, x1
        start[s] = at
        for i in range(y1 - y0):
            for j in range(x1 - x0):
                scale = calibration[y0 + i, x0 + j]
                dx, dy = scratch[1, i, j], scratch[2, i, j]
                values[0, at] = scale * scratch[0, i, j]
                values[1, at] = scale * (dx * affine[0, 0] + dy * affine[1, 0])
                values[2, at] = scale * (dx * affine[0, 1] + dy * affine[1, 1])
                at += 1
    start[count] = at
    return box, start, values[:, :at].copy()


@njit(cache=True)
def _fill_galaxy(values, at, box, xy, amplitudes, covariances, means, affine, calibration):  # type: ignore[no-untyped-def]
    """Write the stamps of a galaxy: a sum of Gaussians, whose derivatives by position are exact."""
    for i in range(box[0], box[1]):
        for j in range(box[2], box[3]):
            value, dx, dy = 0.0, 0.0, 0.0
            for c in range(len(amplitudes)):
                xx, cross, yy = covariances[c, 0, 0], covariances[c, 0, 1], covariances[c, 1, 1]
                determinant = xx * yy - cross * cross
                x, y = j - xy[0] - means[c, 0], i - xy[1] - means[c, 1]
                u, v = (yy * x - cross * y) / determinant, (xx * y - cross * x) / determinant
                density = amplitudes[c] * np.exp(-0.5 * (x * u + y * v)) / (2 * np.pi * np.sqrt(determinant))
                value += density
                dx += density * u
                dy += density * v
            values[0, at] = calibration[i, j] * value
            values[1, at] = calibration[i, j] * (dx * affine[0, 0] + dy * affine[1, 0])
            values[2, at] = calibration[i, j] * (dx * affine[0, 1] + dy * affine[1, 1])
            at += 1


@njit(cache=True)
def _forward(values, start, box, coefficients, out):  # type: ignore[no-untyped-def]
    for s in range(len(box)):
        a, b, c = coefficients[s, 0], coefficients[s, 1], coefficients[s, 2]
        at = start[s]
        width = box[s, 3] - box[s, 2]
        for y in range(box[s, 0], box[s, 1]):
            for j in range(width):
                out[y, box[s, 2] + j] += a * values[0, at + j] + b * values[1, at + j] + c * values[2, at + j]
            at += width


@njit(cache=True)
def _adjoint(values, start, box, image):  # type: ignore[no-untyped-def]
    sums = np.zeros((len(box), 3))
    for s in range(len(box)):
        at = start[s]
        width = box[s, 3] - box[s, 2]
        a, b, c = 0.0, 0.0, 0.0
        for y in range(box[s, 0], box[s, 1]):
            for j in range(width):
                pixel = image[y, box[s, 2] + j]
                a += pixel * values[0, at + j]
                b += pixel * values[1, at + j]
                c += pixel * values[2, at + j]
            at += width
        sums[s, 0], sums[s, 1], sums[s, 2] = a, b, c
    return sums


@njit(cache=True)
def _products(values, start, box, values2, start2, box2, weight, pairs):  # type: ignore[no-untyped-def]
    sums = np.zeros((len(pairs), 3, 3))
    for p in range(len(pairs)):
        s, t = pairs[p, 0], pairs[p, 1]
        y0, y1 = max(box[s, 0], box2[t, 0]), min(box[s, 1], box2[t, 1])
        x0, x1 = max(box[s, 2], box2[t, 2]), min(box[s, 3], box2[t, 3])
        width, width2 = box[s, 3] - box[s, 2], box2[t, 3] - box2[t, 2]
        for y in range(y0, y1):
            at = start[s] + (y - box[s, 0]) * width - box[s, 2]
            at2 = start2[t] + (y - box2[t, 0]) * width2 - box2[t, 2]
            for x in range(x0, x1):
                w = weight[y, x]
                for a in range(3):
                    scaled = w * values[a, at + x]
                    for b in range(3):
                        sums[p, a, b] += scaled * values2[b, at2 + x]
    return sums
