"""The report of a survey: density on the sky, failures and, of a simulated sky, completeness by magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from matplotlib.figure import Figure

from astrozoo.diagnostics.report import render
from astrozoo.types import Page

__all__ = ["completeness", "write_report"]

_MATCH = 1.0
"""[arcsec] Largest distance of a source from the true one that it is matched with."""
_LISTED = 100
"""Largest number of failures that the report lists; ``failures.csv`` has all."""


def write_report(
    out: Path, table: Table, failures: Sequence[Mapping[str, str]], truth: Table | None
) -> dict[str, Any]:
    """Write ``report.html``; what the summary says of the catalogue is returned."""
    about: dict[str, Any] = {}
    pages: list[Page] = []
    if len(table):
        stars = int((np.asarray(table["p_star"]) > 0.5).sum())
        about |= {"stars": stars, "galaxies": len(table) - stars, "flagged": int((table["flags"] > 0).sum())}
        text = f"{len(table)} sources: {stars} more likely stars, {len(table) - stars} galaxies."
        pages.append(Page("Sky", [text, (_map(table), "Sources per square arcminute.")]))
    else:
        pages.append(Page("Sky", ["The catalogue is empty, or too large for a map: see catalog/."]))
    if truth is not None and len(table):
        rows, about["false"] = completeness(table, truth)
        found = sum(row["found"] for row in rows)
        about["completeness"] = round(found / max(1, sum(row["sources"] for row in rows)), 4)
        text = f"{about['false']} sources of the catalogue match no true one within {_MATCH:g} arcsec."
        pages.append(Page("Simulated truth", [rows, (_curve(rows), "Fraction of true sources found."), text]))
    if failures:
        text = (
            f"{len(failures)} tasks failed; their parts of the sky are missing. The same command tries again."
        )
        pages.append(Page("Failures", [text, list(failures[:_LISTED])]))
    kind = "warn" if failures else "good"
    head = f"{len(failures)} failures." if failures else "Complete."
    banner = {"kind": kind, "head": head, "text": f"{len(table)} sources in the table of this report."}
    render(out / "report.html", "celeste: survey", [banner], pages)
    return about


def completeness(table: Table, truth: Table) -> tuple[list[dict[str, Any]], int]:
    """Of true sources, by r magnitude: how many there are, and how many the catalogue has.

    A source of the catalogue is matched with the nearest true one, and each true one with one source. True
    sources whose ``inside`` is False are not counted.

    Returns:
        a row per magnitude, and the number of sources of the catalogue that match no true one.
    """
    known = SkyCoord(truth["ra"], truth["dec"], unit="deg")
    found = SkyCoord(np.asarray(table["ra"]), np.asarray(table["dec"]), unit="deg")
    nearest, distance, _ = found.match_to_catalog_sky(known)
    matched = np.zeros(len(truth), bool)
    matched[nearest[distance.arcsec < _MATCH]] = True
    false = len(table) - int(matched.sum())
    truth, matched = truth[truth["inside"]], matched[truth["inside"]]
    magnitude = 22.5 - 2.5 * np.log10(np.asarray(truth["flux_r"]))
    rows = []
    for low in np.arange(np.floor(magnitude.min()), np.ceil(magnitude.max())):
        inside = (magnitude >= low) & (magnitude < low + 1)
        if inside.any():
            n, m = int(inside.sum()), int(matched[inside].sum())
            rows.append(
                {"r": f"{low:g} to {low + 1:g}", "sources": n, "found": m, "fraction": round(m / n, 3)}
            )
    return rows, false


def _map(table: Table) -> Figure:
    """Number of sources per square arcminute, on a flat map about their middle."""
    ra, dec = np.asarray(table["ra"]), np.asarray(table["dec"])
    middle = ra[0]
    east = ((ra - middle + 180) % 360 - 180) * np.cos(np.deg2rad(np.median(dec)))
    size = max(np.ptp(east), np.ptp(dec), 1 / 60) * 60
    bins = int(np.clip(size, 8, 200))
    counts, x, y = np.histogram2d(60 * (east - east.mean()), 60 * (dec - dec.mean()), bins=bins)
    area = (x[1] - x[0]) * (y[1] - y[0])
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.pcolormesh(x, y, counts.T / area, cmap="viridis")
    axes.invert_xaxis()
    axes.set(xlabel="east [arcmin]", ylabel="north [arcmin]", aspect="equal")
    figure.colorbar(image, label="sources per square arcminute")
    return figure


def _curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    middle = [float(row["r"].split()[0]) + 0.5 for row in rows]
    fraction = np.array([row["fraction"] for row in rows])
    error = [
        np.sqrt(max(f * (1 - f), 0.25 / row["sources"]) / row["sources"])
        for f, row in zip(fraction, rows, strict=True)
    ]
    axes.errorbar(middle, fraction, error, fmt="o-")
    axes.set(xlabel="r [mag]", ylabel="fraction found", ylim=(0, 1.05))
    return figure
