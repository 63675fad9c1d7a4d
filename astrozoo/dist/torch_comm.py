"""Processes of torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from astrozoo.dist.comm import Counting
from astrozoo.errors import RankError

__all__ = ["TorchComm"]

TIMEOUT = timedelta(hours=1)
"""How long a rank waits for the others. A rank that has died is noticed at once; this limits waiting for one
that hangs, and must exceed the longest compilation (minutes)."""


class TorchComm(Counting):
    """A process group of torch.distributed: gloo for CPUs, NCCL for CUDA devices.

    Args:
        group: a process group; None: the default one, which must have been initialised
            (:meth:`initialise`).
        device: of this process.
    """

    def __init__(self, group: Any = None, device: torch.device | str = "cpu") -> None:
        self.group = group
        super().__init__(torch_dist.get_rank(group), torch_dist.get_world_size(group), device)

    @classmethod
    def initialise(cls, device: torch.device | str = "cpu") -> TorchComm:
        """Join the processes that ``torchrun`` started, with the backend that fits the device."""
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not torch_dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            torch_dist.init_process_group(backend, timeout=TIMEOUT)
        return cls(device=device)

    def abort(self, code: int) -> None:
        """End this process at once. ``torchrun`` then ends the others, and so does the lost connection."""
        os._exit(code)

    def _all_reduce(self, x: Tensor) -> Tensor:
        total = x.clone()
        with _connection():
            torch_dist.all_reduce(total, group=self.group)
        return total

    def _all_gather(self, x: Tensor) -> Tensor:
        every = x.new_empty(self.size, *x.shape)
        with _connection():
            torch_dist.all_gather_single(every.view(-1), x.view(-1), group=self.group)
        return every

    def _broadcast(self, x: Tensor, root: int) -> Tensor:
        x = x.clone()
        with _connection():
            torch_dist.broadcast(x, group_src=root, group=self.group)
        return x

    def _all_to_all(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        out = flat.new_empty(sum(received))
        with _connection():
            torch_dist.all_to_all_single(out, flat, received, sent, group=self.group)
        return out

    def _barrier(self) -> None:
        with _connection():
            torch_dist.barrier(group=self.group)


@contextmanager
def _connection() -> Iterator[None]:
    """An error of the backend inside it becomes a RankError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].partition(". ")[0]
        raise RankError(f"another rank has ended or cannot be reached ({reason})") from error
