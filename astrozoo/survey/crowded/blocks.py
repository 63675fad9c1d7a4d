"""The blocks into which a crowded field is cut, and what they are put together to again.

A block has one PSF per image. It is fitted with a margin around its core; to a catalogue of the field, each
block contributes the sources in its core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from astrozoo.data.images import Field, Image, crop, reference_image
from astrozoo.survey.crowded.prior import FieldPrior
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.crowded.scene import Scene, Sources, expected

__all__ = ["Block", "Mode", "blocks_of", "expected_images", "join"]

BLOCK = 256
"""[px] Side of the core of a block. The width of SDSS's PSF changes by about 1 % over this distance."""
MARGIN = 15
"""[px] Width of the margin of a block. A pixel of the core has less than .1 % of the light of a source that
is outside the box."""
PICTURED = 16
"""[catalogues] Over which the expected image is averaged."""


@dataclass(frozen=True)
class Mode:
    """The joint mode of a block, as far as later steps need it.

    Args:
        sources: of the mode.
        log_flux_sd, xy_sd: SDs given which sources exist [ln flux, px].
        scene: with the corrected PSFs and the sky's plane.
        survey_psf: tables of the PSFs before their correction.
        chi2: per valid pixel, of each image.
        seconds: that the fit took.
        draws: about the mode, if the sources were given.
    """

    sources: Sources
    log_flux_sd: Float[np.ndarray, "s band"]
    xy_sd: Float[np.ndarray, "s 2"]
    scene: Scene
    survey_psf: tuple[Float[np.ndarray, "t t"], ...]
    chi2: Float[np.ndarray, "k"]
    seconds: float
    draws: Samples | None = None


@dataclass(frozen=True)
class Block:
    """A part of the field.

    Args:
        core: rows and columns of the reference image for which the block is responsible.
        box: the core and its margin.
        mode: of the box; positions are relative to it.
        prior: with which the samples were drawn.
        samples: of the box; positions are relative to it.
    """

    core: tuple[slice, slice]
    box: tuple[slice, slice]
    mode: Mode
    prior: FieldPrior
    samples: Samples

    @property
    def origin(self) -> Float[np.ndarray, "2"]:
        """(x, y) of the box's first pixel in the reference image."""
        return np.array([self.box[1].start, self.box[0].start], float)


def blocks_of(shape: tuple[int, int]) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Cores and boxes (rows, columns) that tile an image; no core is larger than 1.5 :data:`BLOCK`."""
    edges = [np.linspace(0, side, max(1, round(side / BLOCK)) + 1).round().astype(int) for side in shape]
    result = []
    for y0, y1 in pairwise(edges[0]):
        for x0, x1 in pairwise(edges[1]):
            core = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
            low = [max(0, int(v) - MARGIN) for v in (y0, x0)]
            high = [min(side, int(v) + MARGIN) for side, v in zip(shape, (y1, x1), strict=True)]
            result.append((core, (slice(low[0], high[0]), slice(low[1], high[1]))))
    return result


def join(blocks: Sequence[Block]) -> Samples:
    """Catalogues of the whole field: of each block, the sources in its core."""
    parts = []
    for block in blocks:
        samples = block.samples
        xy = samples.xy + block.origin
        rows, columns = block.core
        inside = (xy[:, 1] >= rows.start - 0.5) & (xy[:, 1] < rows.stop - 0.5)
        inside &= (xy[:, 0] >= columns.start - 0.5) & (xy[:, 0] < columns.stop - 0.5)
        parts.append((samples, xy, inside))
    first = parts[0][0]

    def joined(values: Callable[[Samples, np.ndarray], np.ndarray]) -> np.ndarray:
        return np.concatenate([values(samples, xy)[inside] for samples, xy, inside in parts])

    chain, number = joined(lambda s, xy: s.chain), joined(lambda s, xy: s.sample)
    order = np.lexsort((number, chain))
    tally = {
        name: (
            sum(samples.tally[name][0] for samples, _, _ in parts),
            sum(samples.tally[name][1] for samples, _, _ in parts),
        )
        for name in first.tally
    }
    return replace(
        first,
        chain=chain[order],
        sample=number[order],
        xy=joined(lambda s, xy: xy)[order],
        flux=joined(lambda s, xy: s.flux)[order],
        shape=joined(lambda s, xy: s.shape)[order],
        sky=np.concatenate([samples.sky for samples, _, _ in parts], axis=2),
        tally=tally,
    )


def expected_images(
    images: Field, blocks: Sequence[Block]
) -> tuple[list[Float[np.ndarray, "y x"]], list[Float[np.ndarray, "y x"]], list[Bool[np.ndarray, "y x"]]]:
    """The expected electrons of each image, averaged over catalogues, the PSF's error, and used pixels."""
    reference = reference_image(images)
    model = [image.sky.astype(float).copy() for image in images]
    error = [np.zeros(image.shape) for image in images]
    used = [np.zeros(image.shape, bool) for image in images]
    for block in blocks:
        scene, samples = block.mode.scene, block.samples
        number = np.unique(np.linspace(0, samples.chains * samples.length - 1, PICTURED).astype(int))
        mean = [np.zeros(sky.shape) for sky in scene.sky]
        for chain, draw in zip(number // samples.length, number % samples.length, strict=True):
            seen = expected(scene, samples.sources(int(chain), int(draw)))
            for k, light in enumerate(seen):
                mean[k] += (light + _sky_of(scene, samples, int(chain), int(draw), k)) / len(number)
        for k, (image, patch) in enumerate(zip(images, crop(images, *block.box), strict=True)):
            x0, y0 = (round(v) for v in _corner(image, patch))
            box = (slice(y0, y0 + patch.shape[0]), slice(x0, x0 + patch.shape[1]))
            inside = _core_pixels(reference, image, block.core, box)
            model[k][box][inside] = mean[k][inside]
            error[k][box][inside] = scene.psf_error[k]
            used[k][box][inside] = scene.valid[k][inside]
    return model, error, used


def _sky_of(scene: Scene, samples: Samples, chain: int, draw: int, k: int) -> Float[np.ndarray, "y x"]:
    """What a sample adds to the sky of an image [electrons]: a level and two slopes."""
    height, width = scene.sky[k].shape
    level, along_x, along_y = samples.sky[chain, draw, k] * np.median(scene.sky[k])
    return level + along_x * np.linspace(-1, 1, width) + along_y * np.linspace(-1, 1, height)[:, None]


def _corner(image: Image, patch: Image) -> tuple[float, float]:
    """(x, y) in the image of the first pixel of a patch of it."""
    x, y = image.wcs.all_world2pix(*patch.wcs.all_pix2world(0.0, 0.0, 0), 0)
    return float(x), float(y)


def _core_pixels(
    reference: Image, image: Image, core: tuple[slice, slice], box: tuple[slice, slice]
) -> Bool[np.ndarray, "y x"]:
    """Pixels of a box of an image that show the core of a block.

    Pixels beyond the reference image belong to the nearest block.
    """
    y, x = np.mgrid[box]
    sky = image.wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    there_x, there_y = (v.reshape(x.shape) for v in reference.wcs.all_world2pix(*sky, 0))
    column = np.clip(np.rint(there_x), 0, reference.shape[1] - 1)
    row = np.clip(np.rint(there_y), 0, reference.shape[0] - 1)
    rows, columns = core
    return (row >= rows.start) & (row < rows.stop) & (column >= columns.start) & (column < columns.stop)
