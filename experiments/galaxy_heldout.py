"""Galaxies that `galaxy_vae` is not trained on, beside fitted profiles: the two figures of Regier et al.
2015.

    python -m experiments.galaxy_heldout --out runs/heldout [--sets simulated,hst,zoo,zoo-sky]

For each set, and each profile (a bivariate Gaussian, a Sersic profile, a bulge with a disc; fitted to the
image by least squares), the script counts the galaxies on which the autoencoder is better:

- *MSE*: the mean squared difference of the image and ``f_mu(z)`` is smaller than that of the profile
  ``x_hat``;
- *density*: ``log p(x | z)`` exceeds ``log N(x; x_hat, sigma^2 I)`` for every sigma. The latter is greatest
  where sigma^2 is the profile's MSE, with the value ``-m/2 (ln(2 pi MSE) + 1)`` for ``m`` pixels.

``z`` is the mean of the encoder (as published), and in further rows the mode of the galaxy's posterior,
found by the trust region from there. Files in ``--out``: ``heldout.csv``, with a row per set, profile, z
and subset (all; by quarter of S/N; by class; and those whose Gaussian leaves more than twice the noise),
and ``NAME.png`` with data, reconstructions and residuals.

Sets:

- *simulated*: drawn by GalSim as the training set, with another seed;
- *hst*: the 70 HST stamps of ``cosmos_hst``, with the shipped weights;
- *zoo*: the last 70 of the 370 grey images of ``galaxy_zoo``, whose sky is subtracted, with weights trained
  on the first 300, augmented (one to two minutes). *zoo-sky*: the same images as delivered. The profiles
  have no sky, as in Regier et al., so that this set is easier for the autoencoder than it should be.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.io import fits
from scipy.ndimage import affine_transform
from torch import Tensor

import astrozoo
from astrozoo._train_command import train_stages
from astrozoo.data.galaxy_survey import KINDS
from astrozoo.data.simulate_galaxies import simulate_galaxies
from astrozoo.data.stamps import Stamps, border_noise, read_images, standardise
from astrozoo.galaxies.fits import fit_profiles
from astrozoo.models import galaxy_vae, galaxy_vae_training
from astrozoo.nets.galaxy_vae import Nets
from astrozoo.physics.galaxy_profiles import KINDS as KINDS_OF_PROFILES
from astrozoo.physics.galaxy_profiles import Kind

TEST_SEED = 1_000_003
"""Seed of the simulated test set; the training set has seed 0."""
AT_ONCE = 50
"""Galaxies whose modes are found at once: it limits memory."""
HELD_OUT_ZOO = 70
"""Last images of galaxy_zoo, which are not trained on."""
COPIES = 40
"""Random copies of each image of galaxy_zoo that is trained on."""
ZOO_NOISE = 2.0
"""[grey level] Least noise of the grey images: JPEG compression leaves some borders nearly constant."""


@dataclass(frozen=True)
class Set:
    """Galaxies to compare on.

    Args:
        snr: root of the sum of squares of the light, over the noise.
        classes: one name per galaxy.
    """

    stamps: Stamps
    nets: Nets
    snr: np.ndarray
    classes: Sequence[str]


def signal_to_noise(stamps: Stamps) -> np.ndarray:
    """Of each galaxy, from the stamps themselves."""
    return (stamps.pixels.image.shape[-1] / stamps.pixels.noise).numpy()


def simulated(count: int, nets: Nets, out: Path) -> Set:
    """Galaxies of the survey of the training set."""
    drawn = simulate_galaxies(
        galaxy_vae_training.survey(nets.decoder.size), count, seed=TEST_SEED, cache=out / "galaxies"
    )
    stamps = standardise(drawn.image.numpy(), nets.decoder.size, drawn.noise_rms.numpy())
    return Set(stamps, nets, drawn.snr.numpy(), [KINDS[k] for k in drawn.kind.tolist()])


def hst(data: Path, nets: Nets) -> Set:
    """The HST stamps, with the noise of their catalogue."""
    folder = data / "cosmos_hst"
    images, names, _ = read_images(folder / "real_galaxy_images_extension.fits")
    with fits.open(folder / "real_galaxy_catalog_26_extension_example.fits") as hdus:
        noise = np.sqrt(hdus[1].data["NOISE_VARIANCE"].astype(float))
    stamps = standardise(images, nets.decoder.size, noise, names=names)
    return Set(stamps, nets, signal_to_noise(stamps), ["HST"] * len(stamps))


def zoo(data: Path, out: Path, steps: tuple[int, int], *, sky: bool) -> Set:
    """Grey images of galaxy_zoo, and networks that are trained on those before the last 70.

    Args:
        sky: leave the sky in the images.
    """
    with np.load(data / "galaxy_zoo" / "gz_decals_64px.npz") as content:
        grey, ring = content["images"].mean(-1), content["ring"]
    noise = np.maximum([border_noise(image) for image in grey], ZOO_NOISE)
    images, each = augmented(grey[:-HELD_OUT_ZOO], noise[:-HELD_OUT_ZOO])
    size = grey.shape[1]
    trained_on = standardise(images, size, each, subtract_sky=not sky)
    held_out = standardise(grey[-HELD_OUT_ZOO:], size, noise[-HELD_OUT_ZOO:], subtract_sky=not sky)
    folder = out / ("zoo-sky" if sky else "zoo")
    folder.mkdir(exist_ok=True)
    trained = train_stages(galaxy_vae_training.stages(trained_on, held_out, steps=steps), folder, seed=0)
    classes = ["ring" if r > 0 else "no ring" for r in ring[-HELD_OUT_ZOO:]]
    return Set(held_out, galaxy_vae.load(trained), signal_to_noise(held_out), classes)


def augmented(images: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image ``COPIES`` times: turned, mirrored, stretched and shifted a little at random; and its noise.

    The few images are then not learned by heart. They are smooth, so that interpolation does not show.
    """
    rng = np.random.default_rng(0)
    middle = np.array([(n - 1) / 2 for n in images.shape[1:]])
    copies = []
    for image in images:
        for _ in range(COPIES):
            angle = rng.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            zoom, ratio = np.exp(rng.uniform(-0.2, 0.2)), np.exp(0.08 * rng.standard_normal())
            matrix = turn @ np.diag([zoom * ratio, zoom / ratio * rng.choice([-1, 1])])
            offset = middle - matrix @ (middle + 0.5 * rng.standard_normal(2))
            copies.append(affine_transform(image, matrix, offset, order=1, mode="reflect"))
    return np.array(copies), np.repeat(noise, COPIES)


def modes(nets: Nets, stamps: Stamps) -> Tensor:
    """Modes of the posteriors of z, by the trust region from the encoder."""
    parts = []
    for first in range(0, len(stamps), AT_ONCE):
        part = stamps[first : first + AT_ONCE]
        problem = replace(galaxy_vae.problem(part, weights=nets), images=())
        result = astrozoo.infer(problem, "laplace", draws=1, progress=False, compile="never")
        parts.append(torch.from_numpy(result.location).reshape(len(part), -1))
    return torch.cat(parts)


def scores(sample: Set, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of f_mu(z) and log p(x | z) of each galaxy."""
    image, noise, used = sample.stamps.to(torch.float64).pixels
    with torch.no_grad():
        mean, variance = (x.double() for x in sample.nets.decoder(z.to(sample.nets.decoder.log_mean)))
    variance = variance + noise[:, None, None] ** 2
    log_density = -0.5 * ((image - mean) ** 2 / variance + (2 * math.pi * variance).log())
    return mse(sample.stamps, mean), (log_density * used).sum((1, 2))


def mse(stamps: Stamps, model: Tensor) -> Tensor:
    """Mean squared difference over the pixels that are used."""
    image, _, used = stamps.to(torch.float64).pixels
    return ((image - model) ** 2 * used).sum((1, 2)) / used.sum((1, 2))


def rows(name: str, sample: Set, profiles: Sequence[Kind]) -> Iterator[dict[str, Any]]:
    """Rows of the table for one set."""
    started = time.process_time()
    latents = {"encoder": galaxy_vae.encode(sample.nets, sample.stamps)[0]}
    latents["mode"] = modes(sample.nets, sample.stamps)
    found = {kind: scores(sample, z) for kind, z in latents.items()}
    print(
        f"{name}: modes of {len(sample.stamps)} galaxies in {time.process_time() - started:.0f} CPU s",
        flush=True,
    )
    noise, used = sample.stamps.pixels.noise.double(), sample.stamps.pixels.used
    pixels = used.sum((1, 2))
    quarter = np.digitize(sample.snr, np.quantile(sample.snr, (0.25, 0.5, 0.75)))
    gaussian: Tensor | None = None
    for profile in profiles:
        started = time.process_time()
        error = mse(sample.stamps, fit_profiles(sample.stamps.pixels, profile).image)
        seconds = time.process_time() - started
        gaussian = error if gaussian is None else gaussian
        best = -pixels / 2 * ((2 * math.pi * error).log() + 1)
        subsets = {
            "all": np.ones(len(error), bool),
            "residual > 2 noise": (gaussian.sqrt() > 2 * noise).numpy(),
        }
        for k in range(4):
            low, high = sample.snr[quarter == k].min(), sample.snr[quarter == k].max()
            subsets[f"S/N {low:.0f}-{high:.0f}"] = quarter == k
        subsets |= {c: np.asarray(sample.classes) == c for c in sorted(set(sample.classes))}
        for kind, (vae_error, density) in found.items():
            wins = {"MSE": (vae_error < error).numpy(), "density": (density > best).numpy()}
            for subset, chosen in subsets.items():
                row: dict[str, Any] = {"set": name, "profile": profile, "z": kind, "subset": subset}
                row["galaxies"] = int(chosen.sum())
                row |= {
                    what: f"{won[chosen].mean():.3f}" if chosen.any() else "" for what, won in wins.items()
                }
                yield row | {"CPU seconds of the profile": f"{seconds:.1f}"}


def picture(sample: Set, path: Path) -> None:
    """Twelve galaxies over the range of S/N: data, reconstruction from the encoder's mean, residual."""
    order = np.argsort(sample.snr)[np.linspace(0, len(sample.snr) - 1, 12).astype(int)]
    z = galaxy_vae.encode(sample.nets, sample.stamps)[0]
    with torch.no_grad():
        mean = sample.nets.decoder(z)[0].numpy()
    image, noise, used = (x.numpy() for x in sample.stamps.pixels)
    figure, axes = plt.subplots(3, 12, figsize=(18, 5), layout="constrained")
    for column, i in zip(axes.T, order, strict=True):
        seen = np.where(used[i], image[i], np.nan)
        bright = mean[i].max()
        for axis, shown in zip(column[:2], (seen, mean[i]), strict=True):
            axis.imshow(np.arcsinh(shown / (0.03 * bright)), origin="lower", cmap="magma", vmin=-1, vmax=4.2)
        column[2].imshow((seen - mean[i]) / noise[i], origin="lower", cmap="coolwarm", vmin=-4, vmax=4)
        column[0].set_title(f"S/N {sample.snr[i]:.0f}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("data, reconstruction (arcsinh stretch), residual (-4 to 4 SD of the noise)")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", default="simulated,hst,zoo,zoo-sky")
    parser.add_argument(
        "--profiles", default=",".join(KINDS_OF_PROFILES), help="the first decides the subsets"
    )
    parser.add_argument("--galaxies", type=int, default=1000, help="of the simulated set")
    parser.add_argument("--weights", default="galaxy_vae", help="a name, or a file of `astrozoo train`")
    parser.add_argument("--zoo-steps", default="2500,500", help="steps of the two stages for the set zoo")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ASTROZOO_DATA"), help="folder of real data"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    nets = galaxy_vae.load(options.weights)
    profiles: Any = options.profiles.split(",")
    first, second = (int(n) for n in options.zoo_steps.split(","))
    make = {
        "simulated": lambda: simulated(options.galaxies, nets, options.out),
        "hst": lambda: hst(Path(options.data), nets),
        "zoo": lambda: zoo(Path(options.data), options.out, (first, second), sky=False),
        "zoo-sky": lambda: zoo(Path(options.data), options.out, (first, second), sky=True),
    }
    table: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        sample = make[name]()
        picture(sample, options.out / f"{name}.png")
        table += rows(name, sample, profiles)
        with (options.out / "heldout.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
        for row in table:
            if row["set"] == name:
                print("  ".join(f"{value!s:>12}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
