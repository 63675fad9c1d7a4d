"""A field cut into patches: where sources fall in each image, which pixels are theirs, who overlaps whom.

Active pixels are chosen by geometry (a square that grows with the source's extent on the sky), never by
brightness, which would bias sizes and fluxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from astrozoo.data.images import Field, Image
from astrozoo.errors import InputError

__all__ = [
    "HALF_SIZES",
    "LARGE_HALF_SIZES",
    "NEGLIGIBLE_LIGHT",
    "Sources",
    "colouring",
    "half_sizes",
    "neighbours",
    "reach",
]

HALF_SIZES = (8, 12, 18, 27, 40)
"""Half sizes of patches [px]: few, so that sources of many sizes go through in few batches."""
LARGE_HALF_SIZES = (67, 112, 202)
"""Half sizes of patches whose outer pixels are combined (:mod:`astrozoo.survey.celeste.cells`) [px].

The largest contains a de Vaucouleurs galaxy of r = 14 and a half-light radius of 15 arcsec down to a
twentieth of the noise of a pixel of SDSS."""
NEGLIGIBLE_LIGHT = 0.3
"""A patch ends where its source is fainter than this in every image [sigma of a pixel's noise].

Large patches go on farther (:mod:`astrozoo.survey.celeste.growth`)."""
_WCS_STEP = 1.0
"""Step for the derivatives of a WCS [arcsec]: a few pixels, over which SDSS's distortion is linear."""


@dataclass(frozen=True)
class Sources:
    """Where sources fall in each image.

    Args:
        ra, dec: reference positions [deg].
        xy: pixel coordinates in each image.
        jacobian: d(x, y) [px] / d(east, north) [arcsec] there.
        calibration: electrons per nanomaggy there.
        half: half size of each patch [px].
        psf_weights, psf_means, psf_covariances: each source's PSF in each image.
    """

    ra: Float[np.ndarray, "s"]
    dec: Float[np.ndarray, "s"]
    xy: Float[np.ndarray, "image s 2"]
    jacobian: Float[np.ndarray, "image s 2 2"]
    calibration: Float[np.ndarray, "image s"]
    half: Int[np.ndarray, "s"]
    psf_weights: Float[np.ndarray, "image s k"]
    psf_means: Float[np.ndarray, "image s k 2"]
    psf_covariances: Float[np.ndarray, "image s k 3"]

    def __len__(self) -> int:
        return len(self.ra)

    def batches(self, rows: Int[np.ndarray, "n"], most: int) -> Iterator[Int[np.ndarray, "b"]]:
        """The rows, ``most`` at a time (fewer of large patches), each time of one patch size."""
        for half in np.unique(self.half[rows]):
            of_size = rows[self.half[rows] == half]
            size = max(1, int(most * min(1.0, (HALF_SIZES[-1] / half) ** 2)))
            yield from (of_size[i : i + size] for i in range(0, len(of_size), size))

    @classmethod
    def locate(cls, field: Field, ra: np.ndarray, dec: np.ndarray, half: Int[np.ndarray, "s"]) -> Sources:
        """Project positions into every image of a field.

        Raises:
            InputError: if a position is not finite or lies in none of the images.
        """
        bad = ~(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90))
        if bad.any():
            raise InputError(
                "catalogue", f"{int(bad.sum())} positions that are no sky coordinates", "ra, dec [deg]"
            )
        projected = [_project(image, ra, dec) for image in field]
        inside = np.zeros(len(ra), bool)
        for image, (xy, _) in zip(field, projected, strict=True):
            ny, nx = image.shape
            inside |= (xy[:, 0] > -1) & (xy[:, 0] < nx) & (xy[:, 1] > -1) & (xy[:, 1] < ny)
        if not inside.all():
            raise InputError(
                "catalogue",
                f"{int((~inside).sum())} of {len(ra)} sources in no image",
                "sources on the field",
            )
        psf = [_mixtures(image, xy) for image, (xy, _) in zip(field, projected, strict=True)]
        most = max(w.shape[1] for w, _, _ in psf)
        calibration = [_at(image.calibration, xy) for image, (xy, _) in zip(field, projected, strict=True)]
        return cls(
            ra,
            dec,
            np.stack([xy for xy, _ in projected]),
            np.stack([j for _, j in projected]),
            np.stack(calibration),
            half,
            np.stack([_pad(w, most) for w, _, _ in psf]),
            np.stack([_pad(m, most) for _, m, _ in psf]),
            np.stack([_pad(c, most, (1.0, 0.0, 1.0)) for _, _, c in psf]),
        )


def half_sizes(extent: Float[np.ndarray, "s"], *, factor: float = 4.0) -> Int[np.ndarray, "s"]:
    """The patch size for sources of an rms extent as seen [px]: the smallest that holds ``factor`` of it."""
    ladder = np.array(HALF_SIZES)
    rung = np.searchsorted(ladder, np.nan_to_num(factor * extent), side="left")
    return ladder[np.minimum(rung, len(ladder) - 1)]


def reach(
    sources: Sources, electrons: Float[np.ndarray, "image s"], noise: Float[np.ndarray, "image"]
) -> Int[np.ndarray, "s"]:
    """The patch size beyond which a point source is negligible (``NEGLIGIBLE_LIGHT``) in every image.

    Args:
        electrons: of each source in each image; NaN where not known.
        noise: standard deviation of empty pixels [electrons].
    """
    xx, xy, yy = np.moveaxis(sources.psf_covariances, -1, 0)
    area = np.sqrt(xx * yy - xy**2)  # [image, s, k]
    half = np.full(len(sources), HALF_SIZES[-1])
    for h in reversed(HALF_SIZES):
        profile = (sources.psf_weights * np.exp(-(h**2) / (2 * area)) / (2 * np.pi * area)).sum(-1)
        seen = np.nan_to_num(electrons * profile) > NEGLIGIBLE_LIGHT * noise[:, None]
        half[~seen.any(0)] = h
    return half


def neighbours(sources: Sources) -> list[Int[np.ndarray, "n"]]:
    """For each source, those whose light may fall in its patch: their squares overlap in some image."""
    half, n = sources.half, len(sources)
    pairs = []
    for xy in sources.xy:
        near = cKDTree(xy).query_pairs(
            2.0 * float(half.max(initial=0)) + 2.0, p=np.inf, output_type="ndarray"
        )
        i, j = near.T
        pairs.append(near[np.abs(xy[i] - xy[j]).max(1) <= half[i] + half[j] + 2])
    each_once = np.unique(np.concatenate(pairs), axis=0)
    both = np.concatenate((each_once, each_once[:, ::-1]))
    both = both[np.lexsort(both.T[::-1])]
    return np.split(both[:, 1].astype(int), np.searchsorted(both[:, 0], np.arange(1, n))) if n else []


def colouring(adjacent: list[Int[np.ndarray, "n"]]) -> Int[np.ndarray, "s"]:
    """Greedy colouring, most neighbours first: sources of one colour do not overlap."""
    colour = np.full(len(adjacent), -1)
    for i in sorted(range(len(adjacent)), key=lambda i: -len(adjacent[i])):
        taken = set(colour[adjacent[i]])
        colour[i] = next(c for c in range(len(adjacent) + 1) if c not in taken)
    return colour


def _project(image: Image, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    step = _WCS_STEP / 3600
    here = np.stack(image.wcs.all_world2pix(ra, dec, 0), -1)
    east = np.stack(image.wcs.all_world2pix(ra + step / np.cos(np.deg2rad(dec)), dec, 0), -1)
    north = np.stack(image.wcs.all_world2pix(ra, dec + step, 0), -1)
    return here, np.stack((east - here, north - here), -1) / _WCS_STEP


def _mixtures(image: Image, xy: Float[np.ndarray, "s 2"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ny, nx = image.shape
    mixtures = [image.psf.mixture(float(np.clip(x, 0, nx - 1)), float(np.clip(y, 0, ny - 1))) for x, y in xy]
    most = max((len(m.weights) for m in mixtures), default=1)
    weights, means, covariances = (
        np.zeros((len(xy), most)),
        np.zeros((len(xy), most, 2)),
        np.zeros((len(xy), most, 3)),
    )
    covariances[..., [0, 2]] = 1.0
    for i, m in enumerate(mixtures):
        k = len(m.weights)
        weights[i, :k], means[i, :k] = m.weights, m.means
        covariances[i, :k] = m.covariances[:, (0, 0, 1), (0, 1, 1)]
    return weights, means, covariances


def _pad(array: np.ndarray, components: int, fill: tuple[float, ...] | float = 0.0) -> np.ndarray:
    missing = components - array.shape[1]
    if not missing:
        return array
    extra = np.broadcast_to(np.asarray(fill), (len(array), missing, *array.shape[2:]))
    return np.concatenate((array, extra), 1)


def _at(array: Float[np.ndarray, "y x"], xy: Float[np.ndarray, "s 2"]) -> Float[np.ndarray, "s"]:
    ny, nx = array.shape
    x, y = (np.clip(np.rint(xy[:, k]), 0, n - 1).astype(int) for k, n in ((0, nx), (1, ny)))
    return array[y, x]
