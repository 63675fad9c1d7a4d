"""Figures of a result. The caller selects the few scalars that a figure shows.

There is no global state: figures are made without pyplot, and no style is set.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from astrozoo.diagnostics.arviz import ess
from astrozoo.diagnostics.metrics import Scalars
from astrozoo.infer.convergence import e_bfmi

__all__ = [
    "convergence",
    "elbo",
    "encode",
    "energy",
    "ess_evolution",
    "forest",
    "overlay",
    "pair",
    "rank",
    "replicated",
    "trace",
]

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe & Ito


def encode(figure: Figure) -> str:
    """The figure as a PNG in a data URI."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _grid(n: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``n`` panels in a grid; ``width`` and ``height`` are those of a panel [inch]."""
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def _density(ax: Axes, values: np.ndarray, colour: str, label: str | None = None) -> None:
    values = values[np.isfinite(values)]
    if not values.size:
        ax.text(0.5, 0.5, "no finite draw", transform=ax.transAxes, ha="center", color=colour, fontsize=7)
        return
    low, high = np.quantile(values, (0.001, 0.999))
    if high <= low:
        ax.axvline(low, color=colour, label=label)
        return
    ax.hist(
        values,
        bins=40,
        range=(low, high),
        density=True,
        histtype="step",
        color=colour,
        label=label,
        linewidth=1.2,
    )


def trace(of: Scalars) -> Figure:
    """Marginals on the left, draws in order on the right, in a colour per chain (six chains at most)."""
    figure, axes = _grid(2 * len(of), 2, 4.5, 1.5)
    for i, label in enumerate(of.labels):
        for chain, colour in zip(of.draws[..., i], _COLOURS, strict=False):
            _density(axes[2 * i], chain, colour)
            axes[2 * i + 1].plot(chain, color=colour, linewidth=0.5, alpha=0.8)
        axes[2 * i].set_title(label, fontsize=8, loc="left")
        axes[2 * i].set_yticks([])
    for ax in axes:
        ax.tick_params(labelsize=7)
    axes[-1].set_xlabel("draw", fontsize=8)
    return figure


def rank(of: Scalars, bins: int = 20) -> Figure:
    """Histograms of each chain's ranks among all draws. They are flat if the chains agree."""
    chains, draws, n = of.draws.shape
    figure, axes = _grid(n, 4, 2.4, 1.6)
    for i, ax in enumerate(axes):
        order = of.draws[..., i].reshape(-1).argsort().argsort().reshape(chains, draws)
        for chain, colour in zip(order, _COLOURS, strict=False):
            ax.hist(chain, bins=bins, range=(0, chains * draws), histtype="step", color=colour)
        ax.axhline(draws / bins, color="black", linewidth=0.6, linestyle=":")
        ax.set_title(of.labels[i], fontsize=7, loc="left")
        ax.tick_params(labelsize=6)
    return figure


def ess_evolution(of: Scalars, steps: int = 8) -> Figure:
    """Bulk (solid) and tail (dashed) ESS of the first n draws against n: straight lines if chains mix."""
    figure, (ax,) = _grid(1, 1, 6, 3)
    counts = np.linspace(of.draws.shape[1] / steps, of.draws.shape[1], steps).astype(int)
    counts = counts[counts >= 4]
    for i, (label, colour) in enumerate(zip(of.labels, _COLOURS, strict=False)):
        draws = of.draws[..., i]
        ax.plot(counts, [ess(draws[:, :n], "bulk") for n in counts], color=colour, label=label)
        ax.plot(counts, [ess(draws[:, :n], "tail") for n in counts], color=colour, linestyle="--")
    ax.set(xlabel="draws per chain", ylabel="effective sample size")
    ax.legend(fontsize=7)
    return figure


def energy(values: Float[np.ndarray, "chain draw"]) -> Figure:
    """Energy of the draws, and its change between draws; E-BFMI per chain in the title."""
    figure, (ax,) = _grid(1, 1, 6, 2.6)
    values = np.where(np.isfinite(values), values, np.nan)
    mean = values[np.isfinite(values)].mean() if np.isfinite(values).any() else 0.0
    _density(ax, (values - mean).ravel(), _COLOURS[0], "energy, less its mean")
    _density(ax, np.diff(values, axis=1).ravel(), _COLOURS[1], "change from draw to draw")
    smallest = float(e_bfmi(torch.as_tensor(values)).min())
    ax.set_title(f"smallest E-BFMI {smallest:.2f}", fontsize=8, loc="left")
    ax.set_yticks([])
    ax.legend(fontsize=7)
    return figure


def forest(of: Scalars, sites: Mapping[str, list[int]]) -> Figure:
    """Medians, 50% and 90% intervals. Each site has a panel, because scales differ."""
    heights = [len(rows) + 1 for rows in sites.values()]
    figure = Figure(figsize=(7, 0.22 * sum(heights) + 0.5 * len(sites)), layout="constrained")
    axes = figure.subplots(len(sites), 1, squeeze=False, height_ratios=heights).ravel()
    for ax, rows in zip(axes, sites.values(), strict=True):
        q = np.quantile(of.draws[..., rows], (0.05, 0.25, 0.5, 0.75, 0.95), axis=(0, 1))  # [5, row]
        at = np.arange(len(rows))
        ax.hlines(at, q[0], q[4], color=_COLOURS[0], linewidth=1)
        ax.hlines(at, q[1], q[3], color=_COLOURS[0], linewidth=3)
        ax.plot(q[2], at, "o", color="white", markeredgecolor=_COLOURS[0], markersize=4)
        ax.set_yticks(at, [of.labels[i] for i in rows], fontsize=7)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.tick_params(axis="x", labelsize=7)
    return figure


def elbo(traces: Mapping[str, Float[np.ndarray, "iteration row"]]) -> Figure:
    """Traces per iteration; for more than six independent problems, their median and their middle 90%."""
    figure, axes = _grid(len(traces), min(2, len(traces)), 4.5, 2.6)
    for ax, (name, values) in zip(axes, traces.items(), strict=True):
        values = values.reshape(len(values), -1)
        if values.shape[1] <= 6:
            for column, colour in zip(values.T, _COLOURS, strict=False):
                isolated = np.isfinite(column).sum() < 8
                ax.plot(column, color=colour, linewidth=1, marker="." if isolated else "")
        else:
            seen = ~np.isnan(values).all(1)
            low, middle, high = np.nanquantile(values[seen], (0.05, 0.5, 0.95), axis=1)
            ax.fill_between(np.flatnonzero(seen), low, high, color=_COLOURS[0], alpha=0.2, linewidth=0)
            ax.plot(np.flatnonzero(seen), middle, color=_COLOURS[0])
        ax.set_xlabel("iteration", fontsize=8)
        ax.set_title(name, fontsize=9, loc="left")
        ax.tick_params(labelsize=7)
    return figure


def pair(of: Scalars, diverging: Float[np.ndarray, "chain draw"] | None = None, most: int = 1000) -> Figure:
    """Each pair of scalars against each other; divergent draws are orange."""
    n = len(of)
    figure = Figure(figsize=(1.7 * n, 1.7 * n), layout="constrained")
    axes = figure.subplots(n, n, squeeze=False)
    flat = of.draws.reshape(-1, n)
    kept = np.linspace(0, len(flat) - 1, min(most, len(flat))).astype(int)
    bad = np.flatnonzero(diverging) if diverging is not None else np.zeros(0, int)
    for i in range(n):
        for j in range(n):
            ax = axes[i, j]
            ax.tick_params(labelsize=6)
            if j > i:
                ax.remove()
                continue
            if i == j:
                _density(ax, flat[:, i], _COLOURS[0])
                ax.set_yticks([])
            else:
                ax.plot(flat[kept, j], flat[kept, i], ".", markersize=1.5, color=_COLOURS[0], alpha=0.5)
                ax.plot(flat[bad, j], flat[bad, i], ".", markersize=3, color=_COLOURS[1])
            if i == n - 1:
                ax.set_xlabel(of.labels[j], fontsize=6)
            if j == 0 and i > 0:
                ax.set_ylabel(of.labels[i], fontsize=6)
    return figure


def overlay(of: Mapping[str, Scalars], labels: list[str]) -> Figure:
    """Marginals under several methods, one panel per scalar."""
    figure, axes = _grid(len(labels), 3, 3.2, 2.0)
    for ax, label in zip(axes, labels, strict=True):
        for (name, scalars), colour in zip(of.items(), _COLOURS, strict=False):
            if label in scalars.labels:
                _density(ax, scalars.draws[..., scalars.labels.index(label)].ravel(), colour, name)
        ax.set_title(label, fontsize=7, loc="left")
        ax.set_yticks([])
        ax.tick_params(labelsize=6)
    axes[0].legend(fontsize=6)
    return figure


def replicated(
    observed: Float[np.ndarray, "*shape"], draws: Float[np.ndarray, "chain draw *shape"], most: int = 40
) -> Figure:
    """Cumulative distributions of the data (black) and of replicated data (one line per draw)."""
    figure, (ax,) = _grid(1, 1, 6, 3)
    flat = draws.reshape(-1, observed.size)
    kept = np.linspace(0, len(flat) - 1, min(most, len(flat))).astype(int)
    share = np.arange(1, observed.size + 1) / observed.size
    thin = np.linspace(0, observed.size - 1, min(observed.size, 500)).astype(int)
    for row in flat[kept]:
        ax.step(np.sort(row)[thin], share[thin], color=_COLOURS[5], linewidth=0.5, alpha=0.6, where="post")
    ax.step(np.sort(observed.ravel())[thin], share[thin], color="black", linewidth=1.5, where="post")
    ax.set(ylabel="share of observations up to this value")
    ax.tick_params(labelsize=7)
    return figure


def convergence(
    traces: Mapping[str, Float[np.ndarray, "iteration row"]],
    totals: Mapping[str, tuple[float, float]],
    clocks: Mapping[str, Float[np.ndarray, "iteration row"]],
    labels: Mapping[str, str],
) -> Figure:
    """The objective against cost.

    The objective is summed over independent problems. A problem that has ended contributes its last value.

    Args:
        traces: of the objective, by run.
        totals: gradient-equivalents and seconds of each whole run. Iterations are assumed to cost the same.
        clocks: seconds at each iteration, for runs that have recorded them.
        labels: of the curves.
    """
    figure, axes = _grid(2, 2, 4.5, 3)
    for (name, values), colour in zip(traces.items(), _COLOURS * (1 + len(traces) // 6), strict=False):
        filled = values.reshape(len(values), -1).copy()
        for i in range(1, len(filled)):
            filled[i] = np.where(np.isnan(filled[i]), filled[i - 1], filled[i])
        part = np.arange(1, len(filled) + 1) / len(filled)
        spread = [part * total for total in totals[name]]
        if name in clocks:
            clock = clocks[name].reshape(len(clocks[name]), -1)
            spread[1] = np.maximum.accumulate(np.nanmax(clock, 1, initial=0.0))
        for ax, at in zip(axes, spread, strict=True):
            ax.plot(at, filled.sum(1), color=colour, label=labels[name], linewidth=1)
    for ax, label in zip(axes, ("gradient-equivalents", "seconds"), strict=True):
        ax.set(xlabel=label, xscale="log")
        ax.tick_params(labelsize=7)
    axes[0].legend(fontsize=6)
    return figure
