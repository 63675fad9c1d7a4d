"""Train the learned source as ``astrozoo train strong_lens`` does, score it, and draw pictures.

    python -m experiments.train_learned_source --out runs/learned_source [--galaxies 12000] [--steps 2600]

Takes about ten minutes on one core. The same command continues a run that was stopped. Files in ``--out``:

- ``weights.safetensors``, for ``learned_source.load(weights=...)``;
- ``scores.json``, on galaxies that are not trained on;
- ``reconstructions.png`` and ``samples.png``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import astrozoo
from astrozoo._files import write_json
from astrozoo.guides.learned_source import Encoder
from astrozoo.models import learned_source
from astrozoo.models.learned_source import LATENT, Decoder
from astrozoo.nets.flow import FlowDistribution

STRETCH = 0.0004
"""[fraction of a galaxy's light per pixel] Brightness at which the pictures' stretch becomes logarithmic."""


@torch.no_grad()
def scores(
    encoder: Encoder, decoder: Decoder, prior: FlowDistribution, images: Tensor, trained_on: Tensor
) -> dict[str, float]:
    """How well images are reproduced, beside as many principal components of the training set."""
    mean, sd = encoder.moments(images)
    z = mean + sd * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    decoded = decoder(mean)
    misplaced = (images - decoded).abs().sum((1, 2)) / 2
    flat = trained_on.flatten(1).double()
    centre = flat.mean(0)
    axes = torch.linalg.eigh((flat - centre).T @ (flat - centre))[1][:, -LATENT:]
    centred = images.flatten(1).double() - centre
    principal = (centred - centred @ axes @ axes.T).abs().sum(1) / 2
    pairs = torch.stack((images.flatten(1), decoded.flatten(1)), 1)
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    normal = -0.5 * (z**2).sum(-1) - 0.5 * LATENT * math.log(2 * math.pi)
    return {
        "galaxies not trained on": len(images),
        "light in wrong pixels, median": misplaced.median().item(),
        "light in wrong pixels, 90 %": misplaced.quantile(0.9).item(),
        "light in wrong pixels, median of smooth galaxies": misplaced[::2].median().item(),
        "light in wrong pixels, median of clumpy galaxies": misplaced[1::2].median().item(),
        f"light in wrong pixels, median of {LATENT} principal components": principal.median().item(),
        "correlation of pixels, median": correlation.median().item(),
        "nats per galaxy that the flow gains over N(0, I)": (prior.log_prob(z) - normal).mean().item(),
    }


@torch.no_grad()
def pictures(encoder: Encoder, decoder: Decoder, prior: FlowDistribution, images: Tensor, out: Path) -> None:
    """At most twelve galaxies with reconstructions and differences; 36 samples of the prior."""
    shown = images[:12]
    decoded = decoder(encoder.moments(shown)[0])
    normals = torch.randn(36, LATENT, generator=torch.Generator().manual_seed(1))
    panels = {
        "reconstructions": torch.cat((shown, decoded, shown - decoded)),
        "samples": decoder(prior.push(normals)),
    }
    titles = {
        "reconstructions": "galaxies not trained on; reconstructions; differences (arcsinh stretch)",
        "samples": "samples of the prior (arcsinh stretch)",
    }
    for name, drawn in panels.items():
        columns = len(drawn) // 3
        figure, axes = plt.subplots(3, columns, figsize=(1.5 * columns, 4.8), layout="constrained")
        for axis, image in zip(axes.flat, drawn, strict=True):
            axis.imshow((image / STRETCH).arcsinh(), origin="lower", cmap="magma", vmin=-1, vmax=3)
            axis.set_axis_off()
        figure.suptitle(titles[name])
        figure.savefig(out / f"{name}.png", dpi=80)
        plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--galaxies", type=int, default=12_000, help="number of galaxies to train on")
    parser.add_argument("--photons", type=int, default=30_000, help="of one galaxy")
    parser.add_argument("--steps", type=int, help="of training; by default those of `astrozoo train`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("galaxies", "photons", "seed")}
    arguments = learned_source.training(out=options.out, path=None, **settings)
    if options.steps:
        arguments["steps"] = options.steps
    checkpoint = options.out / "training.checkpoint"
    trained = astrozoo.train(seed=options.seed, checkpoint=checkpoint, **arguments)
    weights = trained.save(options.out / "weights.safetensors")
    checkpoint.unlink(missing_ok=True)
    encoder = Encoder()
    trained.load_into(encoder, "guide")
    decoder, prior = learned_source.load(weights=weights, dtype=torch.float32)
    images, trained_on = arguments["held_out"].args[0], arguments["problem"].args[0].images
    measured = scores(encoder, decoder, prior, images, trained_on)
    write_json(settings | trained.settings | measured, options.out / "scores.json")
    pictures(encoder, decoder, prior, images, options.out)
    for name, value in measured.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
