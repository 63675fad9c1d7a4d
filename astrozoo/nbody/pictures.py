"""Pictures of N-body initial conditions: slices and spectra."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from astrozoo.nbody.spectra import Scales

__all__ = ["SLICES", "SPECTRA", "cosmology_figure", "slice_figure", "spectra_figure"]

SLICES = (
    "Slices of the box, the mean of {layers} layers. Above the density at the time of the data, below the "
    "linear density today, from which it grew: the truth (of simulated data), the data, the posterior mean, "
    "its SD, and one draw. Grey cells have no data."
)
SPECTRA = (
    "Linear density, by scale. Left: power of draws (mean and the range of 68 %), of the posterior mean and "
    "of the truth, and the posterior variance. Middle: r(k), the correlation of the posterior mean with the "
    "truth, and the transfer function, the root of the ratio of their powers. Right: SD of the truth minus "
    "the mean in units of the posterior SD; it is 1 if the posterior is calibrated. The grey range is its "
    "scatter (95 %) by chance."
)


def slice_figure(
    box: float,
    layers: int,
    fields: Mapping[str, Mapping[str, Float[np.ndarray, "x y"]]],
    signed: Mapping[str, tuple[float, float]],
) -> Figure:
    """Rows of slices.

    Args:
        box: length of the first axis [Mpc / h].
        layers: of which each slice is the mean.
        fields: row -> panel -> slice; NaN is grey.
        signed: row -> limits of its colours. A panel "SD" has its own.
    """
    columns = max(len(panels) for panels in fields.values())
    figure, axes = plt.subplots(
        len(fields), columns, figsize=(2.9 * columns, 2.9 * len(fields)), layout="constrained", squeeze=False
    )
    for line, (row, panels) in zip(axes, fields.items(), strict=True):
        for axis in line[len(panels) :]:
            axis.axis("off")
        for axis, (title, values) in zip(line, panels.items(), strict=False):
            low, high = signed[row]
            spread = title == "SD"
            shown = axis.imshow(
                values.T,
                origin="lower",
                extent=(0, box, 0, box * values.shape[1] / values.shape[0]),
                cmap="viridis" if spread else ("magma" if low >= 0 else "RdBu_r"),
                vmin=0 if spread else low,
                vmax=float(np.nanmax(values)) if spread else high,
            )
            axis.set_facecolor("0.6")
            axis.set_title(f"{row}: {title}", fontsize=10)
            axis.tick_params(labelsize=7)
            figure.colorbar(shown, ax=axis, shrink=0.75).ax.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("Mpc/h", fontsize=8)
    return figure


def spectra_figure(scales: Scales, size: Float[np.ndarray, "s"]) -> Figure:
    """Power, r(k) and transfer function, and calibration by scale.

    Args:
        size: modes of each shell.
    """
    with_truth = scales.correlation is not None
    figure, axes = plt.subplots(
        1, 3 if with_truth else 1, figsize=(13 if with_truth else 5, 3.8), layout="constrained", squeeze=False
    )
    left = axes[0, 0]
    low, high = np.quantile(scales.power, (0.16, 0.84), axis=0)
    left.fill_between(scales.k, low, high, alpha=0.3, color="C0")
    left.loglog(scales.k, scales.power.mean(0), color="C0", label="draws")
    left.loglog(scales.k, scales.power_of_mean, color="C1", label="posterior mean")
    left.loglog(scales.k, scales.spread, color="C2", ls=":", label="posterior variance")
    left.set(xlabel="k [h/Mpc]", ylabel=r"P(k) [(Mpc/h)$^3$]")
    if scales.correlation is not None and scales.transfer is not None and scales.z is not None:
        left.loglog(scales.k, scales.power_of_truth, "k--", label="truth")
        middle, right = axes[0, 1:]
        middle.semilogx(scales.k, scales.correlation, label="r(k)")
        middle.semilogx(scales.k, scales.transfer, label="transfer function")
        middle.axhline(1, color="0.5", lw=0.8)
        middle.set(xlabel="k [h/Mpc]", ylim=(0, 1.1))
        middle.legend()
        scatter = 1.96 / np.sqrt(2 * size)
        right.fill_between(scales.k, 1 - scatter, 1 + scatter, color="0.85")
        right.semilogx(scales.k, scales.z, "o-", ms=3)
        right.axhline(1, color="0.5", lw=0.8)
        right.set(xlabel="k [h/Mpc]", ylabel="SD of z-scores", ylim=(0.5, 1.5))
    left.legend()
    return figure


def cosmology_figure(draws: Mapping[str, Float[np.ndarray, "n"]], truth: Mapping[str, float]) -> Figure:
    """The posterior of Omega_m and sigma8, with the truth of simulated data."""
    (name, x), (other, y) = draws.items()
    figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
    axis.plot(x, y, ".", ms=3, alpha=0.5)
    if truth:
        axis.plot(truth[name], truth[other], "k+", ms=14, mew=2, label="truth")
        axis.legend()
    axis.set(xlabel=name, ylabel=other)
    return figure
