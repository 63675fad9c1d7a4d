"""Catalogues as files: positions of sources are read, and finished catalogues written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import Angle
from astropy.io import fits
from astropy.io.registry import IORegistryError
from astropy.table import Column, Table
from jaxtyping import Bool, Float

from astrozoo._files import replacing
from astrozoo.data.images import Field, Image, reference_image
from astrozoo.errors import DataError, InputError, OutputError

__all__ = ["read_sources", "sky_positions", "write_catalogue"]

_RA = ("ra", "ra_deg", "ra_hours", "ra_rad", "raj2000", "ra_icrs", "_raj2000", "alpha_j2000", "coord_ra")
"""Names of a column with the right ascension, in lower case; the first that is present is used."""
_DEC = ("dec", "dec_deg", "dec_rad", "dej2000", "de_icrs", "_dej2000", "delta_j2000", "coord_dec")
"""Names of a column with the declination, likewise."""
_SUFFIXES = {"hours": units.hourangle, "rad": units.rad}
"""Units that a name ends in. A unit of the column comes first."""


def read_sources(path: Path, images: Field, margin: float = 0.0) -> Table:
    """Positions of a catalogue (FITS, Parquet, CSV, VOTable ...) that lie on the reference image.

    Args:
        path: of the file.
        images: the field.
        margin: distance from the image to which sources are read too [px].

    Returns:
        ``id`` (the file's own if it has one of integers, else its row number from 1), ``ra``, ``dec`` [deg];
        and ``position_error`` [arcsec] if the file has a column of this name, or ``ra_sd`` and ``dec_sd`` as
        the catalogues of this package.

    Raises:
        DataError: no such file, no table with positions (:func:`sky_positions`), or position errors that are
            not positive angles.
        InputError: none of its sources is on the field.
    """
    try:
        table = Table.read(path)
    except (OSError, IORegistryError, ValueError) as cause:
        raise DataError(
            str(path), f"{type(cause).__name__}: {cause}", "a table that astropy can read"
        ) from cause
    ra, dec = sky_positions(table, str(path))
    names = {name.lower(): name for name in table.colnames}
    file_ids = np.asarray(table[names["id"]]) if "id" in names else np.zeros(0)
    ids = file_ids if file_ids.dtype.kind in "iu" and len(file_ids) == len(ra) else np.arange(1, len(ra) + 1)
    reference = reference_image(images)
    inside = _contains(reference, ra, dec, margin)
    if not inside.any():
        in_hours, in_radians = (
            _contains(reference, 15 * ra, dec),
            _contains(reference, *np.rad2deg([ra, dec])),
        )
        hint = "sources on the field"
        for found, name in ((in_hours, "ra_hours"), (in_radians, "ra_rad and dec_rad")):
            if found.any():
                hint += (
                    f"; {found.sum()} would be in other units: name the columns {name}, or give them units"
                )
        raise InputError(str(path), f"{len(ra)} sources, none on field {images.name!r} as degrees", hint)
    sources = Table({"id": ids[inside], "ra": ra[inside], "dec": dec[inside]})
    error = _position_error(table, names, str(path))
    if error is not None:
        bad = int((~(error[inside] > 0) | ~np.isfinite(error[inside])).sum())
        if bad:
            raise DataError(str(path), f"{bad} position errors not positive", "standard deviations")
        sources["position_error"] = error[inside]
    return sources


def _position_error(table: Table, names: dict[str, str], what: str) -> Float[np.ndarray, "s"] | None:
    """SD of each coordinate [arcsec], if a table has it.

    A column without a unit is in the unit of this package's catalogues.
    """
    if "position_error" in names:
        return _angles(table, names["position_error"], units.arcsec, what)
    if {"ra_sd", "dec_sd"} <= names.keys():
        east, north = (_angles(table, names[name], units.mas, what) for name in ("ra_sd", "dec_sd"))
        return np.sqrt((east**2 + north**2) / 2)
    return None


def _angles(table: Table, name: str, default: units.UnitBase, what: str) -> Float[np.ndarray, "s"]:
    """The angles of a column [arcsec]; NaN where one is missing."""
    unit = table[name].unit or default
    if not isinstance(unit, units.UnitBase) or not unit.is_equivalent(units.arcsec):
        raise DataError(f"{what}: {name}", f"the unit {unit}", "one of angle")
    values: np.ndarray = np.ma.filled(np.ma.asarray(table[name], float), np.nan)
    return values * unit.to(units.arcsec)


def sky_positions(table: Table, what: str) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s"]]:
    """Right ascension and declination [deg] of a table; NaN where one is missing or beyond a pole.

    Columns are ``ra`` and ``dec``, or the names of VizieR, SExtractor and LSST, in any case. The unit is
    that of the column, or that of the name (``ra_hours``, ``ra_deg``, ``ra_rad``), or degrees. Texts such as
    ``00:20:13.7`` or ``0h20m13.7s`` are sexagesimal, with right ascension in hours.

    Args:
        table: with or without units.
        what: its name in messages.

    Raises:
        DataError: no such columns, a text that is no angle, or a unit that is not one of angle.
    """
    names = {name.lower(): name for name in table.colnames}
    chosen = [next((names[key] for key in keys if key in names), None) for keys in (_RA, _DEC)]
    if None in chosen:
        got = f"columns {', '.join(table.colnames[:8])}"
        raise DataError(what, got, "ra and dec [deg] among them")
    ra, dec = (
        _degrees(table[name], sexagesimal, f"{what}: {name}")
        for name, sexagesimal in zip(chosen, (units.hourangle, units.deg), strict=True)
    )
    dec = np.where(np.abs(dec) <= 90, dec, np.nan)
    return np.where(np.isfinite(dec), ra, np.nan), np.where(np.isfinite(ra), dec, np.nan)


def _degrees(column: Column, sexagesimal: units.UnitBase, what: str) -> Float[np.ndarray, "s"]:
    """The angles of a column [deg]."""
    values = np.ma.asarray(column)
    if values.dtype.kind in "SUO":
        return np.array([_angle(text, sexagesimal, what) for text in np.ma.filled(values.astype(str), "")])
    if values.dtype.kind not in "fiu":
        raise DataError(what, f"type {values.dtype}", "numbers [deg], or sexagesimal texts")
    suffix = what.rpartition("_")[2].lower()
    unit = column.unit or _SUFFIXES.get(suffix, units.deg)
    if not isinstance(unit, units.UnitBase) or not unit.is_equivalent(units.deg):
        raise DataError(what, f"the unit {unit}", "deg, hourangle or rad")
    degrees = np.asarray(np.ma.filled(values.astype(float), np.nan)) * unit.to(units.deg)
    return np.where(np.isfinite(degrees), degrees, np.nan)


def _angle(text: str, sexagesimal: units.UnitBase, what: str) -> float:
    """One angle [deg]: a decimal number is in degrees; an empty text is NaN."""
    text = text.strip()
    if text.lower() in ("", "nan", "--"):
        return np.nan
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(Angle(text, sexagesimal).deg)
    except (ValueError, units.UnitsError) as error:
        raise DataError(what, repr(text), "an angle such as 150.1, 10:00:24.3 or 10h00m24.3s") from error


def _contains(
    image: Image, ra: Float[np.ndarray, "s"], dec: Float[np.ndarray, "s"], margin: float = 0.0
) -> Bool[np.ndarray, "s"]:
    """Whether sky positions [deg] lie on an image or within a margin [px] of it; not where they are NaN."""
    known = np.isfinite(ra) & (np.abs(dec) <= 90)
    inside = np.zeros(len(ra), bool)
    inside[known] = _on(image, ra[known], dec[known], margin)
    return inside


def _on(
    image: Image, ra: Float[np.ndarray, "s"], dec: Float[np.ndarray, "s"], margin: float
) -> Bool[np.ndarray, "s"]:
    """Whether finite sky positions [deg] lie on an image or within a margin [px] of it."""
    ny, nx = image.shape
    ra_0, dec_0 = image.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    # near only: a projection onto a plane shows the far side of the sky too
    far = np.abs(dec - dec_0) + np.abs((ra - ra_0 + 180) % 360 - 180) * np.cos(np.deg2rad(dec_0)) > 20
    x, y = image.wcs.all_world2pix(np.where(far, ra_0, ra), np.where(far, dec_0, dec), 0)
    edge = 0.5 + margin
    return ~far & (x > -edge) & (x < nx - 1 + edge) & (y > -edge) & (y < ny - 1 + edge)


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
