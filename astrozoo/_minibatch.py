"""Unbiased ELBOs of random parts of the data: a private helper of :mod:`astrozoo.density`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils import _pytree as pytree

from astrozoo._capture import Model, Scope
from astrozoo.density import Elbo
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = ["Minibatches"]


class _Weight(Messenger):
    """Multiplies the log probabilities of all sites in a plate."""

    def __init__(self, plate: str, factor: float) -> None:
        super().__init__()
        self.plate, self.factor = plate, factor

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


@dataclass(frozen=True)
class _Weighted:
    model: Callable[..., Any]
    plate: str
    factor: float

    def __call__(self, *args: Any) -> Any:
        with _Weight(self.plate, self.factor):
            return self.model(*args)


class Minibatches:
    """The ELBO on some elements of the data plate, their log likelihood weighted by ``plate / size``.

    One graph serves all parts: the data are its inputs. What is cut are the tensors of ``problem.args``
    whose first axis (after that of the batch) is as long as the plate.

    Args:
        size: elements of a part.

    Raises:
        InputError: if the problem has not one data plate, or it has fewer elements.
        CaptureError: if a latent site lies in the plate, or the parts of the log likelihood do not add up to
            the whole, because a tensor that was cut is not data, or the plate's size is fixed.
    """

    def __init__(
        self, problem: Problem, guide: Callable[[Problem], Any], size: int, *, compile: str = "auto"
    ) -> None:
        if len(problem.data_plates) != 1:
            raise InputError("minibatch", f"data plates {problem.data_plates}", "a problem with one")
        self.plate, self.axis = problem.data_plates[0], 0 if problem.batch is None else 1
        self.args, self.batch = problem.args, problem.batch
        self.length = self._check(problem, size)
        model = _Weighted(problem.model, self.plate, self.length / size)
        first = self._cut(self.args, torch.arange(size, device=problem.device), self.axis)
        self.size = size
        self.target = Elbo(replace(problem, model=model, args=first), guide, compile=compile)

    @property
    def counts(self) -> dict[str, int]:
        """Evaluations so far, of one part each."""
        return self.target.counts

    def draw(self, rows: Tensor, generator: torch.Generator) -> Elbo:
        """The ELBO of a random part (the same elements in each of the problems ``rows``)."""
        index = torch.randperm(self.length, generator=generator)[: self.size].to(self.target.device)
        args, batch = self.args, self.batch
        if batch is not None:
            args, batch = self._cut(args, rows, 0, every=True), len(rows)
        drawn = copy.copy(self.target)
        drawn.args, drawn.batch, drawn._runs = self._cut(args, index, self.axis), batch, {}
        return drawn

    def _cut(self, args: Any, index: Tensor, axis: int, *, every: bool = False) -> Any:
        def cut(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and (every or (leaf.ndim > axis and leaf.shape[axis] == self.length)):
                return leaf.index_select(axis, index)
            return leaf

        return pytree.tree_map(cut, args)

    def _check(self, problem: Problem, size: int) -> int:
        """The plate's length; see the errors of the class."""
        args = problem.args
        if problem.batch is not None:
            args = pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, args)
        scope = Scope(problem.dtype, problem.device)
        model = Model(problem.model, [args], scope)
        generator = torch.Generator().manual_seed(0)
        z = (torch.rand(model.layout.dim, generator=generator, dtype=problem.dtype) - 0.5).to(problem.device)
        with scope.drawing(), torch.no_grad():
            values = model.layout.constrain(z) | {d.name: d.first() for d in model.discrete}
            whole = model.run(values, args)
            inside = [n for n, s in whole.nodes.items() if self._in_plate(s)]
            latent = [n for n in inside if n in values]
            if latent or not inside:
                raise CaptureError(
                    f"data plate {self.plate!r}: latent sites {latent} lie in it"
                    if latent
                    else f"there is no site in data plate {self.plate!r}"
                )
            frames = whole.nodes[inside[0]]["cond_indep_stack"]
            self.length = next(f.size for f in frames if f.name == self.plate)
            if not 0 < size <= self.length:
                raise InputError("minibatch", size, f"1 to the {self.length} elements of {self.plate!r}")
            expected = self._halves(whole)
            parts = []
            for index in torch.arange(self.length, device=problem.device).chunk(2):
                try:
                    part = model.run(values, self._cut(args, index, 0))
                except (RuntimeError, ValueError) as error:
                    raise CaptureError(f"data plate {self.plate!r} cannot be cut: {error}") from error
                parts.append(self._halves(part))
        found = torch.stack([torch.stack([p[0] for p in parts]).sum(), *[p[1] for p in parts]])
        if not torch.allclose(found, torch.stack([expected[0], *[expected[1]] * len(parts)]), rtol=1e-6):
            raise CaptureError(
                f"data plate {self.plate!r} cannot be cut: the parts of the log likelihood do not add up to "
                "the whole; a tensor that is not data is as long as the plate, or data depend on one another"
            )
        return self.length

    def _halves(self, of: poutine.Trace) -> tuple[Tensor, Tensor]:
        """Log probability inside the plate and outside it."""
        zero = torch.zeros(())
        sites = [s for s in of.nodes.values() if "log_prob_sum" in s]
        inside = sum((s["log_prob_sum"] for s in sites if self._in_plate(s)), zero)
        return inside, sum((s["log_prob_sum"] for s in sites if not self._in_plate(s)), zero)

    def _in_plate(self, site: Any) -> bool:
        return any(f.name == self.plate for f in site.get("cond_indep_stack", ())) and "log_prob_sum" in site
