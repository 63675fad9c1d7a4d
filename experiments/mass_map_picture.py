"""The picture of docs/mass_map.md, from the results of the demonstration.

astrozoo run mass_map --demo --out demo
python -m experiments.mass_map_picture demo
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits

from astrozoo.massmap.job import DEMO_SIZE
from astrozoo.massmap.pictures import map_figure, peak_rows
from astrozoo.models.mass_map import simulate

OUT = Path(__file__).parents[1] / "docs" / "images" / "mass-map.webp"


def main(folder: Path) -> None:
    data, truth = simulate(0, size=DEMO_SIZE)
    with fits.open(folder / "kappa.fits") as hdus:
        maps = {hdu.name: np.asarray(hdu.data, float) for hdu in hdus[1:]}
    found, _ = peak_rows(data.pixels, data.pixel, maps, data.wcs)
    figure = map_figure(data.pixels, data.pixel, maps, truth["kappa"].numpy(), found)
    figure.axes[4].set_title("truth")
    figure.savefig(OUT, dpi=70, pil_kwargs={"quality": 80})
    print(f"written to {OUT}; the map has {torch.numel(truth['kappa']):,} pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
