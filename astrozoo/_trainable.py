"""A model and its guide as one torch module, whose output is the loss of a minibatch.

The Pyro side of :mod:`astrozoo.train`: the programs run under Pyro's handlers at every step, with validation
off, so that mixed precision and distributed data parallelism apply to them as to any module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from astrozoo._capture import Scope, is_discrete, latent_sites
from astrozoo._enumerate import total
from astrozoo._minibatch import check_amortised, checked_cut, sizes_of
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = ["Trainable"]

_DEPTH = 3
"""How deep fields and closures of a model are searched for modules."""


class _Parameters(Messenger):
    """Answers parameter statements from a table, into which it enters those that it meets first."""

    def __init__(self, table: nn.ParameterDict, constrained: dict[str, Any], *, fixed: bool = False) -> None:
        super().__init__()
        self.table, self.constrained, self.fixed = table, constrained, fixed

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"].replace("$$$", ".")
        key = name.replace(".", "/")  # a ParameterDict takes no dots
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if key not in self.table:
            if self.fixed:
                raise CaptureError(
                    f"parameter {name!r} appears in some runs of the program and not in others"
                )
            if len(msg["args"]) < 2:
                raise CaptureError(f"pyro.param({name!r}) has no initial value, and Pyro's store is not read")
            value = msg["args"][1]
            value = value() if callable(value) else value
            with torch.no_grad():
                leaf = isinstance(value, nn.Parameter) and constraint is constraints.real
                unconstrained = transform_to(constraint).inv(value.detach()).clone()
                self.table[key] = value if leaf else nn.Parameter(unconstrained)
            self.constrained[key] = transform_to(constraint)
        value = self.constrained[key](self.table[key])
        msg["value"], msg["done"] = value, True


class Trainable(nn.Module):
    """Minus the ELBO per element of the data, estimated from a minibatch and one draw of the guide.

    Its parameters are those of the model (statements ``pyro.param`` and ``pyro.module``, and modules that the
    model holds) and of the guide. Those of modules are shared with the problem: see :meth:`restored`.

    Args:
        problem: with data plates.
        guide: factory of an amortised guide; None for a model without latent sites.
        size: elements of a minibatch, of the only data plate or by plate.

    Raises:
        InputError: if the problem is a batch, or a minibatch is larger than the data.
        CaptureError: if the data cannot be cut, the guide's sites are not the model's or cannot be
            reparameterised, sites are discrete, or there is nothing to train.
    """

    def __init__(
        self,
        problem: Problem,
        guide: Callable[[Problem], Any] | None,
        size: int | Mapping[str, int],
    ) -> None:
        super().__init__()
        if problem.batch is not None:
            raise InputError(
                "problem", f"a batch of {problem.batch} problems", "one problem: training shares parameters"
            )
        self.problem, self.sizes = problem, sizes_of(problem, size, "batch")
        self.table = nn.ParameterDict()
        self._constrained: dict[str, Any] = {}
        self._handler = _Parameters(self.table, self._constrained)
        checked = checked_cut(problem, tuple(self.sizes))
        self.cut = checked.cut
        for plate, n in self.sizes.items():
            if not 0 < n <= self.cut.lengths[plate]:
                expected = f"1 to the {self.cut.lengths[plate]} elements of {plate!r}"
                raise InputError("batch", n, expected)
        if checked.discrete:
            raise CaptureError(
                f"discrete latent sites {list(checked.discrete)}: training needs them summed out in the "
                "model, for example by a mixture distribution"
            )
        self.elements = self.cut.lengths[next(iter(self.sizes))]
        example = self.cut.take(problem.args, {p: torch.arange(n) for p, n in self.sizes.items()})
        part = replace(problem, args=example, data_plates=())
        scope = Scope(problem.dtype, problem.device)
        with scope.drawing():
            if checked.local and guide is not None:
                check_amortised(problem, guide, self.cut, tuple(self.sizes), checked.local)
            self.guide: Any = None if guide is None else guide(part)
            if guide is not None and not isinstance(self.guide, nn.Module):
                raise InputError(
                    "guide", type(self.guide).__name__, "a factory of guides that are torch modules"
                )
            self._program = (problem.model,)  # in a tuple: modules of the model are registered below
            loss = self(*example)
            self._check_sites(example)
            self._register(loss)
            self._handler.fixed = True
        if not list(self.parameters()):
            raise CaptureError(f"{problem.name}: neither the model nor the guide has parameters to train")

    def forward(self, *args: Any, sizes: Mapping[str, int] | None = None) -> Tensor:
        """The loss [nat per element] of the elements ``args``.

        Args:
            sizes: number of these elements by plate, where it is not that of a minibatch.
        """
        lengths, sizes = self.cut.lengths, sizes or self.sizes
        weights = {plate: lengths[plate] / n for plate, n in sizes.items()}
        device = next(iter(self.parameters())).device if self.table else self.problem.device
        with Scope(self.problem.dtype, device, weights)(), self._handler:
            if self.guide is None:
                return -total(self._trace(self._program[0], args)) / self.elements
            guide = self._trace(self.guide, args)
            model = self._trace(poutine.replay(self._program[0], trace=guide), args)
        return (total(guide) - total(model)) / self.elements

    @staticmethod
    def _trace(program: Any, args: tuple[Any, ...]) -> poutine.Trace:
        found = poutine.trace(program).get_trace(*args)
        found.compute_log_prob()
        return found

    def _check_sites(self, args: tuple[Any, ...]) -> None:
        with self._handler, torch.no_grad():
            model = latent_sites(self._trace(self._program[0], args))
            guide = {} if self.guide is None else latent_sites(self._trace(self.guide, args))
        guide = {n: s for n, s in guide.items() if not s["infer"].get("is_auxiliary")}
        missing, extra = sorted(model.keys() - guide.keys()), sorted(guide.keys() - model.keys())
        if missing or extra:
            raise CaptureError(
                f"the guide's sites are not the model's: missing {missing}, not in the model {extra}"
            )
        for name, site in guide.items():
            if is_discrete(site) or not getattr(site["fn"], "has_rsample", False):
                raise CaptureError(
                    f"guide site {name!r}: {type(site['fn']).__name__} has no reparameterised draws (rsample)"
                )
            if site["value"].shape != model[name]["value"].shape:
                got, expected = tuple(site["value"].shape), tuple(model[name]["value"].shape)
                raise CaptureError(f"guide site {name!r}: got shape {got}, the model's is {expected}")

    def _register(self, loss: Tensor) -> None:
        """Enter the parameters of modules that the model holds; the loss must depend on no others."""
        known = {id(p) for p in self.parameters()}
        names = {id(p): n for n, p in _held(self._program[0], "named_parameters")}
        for leaf in _leaves(loss):
            if id(leaf) in known:
                continue
            if id(leaf) not in names:
                raise CaptureError(
                    f"the model reads a tensor of shape {tuple(leaf.shape)} that requires gradients and that "
                    "no module of it holds: state it as a pyro.param, or its module by pyro.module"
                )
            self.table[names[id(leaf)].replace(".", "/")] = leaf

    def weights(self) -> dict[str, Tensor]:
        """Copies of the constrained values of all parameters, with the buffers of the guide."""
        with torch.no_grad():
            own = {
                f"model.{key.replace('/', '.')}": self._constrained.get(key, _same)(value)
                .detach()
                .cpu()
                .clone()
                for key, value in self.table.items()
            }
        own |= {f"model.{n}": b.detach().cpu().clone() for n, b in _held(self._program[0], "named_buffers")}
        state = {} if self.guide is None else self.guide.state_dict()
        return own | {f"guide.{n}": w.detach().cpu().clone() for n, w in state.items()}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give the modules of the problem their values back when the context ends."""
        before = [(p, p.data, p.data.clone()) for p in self.parameters()]
        try:
            yield
        finally:
            for p, data, values in before:
                data.copy_(values)
                p.data, p.grad = data, None


def _same(value: Tensor) -> Tensor:
    return value


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that require gradients and that a loss depends on."""
    queue, seen, leaves = [loss.grad_fn], set(), []
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        queue += [following for following, _ in node.next_functions]
    return leaves


def _held(program: Any, kind: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """What modules that a program holds (itself, its fields, its closure) have, with names.

    Args:
        kind: "named_parameters" or "named_buffers".
    """
    dot = f"{prefix}." if prefix else ""
    if isinstance(program, nn.Module):
        yield from ((dot + name, tensor) for name, tensor in getattr(program, kind)())
    elif isinstance(program, Tensor):
        if kind == "named_parameters":
            yield prefix, program
    elif depth > _DEPTH:
        return
    elif is_dataclass(program):
        for field in fields(program):
            yield from _held(getattr(program, field.name), kind, dot + field.name, depth + 1)
    elif hasattr(program, "__code__"):
        for name, cell in zip(program.__code__.co_freevars, program.__closure__ or (), strict=True):
            yield from _held(cell.cell_contents, kind, dot + name, depth + 1)
        for name in program.__code__.co_names:
            value = program.__globals__.get(name)
            if isinstance(value, nn.Module | Tensor):
                yield from _held(value, kind, dot + name, depth + 1)
    elif hasattr(program, "__self__"):
        yield from _held(program.__self__, kind, prefix, depth + 1)
