"""What astrozoo needs of processes that work together: the protocol :class:`Comm`, and helpers that use it.

Implementations are in :mod:`astrozoo.dist`. Methods are given a ``Comm`` and never import that package.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from astrozoo.errors import AstrozooError, RankError

__all__ = ["Comm", "chunk", "from_first", "gather_bytes", "pack", "unpack"]


class Comm(Protocol):
    """Collective operations among processes ("ranks"). Every rank calls the same ones in the same order.

    Raises:
        RankError: by every operation, if another rank has ended or cannot be reached.
    """

    rank: int
    """Number of this process, from 0."""
    size: int
    """Number of processes."""
    device: torch.device
    """The device of this process."""
    counts: dict[str, int]
    """Calls of each operation so far, and under "bytes" the bytes that this process contributed to them."""
    interrupted: bool
    """Set to True (by a signal handler) to end the work of all ranks at their next common evaluation."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, which has the same bits on every rank."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, stacked along a new first axis."""
        ...

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """The tensor of one rank. The others pass one of the same shape and dtype."""
        ...

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Part ``i`` goes to rank ``i``. ``shapes[j]`` is the shape of what rank ``j`` sends here."""
        ...

    def barrier(self) -> None:
        """Return when every rank has called it."""
        ...

    def abort(self, code: int) -> None:
        """End this process and, as far as the implementation can, all others, with an exit code."""
        ...


def chunk(n: int, size: int, rank: int) -> slice:
    """The elements of ``n`` that one rank has: adjacent ones, their numbers differ by 1 at most."""
    return slice(rank * n // size, (rank + 1) * n // size)


def from_first(comm: Comm, make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns on the first rank, on every rank.

    Raises:
        AstrozooError: that of the first rank, on every rank.
    """
    if comm.rank != 0:
        message = _sent(comm, b"")
        if message[:1] == b"!":
            raise RankError(f"rank 0: {message[1:].decode()}")
        return message[1:]
    try:
        made = make()
    except AstrozooError as error:
        _sent(comm, b"!" + str(error).encode())
        raise
    _sent(comm, b"=" + made)
    return made


def _sent(comm: Comm, data: bytes) -> bytes:
    length = comm.broadcast(torch.tensor([len(data)], device=comm.device))
    content = torch.zeros(int(length), dtype=torch.uint8)
    if comm.rank == 0:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return comm.broadcast(content.to(comm.device)).cpu().numpy().tobytes()


def gather_bytes(comm: Comm, data: bytes) -> list[bytes]:
    """The data of every rank, on every rank."""
    lengths = comm.all_gather(torch.tensor([len(data)], device=comm.device)).flatten().tolist()
    padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
    if data:
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    every = comm.all_gather(padded.to(comm.device)).cpu().numpy()
    return [row[:n].tobytes() for row, n in zip(every, lengths, strict=True)]


def pack(arrays: Mapping[str, Any]) -> bytes:
    """Named arrays as bytes; see :func:`unpack`."""
    file = io.BytesIO()
    contents: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez(file, **contents)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays that :func:`pack` made into bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
