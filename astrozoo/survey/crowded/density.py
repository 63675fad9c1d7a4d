"""Whether a field is crowded: how many sources share the area of one PSF."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.table import Table
from jaxtyping import Float

from astrozoo.data.images import Field, Image, reference_image

__all__ = ["CROWDED", "Crowding", "crowding"]

CROWDED = 0.1
"""[sources per area of the PSF] Density above which a field is crowded. At .1, two sources in five have
another one within twice the PSF's FWHM: detection misses faint sources, and the errors of a fixed list of
sources are too small. An ordinary SDSS field has .016, M2's surroundings .16 to .21."""
_BLOCK = 128
"""[px] Side of the blocks in which the density is measured: a cluster may fill a part of a frame only."""


@dataclass(frozen=True)
class Crowding:
    """How crowded a field is.

    Args:
        density: of sources where the median source lies, per area of the PSF.
        area: effective area of the PSF, ``1 / sum(PSF^2)`` [px].
    """

    density: float
    area: float

    @property
    def crowded(self) -> bool:
        """Whether most sources lie where the density is above :data:`CROWDED`."""
        return self.density > CROWDED

    def __str__(self) -> str:
        than = "above" if self.crowded else "below"
        return f"{self.density:.3f} sources per area of the PSF ({self.area:.0f} px), {than} {CROWDED:g}"


def crowding(images: Field, sources: Table) -> Crowding:
    """Measure the density of sources in blocks, and return that of the median source's block.

    Args:
        sources: with ``ra`` and ``dec`` [deg], detected or of a catalogue.
    """
    image = reference_image(images)
    stamp = image.psf.stamp((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    area = float(1 / ((stamp / stamp.sum()) ** 2).sum())
    if not len(sources):
        return Crowding(0.0, area)
    here = _local_density(image, sources)
    return Crowding(float(np.median(here)) * area, area)


def _local_density(image: Image, sources: Table) -> Float[np.ndarray, "s"]:
    """Sources per valid pixel of the block of each source on the image."""
    x, y = image.wcs.all_world2pix(np.asarray(sources["ra"], float), np.asarray(sources["dec"], float), 0)
    rows, columns = (max(1, round(side / _BLOCK)) for side in image.shape)
    row = np.clip((y + 0.5) / image.shape[0] * rows, 0, rows - 1).astype(int)
    column = np.clip((x + 0.5) / image.shape[1] * columns, 0, columns - 1).astype(int)
    counts, pixels = np.zeros((rows, columns)), np.zeros((rows, columns))
    np.add.at(counts, (row, column), 1)
    place_y, place_x = np.nonzero(image.valid | image.saturated)
    np.add.at(pixels, (place_y * rows // image.shape[0], place_x * columns // image.shape[1]), 1)
    return (counts / np.maximum(pixels, 1))[row, column]
