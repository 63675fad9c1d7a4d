"""Chains that are sampled one after another, spread over processes: each samples some of them whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from astrozoo._comm import from_first, gather_bytes, pack, unpack
from astrozoo.checkpoint import Checkpoint
from astrozoo.infer.options import RunOptions
from astrozoo.types import Status

__all__ = ["Spread"]

Item = TypeVar("Item")
_STATUS = "early_end"
"""Name under which the status of an early end is gathered."""


class Spread:
    """The finished chains of all processes, and their checkpoint.

    Each process writes its chains into a file of its own beside the checkpoint, which must be on a file
    system that all of them see. The next run, of any number of processes, joins these files. One process
    alone writes the checkpoint itself.

    Args:
        run: its ``comm`` is used if chains or problems are divided.
        checkpoint: makes the checkpoint of these options.
    """

    def __init__(self, run: RunOptions, checkpoint: Callable[[RunOptions], Checkpoint]) -> None:
        self.comm = None if run.shard == "data" else run.comm
        self.part, self.budget = "", run.budget
        if self.comm is None:
            self.checkpoint = checkpoint(run)
            self.done: dict[str, Any] = self.checkpoint.load() or {}
            return
        if run.budget is not None:
            self.budget = max(1, run.budget // self.comm.size)

        def first() -> bytes:
            self.checkpoint = checkpoint(run)
            self._join_parts()
            return pack({**self.done, "path": str(self.checkpoint.path or "")})

        arrays = unpack(from_first(self.comm, first))
        path = str(arrays.pop("path"))
        if self.comm.rank > 0:
            self.part, self.done = f"rank{self.comm.rank}", arrays
            self.checkpoint = checkpoint(replace(run, checkpoint=path or None))

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those that this process does."""
        return items if self.comm is None else items[self.comm.rank :: self.comm.size]

    def add(self, arrays: dict[str, Any]) -> None:
        """Keep a finished chain."""
        self.done |= arrays
        self.checkpoint.save(self.done, self.part)

    def gather(self, early_end: Status | None) -> Status | None:
        """Make :attr:`done` that of all processes, and return why any of them ended early."""
        if self.comm is None:
            return early_end
        own = {**self.done, _STATUS: "" if early_end is None else early_end.value}
        every = [unpack(data) for data in gather_bytes(self.comm, pack(own))]
        ends = {str(arrays.pop(_STATUS)) for arrays in every} - {""}
        self.done = {name: x for arrays in every for name, x in arrays.items()}
        if self.comm.rank == 0:
            self.checkpoint.save(self.done)
        return next((s for s in (Status.INTERRUPTED, Status.BUDGET_SPENT) if s.value in ends), None)

    def _join_parts(self) -> None:
        """Read the files of all processes of an earlier run, and make them one."""
        path = self.checkpoint.path
        self.done = self.checkpoint.load() or {}
        parts: list[Path] = [] if path is None else sorted(path.parent.glob(f"{path.stem}.rank*.npz"))
        for file in parts:
            self.done |= self.checkpoint.load(file.suffixes[-2].removeprefix(".")) or {}
        self.checkpoint.save(self.done)
        for file in parts:
            file.unlink()
