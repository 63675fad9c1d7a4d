"""Tasks of a survey with Celeste: a field is scanned; a box is fitted, and fitted again with known sources.

Each runs in a worker, reads the images that it needs, and writes one file.

The first fit of a box detects its sources. The second fit, of a box of the other tiling, takes the sources of
all first fits that it touches, begins at their modes, and draws the posteriors of the sources that it has
inside. Sources in the margin of a box are fitted for their light alone.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table, vstack
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Bool, Float

from astrozoo._files import replacing
from astrozoo.data.images import Field, Image, reference_image
from astrozoo.data.wcs import tangent_wcs
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.field_prior import prior_of_field
from astrozoo.survey.celeste.fit import draw_posteriors, fit_modes
from astrozoo.survey.celeste.population import Fluxes
from astrozoo.survey.celeste.starts import Starts
from astrozoo.survey.detect import detect
from astrozoo.survey.fields import usable_field
from astrozoo.survey.flags import position_flags
from astrozoo.survey.sky.hats import HEALPIX, healpix
from astrozoo.survey.sky.inputs import Spec, read_spec
from astrozoo.survey.sky.seams import SEAM, kept
from astrozoo.survey.sky.tiling import Box, Tiling

__all__ = ["LEARNED", "MARGIN", "first_fit", "scan", "second_fit"]

MARGIN = 16.0
"""[arcsec] Width of the strip around a box whose pixels and sources belong to its fit too: 40 pixels of SDSS,
the half size of the largest patch of an ordinary source."""
LEARNED = ("prob_star", "log_flux_mean", "log_flux_sd")
"""Numbers of a prior that are learned from all sources."""
_CELL = 16
"""[px] Step at which the area of a field is sampled for the cost of boxes."""
_COLUMNS = ("ra", "dec", "a", "b", "theta", "half_light_radius", "snr", "edge", "saturated", "blended")
"""Columns of detections that the second fit uses; fluxes too."""


def scan(*, spec: Spec, heights: Sequence[float], out: Path) -> dict[str, Any]:
    """Count the sources of a field, quickly, to predict what boxes will cost.

    Writes, for both tilings, the places of samples of its area and of its sources.

    Returns:
        name, bands, number of images, pixels and sources, and the bounds of the field on the sky [deg].
    """
    images = usable_field(read_spec(spec))
    found = detect(images)
    reference = reference_image(images)
    ny, nx = reference.shape
    grid = np.meshgrid(np.arange(_CELL / 2, nx, _CELL), np.arange(_CELL / 2, ny, _CELL))
    area = np.stack(reference.wcs.all_pix2world(*(axis.ravel() for axis in grid), 0))
    sources = np.stack((np.asarray(found["ra"], float), np.asarray(found["dec"], float)))
    arrays: dict[str, Any] = {}
    for k, height in enumerate(heights):
        tiling = Tiling(height, shifted=bool(k))
        arrays[f"area_{k}"], arrays[f"sources_{k}"] = tiling.places(*area), tiling.places(*sources)
    edges = [_outline(image) for image in images]
    ra, dec = np.concatenate(edges, axis=1)
    middle = float(area[0].mean() if np.ptp(area[0]) < 180 else (area[0] + 180).mean() % 360 - 180)
    east = (ra - middle + 180) % 360 - 180
    arrays["bounds"] = np.array([middle + east.min(), np.ptp(east), dec.min(), dec.max()])
    about = {
        "name": spec["name"],
        "bands": list(images.bands),
        "images": len(images.images),
        "pixels": int(sum(image.valid.sum() for image in images)),
        "sources": len(found),
        "cell_pixels": _CELL**2 * len(images.images),
        "notes": images.meta.get("notes", "").splitlines(),
    }
    with replacing(out, shared=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, about=np.asarray(json.dumps(about)))
    return about | {"bounds": arrays["bounds"].tolist()}


def _outline(image: Image) -> Float[np.ndarray, "2 n"]:
    """Positions along the edges of an image [deg]."""
    ny, nx = image.shape
    along, up = np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9)
    x = np.concatenate((along, along, np.full(9, -0.5), np.full(9, nx - 0.5)))
    y = np.concatenate((np.full(9, -0.5), np.full(9, ny - 0.5), up, up))
    return np.stack(image.wcs.all_pix2world(x, y, 0))


def first_fit(
    *, box: str, height: float, specs: Sequence[Spec], settings: Mapping[str, Any], out: Path
) -> dict:
    """Detect and fit the sources of a box of the first tiling, without draws of their posteriors.

    Returns:
        number of sources inside.
    """
    started = time.process_time()
    tiling, cell = Tiling(height), Box.named(box)
    images, grid = box_images(tiling, cell, specs)
    table = Table() if images is None else detect(Field((grid, *images)))
    if images is None or not len(table):
        return _write_first(out, {}, 0, started)
    table = table[_on_images(images, table)]
    prior = prior_of_field(images)
    job = fit_modes(images, table, prior, seed=_seed(settings["seed"], box), max_sweeps=settings["sweeps"])
    ra, dec = _positions(job.table, job.state.mode, job.p_star(np.arange(len(job.table))).numpy())
    rows = np.flatnonzero(tiling.near(cell, ra, dec, SEAM / 3600))
    columns = {
        name: np.asarray(job.table[name])[rows]
        for name in job.table.colnames
        if name in _COLUMNS or name.startswith("flux")
    }
    starts, fluxes = Starts.of(job), Fluxes.of(job)
    arrays = {f"column_{name}": values for name, values in columns.items()}
    arrays |= {name: values[rows] for name, values in starts._asdict().items()}
    arrays |= {f"fluxes_{name}": values[rows] for name, values in fluxes._asdict().items()}
    arrays |= {"fitted_ra": ra[rows], "fitted_dec": dec[rows]}
    arrays["inside"] = tiling.contains(cell, ra[rows], dec[rows])
    arrays["prior"] = np.array([prior.prob_star, *prior.log_flux_mean, *prior.log_flux_sd])
    return _write_first(out, arrays, int(arrays["inside"].sum()), started)


def _write_first(out: Path, arrays: Mapping[str, Any], sources: int, started: float) -> dict:
    about = {"sources": sources, "seconds": time.process_time() - started}
    with replacing(out, shared=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, about=np.asarray(json.dumps(about)))
    return about


def second_fit(
    *,
    box: str,
    height: float,
    first: Mapping[str, str],
    specs: Sequence[Spec],
    settings: Mapping[str, Any],
    learned: Mapping[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    """Fit the sources of a box of the second tiling, and write the catalogue of those inside it.

    Args:
        first: name -> file of the boxes of the first tiling that the box touches.
        learned: values of :data:`LEARNED`, from all sources of the survey.

    Returns:
        number of sources inside, and what the report needs.
    """
    started = time.process_time()
    tiling, cell = Tiling(height, shifted=True), Box.named(box)
    known = known_sources(first)
    if len(known):
        known = known[tiling.near(cell, known["fitted_ra"], known["fitted_dec"], MARGIN / 3600)]
    images, _ = box_images(tiling, cell, specs) if len(known) else (None, None)
    known = known if images is None else known[_on_images(images, known)]
    own = tiling.contains(cell, known["fitted_ra"], known["fitted_dec"]) if len(known) else np.zeros(0, bool)
    if images is None or not own.any():
        with replacing(out, shared=True) as partial:
            pq.write_table(pa.table({}), partial)
        return {"sources": 0, "seconds": time.process_time() - started}
    prior = prior_of_field(images)
    if learned is not None:
        prior = replace(prior, **{name: _tuple(learned[name]) for name in LEARNED})
    table = known[[name for name in known.colnames if name in _COLUMNS or name.startswith("flux")]]
    for name, values in position_flags(images, table).items():
        table[name] = values
    job = fit_modes(
        images,
        table,
        prior,
        seed=_seed(settings["seed"], box),
        max_sweeps=settings["sweeps"],
        search=False,
        starts=Starts.read({name: np.asarray(known[name]) for name in Starts._fields}),
    )
    middle = time.process_time()
    fit, _ = draw_posteriors(job, settings["draws"], np.flatnonzero(own))
    rows = catalogue(fit)
    rows["id"] = np.asarray(known["id"])[own]
    rows[HEALPIX] = healpix(np.asarray(rows["ra"]), np.asarray(rows["dec"]))
    rows["box"] = np.full(len(rows), box)
    about = {
        "sources": len(rows),
        "fitted": len(table),
        "pixels": int(sum(image.valid.sum() for image in images)),
        "sweeps": job.state.sweep,
        "seconds": time.process_time() - started,
        "seconds of draws": time.process_time() - middle,
        "not converged": int((~fit.converged).sum()),
    }
    with replacing(out, shared=True) as partial:
        pq.write_table(_arrow(rows), partial)
    return about


def known_sources(first: Mapping[str, str]) -> Table:
    """The sources of first fits, each once, in the order of the boxes' names.

    Args:
        first: name -> file.

    Returns:
        Their ``id`` (unique in the survey), ``fitted_ra``, ``fitted_dec`` [deg], columns of detection, and
        those of :class:`astrozoo.survey.celeste.starts.Starts`.
    """
    tables: list[Table] = []
    for name in sorted(first, key=Box.named):
        with np.load(first[name], allow_pickle=False) as archive:
            if "inside" not in archive.files:
                continue
            arrays = {key.removeprefix("column_"): archive[key] for key in archive.files}
        n = len(arrays["inside"])
        table = Table(
            {key: value for key, value in arrays.items() if len(np.shape(value)) and len(value) == n}
        )
        table.remove_columns([key for key in ("prior",) if key in table.colnames])
        table["id"] = _identities(name, n)
        tables.append(table)
    if not tables:
        return Table()
    positions = [np.stack((t["fitted_ra"], t["fitted_dec"]), -1) for t in tables]
    keep = kept(positions, [np.asarray(t["inside"], bool) for t in tables])
    return vstack([t[k] for t, k in zip(tables, keep, strict=True)], metadata_conflicts="silent")


def _identities(name: str, n: int) -> np.ndarray:
    """Numbers of the sources of a box, the same in every process: 42 bits of the box, 20 of the source."""
    return Box.named(name).number * 2**20 + np.arange(n, dtype=np.int64)


def box_images(tiling: Tiling, box: Box, specs: Sequence[Spec]) -> tuple[Field | None, Image]:
    """The images of a box and its margin, and an empty image that covers all of it.

    Pixels outside are masked. The image with the most pixels in the box is the first of its band.

    Raises:
        DataError: a field cannot be read; the message names it.
    """
    parts: list[Image] = []
    meta: dict[str, str] = {}
    for spec in specs:
        field = read_spec(spec)
        parts += [cut for image in field if (cut := _cut(image, tiling, box)) is not None]
        meta |= {k: v for k, v in field.meta.items() if k.startswith("wavelength") or k == "survey"}
    parts.sort(key=lambda image: -int(image.valid.sum()))
    scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(parts[0].wcs)))) * 3600 if parts else 1.0
    band = "r" if any(image.band == "r" for image in parts) else (parts[0].band if parts else "r")
    grid = _grid(tiling, box, scale, band, parts)
    return (usable_field(Field(tuple(parts), name=box.name, meta=meta)) if parts else None), grid


def _grid(tiling: Tiling, box: Box, scale: float, band: str, parts: list[Image]) -> Image:
    """An image without valid pixels, on whose pixels the sources of a box are detected."""
    ra, width, low, high = tiling.bounds(box)
    middle = (low + high) / 2
    wide = width * np.cos(np.deg2rad(min(abs(low), abs(high)))) + 2 * MARGIN / 3600
    shape = (int(np.ceil((high - low + 2 * MARGIN / 3600) * 3600 / scale)), int(np.ceil(wide * 3600 / scale)))
    empty = np.zeros(shape, bool)
    return Image(
        band=band,
        counts=np.zeros(shape),
        sky=np.asarray(1.0),
        calibration=np.asarray(1.0),
        valid=empty,
        saturated=empty,
        wcs=tangent_wcs(shape, scale, ra=ra + width / 2, dec=middle),
        psf=parts[0].psf if parts else None,  # type: ignore[arg-type]  # it is not used
        name=f"box {box.name}",
    )


def _cut(image: Image, tiling: Tiling, box: Box) -> Image | None:
    """The part of an image in a box and its margin, or None if there is none."""
    ra0, width, low, high = tiling.bounds(box)
    aside, margin = MARGIN / 3600 / np.cos(np.deg2rad((low + high) / 2)), MARGIN / 3600
    east = np.linspace(ra0 - aside, ra0 + width + aside, 9)
    north = np.linspace(low - margin, high + margin, 9)
    ra, dec = (axis.ravel() for axis in np.meshgrid(east, north))
    middle_ra, middle_dec = image.wcs.all_pix2world((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2, 0)
    far = (np.abs((ra - middle_ra + 180) % 360 - 180) * np.cos(np.deg2rad(dec))) ** 2 + (
        dec - middle_dec
    ) ** 2
    if far.min() > 25:  # deg^2: a projection shows the far side of the sky too
        return None
    x, y = image.wcs.all_world2pix(ra, dec, 0, quiet=True)
    ny, nx = image.shape
    x0, x1 = max(0, int(np.floor(x.min()))), min(nx, int(np.ceil(x.max())) + 1)
    y0, y1 = max(0, int(np.floor(y.min()))), min(ny, int(np.ceil(y.max())) + 1)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    cut = image.crop(slice(y0, y1), slice(x0, x1))
    columns, rows = np.meshgrid(np.arange(x1 - x0), np.arange(y1 - y0))
    sky = cut.wcs.all_pix2world(columns.ravel(), rows.ravel(), 0)
    inside = tiling.near(box, sky[0], sky[1], margin).reshape(cut.shape)
    valid, saturated = cut.valid & inside, cut.saturated & inside
    return replace(cut, valid=valid, saturated=saturated) if valid.any() else None


def _on_images(images: Field, table: Table) -> Bool[np.ndarray, "s"]:
    """Which sources are on an image."""
    inside = np.zeros(len(table), bool)
    for image in images:
        x, y = image.wcs.all_world2pix(np.asarray(table["ra"]), np.asarray(table["dec"]), 0, quiet=True)
        inside |= (x > -0.5) & (x < image.shape[1] - 0.5) & (y > -0.5) & (y < image.shape[0] - 0.5)
    return inside


def _positions(
    table: Table, mode: Mapping[str, Any], p_star: Float[np.ndarray, "s"]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of sources as fitted [deg]: the modes of both types, by their probabilities."""
    offset = (
        p_star[:, None] * mode["star"][:, :2].numpy() + (1 - p_star)[:, None] * mode["galaxy"][:, :2].numpy()
    )
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    return (ra + offset[:, 0] / 3600 / np.cos(np.deg2rad(dec))) % 360, dec + offset[:, 1] / 3600


def _seed(seed: int, box: str) -> int:
    """A seed for each box: with one for all, draws of sources in different boxes would be the same noise."""
    return zlib.crc32(f"{seed} {box}".encode())


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _arrow(table: Table) -> pa.Table:
    """Columns as Arrow arrays; units are in the fields' metadata."""
    arrays, fields = [], []
    for name in table.colnames:
        column = table[name]
        values = pa.array(np.asarray(column))
        about = {"unit": str(column.unit)} if column.unit is not None else {}
        if column.description:
            about["description"] = str(column.description)
        arrays.append(values)
        fields.append(pa.field(name, values.type, metadata=about or None))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
