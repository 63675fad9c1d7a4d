"""Pictures of a blend: the scene, each source alone, and the fluxes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from astrozoo.data.scenes import Scene
from astrozoo.deblending.sources import Deblended

__all__ = [
    "BANDS",
    "FLUXES",
    "SCENE",
    "SOURCES",
    "bands_figure",
    "flux_figure",
    "scene_figure",
    "sources_figure",
]

SCENE = (
    "In colour: the data with the sources' numbers, the model, data minus model on the same scale, and each "
    "source alone, as it would be seen without the others."
)
BANDS = (
    "Data, model, and residuals in SDs of the noise, in each band. A good fit leaves residuals without "
    "structure."
)
SOURCES = (
    "Each source, summed over bands in units of the noise: posterior mean and SD. SDs are largest where "
    "sources overlap."
)
FLUXES = (
    "Fluxes in each band: median and interval of 68 % (thick) and of 95 % (thin). Right: their correlations. "
    "Light that one source loses, its neighbour gains. Crosses are true fluxes, where the data are simulated."
)
_SHOWN = 12
"""Most sources that pictures show alone. More make the report long."""
_SOFTENING = 8.0
"""Brightness, in noise, around which the stretch of colours changes from linear to logarithmic."""


def _colours(
    images: Float[np.ndarray, "band y x"], noise: Float[np.ndarray, "band"], top: float
) -> np.ndarray:
    """An RGB picture; the last bands are red. With one or two bands some channels are the same."""
    signal = images / noise[:, None, None]
    groups = np.array_split(signal[::-1], 3) if len(signal) >= 3 else [signal[[0]], signal, signal[[-1]]]
    if len(signal) == 2:
        groups = [signal[[1]], signal, signal[[0]]]
    channels = np.stack([group.mean(0) for group in groups], -1)
    level = np.clip(channels.mean(-1, keepdims=True), 1e-6, None)
    stretched = np.arcsinh(level / _SOFTENING) / np.arcsinh(top / _SOFTENING)
    return np.clip(channels / level * stretched, 0, 1)


def _noise(scene: Scene) -> Float[np.ndarray, "band"]:
    pairs = zip(scene.noise[scene.used], scene.mask[scene.used], strict=True)
    return np.array([np.median(sd[mask]) for sd, mask in pairs])


def _clean(axes: np.ndarray) -> None:
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])


def scene_figure(scene: Scene, parts: Deblended) -> Figure:
    """The scene in colour, and each source alone."""
    data, noise = scene.images[scene.used], _noise(scene)
    top = float(np.quantile((parts.model / noise[:, None, None]).mean(0), 0.999))
    shown = parts.images[:_SHOWN]
    panels = [("data", data), ("model", parts.model), ("data - model", data - parts.model)]
    panels += [(f"source {i}", image) for i, image in enumerate(shown)]
    columns = 5 if len(panels) > 6 else 3
    rows = -(-len(panels) // columns)
    ny, nx = scene.shape
    size = (2.4 * columns, 2.4 * rows * ny / nx + 0.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis, (title, image) in zip(axes.flat, panels, strict=False):
        axis.imshow(_colours(image, noise, top), origin="lower", interpolation="nearest")
        axis.set_title(title, fontsize=9)
    for i, row in enumerate(scene.sources):
        axes[0, 0].annotate(
            str(i), (row["x"], row["y"]), color="w", fontsize=8, ha="left", va="bottom",
            xytext=(2, 2), textcoords="offset points",
        )  # fmt: skip
        axes[0, 0].plot(row["x"], row["y"], "w+", ms=4, mew=0.7)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    _clean(axes)
    plt.close(figure)
    return figure


def bands_figure(scene: Scene, parts: Deblended) -> Figure:
    """Data, model and residuals of each band."""
    data, mask, sd = scene.images[scene.used], scene.mask[scene.used], scene.noise[scene.used]
    count = len(parts.bands)
    ny, nx = scene.shape
    size = (2.2 * count + 0.6, 3 * 2.2 * ny / nx + 0.5)
    figure, axes = plt.subplots(3, count, figsize=size, layout="constrained", squeeze=False)
    noise = _noise(scene)
    for k, band in enumerate(parts.bands):
        signal, model = data[k] / noise[k], parts.model[k] / noise[k]
        limits = {"vmin": -1.0, "vmax": float(np.arcsinh(np.quantile(model, 0.999)))}
        for row, image in enumerate((signal, model)):
            shown = np.where(mask[k], np.arcsinh(image), np.nan) if row == 0 else np.arcsinh(image)
            axes[row, k].imshow(shown, origin="lower", cmap="magma", **limits)
        residual = np.where(mask[k], (data[k] - parts.model[k]) / sd[k], np.nan)
        last = axes[2, k].imshow(residual, origin="lower", cmap="coolwarm", vmin=-5, vmax=5)
        axes[0, k].set_title(band)
    for axis in axes.flat:
        axis.set_facecolor("0.6")
    for row, name in enumerate(("data", "model", "residual [SD]")):
        axes[row, 0].set_ylabel(name)
    figure.colorbar(last, ax=axes[2, :], shrink=0.8)
    _clean(axes)
    plt.close(figure)
    return figure


def sources_figure(scene: Scene, parts: Deblended) -> Figure:
    """Mean and SD of the image of each source."""
    noise = _noise(scene)[:, None, None]
    count = min(len(parts.images), _SHOWN)
    ny, nx = scene.shape
    columns = min(count, 6)
    rows = 2 * -(-count // columns)
    size = (2.0 * columns + 0.8, 2.0 * rows * ny / nx + 0.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        row, column = 2 * (i // columns), i % columns
        mean = (parts.images[i] / noise).sum(0) / len(noise) ** 0.5
        sd = np.sqrt(((parts.sd[i] / noise) ** 2).sum(0) / len(noise))
        pairs = ((f"source {i}: mean", mean, "magma"), ("SD", sd, "viridis"))
        for k, (title, image, colours) in enumerate(pairs):
            axis = axes[row + k, column]
            axis.axis("on")
            top = max(float(image.max()), 1e-3)
            shown = axis.imshow(image, origin="lower", cmap=colours, vmin=0, vmax=top)
            axis.set_title(title, fontsize=9)
            figure.colorbar(shown, ax=axis, shrink=0.75)
            axis.set(xticks=[], yticks=[])
    plt.close(figure)
    return figure


def flux_figure(parts: Deblended, truth: Float[np.ndarray, "source band"] | None = None) -> Figure:
    """Intervals of all fluxes, and the correlations between them."""
    _, count, bands = parts.fluxes.shape
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), layout="constrained", gridspec_kw={"width_ratios": (1.6, 1)}
    )
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, bands))
    levels = np.quantile(parts.fluxes, (0.025, 0.1587, 0.5, 0.8413, 0.975), axis=0)
    for k, band in enumerate(parts.bands):
        at = np.arange(count) + 0.6 * ((k + 0.5) / bands - 0.5)
        low, left_1, middle, right_1, high = levels[:, :, k]
        left.vlines(at, low, high, color=colours[k], lw=1)
        left.vlines(at, left_1, right_1, color=colours[k], lw=3)
        left.plot(at, middle, "o", color=colours[k], ms=3, label=band)
        if truth is not None:
            left.plot(at, truth[:, k], "x", color="crimson", ms=5, mew=1.2)
    left.set(yscale="log", xlabel="source", ylabel="flux [unit of the images]", xticks=range(count))
    left.legend(title="band", fontsize=8, ncols=2)
    _correlations(right, parts)
    plt.close(figure)
    return figure


def _correlations(axis: Axes, parts: Deblended) -> None:
    _, count, bands = parts.fluxes.shape
    logs = np.log(parts.fluxes).reshape(len(parts.fluxes), -1)
    shown = axis.imshow(np.corrcoef(logs, rowvar=False), cmap="RdBu_r", vmin=-1, vmax=1)
    ticks = np.arange(count) * bands + (bands - 1) / 2
    axis.set(title="correlation of log fluxes", xlabel="source", ylabel="source")
    names = [str(i) for i in range(count)]
    axis.set_xticks(ticks, names)
    axis.set_yticks(ticks, names)
    for edge in np.arange(1, count) * bands - 0.5:
        axis.axhline(edge, color="0.7", lw=0.5)
        axis.axvline(edge, color="0.7", lw=0.5)
    axis.figure.colorbar(shown, ax=axis, shrink=0.8)
