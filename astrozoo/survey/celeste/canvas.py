"""The pixels of a field: patches around sources, each with the light of all other sources as background."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.data.images import Field
from astrozoo.errors import InputError
from astrozoo.models.celeste import Patch
from astrozoo.survey.celeste.cells import cell_means, cell_sums, cells, offsets
from astrozoo.survey.partition import Sources

__all__ = ["PSF_ERROR", "Canvas", "dispersion", "least_radius"]

PSF_ERROR = 0.04
"""Error of a PSF model, relative to the light of a pixel. It lowers the weight of bright pixels.

SDSS eigen-images and their Gaussian mixtures differ from the brightest stars of run 2583 by 3 to 5 per cent
per pixel.
"""
_PSF_ERROR_MARGIN = 20.0
"""Number of standard deviations of the PSF's area by which the smallest galaxy widens it.

In run 2583, stars of r = 15 look like galaxies of 0.1 arcsec, which is five times the scatter."""


_PAD = 1
"""Width of the frame of masked pixels around an image [px]. It stands for all pixels outside the image."""


class Canvas:
    """The pixels of all images, and the light of the sources that have been painted.

    Images have a frame of masked pixels, in which all pixels of a patch that lie outside the image are put,
    so that every patch is a full square. ``model`` contains the expected electrons from sources, ``sky``
    those from everything else.

    Light of a patch has one value per cell (:mod:`astrozoo.survey.celeste.cells`), the mean of its pixels;
    only :meth:`paint` takes one per pixel.
    """

    def __init__(self, field: Field, sources: Sources, bands: tuple[str, ...]) -> None:
        self.field, self.sources = field, sources
        self._band = [bands.index(image.band) for image in field]
        self.shape = [(i.shape[0] + 2 * _PAD, i.shape[1] + 2 * _PAD) for i in field]
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
        """A canvas for other sources that shares the pixels and the painted light."""
        other = copy(self)
        other.sources = sources
        return other

    def _padded(self, array: np.ndarray, fill: float) -> Tensor:
        return torch.from_numpy(np.pad(array.astype(np.float64), _PAD, constant_values=fill)).flatten()

    def framed(self, array: Float[np.ndarray, "y x"]) -> Tensor:
        """An image's array with the frame, as ``sky`` and ``model`` have it. The frame repeats the edge."""
        return torch.from_numpy(np.pad(array, _PAD, mode="edge")).flatten()

    def unpadded(self, flat: Tensor, image: int) -> Float[np.ndarray, "y x"]:
        """One image's array without its frame."""
        ny, nx = self.shape[image]
        return flat.reshape(ny, nx)[_PAD : ny - _PAD, _PAD : nx - _PAD].numpy().copy()

    def _cells(self, rows: Int[np.ndarray, "b"]) -> Int[Tensor, "p"] | None:
        """The cell of each pixel in the patches of sources of one patch size."""
        return cells(int(self.sources.half[rows[0]]))

    def _squares(self, rows: Int[np.ndarray, "b"], image: int) -> tuple[Tensor, Tensor]:
        """The central pixel ``(x, y)`` of each patch [b, 2], and the offsets of its pixels from it [2, p]."""
        middle = torch.from_numpy(self.sources.xy[image, rows]).round().long()
        return middle, offsets(int(self.sources.half[rows[0]]))

    def _index(self, rows: Int[np.ndarray, "b"], image: int) -> Int[Tensor, "b p"]:
        """Flat indices of the patches' pixels."""
        return self._flat(*self._squares(rows, image), image)

    def _flat(self, middle: Tensor, around: Tensor, image: int) -> Int[Tensor, "b p"]:
        ny, nx = self.shape[image]
        column, row = (
            (middle[:, k, None] + around[k] + _PAD).clamp_(0, most - 1) for k, most in ((0, nx), (1, ny))
        )
        return row.mul_(nx).add_(column)

    def patches(
        self,
        rows: Int[np.ndarray, "b"],
        own_light: Float[Tensor, "b image p"] | None = None,
        *,
        at: Int[np.ndarray, "b"] | None = None,
    ) -> Patch:
        """Patches of sources of one patch size, with all other sources' light in the background.

        Coordinates of pixels, and images that are made from them, are in single precision.

        Args:
            rows: the sources.
            own_light: the light that these sources have painted. It is removed from the background.
            at: for each source, another source whose patch is used instead of its own. All of these have
                one patch size.
        """
        at = rows if at is None else at
        n, cell = len(self.counts), self._cells(at)
        squares = [self._squares(at, k) for k in range(n)]
        cut = [self._flat(*square, k) for k, square in enumerate(squares)]
        weight = _at_indices(self.weight, cut)
        light = cell_means(_at_indices(self.model, cut), weight, cell)
        pixels = torch.stack([self._from_sources(rows, k, *squares[k]) for k in range(n)], 1)
        return self._patch(
            rows,
            counts=cell_means(_at_indices(self.counts, cut), weight, cell),
            background=cell_means(_at_indices(self.sky, cut), weight, cell)
            + (light if own_light is None else light - own_light).clamp(min=0),
            mask=cell_sums(weight, cell),
            pixels=cell_means(pixels, weight[:, :, None].expand_as(pixels), cell).float(),
        )

    def signal_to_noise(
        self,
        rows: Int[np.ndarray, "b"],
        around: Int[Tensor, "2 p"],
        light: Float[Tensor, "b image p"],
    ) -> Float[Tensor, "b"]:
        """The largest ratio of light to the sky's noise, over valid pixels of all images.

        Args:
            around: the pixels, relative to each source's central pixel.
        """
        best = torch.zeros(len(rows), dtype=torch.float64)
        for k, (sky, weight) in enumerate(zip(self.sky, self.weight, strict=True)):
            at = self._flat(self._squares(rows, k)[0], around, k)
            ratio = torch.where(weight[at] > 0, light[:, k] / sky[at].sqrt(), 0.0)
            best = torch.maximum(best, ratio.amax(-1))
        return best

    def around(self, rows: Int[np.ndarray, "b"], around: Int[Tensor, "2 p"]) -> Patch:
        """Patches of sources without data, of pixels relative to each source's central pixel."""
        pixels = [
            self._from_sources(rows, k, self._squares(rows, k)[0], around) for k in range(len(self.counts))
        ]
        none = torch.zeros(len(rows), len(self.counts), around.shape[-1], dtype=torch.float64)
        coordinates = torch.stack(pixels, 1).float()
        return self._patch(rows, counts=none, background=none + 1, mask=none, pixels=coordinates)

    def _from_sources(
        self, rows: Int[np.ndarray, "b"], image: int, middle: Tensor, around: Tensor
    ) -> Float[Tensor, "b 2 p"]:
        return (middle - torch.from_numpy(self.sources.xy[image, rows]))[..., None] + around

    def _patch(self, rows: Int[np.ndarray, "b"], **data: Tensor) -> Patch:
        """Patches with the calibration, WCS and PSF of their sources."""
        s = self.sources

        def per_source(a: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(a[:, rows], 1, 0)))

        return Patch(
            calibration=per_source(s.calibration),
            band=torch.tensor(self._band).expand(len(rows), len(self.counts)),
            jacobian=per_source(s.jacobian),
            psf_weights=per_source(s.psf_weights),
            psf_means=per_source(s.psf_means),
            psf_covariances=per_source(s.psf_covariances),
            anchor=torch.zeros(len(rows), 1, 2, dtype=torch.float64),
            **data,
        )

    def paint(
        self,
        rows: Int[np.ndarray, "b"],
        light: Float[Tensor, "b image p"],
        flats: list[Tensor] | None = None,
    ) -> None:
        """Add light, with a value for every pixel, to the model, or to arrays like it."""
        for k, flat in enumerate(self.model if flats is None else flats):
            flat.index_add_(0, self._index(rows, k).flatten(), light[:, k].flatten().to(flat))

    def spread(
        self, flats: list[Tensor], rows: Int[np.ndarray, "b"], light: Float[Tensor, "b image cell"]
    ) -> None:
        """Add the patches of sources of one patch size to arrays like ``model``."""
        cell = self._cells(rows)
        self.paint(rows, light if cell is None else light[..., cell], flats)

    def gather(self, flats: list[Tensor], rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b image cell"]:
        """The patches of sources of one patch size, taken from arrays like ``model``."""
        cut = [self._index(rows, k) for k in range(len(flats))]
        cell = self._cells(rows)
        values = _at_indices(flats, cut)
        return values if cell is None else cell_means(values, _at_indices(self.weight, cut), cell)

    def in_cells(
        self, rows: Int[np.ndarray, "b"], light: Float[Tensor, "b image p"]
    ) -> Float[Tensor, "b image cell"]:
        """Light with a value for every pixel, as the patches of its sources see it."""
        cell = self._cells(rows)
        if cell is None:
            return light
        cut = [self._index(rows, k) for k in range(len(self.counts))]
        return cell_means(light, _at_indices(self.weight, cut), cell)

    def felt(
        self,
        rows: Int[np.ndarray, "b"],
        news: Float[Tensor, "b image p"],
        near: Iterable[Int[np.ndarray, "n"]],
    ) -> Iterator[tuple[Int[np.ndarray, "n"], Float[Tensor, "n image q"]]]:
        """Changes of some sources' pixels, as they appear in the patches of other sources.

        Args:
            rows: the sources that have changed, of one patch size.
            news: the change of each of their pixels.
            near: the other sources, in batches of one patch size.

        Yields:
            a batch of the other sources, and the change of each of their pixels.
        """
        self.spread(self._news, rows, news)
        for members in near:
            yield members, self.gather(self._news, members)
        self._forget(rows)

    def sums(
        self, batches: Sequence[Int[np.ndarray, "_"]], values: Sequence[Float[Tensor, "_ image _"]]
    ) -> list[Float[Tensor, "_ image _"]]:
        """For each pixel of each source, the sum of all sources' values there; a batch has one patch size."""
        for rows, part in zip(batches, values, strict=True):
            self.spread(self._news, rows, part)
        totals = [self.gather(self._news, rows).to(part) for rows, part in zip(batches, values, strict=True)]
        for rows in batches:
            self._forget(rows)
        return totals

    def _forget(self, rows: Int[np.ndarray, "b"]) -> None:
        for k, flat in enumerate(self._news):
            flat[self._index(rows, k)] = 0.0

    def labelled(
        self, batches: Iterable[tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"]]]
    ) -> list[tuple[Int[Tensor, "n"], Int[Tensor, "n"]]]:
        """The pixels of some sources in each image, and the label of each pixel.

        Args:
            batches: sources of one patch size, and their labels. Sources of different labels do not overlap.
        """
        index: list[list[Tensor]] = [[] for _ in self.counts]
        labels: list[list[Tensor]] = [[] for _ in self.counts]
        for rows, label in batches:
            for k in range(len(self.counts)):
                at = self._index(rows, k)
                index[k].append(at.flatten())
                labels[k].append(torch.from_numpy(label)[:, None].expand_as(at).flatten())
        out = []
        for indices, values in zip(index, labels, strict=True):
            unique, place = torch.unique(torch.cat(indices), return_inverse=True)
            out.append((unique, torch.zeros_like(unique).scatter_(0, place, torch.cat(values))))
        return out

    def log_likelihood(
        self, labelled: list[tuple[Int[Tensor, "n"], Int[Tensor, "n"]]], count: int
    ) -> Float[np.ndarray, "g"]:
        """Log likelihood of the pixels of each label, without terms that depend on the counts alone."""
        total = torch.zeros(count, dtype=torch.float64)
        for k, (at, label) in enumerate(labelled):
            rate = self.sky[k][at] + self.model[k][at].clamp(min=0)
            total.index_add_(0, label, self.weight[k][at] * (self.counts[k][at] * rate.log() - rate))
        return total.numpy()


def _at_indices(flats: list[Tensor], indices: list[Int[Tensor, "b p"]]) -> Float[Tensor, "b image p"]:
    return torch.stack([flat[index] for flat, index in zip(flats, indices, strict=True)], 1)


def dispersion(counts: Tensor, sky: Tensor, error: float = PSF_ERROR) -> Tensor:
    """A pixel's variance over its Poisson variance, given a relative error of the light above the sky."""
    light = (counts - sky).clamp(min=0)
    return 1 + (error * light) ** 2 / torch.maximum(counts, sky)


def least_radius(sources: Sources, scatter: float, error: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """Half-light radius [arcsec] below which errors of the PSF make galaxies of stars.

    An exponential disc of radius r widens the PSF (of the narrowest image, a Gaussian of equal peak) by about
    ``(r / sigma)^2`` of its area. The limit is the radius at which this is ``_PSF_ERROR_MARGIN`` times the
    error of the area, for a source that is so bright that this error dominates.

    Args:
        sources: with the PSFs of all images.
        scatter: standard deviation of the PSF's relative area.
        error: standard deviation of each source's measurement of the PSF's relative area.
    """
    xx, xy, yy = np.moveaxis(sources.psf_covariances, -1, 0)
    area = 1 / (sources.psf_weights / np.sqrt(xx * yy - xy**2)).sum(-1)  # [image, s], px^2
    scale = np.abs(np.linalg.det(sources.jacobian))  # px^2 per arcsec^2
    share = scatter**2 / (scatter**2 + error**2)
    return np.sqrt(_PSF_ERROR_MARGIN * scatter * share * (area / scale).min(0, initial=np.inf))
