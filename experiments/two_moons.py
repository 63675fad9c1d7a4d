"""Two moons: fit the learned prior of points, and compare its posterior with the exact one on a grid.

    python -m experiments.two_moons train --out DIR [--steps 12000]
    python -m experiments.two_moons compare --out DIR [--weights DIR/weights.safetensors] [--points 6]

``train`` fits the energy to points without noise by denoising score matching, and writes
``DIR/weights.safetensors``; ``models/two_moons.safetensors`` is such a file. The same command continues a run
that was stopped.

``compare`` draws points, adds noise of SD 0.3, draws from each posterior under the learned prior by ``hmc``,
and from the exact posterior by its density on a grid. ``DIR/rows.json`` has for each point the accuracy of a
nearest-neighbour classifier (C2ST) between the two sets of draws, which are thinned to be independent, and
the 95 % quantile of that accuracy for two equal distributions. ``DIR/two_moons.png`` shows both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import astrozoo
from astrozoo._files import write_json
from astrozoo.diagnostics.arviz import ess
from astrozoo.diagnostics.two_sample import c2st
from astrozoo.models import denoise, two_moons
from astrozoo.models.image_prior import PointPrior

NOISE = 0.3
"""SD of the noise of each coordinate: the gap between the moons, so that posteriors have two modes."""
EXTENT, CELLS = 6.0, 600
"""[SD of the noise] Half the side of the grid of a posterior, and its cells along a side."""
DRAWS = 400
"""Draws of each set that the classifier is given."""


def train(chosen: argparse.Namespace) -> None:
    points = two_moons.draw(60_000, torch.Generator().manual_seed(chosen.seed)).float()
    began, cpu = time.perf_counter(), time.process_time()
    trained = astrozoo.train(
        two_moons.problem(points, seed=chosen.seed),
        "prior",
        steps=chosen.steps,
        batch=512,
        learning_rate=3e-3,
        seed=chosen.seed,
        checkpoint=chosen.out / "training.checkpoint",
        progress=False,
    )
    trained.save(chosen.out / "weights.safetensors")
    print({"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began})


def exact_draws(value: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the posterior of one point, uniform within cells of a grid."""
    step = 2 * EXTENT * NOISE / CELLS
    offsets = (np.arange(CELLS) + 0.5) * step - EXTENT * NOISE
    grid = np.stack(np.meshgrid(value[0] + offsets, value[1] + offsets, indexing="xy"), -1).reshape(-1, 2)
    likelihood = np.exp(-np.square(grid - value).sum(-1) / (2 * NOISE**2))
    weight = two_moons.density(torch.as_tensor(grid)).numpy() * likelihood
    chosen = rng.choice(len(grid), count, p=weight / weight.sum())
    return grid[chosen] + step * (rng.random((count, 2)) - 0.5)


def compare(chosen: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(chosen.seed)
    points = two_moons.draw(chosen.points, generator)
    values = points + NOISE * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    sd = torch.full_like(values, NOISE)
    data = denoise.NoisyData(denoise.Pixels(values, sd, torch.ones_like(sd, dtype=torch.bool)), points=True)
    problem = denoise.problem(data, prior="two_moons")
    if chosen.weights is not None:
        energy = two_moons.load(chosen.weights)
        model = denoise.Denoise(PointPrior(energy, two_moons.LEVELS[0]))
        problem = astrozoo.Problem(model, problem.args, name="denoise", start=problem.start)
    cpu = time.process_time()
    result = astrozoo.infer(
        problem, "hmc", chains=16, draws=200, warmup=150, keep=["image"], seed=chosen.seed, progress=False
    )
    cost = time.process_time() - cpu
    draws = result.draws["image"]
    rng = np.random.default_rng(chosen.seed)
    rows: list[dict[str, Any]] = []
    exact = []
    for i, value in enumerate(values.numpy()):
        effective = float(ess(draws[:, :, i], "bulk").min())
        ours = draws[:, :, i].reshape(-1, 2)
        ours = ours[rng.choice(len(ours), min(DRAWS, int(effective)), replace=False)]
        exact.append(exact_draws(value, 4 * DRAWS, rng))
        accuracy, limit = c2st(ours, exact[-1][: len(ours)], seed=i)
        rows.append({"point": i, "c2st": accuracy, "null 95 %": limit, "draws": len(ours), "ess": effective})
        print(rows[-1], flush=True)
    write_json(
        {"rows": rows, "status": str(result.status), "CPU seconds": cost, "noise": NOISE},
        chosen.out / "rows.json",
    )
    figure = picture(values.numpy(), points.numpy(), draws.reshape(-1, *values.shape), exact)
    figure.savefig(chosen.out / "two_moons.png", dpi=70)


def picture(values: np.ndarray, truth: np.ndarray, draws: np.ndarray, exact: list[np.ndarray]) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharex=True, sharey=True)
    axis = torch.linspace(-1.8, 2.8, 200, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    for panel, title in zip(axes, ("prior, data", "learned: hmc", "exact: grid"), strict=True):
        panel.contour(axis, axis, two_moons.density(grid), 4, colors="0.8", linewidths=0.7)
        panel.set(title=title, aspect="equal", xlim=(-1.8, 2.8), ylim=(-1.4, 1.9))
    for i, value in enumerate(values):
        colour = {"color": f"C{i % 10}"}
        axes[0].plot(*truth[i], "o", mfc="none", ms=8, **colour)
        axes[0].plot(*value, "+", ms=11, mew=2, **colour)
        axes[1].plot(*draws[:: len(draws) // DRAWS, i].T, ".", ms=2, **colour)
        axes[2].plot(*exact[i][:DRAWS].T, ".", ms=2, **colour)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("train", "compare"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    {"train": train, "compare": compare}[chosen.job](chosen)


if __name__ == "__main__":
    main()
