"""Train the learned part of the hybrid prior of mass maps on simulated halo maps.

    python -m experiments.simulate_kappa --out halos.npz --maps 240
    python -m experiments.train_kappa_residual --maps halos.npz --out DIR [--steps 1500]

Every map is used in the eight orientations of a square. A tenth of the maps is held out. The same command
continues a run that was stopped. ``DIR`` gets ``weights.safetensors``, for
:func:`astrozoo.models.kappa_residual.load`, and ``scores.json``: the mean squared
error of the score at the least noise level on the maps held out, times that level squared, with the
network and without it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

import astrozoo
from astrozoo._files import write_json
from astrozoo.models import kappa_residual, mass_map
from astrozoo.nets.score import denoising_loss


class Orientations(Dataset[Tensor]):
    """Maps in the eight orientations of a square."""

    def __init__(self, fields: Float[Tensor, "map y x"]) -> None:
        self.fields = fields
        self.version = f"{tuple(fields.shape)} {float(fields.double().square().sum()):.9g}"

    def __len__(self) -> int:
        return 8 * len(self.fields)

    def __getitem__(self, index: int) -> Tensor:
        chosen, orientation = divmod(int(index), 8)
        turned = torch.rot90(self.fields[chosen], orientation % 4, (0, 1))
        return turned.T if orientation >= 4 else turned


def fields_of(kappa: np.ndarray) -> tuple[Tensor, Tensor]:
    """Maps g of mean 0, and the power of the Gaussian field, in single precision."""
    model = mass_map.MassMap(prior="lognormal", shift=kappa_residual.SHIFT)
    size = kappa.shape[-1]
    filters = mass_map.make_filters((size, size), kappa_residual.PIXEL, model)
    g = torch.log1p(torch.as_tensor(kappa.astype(float)) / kappa_residual.SHIFT)
    return (g - g.mean((1, 2), keepdim=True)).float(), filters.root.square().float()


def scores(energy: torch.nn.Module, fields: Tensor, power: Tensor) -> dict[str, float]:
    """Losses of denoising at the least noise level."""
    level = torch.full((len(fields),), kappa_residual.LEVELS[0])
    noise = torch.randn(fields.shape, generator=torch.Generator().manual_seed(1))

    def gaussian(noisy: Tensor, sigma: Tensor) -> Tensor:
        return kappa_residual.gaussian_score(noisy[:, 0], power, sigma[:, None, None])[:, None]

    def hybrid(noisy: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(noisy, sigma) + energy.score(noisy, sigma)

    with torch.no_grad():
        return {
            name: float(denoising_loss(score, fields[:, None], level, noise[:, None]).mean())
            for name, score in (("loss without the network", gaussian), ("loss with it", hybrid))
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=Path, required=True, help="of experiments.simulate_kappa")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    fields, power = fields_of(np.load(chosen.maps)["kappa"])
    most = len(fields) - len(fields) // 10
    began, cpu = time.perf_counter(), time.process_time()
    trained = astrozoo.train(
        kappa_residual.problem(Orientations(fields[:most]), power, seed=chosen.seed),
        "prior",
        steps=chosen.steps,
        batch=chosen.batch,
        learning_rate=2e-3,
        gradient_clip=1000.0,
        seed=chosen.seed,
        checkpoint=chosen.out / "training.checkpoint",
    )
    trained.save(chosen.out / "weights.safetensors")
    measured = scores(kappa_residual.load(weights=trained, dtype=torch.float32), fields[most:], power)
    cost = {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    settings = {name: str(value) for name, value in vars(chosen).items()}
    write_json(settings | {"maps": most} | measured | cost, chosen.out / "scores.json")
    print(measured | cost)


if __name__ == "__main__":
    main()
