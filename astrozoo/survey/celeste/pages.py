"""The report's sections on an ordinary field."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from astropy.table import Table

from astrozoo.data.images import reference_image
from astrozoo.survey.celeste.catalogue import FLAGS, measured_bands
from astrozoo.survey.celeste.fit import FieldFit
from astrozoo.survey.celeste.goodness import chi2_by_band
from astrozoo.survey.celeste.pictures import cutouts, overview
from astrozoo.types import Page

__all__ = ["not_modelled", "report_pages"]

_ROWS = 200
"""Largest number of sources that are listed; more would make the report long."""
_NAMED = 5
"""Largest number of detections in the residuals whose places are printed."""
_LOOK = 5.0
"""chi2 per pixel above which a source is shown whatever its flux."""
_HOW_TO_READ = (
    "Every number is the median of the source's posterior draws (a position: their mean), and every "
    "error (after ±, or in a column _sd) their standard deviation. P(star) is the probability of a star; "
    "shapes are those of the draws that are galaxies. Colours in the picture are the bands named above it, "
    "in one stretch for data and model. Residuals are (counts - model) / sqrt(model): noise alone has no "
    "structure, and a standard deviation of 1. A ring or a core in them is light that the model does not "
    "explain, and the errors of such a source are too small."
)


def not_modelled(fit: FieldFit) -> str:
    """What the residuals contain that is not modelled, in words: number, brightest ones, flagged sources."""
    brightest = fit.left_over[np.argsort(-np.asarray(fit.left_over["snr"]))][:_NAMED]
    places = ", ".join(f"{row['ra']:.5f} {row['dec']:+.5f} ({row['snr']:.0f} sigma)" for row in brightest)
    return (
        f"{len(fit.left_over)} detections in the residuals are not modelled; the brightest are at {places}. "
        f"{int(fit.flags['unmodelled_light'].sum())} sources that overlap with them are flagged "
        "unmodelled_light."
    )


def report_pages(fit: FieldFit, table: Table, origin: str, limit: int | None = 24) -> list[Page]:
    """The report's sections on the field and its sources.

    Args:
        fit: a fitted field.
        table: its catalogue.
        origin: what the field is, in words.
        limit: how many of the brightest sources are shown one by one, besides those that fit badly; None for
            all.
    """
    reference = reference_image(fit.field)
    p = np.asarray(table["p_star"])
    counts = f"{len(table)} sources: {(p > 0.5).sum()} more likely stars, {(p <= 0.5).sum()} galaxies."
    caption = (
        "Top: data, model, and how residuals are distributed. Bottom: the sources with their numbers "
        f"(a galaxy's ellipse is at its half-light radius, 2 px at least), residuals in {reference.band} and "
        "of all images together; grey pixels are masked."
    )
    about = (
        "chi2 is the mean squared residual of valid pixels outside saturated cores, in units of the model's "
        "variance: Poisson noise, and the PSF's error of the light. 1 is noise alone."
    )
    field = Page("Field", [f"{origin[0].upper()}{origin[1:]}. {counts}", (overview(fit, table), caption)])
    goodness = Page("Goodness of fit", [about, chi2_by_band(fit)])
    if not len(table):
        return [Page("Field", [*field.parts, "No source was found above the threshold."]), goodness]
    field = Page("Field", [*field.parts, _HOW_TO_READ])
    chosen = _chosen(table, fit, limit)
    shown = cutouts(fit, table, chosen)
    caption_text = (
        f"The {len(chosen)} of {len(table)} sources shown here are the brightest, and those that fit badly "
        f"(a flag for it, or chi2 above {_LOOK:g}). "
        if len(chosen) < len(table)
        else "All sources, the brightest first. "
    )
    caption_text += (
        "Cut-outs are 29 pixels wide, in the pixels of each image; data and model in one stretch per band, "
        "residuals from -5 (blue) to 5 sigma (red). Magnitudes have errors of 1 SD, often within the dot."
    )
    left = [Page("Not modelled", [not_modelled(fit), _left_over(fit)])] if len(fit.left_over) else []
    return [
        field,
        goodness,
        *left,
        Page("Catalogue", _listed(table, fit)),
        Page("Sources", [caption_text, *((figure, "") for figure in shown)]),
    ]


def _brightest(table: Table, fit: FieldFit) -> np.ndarray:
    bands = measured_bands(fit)
    band = reference_image(fit.field).band
    return np.argsort(-np.asarray(table[f"flux_{band if band in bands else bands[0]}"]), kind="stable")


def _chosen(table: Table, fit: FieldFit, limit: int | None) -> np.ndarray:
    order = _brightest(table, fit)
    if limit is None:
        return order
    bad = np.any([table[name] for name in ("not_converged", "poor_posterior", "unmodelled_light")], axis=0)
    worst = np.nanmax(np.nan_to_num(np.asarray(fit.chi2, float)), axis=1)
    bad |= worst > _LOOK
    wanted = np.zeros(len(table), bool)
    wanted[order[:limit]] = True
    wanted[np.flatnonzero(bad)[np.argsort(-worst[bad])][:limit]] = (
        True  # a failed field must not fill the report
    )
    return order[wanted[order]]


def _listed(table: Table, fit: FieldFit) -> list[Any]:
    """The catalogue's main columns, the brightest first."""
    order = _brightest(table, fit)[:_ROWS]
    bands = measured_bands(fit)
    band = reference_image(fit.field).band
    rows = []
    for source in table[order]:
        row: dict[str, Any] = {"id": int(source["id"]), "P(star)": f"{source['p_star']:.3f}"}
        row[f"{band} [mag]"] = f"{source[f'mag_{band}']:.3f} ± {source[f'mag_{band}_sd']:.3f}"
        for a, b in pairwise(bands):
            name = f"colour_{a}{b}"
            row[f"{a}-{b}"] = f"{source[name]:.2f} ± {source[f'{name}_sd']:.2f}"
        galaxy = source["p_star"] < 0.95
        row["radius [arcsec]"] = f"{source['radius']:.2f} ± {source['radius_sd']:.2f}" if galaxy else ""
        row["chi2"] = f"{np.nanmax([source[f'chi2_{b}'] for b in fit.field.bands]):.2f}"
        row["flags"] = ", ".join(name.replace("_", " ") for name in FLAGS if source[name])
        row |= {"ra": f"{source['ra']:.5f}", "dec": f"{source['dec']:.5f}"}
        rows.append(row)
    caption_text = "The brightest first; chi2 is the worst of the bands. All columns are in catalog.fits."
    if len(order) < len(table):
        caption_text = f"{len(order)} of {len(table)} sources. {caption_text}"
    meaning = "; ".join(f"{name.replace('_', ' ')}: {what}" for name, what in FLAGS.items())
    return [caption_text, rows, f"Flags. {meaning}."]


def _left_over(fit: FieldFit) -> list[dict[str, Any]]:
    """The detections in the residuals, the brightest first."""
    rows = fit.left_over[np.argsort(-np.asarray(fit.left_over["snr"]))][:_ROWS]
    return [
        {"ra": f"{row['ra']:.5f}", "dec": f"{row['dec']:.5f}", "signal to noise": f"{row['snr']:.1f}"}
        for row in rows
    ]
