"""Pictures of a fitted field: data, model and residuals, of the whole and of each source.

Residuals are (counts - model) / sqrt(model): in units of the noise that the model expects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from astropy.table import Table
from astropy.visualization import make_lupton_rgb
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from scipy.ndimage import affine_transform

from astrozoo.data.images import Image, reference_image
from astrozoo.survey.celeste.catalogue import FLAGS, measured_bands
from astrozoo.survey.celeste.goodness import nearest_pixels
from astrozoo.survey.fields import good_pixels

if TYPE_CHECKING:
    from astrozoo.survey.celeste.fit import FieldFit
    from astrozoo.survey.crowded.fit import CrowdedFit

__all__ = ["cutouts", "overview"]

_STAR, _GALAXY, _UNSURE = "#e69f00", "#56b4e9", "#cc79a7"  # Okabe & Ito
_LABELS = 120
"""Largest number of sources that are labelled with their numbers; more labels would hide the sky."""
_RANGE = 5.0
"""Residuals at the ends of the colour scale [sigma]."""
_SOFTEN = 8.0
"""Softening ``Q`` of the asinh stretch of colour pictures (Lupton et al. 2004)."""
_DARK = 0.02
"""[1] Quantile of the model that pictures show as sky: most pixels of a crowded field have light of stars."""
_PER_PAGE = 4
"""Number of sources per figure of cut-outs."""
_HALF = 14
"""Half the side of a cut-out, without its central pixel [px]."""

_Warp = Callable[[np.ndarray, int], np.ndarray]


def overview(fit: FieldFit | CrowdedFit, table: Table) -> Figure:
    """Data, model and marked sources in colour; residuals of the reference band and of all bands together.

    Args:
        fit: a fitted field.
        table: its :func:`~astrozoo.survey.celeste.catalogue.catalogue`.
    """
    reference = reference_image(fit.field)
    ny, nx = reference.shape
    width = 3.5
    height = float(np.clip(width * ny / nx, 1.5, 8.0))
    figure = Figure(figsize=(3 * width + 0.6, 2 * height + 0.9), layout="compressed")
    axes = figure.subplots(2, 3)
    data, model = _composites(fit)
    pictures = (
        (axes[0, 0], data, f"data ({_filters(fit)})"),
        (axes[0, 1], model, "model"),
        (axes[1, 0], data, "sources"),
    )
    for ax, picture, title in pictures:
        ax.imshow(picture, origin="lower", interpolation="nearest")
        ax.set_title(title, fontsize=9)
    _mark(axes[1, 0], fit, table)
    single, total = _residuals(fit)
    titles = (f"residual in {reference.band} [sigma]", "residual, all images summed [sigma]")
    for ax, residual, title in zip(axes[1, 1:], (single, total), titles, strict=True):
        shown = ax.imshow(
            residual, origin="lower", cmap="RdBu_r", vmin=-_RANGE, vmax=_RANGE, interpolation="nearest"
        )
        ax.set_facecolor("0.6")
        ax.set_title(title, fontsize=9)
    bar = figure.colorbar(shown, cax=axes[1, 2].inset_axes((1.02, 0, 0.035, 1)), extend="both")
    bar.ax.tick_params(labelsize=7)
    for ax in (*axes[0, :2], *axes[1]):
        ax.set_xticks([])
        ax.set_yticks([])
    _histogram(axes[0, 2], fit, ny / nx)
    return figure


def _filters(fit: FieldFit | CrowdedFit) -> str:
    red, green, blue = _colour_bands(fit)
    return f"{red}, {green}, {blue} as red, green, blue"


def _colour_bands(fit: FieldFit | CrowdedFit) -> tuple[str, str, str]:
    bands = measured_bands(fit)
    if {"g", "r", "i"} <= set(bands):
        return "i", "r", "g"
    return bands[-1], bands[len(bands) // 2], bands[0]


def _composites(fit: FieldFit | CrowdedFit) -> tuple[np.ndarray, np.ndarray]:
    """Data and model in colour [y, x, 3], with the same stretch, on the reference image's pixels."""
    reference = reference_image(fit.field)
    planes: list[list[np.ndarray]] = [[], []]
    noise = []
    for band in _colour_bands(fit):
        k = next(k for k, image in enumerate(fit.field) if image.band == band)
        image = fit.field.images[k]
        warp = _to_reference(reference, image)
        sky = image.sky + np.quantile(fit.model[k] - image.sky, _DARK)  # the sky may have been refitted
        seen = image.valid | image.saturated
        scale = float(np.median(image.calibration))
        for plane, electrons in zip(planes, (np.where(seen, image.counts, sky), fit.model[k]), strict=True):
            plane.append(warp((electrons - sky) / scale, 1))
        noise.append(np.sqrt(max(float(np.median(sky)), 1.0)) / scale)
    # equal noise in every colour keeps the sky grey, and a faint sky visible
    gains = np.mean(noise) / np.array(noise)
    unit = float(np.mean(noise))
    data, model = (
        make_lupton_rgb(
            *(g * p for g, p in zip(gains, plane, strict=True)),
            minimum=-unit,
            stretch=9 * unit,
            Q=_SOFTEN,
        )
        for plane in planes
    )
    return data, model


def _to_reference(reference: Image, image: Image) -> _Warp:
    """A function that resamples onto the reference image's pixels with a spline of given order.

    Outside the image it returns NaN for order 0, else 0. The WCS are assumed to differ by a linear map, which
    is accurate enough for a picture.
    """
    ny, nx = reference.shape
    x, y = np.array([0.0, nx - 1, 0.0]), np.array([0.0, 0.0, ny - 1])
    there = np.stack(image.wcs.all_world2pix(*reference.wcs.all_pix2world(x, y, 0), 0)[::-1])  # (row, column)
    matrix = np.stack(((there[:, 2] - there[:, 0]) / (ny - 1), (there[:, 1] - there[:, 0]) / (nx - 1)), -1)

    def warp(array: np.ndarray, order: int) -> np.ndarray:
        fill = np.nan if order == 0 else 0.0
        return affine_transform(array, matrix, there[:, 0], output_shape=(ny, nx), order=order, cval=fill)

    return warp


def _residuals(fit: FieldFit | CrowdedFit) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
    """Residuals of the reference image, and of the sum of all images' electrons; NaN where masked."""
    reference = reference_image(fit.field)
    excess, expected = np.zeros(reference.shape), np.zeros(reference.shape)
    single = np.full(reference.shape, np.nan)
    for image, model in zip(fit.field, fit.model, strict=True):
        difference = np.where(image.valid, image.counts - model, np.nan)
        if image is reference:
            single = difference / np.sqrt(model)
        warp = _to_reference(reference, image)
        # nearest neighbours: anything smoother would correlate the noise
        seen = warp(difference, 0)
        used = np.isfinite(seen)
        excess += np.where(used, seen, 0)
        expected += np.where(used, warp(model, 0), 0)
    total = np.divide(excess, np.sqrt(expected), out=np.full(reference.shape, np.nan), where=expected > 0)
    return single, total


def _kinds(table: Table) -> list[tuple[str, str, Bool[np.ndarray, "s"]]]:
    p = np.asarray(table["p_star"])
    return [
        ("star (p > .95)", _STAR, p > 0.95),
        ("galaxy (p < .05)", _GALAXY, p < 0.05),
        ("either", _UNSURE, (p >= 0.05) & (p <= 0.95)),
    ]


def _mark(ax: Axes, fit: FieldFit | CrowdedFit, table: Table) -> None:
    reference = reference_image(fit.field)
    x, y = (
        reference.wcs.all_world2pix(np.asarray(table["ra"]), np.asarray(table["dec"]), 0)
        if len(table)
        else ([], [])
    )
    x, y = np.asarray(x), np.asarray(y)
    many = len(table) > _LABELS
    for label, colour, chosen in _kinds(table):
        if not chosen.any():
            continue
        if colour == _GALAXY:
            wide, high, angle = _ellipses(reference, table[chosen])
            where = np.stack((x[chosen], y[chosen]), -1)
            drawn = EllipseCollection(
                wide, high, angle, units="xy", offsets=where, offset_transform=ax.transData,
                facecolors="none", edgecolors=colour, linewidths=0.9,
            )  # fmt: skip
            ax.add_collection(drawn)
            ax.plot([], [], "o", mfc="none", mec=colour, ms=6, label=f"{label}: {chosen.sum()}")
        else:
            marker = "+" if colour == _STAR else "d"
            ax.plot(
                x[chosen], y[chosen], marker, mec=colour, mfc="none", ms=4 if many else 6, mew=1.0, ls="",
                label=f"{label}: {chosen.sum()}",
            )  # fmt: skip
    if not many:
        for k in range(len(table)):
            ax.annotate(
                str(table["id"][k]), (x[k], y[k]), xytext=(3.5, 3.5), textcoords="offset points",
                fontsize=5.5, color="white", annotation_clip=True,
            )  # fmt: skip
    ax.set_xlim(-0.5, reference.shape[1] - 0.5)
    ax.set_ylim(-0.5, reference.shape[0] - 0.5)
    if len(table):
        ax.legend(
            fontsize=7.5,
            handletextpad=0.2,
            columnspacing=1.0,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=3,
            frameon=False,
        )


def _ellipses(image: Image, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes [px] and angles [deg, from +x to +y] of ellipses at the half-light radius, at least 2 px."""
    scale = 3600 * np.sqrt(abs(np.linalg.det(image.wcs.pixel_scale_matrix)))
    radius = np.maximum(np.nan_to_num(np.asarray(table["radius"]) / scale, nan=2.0), 2.0)
    ratio = np.nan_to_num(np.asarray(table["axis_ratio"]), nan=1.0)
    turn = np.deg2rad(np.nan_to_num(np.asarray(table["angle"])))
    towards = np.linalg.inv(image.wcs.pixel_scale_matrix) @ np.stack((np.sin(turn), np.cos(turn)))
    return (
        2 * radius / np.sqrt(ratio),
        2 * radius * np.sqrt(ratio),
        np.rad2deg(np.arctan2(towards[1], towards[0])),
    )


def _histogram(ax: Axes, fit: FieldFit | CrowdedFit, aspect: float) -> None:
    grid = np.linspace(-6, 6, 61)
    cores = good_pixels(fit.field)
    for band in measured_bands(fit):
        values = [
            ((image.counts - model) / np.sqrt(model))[good]
            for image, model, good in zip(fit.field, fit.model, cores, strict=True)
            if image.band == band
        ]
        ax.hist(
            np.concatenate(values), grid.tolist(), density=True, histtype="step", label=band, linewidth=1.2
        )
    ax.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), "k--", lw=1, label="N(0, 1)")
    ax.set_yscale("log")
    ax.set_ylim(1e-5, 1)
    ax.set_box_aspect(aspect)
    ax.set_xlabel("residual [sigma]", fontsize=8)
    ax.set_title("distribution of residuals", fontsize=9)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7, frameon=False)


def cutouts(fit: FieldFit, table: Table, rows: Int[np.ndarray, "n"]) -> list[Figure]:
    """Data, model and residuals of selected sources in each band, and their fluxes; four sources per figure.

    Args:
        fit: a fitted field.
        table: its :func:`~astrozoo.survey.celeste.catalogue.catalogue`.
        rows: of the table, in the order of the figures.
    """
    bands = measured_bands(fit)
    figures = []
    for first in range(0, len(rows), _PER_PAGE):
        page = rows[first : first + _PER_PAGE]
        wide, high = 0.95 * len(bands) + 5.3, 2.5 * len(page)
        # fixed margins: a layout engine would take longer than everything else
        figure = Figure(figsize=(wide, high))
        grid = figure.add_gridspec(
            len(page), 3, width_ratios=(0.95 * len(bands), 2.0, 2.3), wspace=0.16, hspace=0.18,
            left=0.25 / wide, right=1 - 0.1 / wide, bottom=0.3 / high, top=1 - 0.25 / high,
        )  # fmt: skip
        for line, row in enumerate(page):
            _mosaic(figure.add_subplot(grid[line, 0]), fit, table, int(row), bands)
            _fluxes(figure.add_subplot(grid[line, 1]), table[row], bands)
            ax = figure.add_subplot(grid[line, 2])
            ax.axis("off")
            ax.text(
                0,
                1,
                _description(table[row]),
                va="top",
                fontsize=7.5,
                linespacing=1.45,
                transform=ax.transAxes,
            )
        figures.append(figure)
    return figures


def _mosaic(ax: Axes, fit: FieldFit, table: Table, row: int, bands: list[str]) -> None:
    """Rows data, model, residual; a column per band (its first image)."""
    side, gap = 2 * _HALF + 1, 2
    grey, seismic = (matplotlib.colormaps[name].with_extremes(bad="0.6") for name in ("gray", "RdBu_r"))
    canvas = np.ones((3 * side + 2 * gap, len(bands) * (side + gap) - gap, 3))
    for column, band in enumerate(bands):
        k = next(k for k, image in enumerate(fit.field) if image.band == band)
        image = fit.field.images[k]
        x, y = nearest_pixels(image, table[[row]])[0]
        valid = _cut(image.valid.astype(float), x, y) > 0
        counts, model = _cut(image.counts, x, y), _cut(fit.model[k], x, y)
        sky, noise = _cut(image.sky, x, y), float(np.sqrt(np.median(image.sky)))
        bright = max(8.0, float(np.nanmax((model - sky) / noise, initial=0.0)))
        residual = np.where(valid, (counts - model) / np.sqrt(model), np.nan)
        for line, part in enumerate((counts, model, residual)):
            if line == 2:
                picture = seismic(0.5 + np.ma.masked_invalid(part) / (2 * _RANGE))[..., :3]
            else:
                stretched = np.arcsinh((part - sky) / noise + 2) / np.arcsinh(bright + 2)
                picture = grey(np.ma.masked_invalid(np.clip(stretched, 0, 1)))[..., :3]
            top, left = line * (side + gap), column * (side + gap)
            canvas[top : top + side, left : left + side] = picture[::-1]  # row 0 of the data at the bottom
        ax.text(column * (side + gap) + side / 2, -2, band, ha="center", va="bottom", fontsize=8)
    ax.imshow(canvas, interpolation="nearest")
    for line, label in enumerate(("data", "model", "residual")):
        ax.text(
            -1.5, line * (side + gap) + side / 2, label, rotation=90, ha="right", va="center", fontsize=7.5
        )
    ax.axis("off")


def _cut(array: Float[np.ndarray, "y x"], x: int, y: int) -> Float[np.ndarray, "n n"]:
    """A square around a pixel; NaN outside the image."""
    out = np.full((2 * _HALF + 1, 2 * _HALF + 1), np.nan)
    y0, y1 = max(y - _HALF, 0), min(y + _HALF + 1, array.shape[0])
    x0, x1 = max(x - _HALF, 0), min(x + _HALF + 1, array.shape[1])
    if y0 < y1 and x0 < x1:
        out[y0 - y + _HALF : y1 - y + _HALF, x0 - x + _HALF : x1 - x + _HALF] = array[y0:y1, x0:x1]
    return out


def _fluxes(ax: Axes, source: Table.Row, bands: list[str]) -> None:
    mean = np.array([source[f"mag_{b}"] for b in bands])
    sd = np.array([source[f"mag_{b}_sd"] for b in bands])
    ax.errorbar(range(len(bands)), mean, sd, fmt="o-", ms=4, lw=0.8, capsize=3, color="#0072b2")
    ax.set_xticks(range(len(bands)), bands)
    ax.set_xlim(-0.4, len(bands) - 0.6)
    middle = (np.max(mean + sd) + np.min(mean - sd)) / 2
    reach = max(0.6 * (np.max(mean + sd) - np.min(mean - sd)), 0.25)
    ax.set_ylim(middle + reach, middle - reach)
    ax.set_ylabel("mag (median, 1 SD)", fontsize=7.5)
    ax.tick_params(labelsize=7.5)


def _description(source: Table.Row) -> str:
    p = float(source["p_star"])
    raised = [name.replace("_", " ") for name in FLAGS if source[name]]
    lines = [
        f"source {source['id']}    P(star) = {p:.3f}",
        f"ra {source['ra']:.6f}  dec {source['dec']:+.6f}",
        f"position ± {_short(source['ra_sd'])} mas east, ± {_short(source['dec_sd'])} north",
    ]
    if p < 0.95:
        lines += [
            "if a galaxy:" if p > 0.05 else "galaxy:",
            f"  half-light radius {_pm(source, 'radius')} arcsec",
            f"  axis ratio {_pm(source, 'axis_ratio')}",
            f"  angle {_pm(source, 'angle')} deg",
            f"  de Vaucouleurs share {_pm(source, 'dev_fraction')}",
        ]
    chi2 = [f"{n[5:]} {source[n]:.2f}" for n in source.colnames if n.startswith("chi2_")]
    drawn = f"k-hat {source['k_hat']:.2f}" if np.isfinite(source["k_hat"]) else f"R-hat {source['r_hat']:.3f}"
    lines += [f"chi2: {', '.join(chi2)}", drawn]
    return "\n".join([*lines, f"flags: {', '.join(raised)}"] if raised else lines)


def _pm(source: Table.Row, name: str) -> str:
    """Mean and standard deviation, with the decimals that show two digits of the deviation."""
    sd = float(source[f"{name}_sd"])
    return f"{source[name]:.{_digits(sd)}f} ± {_short(sd)}"


def _short(sd: float) -> str:
    return f"{sd:.{_digits(sd)}f}"


def _digits(sd: float) -> int:
    """The number of decimals that show two digits of a deviation."""
    return int(np.clip(1 - np.floor(np.log10(sd)), 0, 4)) if sd > 0 else 4
