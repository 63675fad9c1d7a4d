"""Posteriors of a field by scale: power, transfer function, correlation with the truth, calibration."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.physics.modes import Shells, cross_power

__all__ = ["Scales", "by_scale", "rows"]


class Scales(NamedTuple):
    """A posterior of a field in shells of wave number. What needs the truth is None without it.

    Args:
        k: of each shell [h / Mpc].
        power: of single draws, in each shell [(Mpc / h)^3].
        power_of_mean: of the posterior mean.
        spread: mean power of draws minus the posterior mean.
        signal: ratio of the power of the posterior mean to the spread.
        power_of_truth: of the truth.
        transfer: square root of the power of the mean over that of the truth.
        correlation: r(k) of the posterior mean and the truth.
        z: SD of the truth minus the mean, in units of the posterior SD.
    """

    k: Float[np.ndarray, "s"]
    power: Float[np.ndarray, "draw s"]
    power_of_mean: Float[np.ndarray, "s"]
    spread: Float[np.ndarray, "s"]
    signal: Float[np.ndarray, "s"]
    power_of_truth: Float[np.ndarray, "s"] | None
    transfer: Float[np.ndarray, "s"] | None
    correlation: Float[np.ndarray, "s"] | None
    z: Float[np.ndarray, "s"] | None


def by_scale(
    draws: Float[Tensor, "draw x y z"],
    shells: Shells,
    volume: float,
    truth: Float[Tensor, "x y z"] | None = None,
) -> Scales:
    """The posterior of a field by scale.

    The spread is corrected for the mean being that of the same draws, and z for the error of the mean.

    Args:
        draws: of the posterior; independent, for the corrections to hold.
        volume: of a cell [(Mpc / h)^3].
    """
    n = len(draws)
    mean = draws.mean(0)
    power = torch.stack([cross_power(draw, draw, shells) for draw in draws])
    spread = torch.stack([cross_power(draw - mean, draw - mean, shells) for draw in draws]).sum(0) / (n - 1)
    of_mean = cross_power(mean, mean, shells)
    found: list[Any] = [None, None, None, None]
    if truth is not None:
        of_truth, cross = (cross_power(x, truth, shells) for x in (truth, mean))
        error = cross_power(truth - mean, truth - mean, shells)
        z = (error / (spread * (1 + 1 / n))).sqrt()
        found = [of_truth * volume, (of_mean / of_truth).sqrt(), cross / (of_mean * of_truth).sqrt(), z]
    known = (shells.k, power * volume, of_mean * volume, spread * volume, of_mean / spread)
    return Scales(*(x.numpy() for x in known), *(x if x is None else x.numpy() for x in found))


def rows(scales: Scales) -> list[dict[str, Any]]:
    """A table, one row for each shell."""
    table = []
    for i, k in enumerate(scales.k):
        row = {
            "k [h/Mpc]": round(float(k), 3),
            "power of draws": round(float(scales.power[:, i].mean()), 1),
            "power of the mean / spread": round(float(scales.signal[i]), 2),
        }
        for name, values in (("r", scales.correlation), ("transfer", scales.transfer), ("SD of z", scales.z)):
            if values is not None:
                row[name] = round(float(values[i]), 3)
        table.append(row)
    return table
