"""The picture of docs/strong_lens.md: one simulated lens, its parts, and its source unlensed.

python -m experiments.lens_picture docs/images/strong-lens.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from astrozoo.models.strong_lens import StrongLens, observe, simulate
from astrozoo.physics import imaging

__all__ = ["draw"]


def draw(path: Path, seed: int = 6) -> Path:
    """Write the picture."""
    lens, truth = simulate(seed, size=64, pixel_scale=0.08)
    model, data = StrongLens(), observe(lens)
    x, y = imaging.pixel_grid((256, 256), data.pixel_scale / 4)
    panels = {
        "image": lens.image,
        "lens light": model.render(truth, data, ("lens",))[0],
        "arcs": model.render(truth, data, ("source",))[0],
        "source": model.source_light(truth, x, y),
    }
    figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharey=True, layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        shown = torch.as_tensor(values)
        stretched = torch.asinh(shown / (0.02 * shown.max())).clamp_min(0)
        axis.imshow(stretched, origin="lower", extent=lens.extent, cmap="magma")
        axis.set(title=title, xlabel="arcsec")
    axes[0].set_ylabel("arcsec")
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(f"written to {draw(Path(sys.argv[1]))}")
