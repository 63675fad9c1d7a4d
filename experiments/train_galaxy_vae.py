"""Train the weights that `galaxy_vae` ships, as ``astrozoo train galaxy_vae`` does, and store them in
float16.

    python -m experiments.train_galaxy_vae --out runs/galaxy_vae [--galaxies 16000] [--steps 5500,600]

Takes some ten minutes on one core: about four for the galaxies, the rest for training. The same command
continues a run that was stopped. Files in ``--out``:

- ``weights.safetensors``: ``models/galaxy_vae.safetensors`` is a copy;
- ``scores.json``: the settings, the CPU seconds, and the ELBO of held-out galaxies in float32 and in float16;
- ``traversals.png``: each latent from -2 to 2, the others at 0;
- ``embedding.png``: means of held-out galaxies in the plane of their two greatest principal components, and
  by t-SNE (which needs scikit-learn), coloured by size;
- ``samples.png``: draws of the prior.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from astrozoo._files import write_json
from astrozoo._train_command import train_stages
from astrozoo._trained import Trained
from astrozoo.data.simulate_galaxies import GalaxyStamps, simulate_galaxies
from astrozoo.data.stamps import Stamps, standardise
from astrozoo.models import galaxy_vae, galaxy_vae_training
from astrozoo.nets.galaxy_vae import Nets

HELD_OUT = 1000
"""Galaxies that are not trained on."""
HELD_OUT_SEED = 1_000_001
"""Added to the seed for galaxies that are not trained on."""
STEPS = 9
"""Pictures of a traversal."""
SOFTENING = 0.3
"""[rms of a galaxy's light] Brightness at which the pictures' stretch becomes logarithmic."""


def halved(trained: Trained) -> Trained:
    """The same weights in float16."""
    return replace(trained, weights={name: w.half() for name, w in trained.weights.items()})


@torch.no_grad()
def traversals(nets: Nets, path: Path) -> None:
    """A row for each latent."""
    values = torch.linspace(-2, 2, STEPS).to(nets.decoder.log_mean)
    figure, axes = plt.subplots(nets.decoder.latent, STEPS, figsize=(9, 8), layout="constrained")
    for k, row in enumerate(axes):
        z = torch.zeros(STEPS, nets.decoder.latent).to(values)
        z[:, k] = values
        for axis, image, value in zip(row, nets.decoder(z)[0], values, strict=True):
            show(axis, image.numpy())
            if k == 0:
                axis.set_title(f"{value:.1f}", fontsize=9)
    figure.suptitle("each latent from -2 to 2, the others at 0 (arcsinh stretch)")
    figure.savefig(path, dpi=70)
    plt.close(figure)


@torch.no_grad()
def samples(nets: Nets, path: Path) -> None:
    """Draws of the prior."""
    z = torch.randn(48, nets.decoder.latent, generator=torch.Generator().manual_seed(0))
    figure, axes = plt.subplots(4, 12, figsize=(12, 4.3), layout="constrained")
    for axis, image in zip(axes.flat, nets.decoder(z.to(nets.decoder.log_mean))[0], strict=True):
        show(axis, image.numpy())
    figure.suptitle("draws of the prior, without noise (arcsinh stretch)")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def show(axis: plt.Axes, image: np.ndarray) -> None:
    """One picture."""
    axis.imshow(
        np.arcsinh(image / SOFTENING), origin="lower", cmap="magma", vmin=0, vmax=np.arcsinh(8 / SOFTENING)
    )
    axis.set_axis_off()


def embedding(nets: Nets, stamps: Stamps, truth: GalaxyStamps, path: Path) -> None:
    """Means of the encoder in two dimensions."""
    from sklearn.manifold import TSNE

    z = galaxy_vae.encode(nets, stamps)[0].double().numpy()
    centred = z - z.mean(0)
    principal = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    neighbours = TSNE(random_state=0, init="pca", perplexity=30).fit_transform(centred)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, points, title in zip(
        axes, (principal, neighbours), ("principal components", "t-SNE"), strict=True
    ):
        shown = axis.scatter(*points.T, c=np.log10(truth.half_light_radius.numpy()), s=6, cmap="viridis")
        axis.set_title(f"means of q(z | x): {title}")
    figure.colorbar(shown, ax=axes, label="log10 half-light radius [arcsec]")
    figure.savefig(path, dpi=70)
    plt.close(figure)


@torch.no_grad()
def elbo(nets: Nets, stamps: Stamps) -> float:
    """Mean ELBO per galaxy, with one draw of q(z | x) each."""
    image, noise, used = stamps.pixels
    mean, sd = galaxy_vae.encode(nets, stamps)
    z = mean + sd * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    expected, variance = nets.decoder(z)
    pixels = torch.distributions.Normal(expected, (noise[:, None, None] ** 2 + variance).sqrt())
    likelihood = (pixels.log_prob(image) * used).sum((1, 2))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    return float((likelihood + prior - torch.distributions.Normal(mean, sd).log_prob(z).sum(1)).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--galaxies", type=int, default=16_000)
    parser.add_argument("--steps", default="5500,600", help="of the two stages")
    parser.add_argument("--nets", default="dense", choices=("dense", "convolutional"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / "galaxies"
    trained_on = galaxy_vae_training.simulated_stamps(options.galaxies, options.seed, cache=cache)
    drawn = simulate_galaxies(
        galaxy_vae_training.survey(), HELD_OUT, seed=options.seed + HELD_OUT_SEED, cache=cache
    )
    held_out = standardise(drawn.image.numpy(), galaxy_vae.SIZE, drawn.noise_rms.numpy())
    first, second = (int(n) for n in options.steps.split(","))
    stages = galaxy_vae_training.stages(
        trained_on, held_out, seed=options.seed, kind=options.nets, steps=(first, second)
    )
    began = time.process_time()
    trained = train_stages(stages, options.out, seed=options.seed)
    seconds = time.process_time() - began
    halved(trained).save(options.out / "weights.safetensors")
    single = galaxy_vae.load(trained, dtype=torch.float32)
    nets = galaxy_vae.load(options.out / "weights.safetensors", dtype=torch.float32)
    scores = {
        "galaxies": len(trained_on),
        "seed": options.seed,
        "steps": [first, second],
        "CPU seconds of this run's training": round(seconds),
        "held-out ELBO, float32 [nat]": elbo(single, held_out),
        "held-out ELBO, float16 [nat]": elbo(nets, held_out),
    }
    write_json(scores, options.out / "scores.json")
    traversals(nets, options.out / "traversals.png")
    samples(nets, options.out / "samples.png")
    embedding(nets, held_out, drawn, options.out / "embedding.png")
    for name, value in scores.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
