"""The objects that a Pyro program refers to, which is where its modules and parameters are.

A private helper of :mod:`astrozoo.density`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["module_buffers", "reachable", "tensor_names"]

DEPTH = 6
"""Steps from the program to an object in which parameters are looked up to name them."""


def module_buffers(program: Any) -> dict[str, Tensor]:
    """Buffers of the modules that a program can reach, by name."""
    buffers: dict[str, Tensor] = {}
    for prefix, thing in reachable(program):
        if isinstance(thing, nn.Module):
            for name, tensor in thing.named_buffers():
                if not any(tensor is known for known in buffers.values()):
                    buffers[_joined(prefix, name)] = tensor
    return buffers


def tensor_names(program: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Names of the tensors that a program can reach, and of the buffers and parameters of its modules."""
    names: dict[int, str] = {}
    protected: dict[int, str] = {}
    for prefix, thing in reachable(program):
        if isinstance(thing, Tensor):
            names.setdefault(id(thing), prefix or "parameter")
        elif isinstance(thing, nn.Module):
            for name, tensor in thing.named_parameters():
                names.setdefault(id(tensor), _joined(prefix, name))
                protected.setdefault(id(tensor), _joined(prefix, name))
            protected |= {id(t): _joined(prefix, name) for name, t in thing.named_buffers()}
    return names, protected


def reachable(program: Any) -> Iterator[tuple[str, Any]]:
    """Names and objects to which a program refers, directly or through other objects, the nearest first."""
    seen: set[int] = set()
    keep: list[Any] = []  # so that no address is used twice
    queue: list[tuple[Any, str, int]] = [(program, "", 0)]
    while queue:
        thing, prefix, depth = queue.pop(0)
        if id(thing) in seen or depth > DEPTH:
            continue
        seen.add(id(thing))
        keep.append(thing)
        yield prefix, thing
        queue += [(child, _joined(prefix, name), depth + 1) for name, child in _children(thing)]


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _children(thing: Any) -> list[tuple[str, Any]]:
    """Objects to which an object refers directly, each with the part that it adds to a name."""
    if isinstance(thing, MethodType):
        return [("", thing.__self__), ("", thing.__func__)]
    if isinstance(thing, partial):
        return [("", thing.func), *_by_place(thing.args), *thing.keywords.items()]
    if isinstance(thing, FunctionType):
        if thing.__module__.split(".")[0] in ("torch", "pyro"):
            return []
        closed = [
            (name, cell.cell_contents)
            for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
            if _is_set(cell)
        ]
        used = [(n, thing.__globals__[n]) for n in thing.__code__.co_names if n in thing.__globals__]
        used = [(n, x) for n, x in used if not isinstance(x, ModuleType | type)]
        wrapped = [("", thing.__wrapped__)] if hasattr(thing, "__wrapped__") else []
        defaults = _by_place(thing.__defaults__ or ())
        return [("" if isinstance(x, FunctionType) else n, x) for n, x in closed + used] + wrapped + defaults
    if isinstance(thing, Mapping):
        return [(str(name), x) for name, x in thing.items()]
    if isinstance(thing, list | tuple):
        return _by_place(thing)
    if isinstance(thing, str | bytes | int | float | type | ModuleType | Tensor | torch.dtype):
        return []
    call = [("", type(thing).forward)] if isinstance(thing, nn.Module) else []
    if hasattr(thing, "__wrapped__"):
        return [("", thing.__wrapped__)]
    if is_dataclass(thing):
        return [(f.name, getattr(thing, f.name)) for f in fields(thing)] + _called(thing)
    inside = [] if not hasattr(thing, "__dict__") else list(vars(thing).items())
    return [*call, *((n, x) for n, x in inside if not n.startswith("_")), *_called(thing)]


def _called(thing: Any) -> list[tuple[str, Any]]:
    method = vars(type(thing)).get("__call__")
    return [("", method)] if isinstance(method, FunctionType) else []


def _by_place(things: Sequence[Any]) -> list[tuple[str, Any]]:
    """Members of a sequence, named by their places."""
    return [(str(i), x) for i, x in enumerate(things)]


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
