"""Fluxes of simulated blends under each prior of shapes, with the coverage of their intervals.

    python -m experiments.deblend_priors --out runs/deblend [--blends 204] [--hmc 0]

Blends of two, three and four galaxies in g, r and i, 3.5 to 8 px from their nearest neighbours, half of them
smooth. The galaxies have colour gradients, which no prior has. A flux is that of a galaxy inside the image.
The mode is found for twelve blends at once. Intervals come from the normal at the mode and, for the first
``--hmc`` blends, from HMC that starts there. The same command continues a run that was stopped. Files in
``--out``:

- ``PRIOR.npz``: a row for each galaxy and band;
- ``scores.json``: NMAD of the relative error of the flux, bias, coverage, and CPU seconds per blend, of all
  galaxies, of smooth and of clumpy ones, and at low and high blendedness.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

import astrozoo
from astrozoo._files import replacing, write_json
from astrozoo.data.scenes import Scene
from astrozoo.data.simulate_blends import blendedness, simulate_blend
from astrozoo.models import deblend
from astrozoo.models.deblend_mode import find_mode, first_guess
from astrozoo.registry import get
from astrozoo.types import Problem

BATCH = 12
"""Blends whose modes are found at once."""
DRAWS = 100
"""Draws of the normal at the mode: a coverage of 0.68 is blurred by 0.05 for one flux."""
HIGH = 0.3
"""Blendedness from which a galaxy counts as highly blended: about a third of them are."""
LEVELS = (0.68, 0.95)


def fluxes(problem: Problem, values: dict[str, Tensor]) -> Float[np.ndarray, "draw blend galaxy band"]:
    """Fluxes inside the images, of latents with the axes [draw, blend, ...]."""
    model: Any = problem.model

    def total(v: dict[str, Tensor], pixels: Any, sources: Any) -> Tensor:
        return model.source_images(v, pixels, sources).sum((-2, -1))

    of_blends = torch.vmap(total, in_dims=(0, 0, 0))
    parts = []
    with torch.no_grad():
        for i in range(len(values["log_flux"])):
            parts.append(of_blends({name: v[i] for name, v in values.items()}, *problem.args).numpy())
    return np.array(parts)


def at_mode(
    scenes: Sequence[Scene], prior: str, generator: torch.Generator
) -> tuple[Problem, dict[str, Tensor], np.ndarray, np.ndarray, np.ndarray, float]:
    """Problem, mode, its fluxes, draws of the normal there, whether converged, and CPU seconds to the
    mode."""
    problem = deblend.problem(list(scenes), prior=prior, search=False)
    model: Any = problem.model
    began = time.process_time()
    start = first_guess(model, *problem.args)
    mode = find_mode(model, *problem.args, start)
    seconds = time.process_time() - began
    flat = torch.cat([mode.values[name].flatten(1) for name in mode.values], 1)
    root = torch.linalg.cholesky(mode.covariance)
    noise = torch.randn(DRAWS, *flat.shape, generator=generator, dtype=flat.dtype)
    drawn = flat + (root @ noise[..., None])[..., 0]
    sizes = [value[0].numel() for value in mode.values.values()]
    named = dict(zip(mode.values, drawn.split(sizes, -1), strict=True))
    draws = {name: part.unflatten(-1, mode.values[name].shape[1:]) for name, part in named.items()}
    best = fluxes(problem, {name: value[None] for name, value in mode.values.items()})[0]
    return problem, mode.values, best, fluxes(problem, draws), mode.converged.numpy(), seconds


def by_hmc(scene: Scene, prior: str, seed: int) -> tuple[np.ndarray, float]:
    """Draws of the fluxes of one blend, and CPU seconds."""
    problem = deblend.problem(scene, prior=prior)
    entry = get("deblend")
    began = time.process_time()
    curvature = astrozoo.infer(problem, "laplace", seed=seed, progress=False, **entry.options["laplace"])
    settings = {**entry.options["hmc"], "compile": "never", "progress": False}
    result = astrozoo.infer(problem, "hmc", seed=seed, precondition=curvature, **settings)
    seconds = time.process_time() - began
    values = {
        name: torch.as_tensor(x[:, ::4].reshape(-1, 1, *x.shape[2:])).double()
        for name, x in result.draws.items() if name in problem.start
    }  # fmt: skip
    batched = tree_map(lambda leaf: leaf[None], problem.args)
    one = Problem(problem.model, batched, batch=1)
    return fluxes(one, values)[:, 0], seconds


def rows_of(prior: str, numbers: Sequence[int], galaxies: int, hmc: int) -> dict[str, np.ndarray]:
    """A row for each galaxy and band of some blends."""
    scenes, truths = zip(*(simulate_blend(seed, galaxies) for seed in numbers), strict=True)
    generator = torch.Generator().manual_seed(numbers[0])
    _, _, best, draws, converged, seconds = at_mode(scenes, prior, generator)
    parts: list[dict[str, np.ndarray]] = []
    for i, (seed, scene, truth) in enumerate(zip(numbers, scenes, truths, strict=True)):
        true = truth.sum((2, 3))
        rank = deblend.order(scene.sources)
        true, images = true[rank], truth[rank] / scene.noise[:, :1, :1]
        shape = true.shape
        row = {
            "blend": np.full(shape, seed),
            "true": true,
            "flux": best[i],
            "clumpy": np.broadcast_to(np.asarray(scene.sources["clumpy"])[rank, None], shape),
            "blendedness": np.broadcast_to(blendedness(images)[:, None], shape),
            "converged": np.full(shape, converged[i]),
            "seconds": np.full(shape, seconds / len(numbers)),
        }
        sampled = {"laplace": draws[:, i]}
        if seed < hmc:
            sampled["hmc"], cost = by_hmc(scene, prior, seed)
            row["hmc seconds"] = np.full(shape, cost)
        for method in ("laplace", "hmc"):
            rank_of_truth = np.full(shape, np.nan)
            if method in sampled:
                rank_of_truth = (sampled[method] < true).mean(0)
            row[f"{method} rank"] = rank_of_truth
        row.setdefault("hmc seconds", np.full(shape, np.nan))
        parts.append(row)
    return {name: np.concatenate([row[name].ravel() for row in parts]) for name in parts[0]}


def summary(rows: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    """Scores of some rows."""
    error = (rows["flux"] / rows["true"] - 1)[chosen]
    out: dict[str, Any] = {
        "fluxes": int(chosen.sum()),
        "blends": len(np.unique(rows["blend"][chosen])),
        "NMAD": 1.4826 * np.median(np.abs(error - np.median(error))),
        "median error": np.median(error),
        "beyond 0.15": (np.abs(error) > 0.15).mean(),
    }
    for method in ("laplace", "hmc"):
        rank = rows[f"{method} rank"][chosen]
        rank = rank[np.isfinite(rank)]
        for level in LEVELS if len(rank) else ():
            out[f"{method} coverage of {level:.0%}"] = (np.abs(rank - 0.5) <= level / 2).mean()
    return {k: v if isinstance(v, int) else round(float(v), 4) for k, v in out.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blends", type=int, default=204)
    parser.add_argument("--priors", default="sersic,latent")
    parser.add_argument("--hmc", type=int, default=0, help="blends that are sampled too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {}
    for prior in options.priors.split(","):
        path = options.out / f"{prior}.npz"
        rows: dict[str, np.ndarray] = dict(np.load(path)) if path.is_file() else {}
        done = set(rows.get("blend", np.array([])).tolist())
        for first in range(0, options.blends, 3 * BATCH):
            for k in range(3):
                numbers = range(first + k, min(first + 3 * BATCH, options.blends), 3)
                if not numbers or set(numbers) <= done:
                    continue
                new = rows_of(prior, list(numbers), 2 + k, options.hmc)
                rows = {name: np.concatenate([rows.get(name, x[:0]), x]) for name, x in new.items()}
                with replacing(path) as partial, partial.open("wb") as file:
                    np.savez(file, **rows)
        high = rows["blendedness"] >= HIGH
        clumpy = rows["clumpy"].astype(bool)
        cases = {
            "all": np.ones(len(high), bool), "smooth": ~clumpy, "clumpy": clumpy,
            "low blendedness": ~high, "high blendedness": high,
        }  # fmt: skip
        scores[prior] = {name: summary(rows, chosen) for name, chosen in cases.items()}
        each = np.unique(rows["blend"], return_index=True)[1]
        scores[prior]["CPU seconds per blend to the mode"] = round(float(rows["seconds"][each].mean()), 3)
        scores[prior]["modes found"] = round(float(rows["converged"][each].mean()), 4)
        if np.isfinite(rows["hmc seconds"]).any():
            cost = float(np.nanmean(rows["hmc seconds"][each]))
            scores[prior]["CPU seconds per blend of HMC"] = round(cost, 1)
        write_json(scores, options.out / "scores.json")
        for name, value in scores[prior].items():
            print(f"{prior}, {name}: {value}")


if __name__ == "__main__":
    main()
