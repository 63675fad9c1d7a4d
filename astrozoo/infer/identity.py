"""The identity of a run: what its checkpoint records, so that no other run continues it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from astrozoo._comm import Comm, from_first, pack, unpack
from astrozoo._content_hash import content_hash
from astrozoo._sharing import sharing_of
from astrozoo.checkpoint import Checkpoint
from astrozoo.errors import InputError
from astrozoo.infer.options import RunOptions
from astrozoo.types import Problem, Result

__all__ = ["StagedRun", "content_of", "run_checkpoint"]

_NUMBERS = ("draws", "location", "covariance", "variance", "guide_parameters", "parameters")
"""Fields of a Result that a later run can depend on. The seconds that it took differ between processes."""


_DETERMINED = "of an earlier stage"
"""What is recorded of values that an earlier stage determined."""


def _any(name: str, value: Any) -> None:
    """The check of a field that users do not set."""


@dataclass(frozen=True, kw_only=True)
class StagedRun(RunOptions):
    """Options of a run that begins where an earlier stage ended.

    Args:
        determined: what the problem, the seed and the options of the earlier stage determine: "start", and of
            ``auto`` also "precondition". It is no part of the identity of the run, because another number of
            threads may change its last bits.
    """

    determined: tuple[str, ...] = field(default=("start",), metadata={"check": _any, "required": True})

    @classmethod
    def of(cls, run: RunOptions, determined: tuple[str, ...] = ("start",), **changes: Any) -> StagedRun:
        """The same options with some changed."""
        same = {option.name: getattr(run, option.name) for option in fields(RunOptions)}
        return cls(determined=determined, **same | changes)


def run_checkpoint(
    run: RunOptions,
    problem: Problem,
    method: str,
    *,
    content: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Checkpoint:
    """The checkpoint of a run, tied to its problem, method, seed, start and settings.

    Args:
        content: settings that are recorded by hashes of their content, by name: results, arrays, operators.
            None is recorded too.
        settings: those that are recorded as they are written.

    Raises:
        InputError: if the file belongs to another run, or a value has content that cannot be hashed.
        DataError: if it cannot be read.
        OutputError: if it cannot be written.
    """
    sharing = sharing_of(problem)
    if run.checkpoint is None:
        return Checkpoint(None, {})
    header = {"digest": problem.digest, "method": method, "seed": str(run.seed)}
    header |= {name: repr(value) for name, value in settings.items()}
    determined = run.determined if isinstance(run, StagedRun) else ()
    for name, value in {"start": (run.start, dict(problem.start)), **(content or {})}.items():
        header[f"content of {name}"] = _DETERMINED if name in determined else content_of(name, value)
    if sharing is None:
        return Checkpoint(run.checkpoint, header)
    return _SharedCheckpoint(run.checkpoint, header, sharing.comm)


class _SharedCheckpoint(Checkpoint):
    """A checkpoint of processes that share a run: the first reads and writes the file for all of them.

    A run may continue it with another number of processes.
    """

    def __init__(self, path: str | Path, header: Mapping[str, str], comm: Comm) -> None:
        def make() -> bytes:
            Checkpoint(path, header)
            return b""

        from_first(comm, make)
        self.comm, self.header, self._saved_at = comm, dict(header), time.monotonic()
        self.path = Path(path) if comm.rank == 0 else None

    def load(self, part: str = "") -> dict[str, np.ndarray] | None:
        """What the first process has read."""
        arrays = unpack(from_first(self.comm, lambda: pack(super(_SharedCheckpoint, self).load(part) or {})))
        return arrays or None


def content_of(what: str, value: Any) -> str:
    """A hash of code and settings, or of numbers, by which a checkpoint recognises them.

    Args:
        what: a name for messages, such as "guide".

    Raises:
        InputError: if it has content that cannot be hashed.
    """
    try:
        return content_hash(_content(value))[:16]
    except InputError as error:
        expected = f"content that can be hashed, by which the checkpoint recognises the {what}"
        raise InputError(what, error.got, f"{expected}; or a run without checkpoint=") from error


def _content(value: Any) -> Any:
    """The parts of a value that a run depends on."""
    if hasattr(type(value), "checkpoint_identity"):
        return _content(value.checkpoint_identity)
    if isinstance(value, partial):
        keywords = {name: _content(item) for name, item in value.keywords.items()}
        return _content(value.func), tuple(_content(item) for item in value.args), keywords
    if isinstance(value, Result):
        return {name: getattr(value, name) for name in _NUMBERS}
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    if type(value) is tuple:
        return tuple(_content(item) for item in value)
    return value
