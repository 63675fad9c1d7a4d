"""Catalogues as Parquet by HEALPix, in the HATS layout, which LSDB opens.

Rows are sorted by the column ``_healpix_29``, the number of the HEALPix pixel of order 29 (nested). A file
holds the rows of one pixel. Pixels are divided until none has more than a given number of rows.

References:
    Caplar et al. 2025, arXiv:2501.02103 (HATS and LSDB).
    Gorski et al. 2005, ApJ 622, 759 (HEALPix).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units
from astropy.coordinates import Latitude, Longitude
from jaxtyping import Float, Int

from astrozoo.errors import OutputError

__all__ = ["HEALPIX", "ROWS", "healpix", "partition", "write_hats"]

HEALPIX = "_healpix_29"
"""Name of the column of pixels of order 29."""
_ORDER = 29
ROWS = 200_000
"""Most rows of a file: some 300 MB in memory, which a process of a few gigabytes reads several of at once."""
_HIGHEST = 12
"""Highest order of a file. Its pixels are 52 arcsec wide."""


def healpix(ra: Float[np.ndarray, "n"], dec: Float[np.ndarray, "n"], order: int = _ORDER) -> np.ndarray:
    """Nested HEALPix pixels of positions [deg]."""
    from cdshealpix.nested import lonlat_to_healpix

    pixels = lonlat_to_healpix(Longitude(ra, units.deg), Latitude(dec, units.deg), order)
    return np.asarray(pixels).astype(np.int64)


def partition(pixels: Int[np.ndarray, "n"], rows: int = ROWS) -> list[tuple[int, int]]:
    """(order, pixel) of the files for rows in pixels of order 29; at most ``rows`` rows in each.

    Pixels of the highest order that files may have are not divided further.
    """
    found: list[tuple[int, int]] = []
    waiting = [(0, int(p)) for p in np.unique(pixels >> 2 * _ORDER)]
    ordered = np.sort(pixels)
    while waiting:
        order, pixel = waiting.pop()
        down = 2 * (_ORDER - order)
        low, high = np.searchsorted(ordered, [pixel << down, (pixel + 1) << down])
        if low == high:
            continue
        if high - low <= rows or order == _HIGHEST:
            found.append((order, pixel))
        else:
            waiting += [(order + 1, 4 * pixel + k) for k in range(4)]
    return sorted(found, key=lambda p: p[1] << 2 * (_ORDER - p[0]))


def write_hats(parts: Sequence[Path], folder: Path, name: str, *, rows: int = ROWS) -> int:
    """Write the rows of Parquet files as a HATS catalogue; the folder appears only once it is whole.

    Files of ``parts`` are read twice, and of each only what a file of the catalogue needs is in memory.
    Columns that some parts lack are null there.

    Args:
        parts: files with ``ra``, ``dec`` [deg] and :data:`HEALPIX`.
        folder: of the catalogue; an existing one is replaced.
        name: of the catalogue.
        rows: most rows of a file.

    Returns:
        the number of rows.

    Raises:
        OutputError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        total = _write(parts, partial, name, rows)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return total


def _write(parts: Sequence[Path], folder: Path, name: str, rows: int) -> int:
    columns = [pq.read_table(part, columns=[HEALPIX])[HEALPIX].to_numpy() for part in parts]
    schema = pa.unify_schemas(
        [pq.read_schema(part).remove_metadata() for part in parts], promote_options="permissive"
    )
    pixels = np.concatenate(columns) if columns else np.zeros(0, np.int64)
    files = partition(pixels, rows)
    metadata, total = [], 0
    for order, pixel in files:
        down = 2 * (_ORDER - order)
        low, high = pixel << down, (pixel + 1) << down
        chosen = [
            part
            for part, values in zip(parts, columns, strict=True)
            if ((values >= low) & (values < high)).any()
        ]
        chosen_rows = [
            pq.read_table(part, filters=[(HEALPIX, ">=", low), (HEALPIX, "<", high)]) for part in chosen
        ]
        table = pa.concat_tables([schema.empty_table(), *chosen_rows], promote_options="permissive")
        table = table.select(schema.names).cast(schema).sort_by(HEALPIX)
        where = Path("dataset") / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}"
        (folder / where).mkdir(parents=True, exist_ok=True)
        path = where / f"Npix={pixel}.parquet"
        collected: list[pq.FileMetaData] = []
        pq.write_table(table, folder / path, metadata_collector=collected)
        collected[0].set_file_path(str(path.relative_to("dataset")))
        metadata += collected
        total += len(table)
    (folder / "dataset").mkdir(exist_ok=True)
    pq.write_metadata(schema, folder / "dataset" / "_common_metadata")
    if metadata:
        pq.write_metadata(schema, folder / "dataset" / "_metadata", metadata_collector=metadata)
    lines = ["Norder,Npix", *(f"{order},{pixel}" for order, pixel in files)]
    (folder / "partition_info.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": total,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": HEALPIX,
        "hats_col_healpix_order": _ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_max_rows": rows,
        "hats_order": max((order for order, _ in files), default=0),
        "hats_builder": "astrozoo",
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in ("hats.properties", "properties"):
        (folder / file).write_text(f"#HATS catalog\n{text}", encoding="utf-8")
    return total
