"""Unbiased ELBOs of random parts of the data: a private helper of :mod:`astrozoo.density`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from astrozoo._checked_cut import TRIED, checked_cut
from astrozoo._plates import Cut
from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope
from astrozoo.density import Elbo
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = ["Minibatches", "check_amortised", "sizes_of"]


def sizes_of(problem: Problem, size: int | Mapping[str, int], what: str = "minibatch") -> dict[str, int]:
    """Elements of each plate in one minibatch.

    Raises:
        InputError: if ``size`` is a number and the problem does not have exactly one data plate, or if
            ``size`` names a plate that the problem does not declare.
    """
    declared = tuple(problem.data_plates)
    if isinstance(size, Mapping):
        for plate in size:
            if plate not in declared:
                raise InputError(what, f"plate {plate!r}", f"one of the data plates {declared}")
        if not size:
            raise InputError(what, "no plates", f"sizes of some of the data plates {declared}")
        return dict(size)
    if len(declared) != 1:
        expected = f"sizes by plate, {{{', '.join(f'{plate!r}: ...' for plate in declared)}}}"
        if not declared:
            expected = 'a problem that declares data_plates, such as {"data": {"x": 0}}'
        raise InputError(what, f"{size} for the data plates {declared}", expected)
    return {declared[0]: size}


class Minibatches:
    """The ELBO on random elements of data plates.

    The log probabilities of the elements are weighted by ``length / size`` of their plate. All minibatches
    use one graph, because the data are its inputs. Latent sites may lie in a plate if the guide is amortised,
    which means that it computes their distributions from the data of the minibatch.

    Args:
        size: elements of a minibatch, of the only data plate or by plate.

    Raises:
        InputError: if the problem declares no data plate or leaves open which, or a plate has fewer elements.
        CaptureError: if the cut fails (see :func:`checked_cut`), the model has discrete sites, or the guide
            has parameters for each element of a plate.
    """

    def __init__(
        self,
        problem: Problem,
        guide: Callable[[Problem], Any],
        size: int | Mapping[str, int],
        *,
        compile: str = "auto",
    ) -> None:
        self.sizes = sizes_of(problem, size)
        checked = checked_cut(problem, tuple(self.sizes))
        self.cut, self.local = checked.cut, checked.local
        for plate, n in self.sizes.items():
            if not 0 < n <= self.cut.lengths[plate]:
                expected = f"1 to the {self.cut.lengths[plate]} elements of {plate!r}"
                raise InputError("minibatch", n, expected)
        self.args, self.batch = problem.args, problem.batch
        if checked.discrete:
            raise CaptureError(
                f"discrete latent sites {list(checked.discrete)}: minibatches need them summed out in the "
                "model, for example by a mixture distribution: the sum is not linear in the log likelihood"
            )
        weights = {plate: self.cut.lengths[plate] / n for plate, n in self.sizes.items()}
        first = self._part({plate: torch.arange(n) for plate, n in self.sizes.items()}, problem.args)
        if self.local:
            check_amortised(problem, guide, self.cut, tuple(self.sizes), self.local)
        self.target = Elbo(
            replace(problem, args=first, data_plates=()), guide, compile=compile, weights=weights
        )

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of evaluations so far. Each evaluation is of one minibatch."""
        return self.target.counts

    @property
    def disjoint(self) -> int:
        """The number of minibatches that have no element in common."""
        return min(self.cut.lengths[plate] // n for plate, n in self.sizes.items())

    def draw(self, rows: Tensor, generator: torch.Generator, part: int = 0) -> Elbo:
        """The ELBO of a random minibatch, which has the same elements in each of the problems ``rows``.

        Args:
            part: index of the minibatch among the :attr:`disjoint` ones of a random order.
        """
        index = {
            plate: torch.randperm(self.cut.lengths[plate], generator=generator)[part * n : (part + 1) * n]
            for plate, n in self.sizes.items()
        }
        args, batch = self.args, self.batch
        if batch is not None:
            args, batch = rows_of(args, rows), len(rows)
        drawn = copy.copy(self.target)
        drawn.args, drawn.batch, drawn._runs, drawn._subsets = self._part(index, args), batch, {}, {}
        drawn.whole = drawn.args
        return drawn

    def _part(self, index: Mapping[str, Tensor], args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.cut.take(args, index, batched=self.batch is not None)


def check_amortised(
    problem: Problem,
    guide: Callable[[Problem], Any],
    cut: Cut,
    plates: Sequence[str],
    local: Sequence[str],
) -> None:
    """Check that guides for minibatches of two sizes have the same parameters.

    Args:
        plates: the plates that are cut.
        local: latent sites inside these plates.

    Raises:
        CaptureError: if the guide has parameters for each element.
    """
    scope, shapes = Scope(problem.dtype, problem.device), []
    batched = problem.batch is not None
    for n in (min(TRIED, *cut.lengths.values()), 1):
        args = cut.take(problem.args, {plate: torch.arange(n) for plate in plates}, batched=batched)
        part = replace(problem, args=args, data_plates=())
        with scope.drawing():
            module = guide(part)
            module(*(rows_of(args, 0) if batched else args))
        shapes.append({name: tuple(p.shape) for name, p in module.named_parameters()})
    changed = sorted(name for name in shapes[0] if shapes[0][name] != shapes[1].get(name))
    if changed:
        raise CaptureError(
            f"latent sites {list(local)} lie in the data plates {tuple(plates)}, and the guide has "
            f"parameters for each of their elements ({changed[0]!r}); minibatches need an amortised guide: "
            "one that computes the sites' distributions from the data that it is called with"
        )
