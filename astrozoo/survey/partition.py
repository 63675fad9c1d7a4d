"""A field cut into patches: where sources fall in each image, which pixels are theirs, who overlaps whom.

Active pixels are chosen by geometry (a square that grows with the source's extent on the sky), never by
brightness, which would bias sizes and fluxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from astrozoo.data.images import Field, Image
from astrozoo.errors import InputError
from astrozoo.models.celeste import Patch

__all__ = [
    "HALF_SIZES",
    "Canvas",
    "Sources",
    "colouring",
    "half_sizes",
    "least_radius",
    "neighbours",
    "reach",
]

HALF_SIZES = (8, 12, 18, 27, 40)
"""Half sizes of patches [px]: few, so that sources of many sizes go through in few batches."""
PSF_ERROR = 0.04
"""Error of a PSF model, relative to the light of a pixel: bright pixels weigh less than Poisson noise says.

SDSS eigen-images and their Gaussian mixtures miss the brightest stars of run 2583 by 3 to 5 per cent a pixel.
"""
_FAINT = 0.3
_CERTAIN = 20.0  # stars of r = 15 in run 2583 pass for galaxies of 0.1 arcsec, five times the scatter
_STEP = 1.0  # [arcsec] for derivatives of a WCS


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
        """The rows, ``most`` at a time, each time of one patch size."""
        for half in np.unique(self.half[rows]):
            of_size = rows[self.half[rows] == half]
            yield from (of_size[i : i + most] for i in range(0, len(of_size), most))

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


def least_radius(sources: Sources, scatter: float, error: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """Half-light radius [arcsec] below which errors of the PSF make galaxies of stars.

    An exponential disc of radius r widens the PSF (of the narrowest image, a Gaussian of equal peak) by about
    ``(r / sigma)^2`` of its area: as much as ``_CERTAIN`` times its error does, where a source is so bright
    that this is what limits it.

    Args:
        scatter: standard deviation of the PSF's relative area.
        error: that of each source's own measurement of it.
    """
    xx, xy, yy = np.moveaxis(sources.psf_covariances, -1, 0)
    area = 1 / (sources.psf_weights / np.sqrt(xx * yy - xy**2)).sum(-1)  # [image, s], px^2
    scale = np.abs(np.linalg.det(sources.jacobian))  # px^2 per arcsec^2
    share = scatter**2 / (scatter**2 + error**2)
    return np.sqrt(_CERTAIN * scatter * share * (area / scale).min(0, initial=np.inf))


def half_sizes(extent: Float[np.ndarray, "s"], *, factor: float = 4.0) -> Int[np.ndarray, "s"]:
    """The patch size for sources of an rms extent as seen [px]: the smallest that holds ``factor`` of it."""
    ladder = np.array(HALF_SIZES)
    rung = np.searchsorted(ladder, np.nan_to_num(factor * extent), side="left")
    return ladder[np.minimum(rung, len(ladder) - 1)]


def reach(
    sources: Sources, electrons: Float[np.ndarray, "image s"], noise: Float[np.ndarray, "image"]
) -> Int[np.ndarray, "s"]:
    """The patch size beyond which a point source is below ``_FAINT`` of a pixel's noise in every image.

    Args:
        electrons: of each source in each image; NaN where not known.
        noise: standard deviation of empty pixels [electrons].
    """
    xx, xy, yy = np.moveaxis(sources.psf_covariances, -1, 0)
    area = np.sqrt(xx * yy - xy**2)  # [image, s, k]
    half = np.full(len(sources), HALF_SIZES[-1])
    for h in reversed(HALF_SIZES):
        profile = (sources.psf_weights * np.exp(-(h**2) / (2 * area)) / (2 * np.pi * area)).sum(-1)
        seen = np.nan_to_num(electrons * profile) > _FAINT * noise[:, None]
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


class Canvas:
    """The pixels of all images, and the light of all sources painted so far.

    Images are padded with masked pixels, so that every patch is a full square. ``model`` is the expected
    electrons from sources, ``sky`` those from all else.
    """

    def __init__(self, field: Field, sources: Sources, bands: tuple[str, ...]) -> None:
        self.field, self.sources = field, sources
        self.pad = 2 * HALF_SIZES[-1] + 2
        self._band = [bands.index(image.band) for image in field]
        self.shape = [(i.shape[0] + 2 * self.pad, i.shape[1] + 2 * self.pad) for i in field]
        self.counts = [self._padded(i.counts, 0.0) for i in field]
        self.sky = [self._padded(i.sky, 1.0) for i in field]
        self.mask = [self._padded(i.valid, 0.0) for i in field]
        self.model = [torch.zeros_like(c) for c in self.counts]
        self._news = [torch.zeros_like(c) for c in self.counts]
        for k, image in enumerate(field):
            bad = (self.mask[k] > 0) & ~(
                torch.isfinite(self.counts[k]) & torch.isfinite(self.sky[k]) & (self.sky[k] > 0)
            )
            if bad.any():
                raise InputError(
                    f"image {image.name or image.band!r}",
                    f"{int(bad.sum())} valid pixels with counts or sky that are not finite, or sky <= 0",
                    "finite electrons and a positive sky, or a mask",
                )
            self.counts[k] = torch.nan_to_num(self.counts[k])
            usable = torch.isfinite(self.sky[k]) & (self.sky[k] > 0)
            self.sky[k] = torch.where(usable, self.sky[k], 1.0)
        self.weight = [m / dispersion(c, s) for m, c, s in zip(self.mask, self.counts, self.sky, strict=True)]

    def of(self, sources: Sources) -> Canvas:
        """The same pixels and the light painted on them, for other sources."""
        other = copy(self)
        other.sources = sources
        return other

    def _padded(self, array: np.ndarray, fill: float) -> Tensor:
        return torch.from_numpy(np.pad(array.astype(np.float64), self.pad, constant_values=fill)).flatten()

    def unpadded(self, flat: Tensor, image: int) -> Float[np.ndarray, "y x"]:
        """One image's array without its padding."""
        ny, nx = self.shape[image]
        return flat.reshape(ny, nx)[self.pad : ny - self.pad, self.pad : nx - self.pad].numpy().copy()

    def _squares(self, rows: Int[np.ndarray, "b"], image: int) -> tuple[Tensor, Tensor]:
        """The pixels in the middle of the patches, ``(x, y)``, and all others from there: [b, 2], [2, p]."""
        half = int(self.sources.half[rows[0]])
        grid = torch.arange(-half, half + 1)
        dy, dx = (g.flatten() for g in torch.meshgrid(grid, grid, indexing="ij"))
        ny, nx = self.shape[image]
        # a source may lie outside one of the images: its square is then moved to the padding, all masked
        most = torch.tensor([nx, ny]) - 2 * self.pad + half
        middle = torch.from_numpy(self.sources.xy[image, rows]).round().long().clamp(min=-half - 1)
        return middle.minimum(most), torch.stack((dx, dy))

    def _index(self, rows: Int[np.ndarray, "b"], image: int) -> Int[Tensor, "b p"]:
        """Flat indices of the patches' pixels."""
        return self._flat(*self._squares(rows, image), image)

    def _flat(self, middle: Tensor, around: Tensor, image: int) -> Int[Tensor, "b p"]:
        place = torch.tensor([1, self.shape[image][1]])
        return ((middle + self.pad) @ place)[:, None] + place @ around

    def patches(
        self,
        rows: Int[np.ndarray, "b"],
        own: Float[Tensor, "b image p"] | None = None,
        *,
        at: Int[np.ndarray, "b"] | None = None,
    ) -> Patch:
        """Patches of sources of one size, with all other sources' light in the background.

        Their pixels' coordinates are in single precision, and so are images made of them.

        Args:
            own: the light that these sources have painted, which is taken out.
            at: for each, the source whose pixels are to be taken (of one size), instead of its own.
        """
        at = rows if at is None else at
        s, b, n = self.sources, len(rows), len(self.counts)
        squares = [self._squares(at, k) for k in range(n)]
        cut = [self._flat(*square, k) for k, square in enumerate(squares)]

        def taken(flats: list[Tensor]) -> Tensor:
            return _at_indices(flats, cut)

        light = taken(self.model)

        def per_source(a: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(a[:, rows], 1, 0)))

        def from_source(image: int) -> Float[Tensor, "b 2 p"]:
            middle, around = squares[image]
            return (middle - torch.from_numpy(s.xy[image, rows]))[..., None] + around

        pixels = torch.stack([from_source(k) for k in range(n)], 1)
        return Patch(
            counts=taken(self.counts),
            background=taken(self.sky) + (light if own is None else light - own).clamp(min=0),
            mask=taken(self.weight),
            pixels=pixels.float(),
            calibration=per_source(s.calibration),
            band=torch.tensor(self._band).expand(b, n),
            jacobian=per_source(s.jacobian),
            psf_weights=per_source(s.psf_weights),
            psf_means=per_source(s.psf_means),
            psf_covariances=per_source(s.psf_covariances),
            anchor=torch.zeros(b, 1, 2, dtype=torch.float64),
        )

    def paint(self, rows: Int[np.ndarray, "b"], light: Float[Tensor, "b image p"]) -> None:
        """Add light to the model."""
        self.spread(self.model, rows, light)

    def spread(
        self, flats: list[Tensor], rows: Int[np.ndarray, "b"], light: Float[Tensor, "b image p"]
    ) -> None:
        """Add the pixels of sources of one patch size to arrays like ``model``."""
        for k, flat in enumerate(flats):
            flat.index_add_(0, self._index(rows, k).flatten(), light[:, k].flatten().to(flat))

    def gather(self, flats: list[Tensor], rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b image p"]:
        """The pixels of arrays like ``model`` in the patches of sources of one patch size."""
        return _at_indices(flats, [self._index(rows, k) for k in range(len(flats))])

    def felt(
        self,
        rows: Int[np.ndarray, "b"],
        news: Float[Tensor, "b image p"],
        near: Iterable[Int[np.ndarray, "n"]],
    ) -> Iterator[tuple[Int[np.ndarray, "n"], Float[Tensor, "n image q"]]]:
        """What of the news of some sources' pixels lies in the patches of others.

        Args:
            near: those others, in batches of one patch size.
        """
        self.spread(self._news, rows, news)
        for some in near:
            yield some, self.gather(self._news, some)
        self._forget(rows)

    def sums(
        self, batches: Sequence[Int[np.ndarray, "_"]], values: Sequence[Float[Tensor, "_ image _"]]
    ) -> list[Float[Tensor, "_ image _"]]:
        """The sum of what all sources have in each of their pixels; each batch is of one patch size."""
        for rows, part in zip(batches, values, strict=True):
            self.spread(self._news, rows, part)
        found = [self.gather(self._news, rows).to(part) for rows, part in zip(batches, values, strict=True)]
        for rows in batches:
            self._forget(rows)
        return found

    def _forget(self, rows: Int[np.ndarray, "b"]) -> None:
        for k, flat in enumerate(self._news):
            flat[self._index(rows, k)] = 0.0

    def labelled(
        self, batches: Iterable[tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"]]]
    ) -> list[tuple[Int[Tensor, "n"], Int[Tensor, "n"]]]:
        """The pixels of some sources in each image, and the labels they get from them.

        Args:
            batches: sources of one patch size with their labels; those of different labels do not overlap.
        """
        index: list[list[Tensor]] = [[] for _ in self.counts]
        labels: list[list[Tensor]] = [[] for _ in self.counts]
        for rows, label in batches:
            for k in range(len(self.counts)):
                at = self._index(rows, k)
                index[k].append(at.flatten())
                labels[k].append(torch.from_numpy(label)[:, None].expand_as(at).flatten())
        out = []
        for where, what in zip(index, labels, strict=True):
            unique, place = torch.unique(torch.cat(where), return_inverse=True)
            out.append((unique, torch.zeros_like(unique).scatter_(0, place, torch.cat(what))))
        return out

    def log_likelihood(
        self, labelled: list[tuple[Int[Tensor, "n"], Int[Tensor, "n"]]], count: int
    ) -> Float[np.ndarray, "g"]:
        """Of the pixels of each label, but for what depends on the counts alone."""
        total = torch.zeros(count, dtype=torch.float64)
        for k, (at, label) in enumerate(labelled):
            rate = self.sky[k][at] + self.model[k][at].clamp(min=0)
            total.index_add_(0, label, self.weight[k][at] * (self.counts[k][at] * rate.log() - rate))
        return total.numpy()


def _at_indices(flats: list[Tensor], indices: list[Int[Tensor, "b p"]]) -> Float[Tensor, "b image p"]:
    return torch.stack([flat[index] for flat, index in zip(flats, indices, strict=True)], 1)


def dispersion(counts: Tensor, sky: Tensor, error: float = PSF_ERROR) -> Tensor:
    """Variance of a pixel over its Poisson variance, with a relative error of the light above the sky."""
    light = (counts - sky).clamp(min=0)
    return 1 + (error * light) ** 2 / torch.maximum(counts, sky)


def _project(image: Image, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    step = _STEP / 3600
    here = np.stack(image.wcs.all_world2pix(ra, dec, 0), -1)
    east = np.stack(image.wcs.all_world2pix(ra + step / np.cos(np.deg2rad(dec)), dec, 0), -1)
    north = np.stack(image.wcs.all_world2pix(ra, dec + step, 0), -1)
    return here, np.stack((east - here, north - here), -1) / _STEP


def _mixtures(image: Image, xy: Float[np.ndarray, "s 2"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ny, nx = image.shape
    found = [image.psf.mixture(float(np.clip(x, 0, nx - 1)), float(np.clip(y, 0, ny - 1))) for x, y in xy]
    most = max((len(m.weights) for m in found), default=1)
    weights, means, covariances = (
        np.zeros((len(xy), most)),
        np.zeros((len(xy), most, 2)),
        np.zeros((len(xy), most, 3)),
    )
    covariances[..., [0, 2]] = 1.0
    for i, m in enumerate(found):
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
