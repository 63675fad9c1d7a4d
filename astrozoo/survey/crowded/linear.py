"""Fluxes of sources at known positions, and the plane of the sky: one non-negative linear problem per band.

All sources are solved for together, so that no source takes its neighbours' light.

References:
    Portugal, Judice & Vicente 1994, Math. Comp. 63, 625; Kim & Park 2011, SIAM J. Sci. Comput. 33, 3261
    (block principal pivoting).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import splu

from astrozoo.errors import InferenceError, InputError
from astrozoo.survey.crowded.scene import Scene
from astrozoo.survey.crowded.stamps import Stamps, close_pairs, make_stamps, reaches

__all__ = ["nonnegative_fluxes", "nonnegative_least_squares", "plane_basis", "solve_fluxes", "variances"]

_REWEIGHTINGS = 3
"""Solutions with variances from the fluxes of the one before: the third differs from the second by 1e-3."""
_RIDGE = 1e-9
"""Added to the diagonal, relative to it. Two sources at one position have a singular matrix without it."""
_FULL_EXCHANGES = 3
"""Exchanges of all infeasible variables that may fail to lower their number, before single exchanges."""
_MAX_PIVOTS = 1000
"""Limit of exchanges. Blends of thousands of stars need about ten."""


def nonnegative_fluxes(
    scene: Scene, xy: Float[np.ndarray, "s 2"], shape: Float[np.ndarray, "s 3"] | None = None
) -> Float[np.ndarray, "s band"]:
    """Fluxes that fit a scene best at given positions, none negative.

    Args:
        scene: the images. A plane is added to the sky of each.
        xy: positions [px of the reference image].
        shape: half-light radii and ellipticities (:class:`astrozoo.survey.crowded.scene.Sources`); all stars
            by default.

    Returns:
        [nMgy], one column per distinct band.

    Raises:
        InputError: a position is not finite, or the shapes do not match the positions.
    """
    xy = np.asarray(xy, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise InputError("positions of sources", f"shape {xy.shape}", "finite numbers, [s, 2]")
    flux = np.zeros((len(xy), len(scene.bands)))
    variance = [np.maximum(counts, sky) for counts, sky in zip(scene.counts, scene.sky, strict=True)]
    stamps = make_stamps(scene, xy, reaches(scene, flux), shape)
    for _ in range(_REWEIGHTINGS):
        flux, planes = solve_fluxes(scene, stamps, close_pairs(xy, 0.0, stamps.reach), variance)
        stamps = make_stamps(scene, xy, reaches(scene, flux), shape)
        light = [stamps.light(k, flux[:, column]) for k, column in enumerate(scene.column)]
        sky = [
            scene.sky[k] + np.tensordot(planes[k], plane_basis(light[k].shape), 1) for k in range(len(light))
        ]
        variance = variances(scene, sky, light)
    return flux


def variances(
    scene: Scene, sky: Sequence[np.ndarray], light: Sequence[np.ndarray]
) -> list[Float[np.ndarray, "y x"]]:
    """Variance of each pixel: the expected counts, and the PSF's error times the light of all sources.

    Args:
        scene: has the sky without the plane, a tenth of which is the least variance.
        sky: expected without sources [electrons].
        light: of all sources [electrons].
    """
    return [
        np.maximum(sky[k] + light[k], 0.1 * scene.sky[k]) + (scene.psf_error[k] * light[k]) ** 2
        for k in range(len(scene.band))
    ]


def plane_basis(shape: tuple[int, ...]) -> Float[np.ndarray, "3 y x"]:
    """One, and the column and row scaled to the range from -1 to 1: a plane is a sum of the three."""
    rows, columns = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in shape)
    x, y = np.meshgrid(columns, rows)
    return np.stack([np.ones(shape), x, y])


def solve_fluxes(
    scene: Scene,
    stamps: Stamps,
    pairs: Int[np.ndarray, "p 2"],
    variance: Sequence[Float[np.ndarray, "y x"]],
    far: Sequence[np.ndarray] | None = None,
) -> tuple[Float[np.ndarray, "s band"], Float[np.ndarray, "k 3"]]:
    """The non-negative fluxes [nMgy] and the planes of the sky [electrons] for given variances.

    Args:
        scene: the images.
        stamps: of the sources.
        pairs: all pairs of sources whose stamps overlap (:func:`close_pairs`).
        variance: of each pixel [electrons^2].
        far: light beyond the stamps, added to the sky [electrons].
    """
    count = len(stamps)
    flux, planes = np.zeros((count, len(scene.bands))), np.zeros((len(scene.band), 3))
    far = [np.zeros_like(sky) for sky in scene.sky] if far is None else far
    for band in range(len(scene.bands)):
        images = [k for k, column in enumerate(scene.column) if column == band]
        matrix, right = _normal_equations(scene, stamps, pairs, variance, far, images)
        is_plane = np.arange(len(right)) >= count
        # a source outside every image has no pixels and keeps a flux of zero
        used = np.flatnonzero(matrix.diagonal() > 0)
        solution = np.zeros(len(right))
        solution[used] = nonnegative_least_squares(matrix[used][:, used], right[used], is_plane[used])
        flux[:, band] = solution[:count]
        planes[images] = solution[count:].reshape(-1, 3)
    return flux, planes


def _normal_equations(
    scene: Scene,
    stamps: Stamps,
    pairs: Int[np.ndarray, "p 2"],
    variance: Sequence[np.ndarray],
    far: Sequence[np.ndarray],
    images: Sequence[int],
) -> tuple[csc_array, Float[np.ndarray, "n"]]:
    """Matrix and right side of one band: the fluxes of all sources, then three numbers per image's plane."""
    count = len(stamps)
    source = np.repeat(np.arange(count), 3)
    right = np.zeros(count + 3 * len(images))
    overlap = np.zeros(len(pairs))
    entries = []  # (rows, columns, values)
    for n, k in enumerate(images):
        weight = scene.valid[k] / variance[k]
        residual = weight * np.where(scene.valid[k], scene.counts[k] - scene.sky[k] - far[k], 0.0)
        basis = plane_basis(weight.shape)
        plane = count + 3 * n + np.arange(3)
        overlap += stamps.products(k, weight, pairs)[:, 0, 0]
        right[:count] += stamps.project(k, residual)[:, 0]
        right[plane] = np.tensordot(basis, residual, 2)
        mixed = np.stack([stamps.project(k, weight * part)[:, 0] for part in basis], axis=1).ravel()
        square = np.tensordot(weight * basis, basis, ((1, 2), (1, 2))).ravel()
        entries.append((source, np.tile(plane, count), mixed))
        entries.append((np.tile(plane, count), source, mixed))
        entries.append((np.repeat(plane, 3), np.tile(plane, 3), square))
    first, second = pairs.T
    apart = first != second
    entries.append((first, second, overlap))
    entries.append((second[apart], first[apart], overlap[apart]))
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    return coo_array((values, (rows, columns)), shape=(len(right), len(right))).tocsc(), right


def nonnegative_least_squares(
    matrix: csc_array, right: Float[np.ndarray, "n"], free: np.ndarray | None = None
) -> Float[np.ndarray, "n"]:
    """The minimum of ``x.A.x / 2 - b.x`` over ``x >= 0``, for a sparse positive definite matrix.

    Args:
        matrix: A, the normal matrix of a least-squares problem.
        right: b.
        free: True for variables that may be negative.

    Raises:
        InferenceError: the exchanges do not end. Rounding makes that possible for a singular matrix.
    """
    free = np.zeros(len(right), bool) if free is None else free
    scale = 1 / np.sqrt(matrix.diagonal())
    scaling = diags_array(scale)
    matrix = (scaling @ matrix @ scaling + _RIDGE * diags_array(np.ones(len(right)))).tocsc()
    right = scale * right
    tolerance = 1e-10 * max(1e-300, float(np.abs(right).max(initial=0)))
    passive = np.ones(len(right), bool)
    fewest, left = len(right) + 1, _FULL_EXCHANGES
    for _ in range(_MAX_PIVOTS):
        solution = np.zeros(len(right))
        block = matrix[passive][:, passive].tocsc()
        if block.shape[0]:
            factors = splu(
                block, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
            )
            solution[passive] = factors.solve(right[passive])
        slope = matrix @ solution - right
        wrong = ~free & np.where(passive, solution < -tolerance, slope < -tolerance)
        if not wrong.any():
            return scale * np.where(free, solution, np.maximum(solution, 0))
        if wrong.sum() < fewest:
            fewest, left = int(wrong.sum()), _FULL_EXCHANGES
        elif left > 0:
            left -= 1
        else:
            wrong[: np.flatnonzero(wrong)[-1]] = False
        passive ^= wrong
    raise InferenceError(
        f"fluxes: {_MAX_PIVOTS} exchanges of variables did not reach a non-negative solution"
    )
