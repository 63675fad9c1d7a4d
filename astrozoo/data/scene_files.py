"""Files of scenes: NPZ, FITS, or a description of images of one pixel grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from jaxtyping import Bool

from astrozoo.data.described import read_described
from astrozoo.data.exposure_noise import empty_scatter
from astrozoo.data.fits_file import open_fits
from astrozoo.data.images import Field
from astrozoo.data.scenes import Scene, detect_sources, psf_fwhm
from astrozoo.data.wcs import celestial_wcs, has_celestial
from astrozoo.errors import DataError, InputError

__all__ = ["read_scene"]

_BAD_BITS = {"BAD": 0, "SAT": 1, "NO_DATA": 8}
"""Bits of integer masks that exclude a pixel, as HSC's pipeline has them. Other bits, such as DETECTED, do
not."""


def read_scene(
    path: Path,
    *,
    catalog: Path | None = None,
    detect: bool = False,
    noise: float | None = None,
    gain: float | None = None,
    bands: str | None = None,
    box: str | None = None,
) -> Scene:
    """A scene from a file.

    Args:
        path: an NPZ file with ``images`` [band, y, x], ``psfs`` and, where there are, ``filters``,
            ``variance``, ``mask`` and ``catalog``; a FITS file with HDUs of these names; or a description of
            images (:mod:`astrozoo.data.description_file`) of one pixel grid.
        catalog: table of sources with columns x, y [px], and ``is_star``.
        detect: detect sources even if the file has a catalogue.
        noise: SD of a pixel in all bands, in place of the file's or the measured one.
        gain: electrons per unit of the images: adds the photon noise of sources to measured noise.
        bands: names of the bands to use, separated by commas.
        box: part of the images, ``y0:y1,x0:x1``.

    Raises:
        DataError: the file is missing, unreadable or incomplete.
        InputError: its content does not fit together.
    """
    parts = _read(path)
    parts = _chosen(parts, bands, path)
    images = np.asarray(parts["images"], float)
    notes = []
    mask = _mask_of(parts, images, path)
    if "variance" in parts and noise is None:
        variance = np.asarray(parts["variance"], float)
        if variance.shape != images.shape:
            raise DataError(
                str(path), f"variance of shape {variance.shape}", f"that of images, {images.shape}"
            )
        mask &= np.isfinite(variance) & (variance > 0)
        sd = np.sqrt(np.where(mask, variance, 1.0))
    elif noise is not None:
        sd = np.full(images.shape, noise)
    else:
        sd = np.stack(
            [empty_scatter(np.where(m, image, 0.0), m) for image, m in zip(images, mask, strict=True)]
        )
        notes.append("The noise was measured from the differences of pixels.")
        if gain is not None:
            sd = np.sqrt(sd**2 + np.clip(images, 0, None) / gain)
    images = np.where(mask, images, 0.0)
    if box is not None:
        rows, columns = _box(box, images.shape[1:])
        images, sd, mask = (a[:, rows, columns] for a in (images, sd, mask))
        parts["offset"] = (columns.start, rows.start)
    psfs = np.asarray(parts["psfs"], float)
    table = _sources(parts, catalog, detect, images, sd, mask, psfs, path)
    return Scene(
        images, sd, mask, psfs, tuple(parts["filters"]), table, path.name, parts.get("wcs"), tuple(notes)
    )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                parts: dict[str, Any] = {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise DataError(
                str(path), f"{type(error).__name__}: {error}", "an NPZ file of plain arrays"
            ) from error
    elif path.suffix in (".yaml", ".yml", ".csv"):
        return _of_field(read_described(path))
    else:
        parts = _read_fits(path)
    for name in ("images", "psfs"):
        if name not in parts:
            raise DataError(str(path), f"only {sorted(parts)}", f"an array {name!r}")
    if parts["images"].ndim == 2:
        parts["images"] = parts["images"][None]
    if parts["images"].ndim != 3:
        raise DataError(
            str(path), f"images of shape {parts['images'].shape}", "[band, y, x], one shape for all"
        )
    parts.setdefault("filters", np.array([str(i) for i in range(len(parts["images"]))]))
    parts["filters"] = [str(name) for name in parts["filters"]]
    return parts


def _read_fits(path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    names = {"IMAGE": "images", "IMAGES": "images", "PSF": "psfs", "PSFS": "psfs", "VARIANCE": "variance"}
    names |= {"MASK": "mask", "CATALOG": "catalog"}
    with open_fits(path) as hdus:
        for hdu in hdus:
            name = names.get(hdu.name.upper())
            if name == "catalog":
                parts[name] = Table(hdu.data)
            elif name is not None and hdu.data is not None:
                parts[name] = np.asarray(hdu.data)
                if name == "images":
                    parts |= _header_parts(hdu.header, path)
    return parts


def _header_parts(header: fits.Header, path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if "BANDS" in header:
        parts["filters"] = np.array(str(header["BANDS"]).split(","))
    if has_celestial(header):
        parts["wcs"] = celestial_wcs(header, str(path))
    return parts


def _of_field(field: Field) -> dict[str, Any]:
    """The arrays of images that a description reads [nanomaggies]."""
    shapes = {image.shape for image in field.images}
    if len(shapes) != 1:
        raise InputError("images", f"shapes {sorted(shapes)}", "one pixel grid in all bands")
    first = field.images[0]
    ny, nx = first.shape
    corners = np.array([(0, 0), (nx - 1, 0), (0, ny - 1)], float)
    for image in field.images[1:]:
        there = np.stack(image.wcs.world_to_pixel(first.wcs.pixel_to_world(*corners.T)), 1)
        if np.abs(there - corners).max() > 0.1:
            raise InputError(f"image {image.name!r}", "another pixel grid", "that of the first image")
    stamps = [image.psf.stamp((nx - 1) / 2, (ny - 1) / 2) for image in field.images]
    side = max(len(stamp) for stamp in stamps)
    psfs = [np.pad(stamp, (side - len(stamp)) // 2) for stamp in stamps]
    electrons = [np.maximum(image.counts, image.sky) for image in field.images]
    variance = [n / image.calibration**2 for n, image in zip(electrons, field.images, strict=True)]
    return {
        "images": np.stack([image.nanomaggies for image in field.images]),
        "variance": np.stack(variance),
        "mask": np.stack([~image.valid for image in field.images]),
        "psfs": np.stack(psfs),
        "filters": [image.band for image in field.images],
        "wcs": first.wcs,
    }


def _chosen(parts: dict[str, Any], bands: str | None, path: Path) -> dict[str, Any]:
    if bands is None:
        return parts
    names = [name.strip() for name in bands.split(",")]
    missing = [name for name in names if name not in parts["filters"]]
    if missing:
        raise InputError("bands", missing, f"bands of {path.name}: {', '.join(parts['filters'])}")
    rows = [parts["filters"].index(name) for name in names]
    each = ("images", "variance", "mask", "psfs")
    return {**parts, **{name: parts[name][rows] for name in each if name in parts}, "filters": names}


def _mask_of(parts: dict[str, Any], images: np.ndarray, path: Path) -> Bool[np.ndarray, "band y x"]:
    """True where a pixel is used. A pixel that is NaN is not."""
    mask = np.isfinite(images)
    if "mask" in parts:
        bad = np.asarray(parts["mask"])
        if bad.shape != images.shape:
            raise DataError(str(path), f"mask of shape {bad.shape}", f"that of images, {images.shape}")
        if bad.dtype.kind in "iu":
            bad = (bad & sum(1 << bit for bit in _BAD_BITS.values())) > 0
        mask &= ~bad.astype(bool)
    return mask


def _box(text: str, shape: tuple[int, int]) -> tuple[slice, slice]:
    try:
        rows, columns = (slice(*(int(n) for n in part.split(":"))) for part in text.split(","))
    except (ValueError, TypeError) as error:
        raise InputError("box", repr(text), "y0:y1,x0:x1") from error
    for part, n in ((rows, shape[0]), (columns, shape[1])):
        if not 0 <= (part.start or 0) < (part.stop or 0) <= n:
            raise InputError("box", repr(text), f"a part of the image of {shape[0]} rows, {shape[1]} columns")
    return rows, columns


def _sources(
    parts: dict[str, Any],
    catalog: Path | None,
    detect: bool,
    images: np.ndarray,
    noise: np.ndarray,
    mask: np.ndarray,
    psfs: np.ndarray,
    path: Path,
) -> Table:
    """The sources of a table, of the file, or detected ones."""
    x0, y0 = parts.get("offset", (0, 0))
    if catalog is not None:
        table = _table(catalog)
    elif "catalog" in parts and not detect:
        rows = parts["catalog"]
        names = rows.colnames if isinstance(rows, Table) else (rows.dtype.names or ())
        if not {"x", "y"} <= set(names):
            raise DataError(str(path), f"a catalogue with columns {names}", "columns x and y")
        columns = ["x", "y"] + (["is_star"] if "is_star" in names else [])
        table = Table({name: np.asarray(rows[name]) for name in columns})
        _, first = np.unique(np.round(np.stack((table["x"], table["y"]), 1), 3), axis=0, return_index=True)
        table = table[np.sort(first)]  # a galaxy of two components has two rows at one place
    else:
        if not mask.any():
            raise InputError("mask", "no used pixel in any band", "used pixels")
        fwhm = float(np.mean([psf_fwhm(psf) for psf in psfs]))
        return detect_sources(images, noise, mask, fwhm)
    table["x"], table["y"] = np.asarray(table["x"], float) - x0, np.asarray(table["y"], float) - y0
    ny, nx = images.shape[1:]
    inside = (table["x"] >= -0.5) & (table["x"] <= nx - 0.5) & (table["y"] >= -0.5) & (table["y"] <= ny - 0.5)
    return table[inside] if (x0, y0) != (0, 0) else table


def _table(path: Path) -> Table:
    try:
        table = Table.read(path)
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), f"{type(error).__name__}: {error}", "a table with columns x and y"
        ) from error
    if not {"x", "y"} <= set(table.colnames):
        raise DataError(str(path), f"columns {table.colnames}", "columns x and y [px]")
    return table["x", "y", "is_star"] if "is_star" in table.colnames else table["x", "y"]
