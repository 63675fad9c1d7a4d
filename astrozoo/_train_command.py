"""What ``astrozoo train`` does: fit the weights of an entry, and write them with a report into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from astrozoo._console import print_rows
from astrozoo._files import write_json
from astrozoo._trained import Trained
from astrozoo.entry import Entry, resolve
from astrozoo.errors import InputError
from astrozoo.types import Status

__all__ = ["CHECKPOINT", "WEIGHTS", "is_first_process", "train", "train_stages"]

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

    The entry's function returns arguments of :func:`astrozoo.train`, or a sequence of stages
    (:func:`train_stages`).

    Args:
        options: of the entry.
        given: options of :func:`astrozoo.train`, in place of those that the entry suggests; None: not given.
    """
    from astrozoo.diagnostics.training import training_report, training_summary

    if path is None and is_first_process():
        print(f"no --data: training on simulated data, seed {seed}")
    suggested = resolve(entry.job("train").function)(out=out, path=path, seed=seed, device=device, **options)
    chosen = {name: value for name, value in given.items() if value is not None}
    stages = (lambda _: suggested,) if isinstance(suggested, Mapping) else suggested
    trained = train_stages(stages, out, seed=seed, **chosen)
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


def train_stages(
    stages: Sequence[Callable[[Trained | None], Mapping[str, Any]]], out: Path, *, seed: int, **given: Any
) -> Trained:
    """Train in stages, each of which starts from the weights of those before.

    The weights of a finished stage are saved in ``out``, so that a run that was stopped continues with the
    stage in which it was stopped. They are deleted at the end.

    Args:
        stages: functions of the weights so far (None at first) that return arguments of
        :func:`astrozoo.train`.
        given: options of :func:`astrozoo.train` in place of those of every stage.

    Returns:
        The weights of all stages, where a later one replaces those of an earlier one; all else is of the
        last.

    Raises:
        InputError: the folder has weights of a stage with another seed, or with other data or options.
    """
    import astrozoo

    dropped = {"steps", "epochs"} if given.keys() & {"steps", "epochs"} else set()
    trained: Trained | None = None
    finished = [out / f"stage-{number}.safetensors" for number in range(1, len(stages))]
    for stage, path in zip(stages, [*finished, None], strict=True):
        arguments = {name: value for name, value in stage(trained).items() if name not in dropped} | given
        if path is not None and path.is_file():
            trained = _finished(path, arguments, seed)
            continue
        of_stage = astrozoo.train(seed=seed, checkpoint=out / CHECKPOINT, **arguments)
        earlier = {} if trained is None else trained.weights
        trained = replace(of_stage, weights=earlier | of_stage.weights)
        if path is not None and trained.status is Status.BUDGET_SPENT and is_first_process():
            trained.save(path)
            (out / CHECKPOINT).unlink(missing_ok=True)
        if trained.status is not Status.BUDGET_SPENT:
            break
    for path in finished if trained is not None and trained.status is Status.BUDGET_SPENT else ():
        path.unlink(missing_ok=True)
    assert trained is not None
    return trained


def _finished(path: Path, arguments: Mapping[str, Any], seed: int) -> Trained:
    saved = Trained.load(path)
    wanted = {"seed": seed, "digest": arguments["problem"].digest}
    wanted |= {name: arguments[name] for name in ("steps", "learning_rate") if name in arguments}
    for name, value in wanted.items():
        got = saved.settings.get(name, getattr(saved, name, None))
        if got != value:
            raise InputError(str(path), f"{name} {got}", f"{name} {value}; or remove it")
    return saved
