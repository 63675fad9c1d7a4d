"""The part of a problem's data that one process has: a private helper of :mod:`astrozoo.density`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from astrozoo._capture import Model
from astrozoo._checked_cut import CheckedCut, checked_cut
from astrozoo._comm import chunk
from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope, Weight
from astrozoo._sharing import Sharing, sharing_of
from astrozoo.errors import CaptureError
from astrozoo.types import Problem

__all__ = ["Shard", "shard_of", "unread"]


def shard_of(problem: Problem, model: Model, scope: Scope) -> Shard | None:
    """The part of this process; None where processes do not divide the data.

    Raises:
        CaptureError: if the data cannot be cut as the problem declares, or the sum over parts of the data is
            not linear because discrete sites are shared by them.
    """
    sharing = sharing_of(problem)
    if sharing is None or not sharing.cuts_data:
        return None
    return Shard(problem, model, scope, sharing)


class Shard:
    """Elements of the data plates, and the log density of the model there.

    Latent sites inside the plates are cut with the data. The log probabilities of all sites outside them are
    multiplied by :attr:`weight`, so that the sum over processes has them once.

    Args:
        problem: the whole problem.
        model: its model, which has run on the whole data.
        scope: dtype and device.
        sharing: the division.
    """

    def __init__(self, problem: Problem, model: Model, scope: Scope, sharing: Sharing) -> None:
        rank, size = sharing.comm.rank, sharing.comm.size
        checked = checked_cut(problem, tuple(problem.data_plates))
        self.plates = _plates(checked, size)
        lengths = {plate: checked.cut.lengths[plate] for plate in self.plates}
        busy = min(size, max(lengths.values()))
        self.idle = rank >= busy
        """Whether there are fewer elements than processes and none of them are here."""
        self.weight = 1 / busy
        rows = {plate: chunk(n, busy, 0 if self.idle else rank) for plate, n in lengths.items()}
        index = {plate: torch.arange(x.start, x.stop) for plate, x in rows.items()}
        self.args: tuple[Any, ...] = checked.cut.take(problem.args, index, batched=problem.batch is not None)
        self._cuts = {
            site: (axis, index[plate].to(scope.device))
            for plate in self.plates
            for site, axis in checked.axes[plate].items()
        }
        self.model = model
        if model.discrete:
            row = self.args if problem.batch is None else rows_of(self.args, 0)
            self.model = Model(model.model, [row], scope)
            _check_discrete(model, self._cuts)

    def log_prob(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> Tensor:
        """The part of log p that this process adds to the sum.

        Args:
            values: of all latent sites of the whole problem.
            args: :attr:`args`, or one row of them.
        """
        here = dict(values)
        for name, (axis, index) in self._cuts.items():
            if name in here:
                here[name] = here[name].index_select(axis, index)
        with Weight(dict.fromkeys(self.plates, 1.0), outside=self.weight):
            return self.model.log_prob(here, args)


def _plates(checked: CheckedCut, size: int) -> tuple[str, ...]:
    """The longest plate, and others of which no site lies in it. Each has an element for every process."""
    lengths = checked.cut.lengths
    ordered = sorted(lengths, key=lambda plate: -lengths[plate])
    chosen = ordered[:1]
    for plate in ordered[1:]:
        taken = {site for other in chosen for site in checked.inside[other]}
        if lengths[plate] >= size and not taken & set(checked.inside[plate]):
            chosen.append(plate)
    return tuple(chosen)


def _check_discrete(model: Model, cuts: Mapping[str, Any]) -> None:
    """Check that all discrete sites lie in the plates and are summed out, so that each part has its own."""
    outside = {site.name for site in model.discrete if site.name not in cuts}
    names = sorted(outside | {site.name for site in model.plan.given})
    if names:
        raise CaptureError(
            f"discrete sites {names} cannot be divided among processes: the data of all of them determine "
            "their values. Share the chains or problems instead, or declare a data plate that contains them"
        )


def unread(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with their shapes and without their values, for a guide that does not read them."""
    return pytree.tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, args)
