"""What ``astrozoo run latent_flow`` does: a prior of a table of latents, its scores, and one galaxy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo import registry
from astrozoo._jobs import CHECKPOINT, unless_interrupted
from astrozoo._trained import Trained
from astrozoo.data.latents import LatentTable
from astrozoo.errors import InputError
from astrozoo.galaxies.latent_scores import corner, gains, noise_rows
from astrozoo.infer import infer
from astrozoo.models import latent_flow
from astrozoo.models.latent_flow import LatentPrior
from astrozoo.nets.flow import KINDS
from astrozoo.train import train
from astrozoo.types import Outcome, Page, Result

__all__ = ["run"]

_WEIGHTS = "weights.safetensors"


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "hmc",
    guide: str = "full_rank",
    seed: int = 0,
    device: str = "cpu",
    flow: str = "realnvp",
    steps: int = 1000,
    galaxies: int = 4000,
    galaxy: int | None = None,
    conditions: str | None = None,
    weights: Path | None = None,
    infer_conditions: bool = False,
    inferred_under: str = "normal",
) -> Outcome:
    """Train a flow and a VampPrior on a table of latents, score them on its last tenth, and infer one galaxy.

    Args:
        out: folder, which exists.
        path: the table. Without it, the demonstration: a table drawn from the shipped prior.
        demo: the demonstration.
        method, guide: of the inference of one galaxy's latents.
        flow: kind of the flow.
        steps: of training.
        galaxies: rows of the demonstration's table.
        galaxy: row of the galaxy to infer; by default the first of those that are not trained on.
        conditions: names, separated by commas; "" for none. None: all of the table.
        weights: of a flow that was trained earlier; nothing is trained.
        infer_conditions, inferred_under: see :func:`astrozoo.models.latent_flow.problem`.

    Raises:
        DataError: the file is not a table of latents.
        InputError: the table is too small, or the flow does not fit it.
    """
    table, origin = _table(path, seed, galaxies, conditions)
    trained_on, held_out = latent_flow.split(table)
    row = len(trained_on) if galaxy is None else galaxy
    if row >= len(table):
        raise InputError("--galaxy", row, f"a row, 0 to {len(table) - 1}")
    files = {}
    if weights is None:
        trained = _train(trained_on, held_out, flow, steps, seed, device, out)
        trained.save(out / _WEIGHTS)
        files = {_WEIGHTS: "the flow, for --weights"}
    else:
        trained = Trained.load(weights)
    prior = latent_flow.load(weights=trained)
    if prior.kind not in KINDS:
        raise InputError("--weights", f"those of a {prior.kind!r} prior", "those of a flow")
    priors = {"normal with the moments of the table": latent_flow.fitted_to(trained_on.only(()), "realnvp")}
    if weights is None:
        vamp = _train(trained_on.only(()), held_out.only(()), "vamp", steps, seed, device, out)
        priors["VampPrior"] = latent_flow.load(weights=vamp)
    name = f"{prior.kind}, given {', '.join(prior.conditions)}" if prior.conditions else prior.kind
    rows = gains(held_out, {**priors, name: prior}, seed)
    problem = latent_flow.problem(
        table,
        galaxy=row,
        weights=trained,
        infer_conditions=infer_conditions,
        inferred_under=inferred_under,
    ).to(device=device)
    settings = registry.get("latent_flow").options.get(method, {})
    kept = out / CHECKPOINT
    kept.mkdir(exist_ok=True)
    checkpoint = kept / f"{method}.npz"
    result = unless_interrupted(infer(problem, method, guide, seed=seed, checkpoint=checkpoint, **settings))
    pages = [
        _prior_page(table, held_out, prior, rows, origin, seed),
        _galaxy_page(table, row, result, prior, infer_conditions),
    ]
    summary = {
        "data": origin,
        "galaxies": len(table),
        "flow": name,
        "gain over N(0, I) [nat]": rows[-1]["gain over N(0, I) [nat]"],
        "galaxy": row,
    }
    return Outcome(result, pages, summary, files)


def _table(path: Path | None, seed: int, galaxies: int, conditions: str | None) -> tuple[LatentTable, str]:
    if path is not None:
        return latent_flow.read(path, conditions=conditions), str(path)
    print(f"demonstration: a table of {galaxies} galaxies drawn from the shipped prior, seed {seed}")
    table = latent_flow.simulate(seed, galaxies=galaxies)[0]
    if conditions is not None:
        table = table.only([name for name in conditions.split(",") if name])
    return table, f"drawn from the shipped prior, seed {seed}"


def _train(
    table: LatentTable, held_out: LatentTable, kind: str, steps: int, seed: int, device: str, out: Path
) -> Trained:
    prior = latent_flow.fitted_to(table, kind, seed=seed)
    print(f"training: {kind}, {steps} steps on {len(table)} galaxies")
    kept = out / CHECKPOINT
    kept.mkdir(exist_ok=True)
    return train(
        latent_flow.training_problem(prior, table),
        "posterior",
        steps=steps,
        batch=min(256, len(table)),
        seed=seed,
        learning_rate=2e-3,
        gradient_clip=100.0,
        held_out=latent_flow.training_problem(prior, held_out),
        device=device,
        checkpoint=kept / f"{kind}.checkpoint",
    )


def _prior_page(
    table: LatentTable,
    held_out: LatentTable,
    prior: LatentPrior,
    rows: list[dict[str, Any]],
    origin: str,
    seed: int,
) -> Page:
    caption = (
        "Draws of q(z | x) of all galaxies (blue), of the flow given their conditions (orange), and N(0, I) "
        "(grey): 1 and 2 sigma contours of the latents that differ most from N(0, 1)."
    )
    scored = (
        f"The table has {len(table)} galaxies ({origin}). The last {len(held_out)} were not trained on. A "
        "gain is the mean of log p(z) over draws of q(z | x), less that of N(0, I). The priors are trained "
        "on such draws alone, without the autoencoder, and no divergence is weighted (beta = 1)."
    )
    noise = noise_rows(held_out, prior, seed)
    parts: list[Any] = [(corner(table, prior, seed), caption), scored, rows, noise]
    if prior.conditions:
        ranges = [{"condition": n, "from": low, "to": high} for n, (low, high) in prior.ranges.items()]
        parts += ["The trained ranges of the conditions:", ranges]
    return Page("Prior of the latents", parts)


def _galaxy_page(
    table: LatentTable, row: int, result: Result, prior: LatentPrior, infer_conditions: bool
) -> Page:
    z = result.draws["z"].reshape(-1, prior.features)
    rows: list[Mapping[str, Any]] = [
        {
            "latent": i,
            "encoder's mean": float(table.mean[row, i]),
            "encoder's SD": float(table.sd[row, i]),
            "mean under the flow": float(z[:, i].mean()),
            "SD under the flow": float(z[:, i].std()),
        }
        for i in range(prior.features)
    ]
    parts: list[Any] = [f"Galaxy {row} of the table: its latents by the encoder, and under the flow.", rows]
    if infer_conditions and prior.conditions:
        given = dict(zip(table.names, table.conditions[row].tolist(), strict=True))
        parts.append(
            [
                {
                    "condition": name,
                    "in the table": given.get(name, float("nan")),
                    "mean": float(np.mean(result.draws[name])),
                    "SD": float(np.std(result.draws[name])),
                }
                for name in prior.conditions
            ]
        )
    return Page("One galaxy", parts)
