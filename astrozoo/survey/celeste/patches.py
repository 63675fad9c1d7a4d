"""A small part of a field as one patch: data of one Celeste problem, for any method of the zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from astrozoo.data.images import Field, crop, reference_image
from astrozoo.data.sdss import read_field
from astrozoo.errors import InputError
from astrozoo.models.celeste import Patch, load_prior
from astrozoo.survey.celeste.canvas import Canvas
from astrozoo.survey.detect import detect
from astrozoo.survey.fields import read_box, usable_field
from astrozoo.survey.partition import HALF_SIZES, Sources

__all__ = ["MAX_SOURCES", "patch_of", "read"]

MAX_SOURCES = 6
"""Largest number of sources in a patch that is one problem.

Types of sources are summed over: 2^6 = 64 combinations, each of them rendered for every gradient."""


def read(path: Path, *, box: str | None = None) -> Patch:
    """A small box of an SDSS field, with the sources that are detected in it.

    Args:
        path: folder of one SDSS field (:func:`astrozoo.data.sdss.read_field`).
        box: "row:row,column:column", first and last + 1, of the r image, at most 81x81 pixels.

    Raises:
        InputError: no box or one that is too large, or no source in it or too many.
        DataError: files that are missing or not what they should be.
    """
    side = 2 * HALF_SIZES[-1] + 1
    expected = (
        f"'row:row,column:column' of at most {side}x{side} pixels, which is one problem of a few sources; "
        "`astrozoo run celeste` fits a whole field, patch by patch"
    )
    if box is None:
        raise InputError("box", "none (a whole field)", expected)
    rows, columns = read_box(box)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if max(height, width) > side:
        raise InputError("box", f"{height}x{width} pixels", expected)
    return patch_of(crop(read_field(path), rows, columns))


def patch_of(images: Field) -> Patch:
    """The pixels of a small field, and the sources that are detected in it.

    The PSF and the calibration are those of the middle of the reference image. Light of sources outside the
    field is not modelled.

    Raises:
        InputError: no source is detected, or more than :data:`MAX_SOURCES`; or pixels that cannot be used.
    """
    images = usable_field(images)
    detections = detect(images)
    if not 0 < len(detections) <= MAX_SOURCES:
        raise InputError(
            f"field {images.name!r}",
            f"{len(detections)} detected sources",
            f"between 1 and {MAX_SOURCES}: another box",
        )
    reference = reference_image(images)
    ny, nx = reference.shape
    ra, dec = (np.atleast_1d(x) for x in reference.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0))
    half = min(max(ny, nx) // 2, HALF_SIZES[-1])
    middle = Sources.locate(images, ra, dec, np.array([half]))
    batch = Canvas(images, middle, load_prior().bands).patches(np.zeros(1, int))
    east = (np.asarray(detections["ra"]) - ra + 180) % 360 - 180
    offset = 3600 * np.stack((east * np.cos(np.deg2rad(dec)), np.asarray(detections["dec"]) - dec), -1)
    patch = Patch(*(part[0] for part in batch))
    return patch._replace(pixels=patch.pixels.double(), anchor=torch.from_numpy(offset))
