"""Minibatches by number: which elements a step reads depends on the seed and the number of the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from astrozoo._plates import Cut
from astrozoo.infer.randomness import generator_for

__all__ = ["Parts", "loader"]

_ORDER = 1
"""Stream of the random orders of the data."""


class Parts(Dataset[Any]):
    """The arguments of the model for each step.

    Each plate is read in random order, without replacement until fewer elements than a minibatch are left.

    Args:
        sizes: elements of a minibatch by plate, of all devices together.
        rank, devices: which share of the elements of the first plate is read, of how many.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        cut: Cut,
        sizes: Mapping[str, int],
        seed: int,
        rank: int = 0,
        devices: int = 1,
    ) -> None:
        self.args, self.cut, self.sizes, self.seed = args, cut, dict(sizes), seed
        self.rank, self.devices = rank, devices
        self._orders: dict[str, tuple[int, Tensor]] = {}

    def __getitem__(self, step: int) -> Any:
        index = {}
        for i, (plate, n) in enumerate(self.sizes.items()):
            epoch, k = divmod(step, self.cut.lengths[plate] // n)
            chosen = self._order(plate, i, epoch)[k * n : (k + 1) * n]
            index[plate] = chosen[self.rank :: self.devices] if i == 0 else chosen
        return self.cut.take(self.args, index)

    def _order(self, plate: str, i: int, epoch: int) -> Tensor:
        if self._orders.get(plate, (-1,))[0] != epoch:
            generator = generator_for(self.seed, _ORDER, i, epoch)
            self._orders[plate] = epoch, torch.randperm(self.cut.lengths[plate], generator=generator)
        return self._orders[plate][1]


class _Steps(Sampler[int]):
    """The numbers of steps, without a length: Lightning would take it for the length of an epoch."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))


def loader(parts: Parts, first: int, last: int, workers: int) -> DataLoader[Any]:
    """The minibatches of the steps ``first`` to ``last`` - 1."""
    return DataLoader(
        parts,
        batch_size=None,
        sampler=_Steps(first, last),
        collate_fn=_unchanged,
        num_workers=workers,
        generator=torch.Generator(),  # else seeds of workers are drawn from the global one
    )


def _unchanged(batch: Any) -> Any:
    return batch
