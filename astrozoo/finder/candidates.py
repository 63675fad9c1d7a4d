"""Files of the best stamps, which ``astrozoo run strong_lens`` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table

from astrozoo._files import replacing
from astrozoo.data import lenses
from astrozoo.data.finder_files import LensStamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_image import LensImage

__all__ = ["Optics", "moffat", "write_candidates"]

_BETA = 3.0
"""Index of the Moffat profile that stands for the PSF: that of ground-based images."""
_PSF_SIDE = 25
"""[px] Largest side of the PSF's stamp."""


class Optics(NamedTuple):
    """What a lens model needs beside the stamp.

    Attributes:
        pixel_scale: [arcsec], or None if it is unknown.
        fwhm: of the PSF [arcsec], or None if it is unknown.
    """

    pixel_scale: float | None
    fwhm: float | None

    @property
    def complete(self) -> bool:
        """Whether both are known."""
        return self.pixel_scale is not None and self.fwhm is not None


def write_candidates(
    folder: Path, stamps: LensStamps, table: Table, bands: tuple[str, ...], optics: Optics
) -> list[Path]:
    """Write the first band of each stamp, in which arcs stand out best from a red lens.

    With known optics a file has image, noise, mask and a Moffat PSF. Without, it has image and noise, and
    ``strong_lens`` is told the rest by its options.

    Args:
        table: rows of the ranking.
        bands: names of the bands, in the order of the stamps.
        optics: of the stamps.
    """
    if not len(table):
        return []
    folder.mkdir(exist_ok=True)
    written = []
    for row in table:
        i = int(row["index"])
        image = stamps.image[i : i + 1]
        prepared = prepare(image, stamps.names[i : i + 1])
        used = image[0, 0].isfinite().numpy()
        sky_free = (image[0, 0] - prepared.sky[0, 0]).nan_to_num(0.0).double().numpy()
        noise = np.full(sky_free.shape, float(prepared.noise[0, 0]))
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(row["name"])).removesuffix(".fits")
        path = folder / f"{row['rank']:03d}_{name}_{bands[0]}.fits"
        if optics.complete:
            assert optics.pixel_scale is not None
            assert optics.fwhm is not None
            side = min(_PSF_SIDE, min(sky_free.shape) // 2)
            psf = moffat(optics.fwhm / optics.pixel_scale, side - 1 + side % 2)
            lens = LensImage(
                sky_free, psf, optics.pixel_scale, noise, mask=used, unit="", band=bands[0], name=name
            )
            lenses.write(lens, path)
        else:
            planes = [
                fits.PrimaryHDU(),
                fits.ImageHDU(sky_free, name="SCI"),
                fits.ImageHDU(noise, name="NOISE"),
            ]
            with replacing(path) as partial:
                fits.HDUList(planes).writeto(partial, overwrite=True)
        written.append(path)
    return written


def moffat(fwhm: float, side: int) -> np.ndarray:
    """A Moffat PSF that sums to 1.

    Args:
        fwhm: [px].
        side: odd [px].
    """
    offset = np.arange(side) - side // 2
    core = fwhm / (2 * np.sqrt(2 ** (1 / _BETA) - 1))
    psf = (1 + (offset**2 + offset[:, None] ** 2) / core**2) ** -_BETA
    return psf / psf.sum()
