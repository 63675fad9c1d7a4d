"""How well priors of latents describe galaxies that they were not trained on, as numbers and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest
from torch import Tensor

from astrozoo.data.latents import LatentTable
from astrozoo.models.latent_flow import LatentPrior

__all__ = ["corner", "draws_of", "gains", "noise_rows"]

DRAWS = 8
"""Draws of each galaxy's q(z | x) over which log densities are averaged: the scatter between galaxies, of
some nats, is then much larger than that between draws."""
_LEVELS = (0.393, 0.865)
"""Shares of a two-dimensional normal inside its 1 and 2 sigma contours."""
_SHOWN = 5
"""Latents in a corner plot: those whose marginals differ most from N(0, 1)."""
_COLOURS = {"N(0, I)": "#999999", "prior": "#d55e00", "galaxies": "#0072b2"}


@torch.no_grad()
def gains(table: LatentTable, priors: Mapping[str, LatentPrior], seed: int = 0) -> list[dict[str, Any]]:
    """For each prior, the mean of log p(z) over draws of q(z | x), less that of N(0, I) [nat per galaxy].

    The error is the standard error over galaxies.

    Args:
        table: galaxies that the priors were not trained on, with the conditions of the priors.
        priors: by the name that the row gets.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [table.draw(generator) for _ in range(DRAWS)]
    rows = []
    for name, prior in priors.items():
        p = prior.prior(table.only(prior.conditions).conditions if prior.conditions else None)
        gain = torch.stack([p.log_prob(z) - _standard(z) for z in draws]).mean(0).double()
        error = float(gain.std()) / len(gain) ** 0.5
        mean = float(gain.mean())
        rows.append({"prior": name, "gain over N(0, I) [nat]": round(mean, 3), "error": round(error, 3)})
    return rows


@torch.no_grad()
def noise_rows(table: LatentTable, prior: LatentPrior, seed: int = 0) -> list[dict[str, Any]]:
    """Each latent and each component of the noise that the flow makes of it, against N(0, 1).

    A perfect prior leaves standard normals: their largest KS distance is that of the row "by chance".
    """
    z = table.draw(torch.Generator().manual_seed(seed))
    noise = prior.prior(table.only(prior.conditions).conditions if prior.conditions else None).transform(z)
    rows = []
    for name, values in {"latents": z, "noise behind them": noise}.items():
        x = values.double().numpy()
        distances = [float(kstest(column, "norm").statistic) for column in x.T]
        scatter = [f"{f(x.std(0)):.2f}" for f in (np.min, np.max)]
        rows.append(
            {
                "": name,
                "largest KS distance to N(0, 1)": round(max(distances), 3),
                "SDs": " to ".join(scatter),
                "largest correlation": round(_largest_correlation(x), 2),
            }
        )
    expected = 1.63 / len(z) ** 0.5  # the 99 % quantile of Kolmogorov's distribution
    chance = 2.6 / len(z) ** 0.5  # 99 %
    rows.append(
        {
            "": "by chance, less than",
            "largest KS distance to N(0, 1)": round(expected, 3),
            "SDs": "",
            "largest correlation": round(chance, 2),
        }
    )
    return rows


def _standard(z: Float[Tensor, "n latents"]) -> Float[Tensor, "n"]:
    """log N(z; 0, I)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def _largest_correlation(x: np.ndarray) -> float:
    if x.shape[1] < 2:
        return 0.0
    correlations = np.corrcoef(x.T)
    return float(np.abs(correlations - np.diag(np.diag(correlations))).max())


@torch.no_grad()
def draws_of(prior: LatentPrior, table: LatentTable, seed: int = 0) -> Float[Tensor, "n latents"]:
    """One draw of the prior for each row of a table, given that row's conditions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if prior.conditions:
            return prior.prior(table.only(prior.conditions).conditions).sample()
        return prior.prior(None).sample((len(table),))


def corner(table: LatentTable, prior: LatentPrior, seed: int = 0) -> Figure:
    """Contours (1 and 2 sigma) of the aggregate posterior of a table, of the prior, and of N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    galaxies = table.draw(generator).double().numpy()
    sets = {
        "N(0, I)": torch.randn(table.mean.shape, generator=generator).double().numpy(),
        "galaxies": galaxies,
        "prior": draws_of(prior, table, seed).double().numpy(),
    }
    distances = [kstest(column, "norm").statistic for column in galaxies.T]
    shown = np.sort(np.argsort(distances)[::-1][:_SHOWN])
    limits = [
        tuple(np.quantile(np.concatenate([x[:, i] for x in sets.values()]), (0.002, 0.998))) for i in shown
    ]
    n = len(shown)
    figure = Figure(figsize=(1.8 * n, 1.8 * n), layout="constrained")
    axes = figure.subplots(n, n, squeeze=False)
    for row in range(n):
        for column in range(n):
            ax = axes[row, column]
            ax.tick_params(labelsize=6)
            if column > row:
                ax.remove()
                continue
            for name, x in sets.items():
                if row == column:
                    style = {"histtype": "step", "color": _COLOURS[name], "label": name}
                    ax.hist(x[:, shown[row]], bins=40, range=limits[row], density=True, **style)
                else:
                    _contours(ax, x[:, shown[[column, row]]], limits[column], limits[row], _COLOURS[name])
            ax.set_xlim(limits[column])
            if row == n - 1:
                ax.set_xlabel(f"z[{shown[column]}]", fontsize=7)
            if column == 0 and row > 0:
                ax.set_ylabel(f"z[{shown[row]}]", fontsize=7)
            if row == column:
                ax.set_yticks([])
    axes[0, 0].legend(fontsize=6)
    return figure


def _contours(ax: Any, x: np.ndarray, horizontal: Any, vertical: Any, colour: str) -> None:
    """Lines around the densest pixels of a smoothed histogram that hold the shares of :data:`_LEVELS`."""
    counts, *edges = np.histogram2d(x[:, 0], x[:, 1], 40, (horizontal, vertical))
    density = gaussian_filter(counts, 1.5)
    ordered = np.sort(density.ravel())[::-1]
    share = ordered.cumsum() / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(share, level)]) for level in _LEVELS})
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    ax.contour(*middles, density.T, levels=levels, colors=colour, linewidths=0.9)
    ax.set_ylim(vertical)
