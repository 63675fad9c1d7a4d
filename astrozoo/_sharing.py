"""How the evaluations of captured functions are divided among processes: private to :mod:`astrozoo.density`.

All ranks run the same method with the same random numbers. They divide its evaluations: each has a part of
the data, or a part of the rows (chains, independent problems). What all need is joined in :meth:`joined`,
which is one collective call for each evaluation. In the same message each rank sends two more numbers. One
tells whether the user has interrupted it. The other is a hash of the point of evaluation, by which all ranks
notice, at the same call, that one of them computes something else than the others.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from astrozoo._comm import Comm, chunk
from astrozoo.errors import InputError, RankError
from astrozoo.types import Problem

__all__ = ["Kind", "SharedProblem", "Sharing", "ambient", "share", "sharing_of", "together"]

Kind = Literal["data", "chains", "problems"]
"""What of a run is divided among ranks."""
HASHED_BYTES = 2**16
"""[bytes] Points of evaluation up to this size are hashed at every call, which takes some 10 microseconds."""
HASHED_EVERY = 16
"""Larger points, and those on a CUDA device, are hashed at every 16th call."""


class Sharing:
    """The division of one run.

    Args:
        comm: the ranks.
        kind: what is divided.
    """

    def __init__(self, comm: Comm, kind: Kind) -> None:
        self.comm, self.kind = comm, kind
        self._calls = 0

    @property
    def cuts_data(self) -> bool:
        """Whether each rank has a part of the data; otherwise it has a part of the rows."""
        return self.kind == "data"

    def rows(self, count: int) -> slice:
        """The rows that this process evaluates."""
        return slice(0, count) if self.cuts_data else chunk(count, self.comm.size, self.comm.rank)

    def joined(self, part: tuple[Tensor, ...], entry: str, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The whole result: the sum of the parts of all ranks, or their rows one after another.

        Args:
            part: the result of this process.
            entry: what was evaluated.
            state: the point of evaluation, ``[rows, ...]``, and its noise.

        Raises:
            RankError: if a rank evaluates something else than the others; it is named.
            KeyboardInterrupt: on every rank, if one of them was interrupted.
        """
        mark = self._mark(entry, state)
        if self.cuts_data:
            return self._summed(part, mark, entry, state)
        return self._gathered(part, mark, entry, state)

    def _summed(
        self, part: tuple[Tensor, ...], mark: int, entry: str, state: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The sum. Marks are equal if the square of their sum is their number times their sum of squares."""
        size, like = self.comm.size, part[0]
        digits = 53 if like.dtype == torch.float64 else 24
        mark &= (1 << (digits - size.bit_length()) // 2) - 1  # so that the sum of squares is exact
        marks = like.new_tensor([mark, mark**2, self.comm.interrupted])
        message = torch.cat([*(x.reshape(-1) for x in part), marks])
        total = self.comm.all_reduce(message)
        first, second, interrupted = (int(x) for x in total[-3:].tolist())
        self._check(size * second == first**2, interrupted > 0, entry, state)
        sizes = [x.numel() for x in part]
        return tuple(x.view(y.shape) for x, y in zip(total[:-3].split(sizes), part, strict=True))

    def _gathered(
        self, part: tuple[Tensor, ...], mark: int, entry: str, state: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        size, count, like = self.comm.size, len(state[0]), part[0]
        most = -(-count // size)
        marks = like.new_tensor([mark & (2**24 - 1), self.comm.interrupted])
        columns = [x.reshape(len(x), _width(x)) for x in part]
        rows = torch.cat(columns, 1)
        message = torch.cat([rows.reshape(-1), rows.new_zeros((most - len(rows)) * rows.shape[1]), marks])
        every = self.comm.all_gather(message)
        self._check(bool((every[:, -2] == every[0, -2]).all()), bool(every[:, -1].any()), entry, state)
        whole = torch.cat(
            [every[rank, :-2].view(most, -1)[: _length(chunk(count, size, rank))] for rank in range(size)]
        )
        parts = whole.split([x.shape[1] for x in columns], 1)
        return tuple(x.reshape(count, *y.shape[1:]) for x, y in zip(parts, part, strict=True))

    def _mark(self, entry: str, state: Sequence[Tensor]) -> int:
        """A hash of the number of the call, of what it evaluates, and (of large points, at times) where."""
        self._calls += 1
        shapes = [tuple(x.shape) for x in state]
        mark = zlib.crc32(f"{self._calls} {entry} {shapes}".encode())
        small = all(x.device.type == "cpu" for x in state)
        small = small and sum(x.numel() * x.element_size() for x in state) <= HASHED_BYTES
        if small or self._calls % HASHED_EVERY == 0:
            mark = _hashed(state, mark)
        return mark

    def _check(self, equal: bool, interrupted: bool, entry: str, state: Sequence[Tensor]) -> None:
        if not equal:
            self._drifted(entry, state)
        if interrupted:
            self.comm.interrupted = False
            raise KeyboardInterrupt

    def _drifted(self, entry: str, state: Sequence[Tensor]) -> NoReturn:
        """Raise the error that names the ranks whose state differs from that of most."""
        own = torch.tensor([_hashed(state, zlib.crc32(f"{entry} {self._calls}".encode()))])
        every = self.comm.all_gather(own.to(self.comm.device)).flatten().tolist()
        usual, times = Counter(every).most_common(1)[0]
        odd = [rank for rank, value in enumerate(every) if value != usual]
        who = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
        if 2 * times <= len(every):
            who = "ranks " + ", ".join(map(str, range(len(every))))
        raise RankError(
            f"{who} drifted: at evaluation {self._calls} ({entry}) the state differs from that of the "
            "others. Ranks must have the same data, options, packages and kind of processor"
        )


def _hashed(state: Sequence[Tensor], begin: int) -> int:
    for x in state:
        begin = zlib.crc32(x.detach().contiguous().cpu().numpy().tobytes(), begin)
    return begin


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _width(x: Tensor) -> int:
    """Numbers in one row of a tensor, which may have no rows."""
    return int(torch.Size(x.shape[1:]).numel())


@dataclass(frozen=True, eq=False)
class SharedProblem(Problem):
    """A problem whose evaluations several processes divide. Each process has the whole problem.

    Args:
        sharing: the division.
    """

    sharing: Sharing | None = None


def share(problem: Problem, comm: Comm, kind: Kind) -> SharedProblem:
    """The problem with its evaluations divided among the ranks of ``comm``.

    Raises:
        InputError: if the problem cannot be divided in this way.
    """
    if kind == "data" and not problem.data_plates:
        raise InputError(
            "shard",
            f"'data' for {problem.name}, which declares no data plates",
            'a problem with data_plates, such as {"data": {"x": 0}}, or shard="chains" or "problems"',
        )
    if kind == "problems" and (problem.batch is None or problem.batch < comm.size):
        got = "a single problem" if problem.batch is None else f"a batch of {problem.batch} problems"
        raise InputError(
            "shard", f"'problems' for {got}", f"a batch of at least {comm.size}, one for each rank"
        )
    same: dict[str, Any] = {option.name: getattr(problem, option.name) for option in fields(Problem)}
    shared = SharedProblem(**same, sharing=Sharing(comm, kind))
    if "_digest" in problem.__dict__:
        object.__setattr__(shared, "_digest", problem.__dict__["_digest"])
    return shared


def sharing_of(problem: Problem) -> Sharing | None:
    """How the evaluations of a problem are divided; None: they are not."""
    return problem.sharing if isinstance(problem, SharedProblem) else None


_AMBIENT: ContextVar[tuple[Comm, Kind] | None] = ContextVar("astrozoo_ambient", default=None)


@contextmanager
def together(comm: Comm, shard: Kind) -> Iterator[None]:
    """Inside this context, every run is shared by these processes unless it names others.

    It is for programs that call :func:`astrozoo.infer` in several places, as the commands do.

    Args:
        comm, shard: see :class:`astrozoo.infer.options.RunOptions`.
    """
    token = _AMBIENT.set((comm, shard))
    try:
        yield
    finally:
        _AMBIENT.reset(token)


def ambient() -> tuple[Comm, Kind] | None:
    """The processes that share all runs here, and what they divide."""
    return _AMBIENT.get()
