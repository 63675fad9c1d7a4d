"""What all implementations of :class:`astrozoo._comm.Comm` share, and the one of a single process."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from astrozoo.errors import InputError

__all__ = ["Alone", "Counting"]

_OPERATIONS = ("all_reduce", "all_gather", "broadcast", "all_to_all", "barrier")


class Counting:
    """Counts calls and bytes, checks arguments, and leaves the operation to a method of the subclass.

    Args:
        rank, size, device: see :class:`astrozoo._comm.Comm`.
    """

    def __init__(self, rank: int, size: int, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.counts = dict.fromkeys(_OPERATIONS, 0) | {"bytes": 0}
        self.interrupted = False

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, which has the same bits on every rank."""
        self._count("all_reduce", x)
        return self._all_reduce(x.detach().contiguous())

    def all_gather(self, x: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, stacked along a new first axis."""
        self._count("all_gather", x)
        return self._all_gather(x.detach().contiguous())

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """The tensor of one rank. The others pass one of the same shape and dtype."""
        self._count("broadcast", x)
        return self._broadcast(x.detach().contiguous(), root)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Part ``i`` goes to rank ``i``. ``shapes[j]`` is the shape of what rank ``j`` sends here."""
        if not len(parts) == len(shapes) == self.size:
            got = f"{len(parts)} parts and {len(shapes)} shapes"
            raise InputError("all_to_all", got, f"one of each for the {self.size} ranks")
        self._count("all_to_all", *parts)
        flat = torch.cat([part.detach().reshape(-1) for part in parts])
        sizes = [math.prod(shape) for shape in shapes]
        received = self._all_to_all(flat, [part.numel() for part in parts], sizes)
        return [x.reshape(tuple(s)) for x, s in zip(received.split(sizes), shapes, strict=True)]

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._count("barrier")
        self._barrier()

    def abort(self, code: int) -> None:
        """End this process with an exit code; what it started ends with it."""
        sys.exit(code)

    def _count(self, operation: str, *tensors: Tensor) -> None:
        self.counts[operation] += 1
        self.counts["bytes"] += sum(x.numel() * x.element_size() for x in tensors)

    def _all_reduce(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _all_gather(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _broadcast(self, x: Tensor, root: int) -> Tensor:
        raise NotImplementedError

    def _all_to_all(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        raise NotImplementedError

    def _barrier(self) -> None:
        raise NotImplementedError


class Alone(Counting):
    """One process that works alone: every operation returns what it is given."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(0, 1, device)

    def _all_reduce(self, x: Tensor) -> Tensor:
        return x

    def _all_gather(self, x: Tensor) -> Tensor:
        return x[None]

    def _broadcast(self, x: Tensor, root: int) -> Tensor:
        return x

    def _all_to_all(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        return flat

    def _barrier(self) -> None:
        pass
