"""Models with parameters and amortised guides: our objective, Lightning's loop. ``astrozoo.train(...)``."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.errors import DataError, InferenceError, InputError
from astrozoo.types import Problem, Status

__all__ = ["train"]

PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
"""Precisions that ``train`` takes; the default is that of the data."""


def train(
    problem: Problem,
    guide: str | Callable[[Problem], Any] | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int | Mapping[str, int] = 64,
    seed: int = 0,
    learning_rate: float = 1e-3,
    gradient_clip: float | None = None,
    held_out: Problem | None = None,
    device: str = "cpu",
    devices: int = 1,
    precision: str | None = None,
    workers: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    throw: bool = False,
) -> Trained:
    """Fit the parameters of a model and of an amortised guide by the ELBO on minibatches.

    The same seed gives the same weights, also when the run was killed and continued from its checkpoint.
    The problem keeps the parameters that it has: the trained ones are in the result.

    Args:
        problem: with ``data_plates``; its data may be a ``torch.utils.data.Dataset``.
        guide: a name from ``problem.guides`` or of the zoo's general guides, or a factory
            ``guide(problem)`` of a Pyro guide. Latent sites inside a data plate need an amortised one. None:
            for a model without latent sites, whose likelihood is then maximised.
        steps, epochs: length of the run; one of them. An epoch is a pass over the first data plate.
        batch: elements of a minibatch, on all devices together; of several data plates by plate.
        learning_rate: of Adam, after the warm-up; it falls to 0 as a cosine.
        gradient_clip: largest norm of a gradient; None: not limited.
        held_out: the same model with data that are not trained on; their ELBO is in the curve.
        device: "cpu", "cuda" ...
        devices: number of devices, each with its share of every minibatch (distributed data parallel).
        precision: one of :data:`PRECISIONS`.
        workers: processes that read a Dataset.
        checkpoint: file for work in progress. If it exists, the run continues from it.
        progress: whether to show a bar.
        throw: raise instead of returning weights of a run that diverged.

    Raises:
        UnknownNameError: for an unknown guide.
        InputError: for a bad option, or a checkpoint of another run.
        DataError: for NaN in the data.
        CaptureError: if model, guide and data do not fit (see :class:`astrozoo._trainable.Trainable`).
        InferenceError: if ``throw`` and the loss was not finite.
    """
    began = time.monotonic()
    from astrozoo._trainable import Trainable
    from astrozoo.infer.guide_factory import find_factory, guide_name
    from astrozoo.infer.identity import content_of

    if (steps is None) == (epochs is None):
        raise InputError("steps and epochs", "both" if steps is not None else "neither", "one of them")
    _check_finite(problem.tensors, "the data")
    factory = None if guide is None else find_factory(problem, guide)
    trainable = Trainable(problem, factory, batch)
    first = next(iter(trainable.sizes))
    per_epoch = trainable.cut.lengths[first] // trainable.sizes[first]
    steps = steps if steps is not None else math.ceil(epochs * per_epoch)  # type: ignore[operator]
    precision = precision or ("64-true" if problem.dtype == torch.float64 else "32-true")
    _check_options(steps, learning_rate, precision, devices, trainable.sizes[first])
    settings = {
        "steps": steps, "batch": trainable.sizes, "learning_rate": learning_rate,
        "gradient_clip": gradient_clip, "precision": precision, "devices": devices,
    }  # fmt: skip
    name = "" if factory is None else guide_name(factory)
    header = {"seed": str(seed), "guide": name} | {key: repr(value) for key, value in settings.items()}
    header["digest"] = problem.digest  # last: another seed or option is named first
    if checkpoint is not None and factory is not None:
        header["content of the guide"] = content_of("guide", factory)
    path = None if checkpoint is None else Path(checkpoint)
    _check_checkpoint(path, header)
    evaluated = [] if held_out is None else _held_out_batches(held_out, trainable.sizes)
    run = {"device": device, "workers": workers, "progress": progress, "path": path}
    with trainable.restored():
        loop, interrupted = _fit(trainable, evaluated, header, seed, settings, run)
        weights = loop.last_weights()
    status = Status.DIVERGED if loop.diverged else Status.INTERRUPTED if interrupted else Status.BUDGET_SPENT
    if throw and not interrupted and loop.diverged:
        raise InferenceError(f"training of {problem.name}: not finite at step {loop.curve['step'][-1]}")
    stats: dict[str, Any] = {"steps": int(loop.curve["step"][-1]) if loop.curve["step"] else 0}
    stats |= {"run_seconds": time.monotonic() - began, "elements": trainable.elements}
    return Trained(
        weights=weights,
        status=status,
        seed=seed,
        model=problem.name,
        guide=name,
        digest=problem.digest,
        data=_described(problem),
        curve={key: np.asarray(values) for key, values in loop.curve.items()},
        settings=settings | _settings_of(problem.model),
        stats=stats,
    )


def _fit(
    trainable: Any,
    held_out: list[Any],
    header: Mapping[str, str],
    seed: int,
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
) -> tuple[Any, bool]:
    """The loop after its last step, and whether Ctrl-C ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        try:
            import pytorch_lightning as pl
        except ImportError as error:
            expected = "pip install 'astrozoo[train]'"
            raise InputError("train", "no pytorch-lightning", expected) from error
    with _quiet():
        from astrozoo.train._batches import Parts
        from astrozoo.train._checkpoint import SafeCheckpoints
        from astrozoo.train._loop import Loop

        def parts(rank: int, devices: int) -> Parts:
            return Parts(trainable.problem.args, trainable.cut, trainable.sizes, seed, rank, devices)

        path = run["path"]
        loop = Loop(
            trainable,
            parts,
            steps=settings["steps"],
            seed=seed,
            rate=settings["learning_rate"],
            workers=run["workers"],
            held_out=held_out,
            header=header,
            path=path,
        )
        kind, _, number = run["device"].partition(":")
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=[int(number)] if number else settings["devices"],
            strategy="ddp" if settings["devices"] > 1 else "auto",
            precision=settings["precision"],
            max_steps=settings["steps"],
            gradient_clip_val=settings["gradient_clip"],
            plugins=[SafeCheckpoints()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=run["progress"] and sys.stderr.isatty(),
            use_distributed_sampler=False,
            log_every_n_steps=10**9,
            inference_mode=False,
        )
        before = signal.getsignal(signal.SIGINT)
        resumed = str(path) if path is not None and path.is_file() else None
        try:
            trainer.fit(loop, ckpt_path=resumed)
        except SystemExit:  # Lightning's answer to Ctrl-C
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from None
        return loop, trainer.interrupted


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on loggers, workers, and the devices that it sees."""
    names = ("pytorch_lightning", "lightning_fabric")
    loggers = [logging.getLogger(n) for n in logging.root.manager.loggerDict if n.startswith(names)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for module in ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"):
            warnings.filterwarnings("ignore", module=module)
        warnings.filterwarnings("ignore", message=".*(workers|treespec|lr_scheduler.step).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check_finite(tensors: list[Tensor], what: str) -> None:
    for t in tensors:
        if t.is_floating_point() and t.isnan().any():
            got = f"NaN in a tensor of shape {tuple(t.shape)}"
            raise DataError(what, got, "numbers (mask missing values in the model)")


def _check_options(steps: int, rate: float, precision: str, devices: int, batch: int) -> None:
    if steps < 1:
        raise InputError("steps", steps, "1 or more")
    if not rate > 0:
        raise InputError("learning_rate", rate, "a number above 0")
    if precision not in PRECISIONS:
        raise InputError("precision", repr(precision), f"one of {', '.join(PRECISIONS)}")
    if devices < 1 or batch % devices:
        raise InputError("batch", f"{batch} on {devices} devices", "a multiple of the number of devices")


def _check_checkpoint(path: Path | None, header: Mapping[str, str]) -> None:
    if path is None or not path.is_file():
        return
    from astrozoo.train._checkpoint import read_checkpoint

    saved = read_checkpoint(path)["astrozoo"]["header"]
    for name, value in header.items():
        if saved.get(name) != value:
            raise InputError(
                f"checkpoint {path}", f"{name} {saved.get(name)}", f"{name} {value}; or remove it"
            )


def _held_out_batches(held_out: Problem, sizes: Mapping[str, int]) -> list[tuple[Any, Mapping[str, int]]]:
    """Arguments of minibatches that make up the held-out data, and their numbers of elements."""
    from astrozoo._checked_cut import checked_cut

    _check_finite(held_out.tensors, "the held-out data")
    cut = checked_cut(held_out, tuple(sizes)).cut
    first, *others = sizes
    found: list[tuple[Any, Mapping[str, int]]] = []
    for index in torch.arange(cut.lengths[first]).split(sizes[first]):
        chosen = {first: index} | {plate: torch.arange(cut.lengths[plate]) for plate in others}
        found.append((cut.take(held_out.args, chosen), {p: len(i) for p, i in chosen.items()}))
    return found


def _described(problem: Problem) -> str:
    tensors = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in problem.tensors]
    datasets = [f"{type(d).__name__} of {len(d)} items" for d in problem.datasets]  # type: ignore[arg-type]
    return ", ".join(tensors + datasets)


def _settings_of(model: Any) -> dict[str, Any]:
    """The arguments of a model that is a dataclass, from which it can be made again; those that are plain."""
    if not is_dataclass(model):
        return {}
    values = {f.name: getattr(model, f.name) for f in fields(model) if f.init}
    return {"model": {name: value for name, value in values.items() if _is_plain(value)}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Trained:
        return train(*args, **options)


sys.modules[__name__].__class__ = _Callable
