"""Pictures of the posterior of an image, and of points."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from astrozoo.physics.power_law import windowed_power

__all__ = ["IMAGES", "POINTS", "POWER", "image_figure", "point_figure", "power_figure"]

IMAGES = (
    "Data, posterior mean and SD; one draw, the residual of the mean in units of the noise, and the true "
    "image if it is known. Pixels without data are grey."
)
POWER = (
    "Power of the data, of their noise, of the prior, and of draws of the posterior (mean and the range of "
    "68 %), under a Hann window. Where the draws follow the prior but not the data, the data say little."
)
POINTS = "Points with noise (crosses), and draws of the points without noise. True points are circles."
_SHOWN_DRAWS = 60
"""Draws of each point that are shown."""


def image_figure(
    values: Float[np.ndarray, "y x"],
    noise: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    images: dict[str, Float[np.ndarray, "y x"]],
    draw: Float[np.ndarray, "y x"],
    truth: Float[np.ndarray, "y x"] | None = None,
) -> Figure:
    """Six images of the same field, or five without a truth."""
    low, high = np.quantile(images["MEAN"], (0.005, 0.995))
    scale: dict[str, Any] = {"vmin": low, "vmax": max(high, low + 1e-9), "cmap": "magma"}
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("data", np.where(mask, values, np.nan), scale),
        ("posterior mean", images["MEAN"], scale),
        ("posterior SD", images["SD"], {"vmin": 0, "cmap": "viridis"}),
        ("one draw", draw, scale),
        (
            "(data - mean) / noise",
            np.where(mask, (values - images["MEAN"]) / noise, np.nan),
            {"vmin": -4, "vmax": 4, "cmap": "RdBu_r"},
        ),
    ]
    if truth is not None:
        panels.append(("true image", truth, scale))
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, shown, kind) in zip(axes.flat, panels, strict=False):
        axis.set_facecolor("0.7")
        figure.colorbar(axis.imshow(shown, origin="lower", **kind), ax=axis, shrink=0.8)
        axis.set(title=title, xticks=[], yticks=[])
    return figure


def power_figure(
    values: Float[np.ndarray, "y x"],
    noise: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    draws: Float[np.ndarray, "n y x"],
    prior: Float[torch.Tensor, "n y x"],
) -> Figure:
    """Power spectra under one window.

    Args:
        prior: draws of the prior.
    """
    k, of_data, _, level = windowed_power(values, noise, mask)
    of_draws, of_prior = (
        np.stack([windowed_power(image, noise, mask)[1] for image in images])
        for images in (draws, prior.numpy())
    )
    low, high = np.quantile(of_draws, (0.16, 0.84), axis=0)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.loglog(k, of_data, color="0.5", label="data")
    axis.axhline(level, color="0.5", ls=":", label="noise")
    axis.fill_between(k, low, high, alpha=0.3, color="C0")
    axis.loglog(k, of_draws.mean(0), color="C0", label="draws of the posterior")
    axis.loglog(k, of_prior.mean(0), "k--", label="prior")
    axis.set(xlabel="frequency [cycles / pixel]", ylabel="power")
    axis.legend()
    return figure


def point_figure(
    values: Float[np.ndarray, "point 2"],
    draws: Float[np.ndarray, "n point 2"],
    truth: Float[np.ndarray, "point 2"] | None = None,
) -> Figure:
    """Points in the plane."""
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    few = draws[np.linspace(0, len(draws) - 1, min(len(draws), _SHOWN_DRAWS)).astype(int)]
    for i in range(values.shape[0]):
        colour = f"C{i % 10}"
        axis.plot(*few[:, i].T, ".", color=colour, ms=2, alpha=0.6)
        axis.plot(*values[i], "+", color=colour, ms=12, mew=2)
        if truth is not None:
            axis.plot(*truth[i], "o", mfc="none", color=colour, ms=10)
    axis.set(aspect="equal", xlabel="x", ylabel="y")
    return figure
