"""Figures of shear: the posterior, the learned population, and galaxies with their fits."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from astrozoo.data.observed_stamps import ObservedStamps
from astrozoo.physics.ellipticity import to_ellipticity
from astrozoo.shear.fits import Fits
from astrozoo.types import Result

__all__ = ["STAMPS_CAPTION", "SUMMARY_CAPTION", "stamps_figure", "summary_figure"]

SUMMARY_CAPTION = (
    "Left: draws of the posterior of the shear, the mean of point fits with its error, and the truth if "
    "it is known. Middle: moduli of the ellipticities of single fits, which noise makes larger, and the "
    "learned intrinsic distribution. Right: effective draws of each galaxy."
)
STAMPS_CAPTION = "Galaxies, from bright to faint: data, fit, and residuals from -4 to 4 standard deviations."
_SHOWN = 12


def summary_figure(
    result: Result, fits: Fits, points: Float[Tensor, "galaxy 2"], truth: Tensor | None
) -> Figure:
    """The posterior of the shear, shapes, and effective draws."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draws = result.draws["shear"].reshape(-1, 2)
    left.plot(*draws[:2000].T, ".", ms=2, alpha=0.4, color="#0072b2", label="posterior")
    mean, error = points.mean(0), points.std(0) / len(points) ** 0.5
    g, bars = mean.numpy()[:, None], error.numpy()[:, None]
    left.errorbar(g[0], g[1], bars[1], bars[0], fmt="s", color="#d55e00", label="point fits")
    if truth is not None:
        left.plot(*truth[:, None].numpy(), "k+", ms=14, mew=2, label="truth")
    left.set(xlabel="g1", ylabel="g2")
    left.legend(fontsize=8)
    size = points.square().sum(1).sqrt().numpy()
    middle.hist(size, np.linspace(0, 1, 41), density=True, color="0.8", label="single fits")
    middle.plot(*_learned(result), color="#0072b2", label="intrinsic, learned")
    middle.set(xlabel="ellipticity (1 - q) / (1 + q)", ylabel="density")
    middle.legend(fontsize=8)
    count = fits.draws.log_weight.shape[1]
    right.hist(fits.effective.numpy(), np.linspace(0, count, 41), color="0.6")
    right.set(xlabel=f"effective draws of {count}", ylabel="galaxies")
    return figure


def _learned(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """The density of the intrinsic ellipticity's modulus, at the posterior mean of its scale."""
    sd = float(result.draws["ellipticity_sd"].mean())
    eta = torch.linspace(0, 6 * sd, 400, dtype=torch.float64)
    size = to_ellipticity(torch.stack((eta, torch.zeros_like(eta)), 1))[:, 0].numpy()
    density = eta.numpy() / sd**2 * np.exp(-0.5 * (eta.numpy() / sd) ** 2)  # of the length of a normal vector
    return size, density / np.gradient(size, eta.numpy())


def stamps_figure(stamps: ObservedStamps, model: Float[Tensor, "galaxy y x"], fits: Fits) -> Figure:
    """Some galaxies with their fits and residuals."""
    count = min(_SHOWN, len(model))
    order = fits.mode[:, 3].argsort(descending=True)
    shown = order[torch.linspace(0, len(order) - 1, count).long()]
    figure = Figure(figsize=(0.95 * count, 3.1), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for column, k in zip(axes.T, shown.tolist(), strict=True):
        data, fit = stamps.image[k].numpy(), model[k].numpy()
        high = float(fit.max())
        residual = (data - fit) / float(stamps.noise_rms[k])
        for ax, image, (low, top), colours in (
            (column[0], data, (-0.1 * high, high), "gray"),
            (column[1], fit, (-0.1 * high, high), "gray"),
            (column[2], residual, (-4, 4), "RdBu_r"),
        ):
            ax.imshow(image, origin="lower", vmin=low, vmax=top, cmap=colours)
            ax.set(xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], ("data", "fit", "residual"), strict=True):
        ax.set_ylabel(label)
    return figure
