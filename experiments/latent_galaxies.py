"""Galaxies from the priors of latents: pictures, conditional sampling, and gains over N(0, I).

    python -m experiments.latent_galaxies --out runs/latent_galaxies [--galaxies 1000] [--priors DIR]

Takes about 2 minutes on one core. Files in ``--out``:

- ``samples.png``: simulated galaxies that nothing was trained on, their reconstructions, draws of each prior,
  and single Sersic profiles, through the same PSFs;
- ``conditions.png``: delivered flux and size against what was requested;
- ``traversals.png``: each latent from -2 to 2;
- ``embedding.png``: simulated galaxies, the flow and N(0, I) in the plane of two principal components;
- ``reconstructions.png``: noisy stamps, models and residuals;
- ``scores.json``: errors of delivered flux and size (median, 16 and 84 %), and the gain of each prior.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from astrozoo._files import write_json
from astrozoo.data.simulate_galaxies import KINDS, GalaxyStamps, simulate_galaxies
from astrozoo.galaxies.latent_scores import gains
from astrozoo.models import galaxy_population
from astrozoo.models.galaxy_population import SURVEY
from astrozoo.models.latent_galaxies import SNR, LatentGalaxies, encoded, observed, table_of
from astrozoo.nets.galaxy import LATENT
from experiments.galaxy_sets import SEED, GalaxySet, galaxy_sets, priors

SHOWN = 12
"""Galaxies in a row of the pictures."""
TRAVERSED = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Values of each latent in the picture of traversals."""
NAMES = ("flux", "x", "y", "size", "shear 1", "shear 2", *(f"structure {k}" for k in range(1, 11)))
"""What the latents are."""


def show(axis: Any, image: Tensor, peak: float | None = None) -> None:
    """A galaxy with a stretch that is logarithmic above 3 % of the peak."""
    peak = float(image.max()) if peak is None else peak
    axis.imshow((image / (0.03 * peak)).arcsinh(), origin="lower", cmap="magma", vmin=-0.3, vmax=4.2)
    axis.set(xticks=[], yticks=[])


def samples(sets: Mapping[str, GalaxySet], path: Path) -> None:
    """A row of galaxies of each set. Those with conditions are below each other."""
    figure, axes = plt.subplots(
        len(sets), SHOWN, figsize=(SHOWN, 1.04 * len(sets)), layout="constrained", squeeze=False
    )
    for row, (name, galaxies) in zip(axes, sets.items(), strict=True):
        for axis, image in zip(row, galaxies.images[:SHOWN], strict=True):
            show(axis, image)
        row[0].set_ylabel(name.replace(", g", ",\ng"), fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=75)
    plt.close(figure)


def conditioned(galaxies: LatentGalaxies, stamps: GalaxyStamps, seed: int) -> dict[str, np.ndarray]:
    """Requested and delivered flux and half-light radius, of one draw for each galaxy's conditions."""
    z = galaxies.sample(len(stamps), {name: getattr(stamps, name) for name in galaxies.inputs}, seed=seed)
    return {
        "requested flux": 10 ** (0.4 * (galaxies.zero_point - stamps.magnitude.double().numpy())),
        "delivered flux": galaxies.flux(z).double().numpy(),
        "requested size": stamps.half_light_radius.double().numpy(),
        "delivered size": galaxies.half_light_radius(z).double().numpy(),
    }


def errors(columns: Mapping[str, np.ndarray], chosen: np.ndarray | slice = slice(None)) -> dict[str, Any]:
    """Median and 16 and 84 % of the relative errors [%]."""
    found = {}
    for what in ("flux", "size"):
        error = 100 * (columns[f"delivered {what}"] / columns[f"requested {what}"] - 1)[chosen]
        low, middle, high = np.quantile(error, (0.16, 0.5, 0.84))
        scatter = 1.2533 * error.std() / len(error) ** 0.5  # of a median, for normal errors
        names = ("median [%]", "16 % [%]", "84 % [%]", "error of the median [%]")
        values = (middle, low, high, scatter)
        found[what] = {name: round(float(v), 2) for name, v in zip(names, values, strict=True)}
    return found


def conditions_picture(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Relative error of delivered flux and size against the request."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    units = {"flux": "flux (zero point 25)", "size": "half-light radius [arcsec]"}
    for axis, (what, unit) in zip(axes, units.items(), strict=True):
        requested, delivered = columns[f"requested {what}"], columns[f"delivered {what}"]
        axis.scatter(requested, 100 * (delivered / requested - 1), s=4, color="#0072b2", alpha=0.5)
        axis.axhline(0, color="k", lw=0.7)
        edges = np.quantile(requested, np.linspace(0, 1, 7))
        for low, high in pairwise(edges):
            inside = (requested >= low) & (requested <= high)
            limits = np.quantile(100 * (delivered / requested - 1)[inside], (0.16, 0.5, 0.84))
            for value, width in zip(limits, (1.0, 2.2, 1.0), strict=True):
                axis.plot((low, high), (value, value), color="#d55e00", lw=width)
        axis.set(xscale="log", xlabel=f"requested {unit}", ylabel="delivered - requested [%]", ylim=(-60, 60))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def traversals(galaxies: LatentGalaxies, centre: Tensor, psf: Tensor, path: Path) -> None:
    """Each latent from -2 to 2 about the mean of the galaxies, in SDs of N(0, I)."""
    figure, axes = plt.subplots(
        len(TRAVERSED), LATENT, figsize=(LATENT, 1.08 * len(TRAVERSED)), layout="constrained"
    )
    for k in range(LATENT):
        z = centre.repeat(len(TRAVERSED), 1)
        z[:, k] = centre[k] + torch.tensor(TRAVERSED)
        images = galaxies.images(z, psf, SURVEY.pixel_scale, 32)
        for axis, image in zip(axes[:, k], images, strict=True):
            show(axis, image, None if k else float(images[2].max()))
        axes[0, k].set_title(NAMES[k], fontsize=7)
    for axis, value in zip(axes[:, 0], TRAVERSED, strict=True):
        axis.set_ylabel(f"{value:+.0f}", fontsize=8)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def embedding(sets: Mapping[str, GalaxySet], stamps: GalaxyStamps, path: Path) -> dict[str, Any]:
    """Latents in the plane of the two greatest principal components of the reconstructions."""
    z = {name: galaxies.z.numpy() for name, galaxies in sets.items() if galaxies.z is not None}
    data = z["reconstructions"]
    scale, centre = data.std(0), data.mean(0)
    variance, axes_of = np.linalg.eigh(np.cov(((data - centre) / scale).T))
    plane = axes_of[:, -2:][:, ::-1]
    shown = {name: ((values - centre) / scale) @ plane for name, values in z.items()}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.4), layout="constrained")
    limits = 1.15 * np.abs(shown["reconstructions"]).max(0)
    for axis, (name, xy) in zip(axes, shown.items(), strict=True):
        if name == "reconstructions":
            for kind, label in enumerate(KINDS):
                of_kind = stamps.kind.numpy() == kind
                axis.scatter(*xy[of_kind].T, s=4, label=label, alpha=0.7)
            axis.legend(fontsize=6, markerscale=2)
        else:
            axis.scatter(*xy.T, s=4, color="0.4", alpha=0.6)
        axis.set(title=name, xlim=(-limits[0], limits[0]), ylim=(-limits[1], limits[1]), xticks=[], yticks=[])
    figure.supxlabel("first principal component of the latents", fontsize=9)
    figure.supylabel("second", fontsize=9)
    figure.savefig(path, dpi=75)
    plt.close(figure)
    return {"share of variance in the plane": round(float(variance[-2:].sum() / variance.sum()), 3)}


def reconstructions(galaxies: LatentGalaxies, stamps: GalaxyStamps, weights: Any, path: Path) -> None:
    """Two galaxies of each kind: stamp, model of the encoder's mean, residual in units of the noise."""
    chosen = torch.cat([torch.nonzero(stamps.kind == kind)[:2, 0] for kind in range(len(KINDS))])
    part = stamps[chosen]
    image, noise_rms = observed(part, snr=SNR, seed=1)
    networks = galaxy_population.load(weights, dtype=torch.float32)
    mean, _ = encoded(networks, image, part.psf, noise_rms, SURVEY)
    model = galaxies.images(mean, part.psf, SURVEY.pixel_scale, SURVEY.size)
    residual = (image - model) / noise_rms[:, None, None]
    figure, axes = plt.subplots(3, len(chosen), figsize=(1.2 * len(chosen), 4.1), layout="constrained")
    for k, column in enumerate(axes.T):
        peak = float(model[k].max())
        show(column[0], image[k], peak)
        show(column[1], model[k], peak)
        column[2].imshow(residual[k], origin="lower", cmap="coolwarm", vmin=-4, vmax=4)
        column[2].set(xticks=[], yticks=[])
        snr = float(part.noiseless[k].square().sum().sqrt() / noise_rms[k])
        column[0].set_title(f"{KINDS[int(part.kind[k])]}, S/N {snr:.0f}", fontsize=7)
    for axis, name in zip(axes[:, 0], ("data", "model", "residual"), strict=True):
        axis.set_ylabel(name, fontsize=8)
    figure.savefig(path, dpi=75)
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
    cache, weights = options.cache or options.out / "galaxies", options.weights
    among = priors(options.priors, weights)
    sets = galaxy_sets(options.galaxies, cache, among, weights=weights)
    stamps = simulate_galaxies(SURVEY, options.galaxies, seed=SEED, cache=cache)
    samples({name: one for name, one in sets.items() if name != "data again"}, options.out / "samples.png")
    conditional = among["flow, given conditions"]
    columns = conditioned(conditional, stamps, seed=0)
    conditions_picture(columns, options.out / "conditions.png")
    networks = galaxy_population.load(weights, dtype=torch.float32)
    table = table_of(networks, stamps, SURVEY)
    centre, psf = table.mean.mean(0), stamps.psf[0]
    traversals(conditional, centre, psf, options.out / "traversals.png")
    embedded = embedding(sets, stamps, options.out / "embedding.png")
    reconstructions(conditional, stamps, weights, options.out / "reconstructions.png")
    flows = {name: galaxies.prior for name, galaxies in among.items() if galaxies.prior is not None}
    large = columns["requested size"] > math.exp(np.log(columns["requested size"]).mean())
    scores = {
        "galaxies": options.galaxies,
        "conditioning": errors(columns),
        "conditioning, larger half": errors(columns, large),
        "conditioning, smaller half": errors(columns, ~large),
        "conditioning, by kind of the galaxy whose conditions are requested": {
            kind: errors(columns, (stamps.kind == k).numpy()) for k, kind in enumerate(KINDS)
        },
        "embedding": embedded,
        "gains": gains(table, flows),
    }
    write_json(scores, options.out / "scores.json")
    for name, value in scores.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
