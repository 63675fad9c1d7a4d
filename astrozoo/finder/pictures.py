"""The gallery of candidates, and what the scores of labelled stamps look like."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from jaxtyping import Float
from matplotlib.figure import Figure

__all__ = ["GALLERY", "SCORES", "coloured", "gallery", "score_figure"]

GALLERY = (
    "Stamps by rank, with the probability of a lens and its 90 % interval. In colour, the last bands are "
    "red. A red frame marks a stamp that is unlike those of the training: its probability means little."
)
SCORES = (
    "Left: log likelihood ratios. Right: the fraction of lenses against the probability that is stated, "
    "with 95 % intervals. Both are of labelled stamps, at the odds of the labels."
)
_SOFTENING = 4.0
"""[SD of the noise] Brightness around which the stretch of colours changes from linear to logarithmic."""
_TOP = 60.0
"""[SD of the noise] Brightness that is white."""
_COLUMNS = 8


def coloured(image: Float[np.ndarray, "band y x"]) -> Float[np.ndarray, "y x 3"]:
    """A picture of a prepared stamp; each band is in units of its noise. One band is grey."""
    groups = np.array_split(image[::-1], 3) if len(image) >= 3 else [image[[-1]], image, image[[0]]]
    channels = np.stack([group.mean(0) for group in groups], -1)
    level = np.clip(channels.mean(-1, keepdims=True), 1e-6, None)
    stretched = np.arcsinh(level / _SOFTENING) / np.arcsinh(_TOP / _SOFTENING)
    return np.clip(channels / level * stretched, 0, 1)


def gallery(table: Table, image: Float[np.ndarray, "n band y x"], most: int = 48) -> Figure:
    """Pictures of the first rows of a ranking.

    Args:
        image: prepared stamps, in the order of the data.
    """
    shown = table[:most]
    rows = -(-len(shown) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(13, 1.85 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, shown, strict=False):
        axis.imshow(coloured(image[row["index"]]), origin="lower")
        truth = "" if "label" not in table.colnames else ("  lens" if row["label"] else "  no lens")
        name = str(row["name"]).removesuffix(".fits")[-18:]
        axis.set_title(
            f"{row['rank']}: {name}{truth}\n{row['probability']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
            fontsize=7,
        )
        if row["unlike_training"]:
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color="red", linewidth=2.5)
    plt.close(figure)
    return figure


def score_figure(
    log_ratio: Float[np.ndarray, "n"], label: Float[np.ndarray, "n"], rows: list[dict[str, float]]
) -> Figure:
    """Histograms of log likelihood ratios, and the calibration curve."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    edges = np.linspace(float(log_ratio.min()), float(log_ratio.max()), 30)
    for value, name in ((0, "no lens"), (1, "lens")):
        left.hist(log_ratio[label == value], edges, alpha=0.6, label=name)
    left.set(xlabel="log likelihood ratio [nat]", ylabel="stamps")
    left.legend()
    stated, lenses = (np.array([row[name] for row in rows]) for name in ("stated", "lenses"))
    low, high = (np.array([row[name] for row in rows]) for name in ("low", "high"))
    right.errorbar(stated, lenses, np.clip([lenses - low, high - lenses], 0, None), fmt="o", ms=4)
    right.plot([0, 1], [0, 1], color="0.6", lw=1)
    right.set(xlabel="stated probability", ylabel="fraction of lenses", xlim=(0, 1), ylim=(0, 1))
    plt.close(figure)
    return figure
