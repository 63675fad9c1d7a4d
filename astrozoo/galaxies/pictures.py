"""Pictures of fitted galaxies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

__all__ = ["CAPTION", "Fitted", "galaxy_figure"]

CAPTION = (
    "Each row is a galaxy: the data; the mean of the noiseless image over posterior draws; the SD of the "
    "noiseless image; and data minus mean, in the SDs that the model predicts. Grey pixels are not used. A "
    "residual that is noise has no structure."
)
_SOFTENING = 0.03
"""[peak] Brightness around which the stretch of the pictures changes from linear to logarithmic."""

Fitted = Mapping[str, Float[np.ndarray, "y x"]]
"""Images of one galaxy: "data" (NaN where not used), "mean", "sd" and "residual" (in predicted SDs)."""


def galaxy_figure(fits: Sequence[Fitted], names: Sequence[str]) -> Figure:
    """A row of pictures for each galaxy."""
    rows = len(fits)
    figure, axes = plt.subplots(rows, 4, figsize=(11, 2.5 * rows), layout="constrained", squeeze=False)
    for row, fit, name in zip(axes, fits, names, strict=True):
        bright = float(np.nanmax(fit["mean"]))
        norm = AsinhNorm(linear_width=_SOFTENING * bright, vmin=-_SOFTENING * bright, vmax=bright)
        kinds: dict[str, dict[str, Any]] = {
            "data": {"norm": norm},
            "mean": {"norm": norm},
            "sd": {"vmin": 0},
            "residual": {"vmin": -4, "vmax": 4, "cmap": "coolwarm"},
        }
        for axis, (what, kind) in zip(row, kinds.items(), strict=True):
            axis.set_facecolor("0.6")
            shown = axis.imshow(fit[what], origin="lower", **{"cmap": "magma", **kind})
            figure.colorbar(shown, ax=axis, shrink=0.8)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    for axis, title in zip(axes[0], ("data", "posterior mean", "posterior SD", "residual [SD]"), strict=True):
        axis.set_title(title)
    plt.close(figure)
    return figure
