"""Parameters of Pyro programs: how they are found, and how a run is given values of them.

A parameter is a ``pyro.param`` statement, or a tensor that requires gradients and that the program reads: a
weight of a module which the model is, holds, closes over or registers with ``pyro.module``. Statements are
answered by a Pyro handler, and such tensors are replaced in each torch operation, so that Pyro's store is
neither read nor written, and modules stay as they are. A private helper of :mod:`astrozoo.density`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.overrides import TorchFunctionMode

from astrozoo._reachable import tensor_names
from astrozoo.errors import CaptureError, InputError

__all__ = [
    "Fixed",
    "Parameter",
    "Parameters",
    "Watch",
    "empty_store",
    "module_parameters",
    "sharing",
]

_FLAGS = {
    getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "grad", "grad_fn", "_version")
}
"""Attributes of the tensor itself, of which a replaced tensor has none."""
_DETACHED = {Tensor.data.__get__, Tensor.detach}  # type: ignore[attr-defined]
"""Reads of a tensor that pass no gradient, so that they make it no parameter."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter, and its slice of the flat vector.

    Args:
        unconstrained: its initial value, before the transform of its constraint.
        leaf: the tensor that the program reads, which holds the unconstrained value; None for a
            ``pyro.param`` statement with an initial value.
        stated: True if a Pyro statement gives the name, so that the statement is answered by name.
    """

    name: str
    constraint: Any
    unconstrained: Tensor
    leaf: Tensor | None
    stated: bool
    start: int = 0

    @property
    def stop(self) -> int:
        """End of the slice."""
        return self.start + self.unconstrained.numel()

    @property
    def transform(self) -> Any:
        """From unconstrained to constrained values, as Pyro's store has it."""
        return transform_to(self.constraint)

    def take(self, flat: Float[Tensor, "*b dim"]) -> Tensor:
        """The unconstrained value in a flat vector."""
        return flat[..., self.start : self.stop].reshape(flat.shape[:-1] + self.unconstrained.shape)


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters that lie one after another in a flat vector."""

    items: tuple[Parameter, ...] = ()

    @classmethod
    def of(cls, items: Sequence[Parameter]) -> Parameters:
        """Place parameters one after another in the flat vector."""
        placed, start = [], 0
        for item in items:
            placed.append(replace(item, start=start))
            start = placed[-1].stop
        return cls(tuple(placed))

    def __bool__(self) -> bool:
        return bool(self.items)

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the order of the vector."""
        return [p.name for p in self.items]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the unconstrained values by name."""
        return {p.name: p.unconstrained.shape for p in self.items}

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return self.items[-1].stop if self.items else 0

    def initial(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "dim"]:
        """Initial values as a flat vector."""
        parts = [p.unconstrained.detach().reshape(-1).to(dtype=dtype, device=device) for p in self.items]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=device)

    def constrain(self, flat: Float[Tensor, "*b dim"]) -> dict[str, Tensor]:
        """Constrained values by name, each ``[*b, *shape]``."""
        return {p.name: p.transform(p.take(flat)) for p in self.items}

    def unconstrain(self, values: Mapping[str, Any], like: Tensor) -> Float[Tensor, "*b dim"]:
        """The flat vector of constrained values.

        Raises:
            InputError: if a value is missing, has another shape, or lies outside its constraint.
        """
        parts = []
        for p in self.items:
            if p.name not in values:
                raise InputError("parameters", sorted(values), f"a value of {p.name!r}")
            value = torch.as_tensor(values[p.name]).to(like)
            shape = p.transform(p.unconstrained).shape
            lead = value.shape[: value.ndim - len(shape)]
            if value.shape != lead + shape:
                raise InputError(f"parameter {p.name!r}", f"shape {tuple(value.shape)}", f"{tuple(shape)}")
            inner = p.transform.inv(value)
            if not inner.isfinite().all():
                raise InputError(f"parameter {p.name!r}", "a value", f"one inside of {p.constraint}")
            parts.append(inner.reshape(*lead, p.unconstrained.numel()))
        return torch.cat(parts, -1)

    def only(self, names: Sequence[str]) -> Parameters:
        """The parameters that have one of these names."""
        return Parameters.of([p for p in self.items if p.name in names])

    @contextmanager
    def given(self, flat: Float[Tensor, "dim"]) -> Iterator[None]:
        """Inside this context programs read the values of a flat vector."""
        with self.read_from([p.take(flat) for p in self.items]):
            yield

    @contextmanager
    def read_from(self, unconstrained: Sequence[Tensor]) -> Iterator[None]:
        """Inside this context programs read these values.

        Args:
            unconstrained: the value of each parameter, in order. It may be the parameter's own ``leaf``.
        """
        stated: dict[str, Tensor] = {}
        leaves: dict[int, Tensor] = {}
        replaced: dict[int, Tensor] = {}
        for p, value in zip(self.items, unconstrained, strict=True):
            if p.leaf is not None:
                leaves[id(p.leaf)] = value.to(p.leaf.dtype)
                if leaves[id(p.leaf)] is not p.leaf:
                    replaced[id(p.leaf)] = leaves[id(p.leaf)]
            if p.stated:
                stated[p.name] = _with_unconstrained(p.transform, leaves.get(id(p.leaf), value))
        with _Answers(stated, leaves), _Replaces(replaced) if replaced else nullcontext():
            yield


@contextmanager
def sharing(parameters: Parameters) -> Iterator[None]:
    """Inside this context, statements of these parameters return initial values. Pyro answers all others."""
    stated = {
        p.name: _with_unconstrained(p.transform, p.unconstrained.detach())
        for p in parameters.items
        if p.stated
    }
    with _Shared(stated, {}):
        yield


def module_parameters(module: nn.Module, shared: Parameters) -> Parameters:
    """Parameters of a guide's module that require gradients, without those of the model."""
    known = {id(p.leaf) for p in shared.items}
    return Parameters.of(
        [
            Parameter(name, constraints.real, leaf.detach(), leaf, False)
            for name, leaf in module.named_parameters()
            if leaf.requires_grad and id(leaf) not in known
        ]
    )


@contextmanager
def empty_store() -> Iterator[None]:
    """Inside this context, Pyro's parameter store is empty. Its contents are restored afterwards."""
    store = pyro.get_param_store()
    before = store._params, store._param_to_name, store._constraints
    store._params, store._param_to_name, store._constraints = {}, {}, {}
    try:
        yield
    finally:
        store._params, store._param_to_name, store._constraints = before


def _with_unconstrained(transform: Any, unconstrained: Tensor) -> Tensor:
    """The constrained value, with the attribute that Pyro's store gives it."""
    value = transform(unconstrained)
    if value is unconstrained:
        value = unconstrained.view_as(unconstrained)
    value.unconstrained = lambda: unconstrained
    return value


class _Answers(Messenger):
    """Answers parameter statements: by name, else by the tensor that they register."""

    def __init__(self, stated: dict[str, Tensor], leaves: dict[int, Tensor]) -> None:
        super().__init__()
        self.stated, self.leaves = stated, leaves

    def _pyro_param(self, msg: Any) -> None:
        if msg["done"]:
            return
        name = _plain(msg["name"])
        if name in self.stated:
            msg["value"], msg["done"] = self.stated[name], True
        elif len(msg["args"]) > 1:
            given = msg["args"][1]
            if id(given) in self.leaves:
                msg["value"], msg["done"] = self.leaves[id(given)], True
            else:
                self._unknown(msg, name, given)

    def _unknown(self, msg: Any, name: str, given: Any) -> None:
        """Answer a statement of a tensor that requires no gradients: with the tensor itself, as a constant.

        Pyro's store would make it require gradients.
        """
        if not isinstance(given, nn.Parameter):
            raise CaptureError(f"parameter {name!r} appears in some runs of the program and not in others")
        msg["value"], msg["done"] = given.detach(), True


class _Shared(_Answers):
    """Answers known statements, and leaves others to Pyro."""

    def _unknown(self, msg: Any, name: str, given: Any) -> None:
        pass


class _Replaces(TorchFunctionMode):
    """Gives torch operations other tensors in place of chosen ones."""

    def __init__(self, leaves: dict[int, Tensor]) -> None:
        super().__init__()
        self.leaves = leaves

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FLAGS:
            return func(*args, **kwargs or {})
        args = tuple(self._swapped(x, func) for x in args)
        return func(*args, **{k: self._swapped(x, func) for k, x in (kwargs or {}).items()})

    def _swapped(self, x: Any, func: Any) -> Any:
        if isinstance(x, Tensor):
            return self._tensor(x, func)
        if type(x) in (list, tuple) and any(isinstance(y, Tensor) for y in x):
            return type(x)(self._swapped(y, func) for y in x)
        return x

    def _tensor(self, x: Tensor, func: Any) -> Tensor:
        return self.leaves.get(id(x), x)


class Watch:
    """A context that records the parameters of the programs that run in it, at their initial values.

    Args:
        program: the model or guide, in which parameters are looked up to name them.
        known: parameters that are known already.
        changing: True if the program may change the buffers of its modules, as batch normalisation does in
            training mode.
    """

    def __init__(self, program: Any, known: Parameters | None = None, *, changing: bool = False) -> None:
        self.names, protected = tensor_names(program)
        self.protected = {} if changing else protected
        self.known = known or Parameters()
        self.statements: dict[str, tuple[Any, Tensor, Tensor | None]] = {}
        self.read: dict[int, Tensor] = {}
        self.any_statement = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        leaves = {id(p.leaf): p.leaf.detach() for p in self.known.items if p.leaf is not None}
        stated = {
            p.name: _with_unconstrained(p.transform, p.unconstrained.detach())
            for p in self.known.items
            if p.stated
        }
        with torch.enable_grad(), _Statements(self, stated, leaves), _Reads(self, leaves):
            yield

    def found(self) -> Parameters:
        """Parameters that the runs so far have used and that were not known, in the order of first use."""
        items: list[Parameter] = []
        taken = {id(leaf) for _, _, leaf in self.statements.values() if leaf is not None}
        for name, (constraint, value, leaf) in self.statements.items():
            items.append(Parameter(name, constraint, value, leaf, True))
        used = set(self.statements) | set(self.known.names)
        for key, leaf in self.read.items():
            if key in taken:
                continue
            if key not in self.names:
                raise CaptureError(
                    f"the program reads a tensor of shape {tuple(leaf.shape)} that requires gradients and "
                    "that it creates itself or that no object of it refers to: state it as a pyro.param, or "
                    "keep it in a module that the model refers to"
                )
            name = self.names[key]
            while name in used:
                name += "_"
            used.add(name)
            items.append(Parameter(name, constraints.real, leaf.detach(), leaf, False))
        for item in items:
            if not item.unconstrained.is_floating_point():
                raise CaptureError(
                    f"parameter {item.name!r}: its dtype {item.unconstrained.dtype} is not real"
                )
            if not item.unconstrained.isfinite().all():
                raise InputError(
                    f"parameter {item.name!r}",
                    "an initial value",
                    f"a finite one inside of {item.constraint}",
                )
        return Parameters.of(items)


class _Statements(_Answers):
    """Records the parameter statements of a run."""

    def __init__(self, watch: Watch, stated: dict[str, Tensor], leaves: dict[int, Tensor]) -> None:
        super().__init__(stated, leaves)
        self.watch = watch

    def _pyro_param(self, msg: Any) -> None:
        self.watch.any_statement = True
        if len(msg["args"]) > 1 and callable(msg["args"][1]) and _plain(msg["name"]) not in self.stated:
            with torch.no_grad():
                msg["args"] = (msg["args"][0], msg["args"][1](), *msg["args"][2:])
        name, given = _plain(msg["name"]), msg["args"][1] if len(msg["args"]) > 1 else None
        if name in self.stated or msg["done"]:
            return super()._pyro_param(msg)
        if given is None and msg["args"][0] not in pyro.get_param_store():
            raise CaptureError(f"pyro.param({name!r}) has no initial value, and Pyro's store is not read")
        if given is None:
            given = pyro.get_param_store()._params[msg["args"][0]]  # put there by the PyroModule
            if id(given) in self.leaves and id(given) not in self.watch.read:
                return None  # of a known parameter: a guide's
            if given.requires_grad:
                self._state(msg, name, given, given)
        elif id(given) in self.leaves and id(given) not in self.watch.read:
            return super()._pyro_param(msg)
        elif given.requires_grad and given.is_leaf and msg["kwargs"].get("constraint") in _REAL:
            self._state(msg, name, given, given)
        elif isinstance(given, nn.Parameter) and not given.requires_grad:
            return super()._pyro_param(msg)
        else:
            with torch.no_grad():
                transform = transform_to(msg["kwargs"]["constraint"])
                start = given.detach()
                start = start if start.is_floating_point() or start.is_complex() else start * 1.0
                self._state(msg, name, transform.inv(start).clone(), None)
        return None

    def _state(self, msg: Any, name: str, unconstrained: Tensor, leaf: Tensor | None) -> None:
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if leaf is not None and len(msg["args"]) < 2:
            constraint = pyro.get_param_store()._constraints[msg["args"][0]]
        self.watch.statements[name] = (constraint, unconstrained.detach(), leaf)
        if leaf is not None:
            self.leaves[id(leaf)] = leaf.detach()
        self.stated[name] = _with_unconstrained(transform_to(constraint), unconstrained.detach())
        msg["value"], msg["done"] = self.stated[name], True


_REAL = (None, constraints.real)
"""Constraints under which a parameter is its own unconstrained value."""


class _Reads(_Replaces):
    """Records the tensors that require gradients and that operations of a run read."""

    def __init__(self, watch: Watch, leaves: dict[int, Tensor]) -> None:
        super().__init__(leaves)
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args:
            changed = self.watch.protected.get(id(args[0]))
            if changed is not None:
                raise CaptureError(
                    f"the program changes {changed!r}, a buffer or parameter of a module, by {name}(): call "
                    "eval() of the module first (batch normalisation changes its averages in training mode)"
                )
        return super().__torch_function__(func, types, args, kwargs)

    def _tensor(self, x: Tensor, func: Any) -> Tensor:
        if id(x) in self.leaves:
            return self.leaves[id(x)]
        if (
            not torch._C._functorch.is_functorch_wrapped_tensor(x)
            and x.requires_grad
            and torch.is_grad_enabled()
            and func not in _DETACHED
        ):
            if not x.is_leaf:
                raise CaptureError(
                    f"the program reads a tensor of shape {tuple(x.shape)} that was computed outside of it "
                    "from tensors that require gradients: compute it in the program, or detach() it"
                )
            self.watch.read[id(x)] = x
            self.leaves[id(x)] = x.detach()
            return self.leaves[id(x)]
        return x


def _plain(name: str) -> str:
    """The name of a parameter without Pyro's divider between a module's name and its parameter's."""
    return name.replace("$$$", ".")


@dataclass(frozen=True, eq=False)
class Fixed:
    """A model with constant values of some of its parameters (see :meth:`astrozoo.Problem.fix`).

    Args:
        parameters: the parameters that are constant.
        flat: their unconstrained values. If it is None, the last argument of the call contains them.
    """

    model: Callable[..., Any]
    parameters: Parameters
    flat: Tensor | None = field(default=None)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.model

    def __call__(self, *args: Any) -> Any:
        """Run the model with the constants."""
        flat = args[-1] if self.flat is None else self.flat
        with self.parameters.given(flat):
            return self.model(*(args[:-1] if self.flat is None else args))
