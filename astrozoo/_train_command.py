"""What ``astrozoo train`` does: fit the weights of an entry, and write them with a report into a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astrozoo._console import print_rows
from astrozoo._files import write_json
from astrozoo._trained import Trained
from astrozoo.entry import Entry, resolve

__all__ = ["CHECKPOINT", "WEIGHTS", "is_first_process", "train"]

CHECKPOINT = "training.checkpoint"
"""File in the output folder with the work in progress. It is deleted once the weights are written."""
WEIGHTS = "weights.safetensors"
"""File in the output folder with the weights."""


def is_first_process() -> bool:
    """False in the processes that the command starts for further devices: these write no results."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def train(
    entry: Entry,
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, Any],
    **given: Any,
) -> Trained:
    """Train, and write weights.safetensors, report.html and summary.json.

    Args:
        options: of the entry.
        given: options of :func:`astrozoo.train`, in place of those that the entry suggests; None: not given.
    """
    import astrozoo
    from astrozoo.diagnostics.training import training_report, training_summary

    if path is None and is_first_process():
        print(f"no --data: training on simulated data, seed {seed}")
    suggested = resolve(entry.job("train").function)(out=out, path=path, seed=seed, device=device, **options)
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.keys() & {"steps", "epochs"}:
        suggested = {name: value for name, value in suggested.items() if name not in ("steps", "epochs")}
    trained = astrozoo.train(seed=seed, checkpoint=out / CHECKPOINT, **(suggested | chosen))
    if is_first_process():
        trained.save(out / WEIGHTS)
        training_report(trained, out / "report.html")
        summary = training_summary(trained)
        write_json(summary, out / "summary.json")
        (out / CHECKPOINT).unlink(missing_ok=True)
        shown = {name: summary[name] for name in ("status", "elbo", "held_out_elbo") if name in summary}
        files = {WEIGHTS: "weights", "summary.json": "settings and cost", "report.html": "report"}
        print_rows(shown | {str(out / name): what for name, what in files.items()})
    return trained
