"""Catalogues as files: positions of sources are read, and finished catalogues written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.io.registry import IORegistryError
from astropy.table import Table
from jaxtyping import Bool, Float

from astrozoo._files import replacing
from astrozoo.data.images import Field, Image, reference_image
from astrozoo.errors import DataError, InputError, OutputError

__all__ = ["read_sources", "write_catalogue"]


def read_sources(path: Path, images: Field) -> Table:
    """Positions of a catalogue (FITS, Parquet, CSV, VOTable ...) that lie on the reference image.

    Returns:
        ``id`` (the file's own if it has one of integers, else its row number from 1), ``ra``, ``dec`` [deg].

    Raises:
        DataError: no such file, or no table with ra and dec.
        InputError: none of its sources is on the field.
    """
    try:
        table = Table.read(path)
    except (OSError, IORegistryError, ValueError) as error:
        raise DataError(
            str(path), f"{type(error).__name__}: {error}", "a table that astropy can read"
        ) from error
    names = {name.lower(): name for name in table.colnames}
    if not {"ra", "dec"} <= names.keys():
        raise DataError(str(path), f"columns {', '.join(table.colnames[:8])}", "ra and dec [deg] among them")
    ra, dec = (_numbers(table, names[name]) for name in ("ra", "dec"))
    file_ids = np.asarray(table[names["id"]]) if "id" in names else np.zeros(0)
    ids = file_ids if file_ids.dtype.kind in "iu" and len(file_ids) == len(ra) else np.arange(1, len(ra) + 1)
    reference = reference_image(images)
    known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    inside = np.zeros(len(ra), bool)
    inside[known] = _contains(reference, ra[known], dec[known])
    if not inside.any():
        raise InputError(
            str(path), f"{len(ra)} sources, none on field {images.name!r}", "sources on the field"
        )
    return Table({"id": ids[inside], "ra": ra[inside], "dec": dec[inside]})


def _numbers(table: Table, name: str) -> Float[np.ndarray, "s"]:
    return np.asarray(np.ma.filled(np.ma.asarray(table[name], float), np.nan))


def _contains(image: Image, ra: Float[np.ndarray, "s"], dec: Float[np.ndarray, "s"]) -> Bool[np.ndarray, "s"]:
    """Whether sky positions [deg] lie on an image."""
    ny, nx = image.shape
    ra_0, dec_0 = image.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    # near only: a projection onto a plane shows the far side of the sky too
    far = np.abs(dec - dec_0) + np.abs((ra - ra_0 + 180) % 360 - 180) * np.cos(np.deg2rad(dec_0)) > 20
    x, y = image.wcs.all_world2pix(np.where(far, ra_0, ra), np.where(far, dec_0, dec), 0)
    return ~far & (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)


def write_catalogue(table: Table, path: str | Path) -> Path:
    """Write a catalogue; it replaces the file at ``path`` only once it is whole.

    Args:
        table: of :func:`catalogue`.
        path: ends in ``.fits`` (units and comments in the header) or ``.parquet``.

    Raises:
        OutputError: the file cannot be written, or its name ends in anything else.
    """
    path = Path(path)
    writers = {".fits": _write_fits, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise OutputError(f"cannot write {path}: its name must end in {' or '.join(writers)}")
    with replacing(path) as partial:
        writers[path.suffix](table, partial)
    return path


def _write_fits(table: Table, path: Path) -> None:
    plain = table.copy()
    for column in plain.columns.values():
        if column.unit == units.Unit("nmgy"):
            column.unit = None
    comments = [column.description for column in plain.columns.values()]
    for column in plain.columns.values():
        column.description = None
    hdu = fits.table_to_hdu(plain)
    for k, comment in enumerate(comments, start=1):
        if comment:
            hdu.header.set(f"TCOMM{k}", comment)
    hdu.header["EXTNAME"] = "CATALOG"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, overwrite=True)


def _write_parquet(table: Table, path: Path) -> None:
    table.write(path, format="parquet", overwrite=True)
