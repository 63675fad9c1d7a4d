"""Pixel arithmetic of the sampler: stamps of sources, and sums over them. Compiled.

All images of a chain are one flat array, each padded so that no stamp reaches beyond it. Residuals are in
nanomaggies per pixel, weights are inverse variances in these units, and zero where a pixel is not used. Then
the light of a source in a pixel is its flux times its stamp.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

__all__ = ["Canvas", "add", "overlap", "render", "sums"]


class Canvas(NamedTuple):
    """What the pixels of all images have in common between chains.

    Args:
        tables: PSF (shape 0) and galaxies seen through it, by sub-pixel phase: cell ``[s, k, p, q]`` is a
            stamp of ``rows * columns`` pixels (:func:`astrozoo.survey.crowded.tables.phase_tables`).
        weight: inverse variance [nMgy^-2] of every padded pixel.
        start: of each image in the flat arrays.
        stride: columns of each padded image.
        origin: (x, y) of each image's first pixel in its padded array [px].
        affine: maps (x, y, 1) of the reference image to (x, y) of each image.
        column: of the band of each image in the fluxes.
        rows: of a stamp; odd.
        columns: of a stamp, with zeros at the end to a multiple of four.
        oversampling: phases per pixel; odd.
    """

    tables: Float[np.ndarray, "shape k phase phase pixel"]
    weight: Float[np.ndarray, "flat"]
    start: Int[np.ndarray, "k"]
    stride: Int[np.ndarray, "k"]
    origin: Int[np.ndarray, "k 2"]
    affine: Float[np.ndarray, "k 2 3"]
    column: Int[np.ndarray, "k"]
    rows: int
    columns: int
    oversampling: int


@njit(nogil=True)
def _cubic(t):  # type: ignore[no-untyped-def]
    """Weights of the four cells around a point (Keys 1981, a = -1/2)."""
    return (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


@njit(nogil=True, fastmath=True)
def render(canvas, shape, x, y, stamps, corner):  # type: ignore[no-untyped-def]
    """Fill ``stamps[k]`` with the images of a unit source at (x, y), ``corner[k]`` with their first pixel."""
    o = canvas.oversampling
    half = canvas.rows // 2
    pixels = canvas.rows * canvas.columns
    for k in range(len(canvas.start)):
        a = canvas.affine[k]
        u = a[0, 0] * x + a[0, 1] * y + a[0, 2]
        v = a[1, 0] * x + a[1, 1] * y + a[1, 2]
        column, row = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
        corner[k, 0] = row - half + canvas.origin[k, 1]
        corner[k, 1] = column - half + canvas.origin[k, 0]
        place_x, place_y = (column - u) * o, (row - v) * o
        cell_x, cell_y = int(np.floor(place_x)), int(np.floor(place_y))
        wx, wy = _cubic(place_x - cell_x), _cubic(place_y - cell_y)
        phase_x, phase_y = cell_x + o // 2 + 1, cell_y + o // 2 + 1
        stamp = stamps[k]
        stamp[:] = 0.0
        for i in range(4):
            table = canvas.tables[shape, k, phase_y + i]
            t0, t1, t2, t3 = table[phase_x], table[phase_x + 1], table[phase_x + 2], table[phase_x + 3]
            w0, w1, w2, w3 = wy[i] * wx[0], wy[i] * wx[1], wy[i] * wx[2], wy[i] * wx[3]
            for p in range(pixels):
                stamp[p] += w0 * t0[p] + w1 * t1[p] + w2 * t2[p] + w3 * t3[p]


@njit(nogil=True, fastmath=True)
def add(canvas, residual, stamps, corner, flux, sign):  # type: ignore[no-untyped-def]
    """Add ``sign`` times the light of a source to the residual."""
    for k in range(len(canvas.start)):
        amplitude = sign * flux[canvas.column[k]]
        stamp = stamps[k]
        for i in range(canvas.rows):
            first = canvas.start[k] + (corner[k, 0] + i) * canvas.stride[k] + corner[k, 1]
            for j in range(canvas.columns):
                residual[first + j] += amplitude * stamp[i * canvas.columns + j]


@njit(nogil=True, fastmath=True)
def sums(canvas, residual, stamps, corner, precision, score):  # type: ignore[no-untyped-def]
    """Per band, the weighted square of a stamp, and its weighted product with the residual."""
    precision[:] = 0.0
    score[:] = 0.0
    for k in range(len(canvas.start)):
        stamp = stamps[k]
        a, g = 0.0, 0.0
        for i in range(canvas.rows):
            first = canvas.start[k] + (corner[k, 0] + i) * canvas.stride[k] + corner[k, 1]
            for j in range(canvas.columns):
                s = stamp[i * canvas.columns + j]
                ws = canvas.weight[first + j] * s
                a += ws * s
                g += ws * residual[first + j]
        precision[canvas.column[k]] += a
        score[canvas.column[k]] += g


@njit(nogil=True, fastmath=True)
def overlap(canvas, stamps, corner, others, other_corner, cross):  # type: ignore[no-untyped-def]
    """Per band, the weighted product of two stamps."""
    cross[:] = 0.0
    for k in range(len(canvas.start)):
        down = other_corner[k, 0] - corner[k, 0]
        right = other_corner[k, 1] - corner[k, 1]
        total = 0.0
        for i in range(max(0, down), min(canvas.rows, canvas.rows + down)):
            first = canvas.start[k] + (corner[k, 0] + i) * canvas.stride[k] + corner[k, 1]
            for j in range(max(0, right), min(canvas.columns, canvas.columns + right)):
                other = others[k, (i - down) * canvas.columns + j - right]
                total += canvas.weight[first + j] * stamps[k, i * canvas.columns + j] * other
        cross[canvas.column[k]] += total
