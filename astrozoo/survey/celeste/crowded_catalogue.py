"""Tables of a crowded field: the consensus catalogue, and the catalogues that were sampled."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from astropy import units
from astropy.table import Column, Table
from jaxtyping import Float

from astrozoo.data.images import Field, reference_image
from astrozoo.diagnostics.scoring import asinh_magnitude
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.flags import POSITION_FLAGS, position_flags

__all__ = ["CROWDED_FLAGS", "crowded_catalogue", "sampled_catalogues"]

UNSURE = 0.9
"""Probability of existence below which a source is flagged."""
CROWDED_FLAGS = {
    **POSITION_FLAGS,
    "unsure": f"the probability that the source exists is below {UNSURE:g}",
}
"""Meaning of each flag; the k-th, from 0, is bit 2**k of the column ``flags``."""
_QUANTILES = {"q025": "2.5 %", "q16": "16 %", "q84": "84 %", "q975": "97.5 %"}
_SOFTENED = "ugriz"


def crowded_catalogue(images: Field, consensus: Table) -> Table:
    """The consensus as a catalogue on the sky, the brightest source first.

    Args:
        images: the field.
        consensus: of :func:`astrozoo.survey.crowded.consensus.consensus`.

    Returns:
        ``id``; ``ra``, ``dec`` [deg], ``ra_sd`` (of ra cos dec), ``dec_sd`` [mas]; ``x``, ``y`` [px of the
        reference image]; ``p_exists``; ``p_star``; for each band b ``flux_b``, ``flux_b_sd``, its quantiles
        [nMgy], ``mag_b`` and ``mag_b_sd``; ``colour_ab`` [mag]; if a galaxy, ``radius`` [arcsec],
        ``axis_ratio`` and ``angle`` [deg, north through east]; a column for each of :data:`CROWDED_FLAGS`,
        and ``flags``, all of them as bits.
    """
    reference = reference_image(images)
    bands = [band for band in images.bands if f"flux_{band}" in consensus.colnames]
    order = np.argsort(-np.asarray(consensus[f"flux_{reference.band}"], float), kind="stable")
    consensus = consensus[order]
    x, y = (np.asarray(consensus[name], float) for name in "xy")
    table = Table(meta={"FIELD": images.name, "FLUXUNIT": "nanomaggy, 3.631 microjansky"})
    table["id"] = Column(np.arange(1, len(consensus) + 1), description="number of the source")
    ra, dec = reference.wcs.all_pix2world(x, y, 0) if len(consensus) else (x, y)
    table["ra"] = Column(ra, unit=units.deg, description="right ascension")
    table["dec"] = Column(dec, unit=units.deg, description="declination")
    table["ra_sd"], table["dec_sd"] = _sky_errors(reference.wcs.pixel_scale_matrix, consensus)
    for name in "xy":
        table[name] = Column(np.asarray(consensus[name]), unit=units.pix, description=f"{name}, from 0")
    for name, what in (
        ("p_exists", "probability that the source exists"),
        ("p_star", "probability of a star (else a galaxy), if it exists"),
    ):
        table[name] = Column(np.asarray(consensus[name], float), description=what)
    _add_photometry(table, consensus, bands)
    _add_shape(table, consensus, reference.wcs.pixel_scale_matrix)
    values = position_flags(images, table)
    values["unsure"] = np.asarray(table["p_exists"]) < UNSURE
    bits = np.zeros(len(table), np.int32)
    for k, (name, what) in enumerate(CROWDED_FLAGS.items()):
        table[name] = Column(values[name], description=what)
        bits |= np.where(values[name], 2**k, 0).astype(np.int32)
    listed = ", ".join(f"{2**k} {name}" for k, name in enumerate(CROWDED_FLAGS))
    table["flags"] = Column(bits, description=f"sum of {listed}")
    return table


def _sky_errors(scale: Float[np.ndarray, "2 2"], consensus: Table) -> tuple[Column, Column]:
    """SDs east and north, of SDs along x and y whose correlation is neglected."""
    variance = np.stack([np.asarray(consensus[f"{name}_sd"], float) for name in "xy"]) ** 2
    east, north = np.sqrt((scale * 3.6e6) ** 2 @ variance)
    return (
        Column(east, unit=units.mas, description="standard deviation of right ascension times cos(dec)"),
        Column(north, unit=units.mas, description="standard deviation of declination"),
    )


def _add_photometry(table: Table, consensus: Table, bands: list[str]) -> None:
    nmgy = units.Unit("nmgy")
    for b in bands:
        flux, sd = (np.asarray(consensus[f"flux_{b}{end}"], float) for end in ("", "_sd"))
        table[f"flux_{b}"] = Column(flux, unit=nmgy, description=f"mean flux in {b} [nanomaggy]")
        table[f"flux_{b}_sd"] = Column(sd, unit=nmgy, description=f"standard deviation of flux_{b}")
        for name, what in _QUANTILES.items():
            values = np.asarray(consensus[f"flux_{b}_{name}"], float)
            table[f"flux_{b}_{name}"] = Column(values, unit=nmgy, description=f"{what} quantile of flux_{b}")
    for b in bands:
        low, mid, high = (
            _magnitude(np.asarray(consensus[f"flux_{b}{end}"], float), b) for end in ("_q84", "", "_q16")
        )
        table[f"mag_{b}"] = Column(mid, unit=units.mag, description=f"AB magnitude of flux_{b}")
        table[f"mag_{b}_sd"] = Column(
            (high - low) / 2, unit=units.mag, description=f"half of the 68 % interval of mag_{b}"
        )
    for a, b in pairwise(bands):
        table[f"colour_{a}{b}"] = Column(
            table[f"mag_{a}"] - table[f"mag_{b}"], unit=units.mag, description=f"colour {a} - {b}"
        )


def _magnitude(flux: Float[np.ndarray, "s"], band: str) -> Float[np.ndarray, "s"]:
    """SDSS's asinh magnitude; of any other band, Pogson's."""
    return asinh_magnitude(flux, band) if band in _SOFTENED else 22.5 - 2.5 * np.log10(flux)


def _add_shape(table: Table, consensus: Table, scale: Float[np.ndarray, "2 2"]) -> None:
    pixel = 3600 * np.sqrt(abs(np.linalg.det(scale)))
    radius = np.asarray(consensus["half_light_radius"], float) * pixel
    e1, e2 = (np.asarray(consensus[name], float) for name in ("e1", "e2"))
    turn = np.arctan2(e2, e1) / 2  # from +x to +y
    east, north = scale @ np.stack([np.cos(turn), np.sin(turn)])
    table["radius"] = Column(radius, unit=units.arcsec, description="half-light radius, if a galaxy")
    table["axis_ratio"] = Column(np.exp(-np.hypot(e1, e2)), description="minor to major axis, if a galaxy")
    table["angle"] = Column(
        np.rad2deg(np.arctan2(east, north)) % 180,
        unit=units.deg,
        description="position angle of the major axis, north through east, if a galaxy",
    )


def sampled_catalogues(images: Field, samples: Samples) -> Table:
    """All sampled catalogues, a row per source.

    Returns:
        ``chain``, ``sample``; ``ra``, ``dec`` [deg]; ``x``, ``y`` [px of the reference image]; for each band
        b ``flux_b`` [nMgy]; ``half_light_radius`` [px], ``e1``, ``e2`` of galaxies (NaN for stars).
    """
    wcs = reference_image(images).wcs
    x, y = samples.xy.T
    table = Table({"chain": samples.chain.astype(np.int32), "sample": samples.sample.astype(np.int32)})
    table["ra"], table["dec"] = wcs.all_pix2world(x, y, 0) if len(x) else (x, y)
    table["x"], table["y"] = x, y
    for b, band in enumerate(samples.bands):
        table[f"flux_{band}"] = samples.flux[:, b]
    for k, name in enumerate(("half_light_radius", "e1", "e2")):
        table[name] = samples.shape[:, k]
    return table
