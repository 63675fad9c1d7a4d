"""Pictures of galaxies that are seen through a PSF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from astrozoo.galaxies.psf_maps import Maps

__all__ = ["CAPTION", "maps_figure", "stretch"]

CAPTION = (
    "Each row is an exposure of a galaxy: the data; the posterior mean of the image without noise; data "
    "minus mean, in SDs of the noise; and the galaxy without PSF and noise, its posterior mean and SD, at "
    "twice the resolution. Grey pixels are not used. A residual that is noise has no structure."
)
_SOFTENING = 0.02
"""[peak] Brightness around which the stretch of the pictures changes from linear to logarithmic."""
_TITLES = ("data", "model", "residual [SD]", "deconvolved: mean", "deconvolved: SD")


def stretch(bright: float) -> AsinhNorm:
    """Colours that show a galaxy's core and its faint parts."""
    bright = max(bright, 1e-30)
    return AsinhNorm(linear_width=_SOFTENING * bright, vmin=-_SOFTENING * bright, vmax=bright)


def maps_figure(galaxies: Sequence[Maps]) -> Figure:
    """A row of pictures for each exposure of each galaxy."""
    rows = [(i, k) for i, maps in enumerate(galaxies) for k in range(len(maps.data))]
    figure, axes = plt.subplots(
        len(rows), 5, figsize=(13, 2.5 * len(rows)), layout="constrained", squeeze=False
    )
    for row, (i, k) in zip(axes, rows, strict=True):
        maps = galaxies[i]
        norm, fine = stretch(float(maps.model[k].max())), stretch(float(maps.deconvolved.max()))
        panels: Sequence[tuple[np.ndarray, dict[str, Any]]] = (
            (maps.data[k], {"norm": norm}),
            (maps.model[k], {"norm": norm}),
            (maps.residual[k], {"vmin": -4, "vmax": 4, "cmap": "coolwarm"}),
            (maps.deconvolved, {"norm": fine}),
            (maps.deconvolved_sd, {"norm": fine}),
        )
        for axis, (values, kind) in zip(row, panels, strict=True):
            axis.set_facecolor("0.6")
            shown = axis.imshow(values, origin="lower", **{"cmap": "magma", **kind})
            figure.colorbar(shown, ax=axis, shrink=0.8)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"galaxy {i}" + (f", exposure {k}" if len(maps.data) > 1 else ""))
    for axis, title in zip(axes[0], _TITLES, strict=True):
        axis.set_title(title)
    plt.close(figure)
    return figure
