"""The report's sections on a crowded field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.table import Table
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from astrozoo.data.images import reference_image
from astrozoo.survey.celeste.crowded_catalogue import CROWDED_FLAGS
from astrozoo.survey.celeste.pictures import overview
from astrozoo.survey.crowded.blocks import Block
from astrozoo.survey.crowded.fit import CrowdedFit
from astrozoo.survey.crowded.samples import magnitude
from astrozoo.survey.crowded.scene import stamp_of_table
from astrozoo.types import Page

__all__ = ["crowded_pages"]

_ROWS = 200
"""The most sources that are listed; more would make the report long."""
_BIN = 0.5
"""[mag] Width of the bins of the luminosity function."""
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_HOW_TO_READ = (
    "How many sources there are is part of what was inferred. The chains drew whole catalogues, which differ "
    "in their sources; all are in catalogs.parquet. The catalogue is their consensus: its sources are those "
    "on which most catalogues agree, within half a pixel and half a magnitude. P(exists) is the fraction of "
    "the catalogues of other chains that confirm a source. Every number is the mean of the confirming "
    "catalogues, and every error (after ±) their standard deviation."
)


_GIVEN = (
    "A catalogue stated which sources there are. All their fluxes and positions were fitted together, and "
    "the positions were held to the catalogue's by its errors. Every number is the mean, and every error "
    "(after ±) the standard deviation, of draws from the normal distribution of log fluxes and positions at "
    "the joint mode. The light of sources that the catalogue lacks is in the residuals, or in the fluxes of "
    "their neighbours."
)


def crowded_pages(fit: CrowdedFit, table: Table, origin: str, why: str, given: bool = False) -> list[Page]:
    """Sections on the field, its goodness of fit, counts, chains, PSFs and sources.

    Args:
        fit: a fitted field.
        table: its catalogue.
        origin: what the field is, in words.
        why: why it was fitted as a crowded field.
        given: whether a catalogue stated which sources there are.
    """
    counts = fit.samples.totals()["sources"]
    low, high = np.quantile(counts, (0.16, 0.84))
    text = (
        f"{origin[0].upper()}{origin[1:]}. {why[0].upper()}{why[1:]}. "
        f"The catalogues have {counts.mean():.0f} sources (68 %: {low:.0f} to {high:.0f}). The consensus has "
        f"{len(table)}."
    )
    caption = (
        "Top: data, model (mean over catalogues), and how residuals are distributed. Bottom: the sources of "
        "the consensus, residuals in the reference band and of all images together; grey pixels are masked."
    )
    goodness = (
        "chi2 is the mean squared residual of valid pixels outside saturated cores, in units of the variance "
        "that the fit assumes: Poisson noise, and the error of the PSF times the light. 1 is noise alone."
    )
    pages = [
        Page("Field", [text, (overview(fit, table), caption), _GIVEN if given else _HOW_TO_READ]),
        Page("Goodness of fit", [goodness, fit.chi2()]),
        Page("Counts and luminosity function", _counts(fit, table)),
        *([] if given else [Page("Convergence of counts and fluxes", _convergence(fit))]),
        Page("Point-spread functions", _psf(fit)),
    ]
    return [*pages, Page("Catalogue", _listed(fit, table))] if len(table) else pages


def _counts(fit: CrowdedFit, table: Table) -> list[Any]:
    band = reference_image(fit.field).band
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _luminosity_function(left, fit, table, band)
    for chain, line in enumerate(fit.samples.totals()["sources"]):
        middle.plot(line, lw=0.8, label=f"chain {chain}")
    middle.set_xlabel("sample")
    middle.set_ylabel("sources")
    middle.legend(fontsize=6, frameon=False)
    right.hist(np.asarray(table["p_exists"]), np.linspace(0, 1, 21).tolist(), color=_BLUE)
    right.set_xlabel("P(exists)")
    right.set_ylabel("sources of the consensus")
    caption = (
        "Left: number of sources in bins of half a magnitude: mean and 95 % of the catalogues, the "
        "consensus, and the learned prior. Middle: number of sources of each sampled catalogue. Right: how "
        "sure the consensus is of its sources."
    )
    rows = []
    for name, draws in fit.samples.totals().items():
        low, high = np.quantile(draws, (0.025, 0.975))
        rows.append({"": name, "mean": draws.mean(), "sd": draws.std(), "2.5 %": low, "97.5 %": high})
    stars = ", ".join(f"{block.prior.star_fraction:.3f}" for block in fit.blocks)
    fractions = f"Fraction of stars in the learned prior, block by block: {stars}."
    return [(figure, caption), *_colours(fit, table, band), rows, fractions]


def _colours(fit: CrowdedFit, table: Table, band: str) -> list[Any]:
    """Colour-magnitude diagrams of all catalogues and of the consensus; none of a single band."""
    bands = [name for name in fit.field.bands if f"flux_{name}" in table.colnames]
    if len(bands) < 2:
        return []
    at = bands.index(band)
    blue, red = bands[max(0, at - 1)], bands[max(1, at)]
    samples, column = fit.samples, fit.samples.bands.index
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    magnitudes = {name: magnitude(samples.flux[:, column(name)]) for name in (blue, red, band)}
    colour = magnitudes[blue] - magnitudes[red]
    low, high = np.quantile(colour, (0.01, 0.99)) if len(colour) else (-1.0, 2.0)
    left.plot(colour, magnitudes[band], ",", color=_BLUE, alpha=0.3)
    star = np.asarray(table["p_star"]) > 0.5
    seen = [np.asarray(table[f"mag_{name}"], float) for name in (blue, red, band)]
    for chosen, marker, tint, label in ((star, "o", _BLUE, "star"), (~star, "s", _ORANGE, "galaxy")):
        p_exists = np.asarray(table["p_exists"])[chosen]
        right.scatter(
            (seen[0] - seen[1])[chosen],
            seen[2][chosen],
            s=3 + 9 * p_exists,
            marker=marker,
            color=tint,
            alpha=0.6,
            lw=0,
            label=f"{label}: {chosen.sum()}",
        )
    right.legend(fontsize=7, frameon=False)
    left.set_xlim(low - 0.3, high + 0.3)
    left.invert_yaxis()
    left.set_ylabel(f"{band} [mag]")
    for ax, title in ((left, "all catalogues"), (right, "consensus")):
        ax.set_xlabel(f"{blue} - {red} [mag]")
        ax.set_title(title, fontsize=9)
    caption = (
        "Colour and magnitude of every source of every catalogue (left), and of the consensus (right; the "
        "larger a symbol, the surer the source)."
    )
    return [(figure, caption)]


def _luminosity_function(ax: Axes, fit: CrowdedFit, table: Table, band: str) -> None:
    samples = fit.samples
    seen = magnitude(samples.flux[:, samples.reference])
    if not len(seen):
        return
    edges = np.arange(np.floor(seen.min() / _BIN) * _BIN, seen.max() + _BIN, _BIN)
    shape = (samples.chains * samples.length, len(edges) - 1)
    counts = np.zeros(shape)
    bins = np.clip(np.digitize(seen, edges) - 1, 0, shape[1] - 1)
    np.add.at(counts, (samples.catalogue, bins), 1)
    centre = (edges[1:] + edges[:-1]) / 2
    low, high = np.quantile(counts, (0.025, 0.975), axis=0)
    ax.fill_between(centre, low, high, color=_BLUE, alpha=0.3, lw=0, label="catalogues, 95 %")
    ax.plot(centre, counts.mean(0), color=_BLUE, lw=1)
    found = magnitude(np.asarray(table[f"flux_{band}"], float)) if len(table) else np.zeros(0)
    ax.stairs(np.histogram(found, edges)[0], edges, color=_ORANGE, lw=1, label="consensus")
    ax.plot(centre, _expected_counts(fit.blocks, centre), "--", color="0.3", lw=0.9, label="prior")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)
    ax.set_xlabel(f"{band} [mag]")
    ax.set_ylabel(f"sources per {_BIN:g} mag")
    ax.legend(fontsize=6, frameon=False)


def _expected_counts(blocks: Sequence[Block], centre: Float[np.ndarray, "bin"]) -> Float[np.ndarray, "bin"]:
    """Sources per bin that the learned priors expect."""
    log_flux = (22.5 - centre) * np.log(10) / 2.5
    total = np.zeros(len(centre))
    for block in blocks:
        rows, columns = block.core
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        for kind in (block.prior.star, block.prior.galaxy):
            total += area * kind.density * np.exp(kind.log_luminosity(log_flux)) * _BIN * np.log(10) / 2.5
    return total


def _convergence(fit: CrowdedFit) -> list[Any]:
    names, mixing = fit.samples.mixing()
    rows = [
        {
            "": name,
            "R-hat": float(mixing.r_hat[0, k]),
            "limit": float(mixing.r_hat_limit[0, k]),
            "bulk ESS": float(mixing.bulk_ess[0, k]),
            "tail ESS": float(mixing.tail_ess[0, k]),
        }
        for k, name in enumerate(names)
    ]
    moves = [
        {"move": name, "tried": tried, "accepted": fit.samples.acceptance[name]}
        for name, (tried, _) in fit.samples.tally.items()
    ]
    about = (
        "R-hat of the number of sources, of all and by magnitude, and of total fluxes [nMgy]. The run has "
        "converged if every R-hat is below its limit and every effective sample size above 400."
    )
    return [about, rows, "Moves of the sampler after the burn-in, and the fraction that was accepted.", moves]


def _psf(fit: CrowdedFit) -> list[Any]:
    """The survey's PSF, the corrected one and their difference, of the block in the middle."""
    block = fit.blocks[len(fit.blocks) // 2]
    scene = block.mode.scene
    images = range(len(scene.band))
    figure = Figure(figsize=(1.6 * len(images) + 0.6, 4.8), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    rows = []
    for k, (image, old) in enumerate(zip(fit.field, block.mode.survey_psf, strict=True)):
        before, after = (stamp_of_table(table, scene.oversampling) for table in (old, scene.psf[k]))
        middle, half = len(after) // 2, min(10, len(after) // 2)
        cut = (slice(middle - half, middle + half + 1),) * 2
        peak = before.max()
        shown = (before[cut] / peak, after[cut] / peak)
        for line, stamp in enumerate(shown):
            axes[line, k].imshow(np.arcsinh(stamp * 100), origin="lower", cmap="gray")
        axes[2, k].imshow(shown[1] - shown[0], origin="lower", cmap="RdBu_r", vmin=-0.1, vmax=0.1)
        axes[0, k].set_title(image.band, fontsize=8)
        rows.append(
            {
                "image": image.name or image.band,
                "peak, corrected / survey's": after.max() / peak,
                "area before [px]": 1 / (before**2).sum(),
                "area after [px]": 1 / (after**2).sum(),
                "relative error left": float(scene.psf_error[k]),
            }
        )
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    for ax, label in zip(axes[:, 0], ("survey", "corrected", "difference"), strict=True):
        ax.set_ylabel(label, fontsize=8)
    caption = (
        "Top and middle: the PSF as the survey gives it and as the bright stars correct it (asinh stretch). "
        "Bottom: their difference, from -10 % (blue) to 10 % of the peak (red)."
    )
    return [rows, (figure, caption)]


def _listed(fit: CrowdedFit, table: Table) -> list[Any]:
    bands = [band for band in fit.field.bands if f"mag_{band}" in table.colnames]
    rows = []
    for source in table[:_ROWS]:
        row: dict[str, Any] = {"id": int(source["id"]), "P(exists)": f"{source['p_exists']:.2f}"}
        row["P(star)"] = f"{source['p_star']:.2f}"
        for band in bands:
            row[f"{band} [mag]"] = f"{source[f'mag_{band}']:.2f} ± {source[f'mag_{band}_sd']:.2f}"
        row["flags"] = ", ".join(name for name in CROWDED_FLAGS if source[name])
        row |= {"ra": f"{source['ra']:.5f}", "dec": f"{source['dec']:.5f}"}
        rows.append(row)
    text = f"The {len(rows)} brightest of {len(table)} sources. All columns are in catalog.fits."
    meaning = "; ".join(f"{name}: {what}" for name, what in CROWDED_FLAGS.items())
    return [text, rows, f"Flags. {meaning}."]
