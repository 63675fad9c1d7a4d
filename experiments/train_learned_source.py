"""Train the learned source: galaxies from GalSim, an autoencoder, a flow over its latents.

    python experiments/train_learned_source.py --out runs/learned_source

Minutes on one core. Run again after a kill, it goes on where it stopped. Writes, into ``--out``,
``learned_source.safetensors`` (the weights: what is shipped as ``models/learned_source.safetensors``),
``scores.json`` (on galaxies held out) and two pictures: reconstructions, and samples of the prior.

A galaxy's image is a multinomial of ``--photons`` photons over its pixels: bright pixels count for more than
faint ones as they do in an observation of that depth, and the decoder need not model any noise.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from astrozoo._files import write_json
from astrozoo.data.simulate_lens import SOURCES, draw_source, render_source
from astrozoo.models.learned_source import LATENT, SIZE, Decoder, latent_flow, latent_prior

RADII = (5.0, 9.0)  # of galaxies, half the light [px]
BLUR = 1.0  # [px]
CHUNK = 500  # galaxies rendered between two saves
BATCH, RATE = 64, 2e-3
FLOW_STEPS, FLOW_BATCH = 4000, 256


class Encoder(nn.Module):
    """Images of unit sum to the mean and log-variance of their latents."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 2 * LATENT))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.convolutions((images * SIZE**2)[:, None].sqrt()).chunk(2, -1)
        return mean, log_variance.clamp(-12, 4)


def galaxies(out: Path, n: int, seed: int) -> Tensor:
    """``[n, 64, 64]`` images of unit sum, rendered in chunks that are kept."""
    parts = []
    folder = out / "galaxies"
    folder.mkdir(parents=True, exist_ok=True)
    for first in track(range(0, n, CHUNK), description="rendering"):
        path = folder / f"{seed}-{first}-{min(CHUNK, n - first)}.safetensors"
        if not path.is_file():
            rng = np.random.default_rng([seed, first])
            images = np.stack([_galaxy(rng, first + i) for i in range(min(CHUNK, n - first))])
            write(path, {"images": torch.from_numpy(images.astype(np.float32))})
        parts.append(load_file(path)["images"])
    return torch.cat(parts)


def _galaxy(rng: np.random.Generator, i: int) -> np.ndarray:
    radius = math.exp(rng.uniform(*np.log(RADII)))
    return render_source(draw_source(rng, SOURCES[i % len(SOURCES)]), SIZE, 1 / radius, blur=BLUR)


def write(path: Path, tensors: dict[str, Tensor], meta: dict[str, str] | None = None) -> None:
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, meta)
    partial.replace(path)


def elbo(encoder: Encoder, decoder: Decoder, x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Per image, less the entropy of the image itself: 0 where it is reproduced at no cost in latents."""
    mean, log_variance = encoder(x)
    noise = torch.randn(mean.shape, generator=generator)
    z = mean + (log_variance / 2).exp() * noise
    missed = (x * ((x + 1e-12).log() - decoder.log_image(z))).sum((1, 2))
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1)
    return -photons * missed - divergence


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch in one of the eight orientations of a square."""
    k = int(torch.randint(8, (1,), generator=generator))
    x = torch.rot90(x, k % 4, (1, 2))
    return x.flip(2) if k >= 4 else x


def train(x: Tensor, out: Path, epochs: int, photons: float, seed: int) -> tuple[Encoder, Decoder]:
    torch.manual_seed(seed)
    encoder, decoder = Encoder(), Decoder()
    both = nn.ModuleList([encoder, decoder])
    optimiser = torch.optim.Adam(both.parameters(), RATE)
    path, first = out / "training.safetensors", 0
    if path.is_file():
        first = restore(path, both, optimiser)
    for epoch in track(range(first, epochs), description="autoencoder"):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for rows in order.split(BATCH):
            warm = min(1.0, (epoch + 1) / 5)  # fewer photons at first: latents are used before details are
            loss = -elbo(encoder, decoder, turned(x[rows], generator), warm * photons, generator).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total -= loss.item() * len(rows) / len(x)
        save(path, both, optimiser, epoch + 1)
        print(f"epoch {epoch + 1}: ELBO {total:.1f}", flush=True)
    return encoder.eval(), decoder.eval()


def save(path: Path, module: nn.Module, optimiser: torch.optim.Adam, epoch: int) -> None:
    state = {f"module.{n}": t for n, t in module.state_dict().items()}
    for i, held in optimiser.state_dict()["state"].items():
        state |= {f"adam.{i}.{name}": torch.as_tensor(value) for name, value in held.items()}
    write(path, state | {"epoch": torch.tensor(epoch)})


def restore(path: Path, module: nn.Module, optimiser: torch.optim.Adam) -> int:
    held = load_file(path)
    module.load_state_dict({n.removeprefix("module."): t for n, t in held.items() if n.startswith("module.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in held.items():
        if name.startswith("adam."):
            _, i, what = name.split(".")
            moments.setdefault(int(i), {})[what] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return int(held["epoch"])


@torch.no_grad()
def posteriors(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and SDs of the latents of all galaxies in all eight orientations."""
    parts = []
    for rows in track(x.split(500), description="encoding"):
        for mirrored in (rows, rows.flip(2)):
            parts += [encoder(torch.rot90(mirrored, k, (1, 2))) for k in range(4)]
    means, log_variances = zip(*parts, strict=True)
    return torch.cat(means), (torch.cat(log_variances) / 2).exp()


def train_flow(encoder: Encoder, x: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed + 1)
    flow, generator = latent_flow(), torch.Generator().manual_seed(seed + 2)
    means, sds = posteriors(encoder, x)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, FLOW_STEPS)
    for _ in track(range(FLOW_STEPS), description="flow"):
        rows = torch.randint(len(means), (FLOW_BATCH,), generator=generator)
        z = means[rows] + sds[rows] * torch.randn(FLOW_BATCH, LATENT, generator=generator)
        loss = -flow().log_prob(z).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return flow.eval()


@torch.no_grad()
def scores(encoder: Encoder, decoder: Decoder, flow: nn.Module, x: Tensor, train: Tensor) -> dict[str, float]:
    """On held-out galaxies: share of light put in wrong pixels, against as many principal components."""
    mean, log_variance = encoder(x)
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    moved = (x - decoder(mean)).abs().sum((1, 2)) / 2
    flat = train.flatten(1).double()
    centre = flat.mean(0)
    axes = torch.linalg.eigh((flat - centre).T @ (flat - centre))[1][:, -LATENT:]
    rest = x.flatten(1).double() - centre
    principal = (rest - rest @ axes @ axes.T).abs().sum(1) / 2
    correlation = torch.stack(
        [
            torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
            for a, b in zip(x, decoder(mean), strict=True)
        ]
    )
    normal = -0.5 * (z**2).sum(-1) - 0.5 * LATENT * math.log(2 * math.pi)
    return {
        "galaxies held out": len(x),
        "light in wrong pixels, median": moved.median().item(),
        "light in wrong pixels, 90 %": moved.quantile(0.9).item(),
        "the same of smooth galaxies, median": moved[::2].median().item(),
        "the same of clumpy galaxies, median": moved[1::2].median().item(),
        f"the same of {LATENT} principal components, median": principal.median().item(),
        "correlation of pixels, median": correlation.median().item(),
        "nats per galaxy that the flow gains over N(0, I)": (flow().log_prob(z) - normal).mean().item(),
    }


@torch.no_grad()
def pictures(encoder: Encoder, decoder: Decoder, flow: nn.Module, x: Tensor, out: Path) -> None:
    shown = x[:12]
    z = latent_prior(flow).transforms[0](torch.randn(36, LATENT, generator=torch.Generator().manual_seed(1)))
    plates = {
        "reconstructions": torch.cat((shown, decoder(encoder(shown)[0]), shown - decoder(encoder(shown)[0]))),
        "samples": decoder(z),
    }
    for name, images in plates.items():
        figure, axes = plt.subplots(3, 12, figsize=(18, 4.8), layout="constrained")
        for axis, image in zip(axes.flat, images, strict=True):
            limit = 0.004
            axis.imshow((image / limit * 10).arcsinh(), origin="lower", cmap="magma", vmin=-1, vmax=3)
            axis.set_axis_off()
        rows = ("galaxies held out; their reconstructions; the differences", "samples of the prior")
        figure.suptitle(rows[name == "samples"] + " (arcsinh stretch)")
        figure.savefig(out / f"{name}.png", dpi=80)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=12_000, help="galaxies to train on")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--photons", type=float, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    x = galaxies(options.out, options.n, options.seed)
    held_out = galaxies(options.out, 1000, options.seed + 1)
    encoder, decoder = train(x, options.out, options.epochs, options.photons, options.seed)
    flow = train_flow(encoder, x, options.seed)
    found = scores(encoder, decoder, flow, held_out, x)
    weights = {f"decoder.{n}": t for n, t in decoder.state_dict().items()}
    weights |= {f"flow.{n}": t for n, t in flow.state_dict().items()}
    settings = {name: str(getattr(options, name)) for name in ("n", "epochs", "photons", "seed")}
    write(options.out / "learned_source.safetensors", weights, settings)
    write_json(settings | found, options.out / "scores.json")
    pictures(encoder, decoder, flow, held_out, options.out)
    for name, value in found.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
