"""Shapes and morphology of generated galaxies beside those of simulated ones that nothing was trained on.

    python -m experiments.galaxy_morphology --out runs/galaxy_morphology [--galaxies 1000] [--priors DIR]

Needs ``pip install 'astrozoo[morphology]'``. Takes about 10 minutes on one core, most of them for statmorph.
Files in ``--out``: ``scores.csv``, ``means.csv``, ``scores.json`` and ``morphology.png``.

Each set is compared with the set "data again":

- ellipticity |g| and size, by adaptive moments (HSM) of noiseless images through the PSF;
- Gini, M20 and concentration, by statmorph, of the same images with white noise at a signal-to-noise ratio
  of 100;
- Kolmogorov-Smirnov distance with its bootstrap error, and Wasserstein distance in SDs of the data;
- the accuracy of a nearest-neighbour classifier on all five (C2ST), beside what chance gives.

The row "data" is the comparison of two sets of simulated galaxies: what the number of galaxies alone gives.
The row "reconstructions" is what the decoder gives with the best latents.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.stats import ks_2samp

from astrozoo._files import write_json
from astrozoo.diagnostics.report import write_rows
from astrozoo.diagnostics.two_sample import c2st, wasserstein
from experiments.galaxy_sets import GalaxySet, galaxy_sets, priors
from experiments.psf_vae_heldout import hsm

STATISTICS = ("|g|", "size [px]", "Gini", "M20", "concentration")
"""Columns of the tables."""
SNR = 100.0
"""Signal-to-noise ratio of the images that statmorph sees: their noise is then the same for all sets."""
THRESHOLD = 1.0
"""[noise of a smoothed pixel] Pixels above it that are connected with the centre are the galaxy."""
BOOTSTRAPS = 200
"""Resamples of both sets from which the error of a distance is estimated."""
REFERENCE = "data again"


def segment(image: Float[np.ndarray, "y x"], noise: float) -> np.ndarray:
    """1 in the pixels of the galaxy nearest to the centre, 0 elsewhere."""
    smooth = ndimage.gaussian_filter(image, 1.0)
    # the sum of the squares of a Gaussian kernel of sigma s is 1 / (4 pi s^2)
    labels, _ = ndimage.label(smooth > THRESHOLD * noise / math.sqrt(4 * math.pi))
    middle = tuple(n // 2 for n in image.shape)
    label = labels[middle]
    return (labels == label).astype(int) if label else np.zeros(image.shape, int)


def morphology(image: Float[np.ndarray, "y x"], noise: float) -> tuple[float, float, float]:
    """Gini, M20 and concentration; NaN where statmorph flags a measurement as bad."""
    import statmorph

    segments = segment(image, noise)
    if not segments.any():
        return (math.nan,) * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its profile fit, which is stopped at once: it is not used
        settings = {"sersic_fitting_args": {"maxiter": 1}, "weightmap": np.full(image.shape, noise)}
        found = statmorph.SourceMorphology(image, segments, 1, **settings)
    if found.flag > 1:
        return (math.nan,) * 3
    return float(found.gini), float(found.m20), float(found.concentration)


def statistics(galaxies: GalaxySet, seed: int) -> Float[np.ndarray, "n statistic"]:
    """A row per galaxy."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in galaxies.images.double().numpy():
        g1, g2, size = hsm(image)
        noise = float(np.sqrt((image**2).sum()) / SNR)
        noisy = image + noise * rng.standard_normal(image.shape)
        rows.append((math.hypot(g1, g2), size, *morphology(noisy, noise)))
    return np.array(rows)


def distance(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Distances of one statistic, without the galaxies that could not be measured."""
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    again = [ks_2samp(rng.choice(x, len(x)), rng.choice(y, len(y))).statistic for _ in range(BOOTSTRAPS)]
    return {
        "KS": float(ks_2samp(x, y).statistic),
        "error": float(np.std(again)),
        "W1 [SD]": float(wasserstein(x[:, None], y[:, None])[0] / y.std()),
    }


def scored(tables: Mapping[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Distances of each set from :data:`REFERENCE`, and the means of each set."""
    rng = np.random.default_rng(0)
    reference = tables[REFERENCE]
    rows, means = [], []
    for name, table in tables.items():
        mean: dict[str, Any] = {"set": name}
        for k, statistic in enumerate(STATISTICS):
            values = table[:, k][np.isfinite(table[:, k])]
            mean[statistic] = float(values.mean())
            mean[f"{statistic}, error"] = float(values.std() / len(values) ** 0.5)
        mean["not measured [%]"] = 100 * float((~np.isfinite(table)).any(1).mean())
        means.append(mean)
        if name == REFERENCE:
            continue
        row: dict[str, Any] = {"set": name}
        for k, statistic in enumerate(STATISTICS):
            found = distance(table[:, k], reference[:, k], rng)
            row |= {f"{statistic}, {what}": value for what, value in found.items()}
        whole = [t[np.isfinite(t).all(1)] for t in (table, reference)]
        row["C2ST"], row["C2ST by chance, 95 %"] = c2st(*whole)
        rows.append(row)
    return rows, means


def picture(tables: Mapping[str, np.ndarray], path: Path) -> None:
    """Distributions of the statistics in each set."""
    figure, axes = plt.subplots(1, len(STATISTICS), figsize=(16, 3.4), layout="constrained")
    colours = plt.get_cmap("tab10")
    for k, (axis, statistic) in enumerate(zip(axes, STATISTICS, strict=True)):
        limits = np.nanquantile(tables[REFERENCE][:, k], (0.003, 0.997))
        edges = np.linspace(limits[0] - 0.1 * np.ptp(limits), limits[1] + 0.1 * np.ptp(limits), 30)
        for i, (name, table) in enumerate(tables.items()):
            settings: dict[str, Any] = {"color": colours(i), "histtype": "step", "density": True, "lw": 1.4}
            if name in ("data", REFERENCE):
                settings |= {"color": "0.6", "histtype": "stepfilled", "alpha": 0.4}
            axis.hist(table[:, k], edges, label=name, **settings)
        axis.set(xlabel=statistic, yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--galaxies", type=int, default=1000, help="of each set")
    parser.add_argument("--priors", type=Path, help="folder of experiments.train_latent_flow")
    parser.add_argument("--weights", default="psf_vae", help="of the decoder and encoder")
    parser.add_argument("--cache", type=Path, help="folder of simulated galaxies; by default in --out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.cache or options.out / "galaxies"
    among = priors(options.priors, options.weights)
    sets = galaxy_sets(options.galaxies, cache, among, weights=options.weights)
    tables = {}
    for number, (name, galaxies) in enumerate(sets.items()):
        began = time.process_time()
        tables[name] = statistics(galaxies, number)
        print(f"{name}: {time.process_time() - began:.0f} CPU seconds", flush=True)
    rows, means = scored(tables)
    write_rows(rows, options.out / "scores.csv")
    write_rows(means, options.out / "means.csv")
    write_json({"distances": rows, "means": means, "galaxies": options.galaxies}, options.out / "scores.json")
    picture(tables, options.out / "morphology.png")
    for row in (*means, *rows):
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
