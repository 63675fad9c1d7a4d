"""Hashes of Python values by content: the same in every process, and different for different content.

A value is written to SHA-256 as a stream of tagged parts, each with its length, so that two different values
never give one stream. Code of the user (and of astrozoo) is walked: byte code, closures, defaults, and the
globals that the code names. Code of installed packages is identified by its qualified name and the package's
version.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import math
import random
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property
from torch.utils.data import Dataset

from astrozoo._user_code import is_library, library_name, named_by, package
from astrozoo.errors import InputError

__all__ = ["content_hash"]

_CLASS_BOOKKEEPING = frozenset(
    [
        "__dict__",
        "__slotnames__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__abstractmethods__",
        "_abc_impl",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__match_args__",
        "__firstlineno__",
        "__static_attributes__",
        "__parameters__",
        "__orig_bases__",
        "__slots__",
        "__qualname__",
    ]
)
"""Entries of a class that are not behaviour, or follow from the other entries and from the instances."""

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
"""Locks. One that code names as a global has no content that could change what the code computes."""
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)
"""Attributes of compiled classes. They are hashed by the name of the class and their own."""
_CONTAINERS: dict[type, Callable[[Any], Any]] = {
    **{kind: kind for kind in (dict, list, tuple, set, frozenset, bytes, complex)},
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}
"""Built-in classes that users derive from, and how an instance becomes one of the class itself."""
_SINGLE = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(None), type(...), range)
"""Classes whose ``repr`` is their whole content."""
_SEQUENCES = (list, tuple, deque, torch.Size)
"""Classes that are hashed by their items, in order."""
_MAPPINGS = (dict, OrderedDict, MappingProxyType)
"""Classes that are hashed by their keys and values."""


def content_hash(*values: Any) -> str:
    """A hash (64 hexadecimal digits) of values by their content.

    Raises:
        InputError: if a value has content that cannot be read (an open file, a generator, a lock, an object
            of a compiled extension, an array of objects). It names the place.
    """
    hasher = _Hasher()
    try:
        for value in values:
            hasher.add(value)
    except RecursionError as error:
        raise hasher.refuse(values[0], "its content is nested too deeply") from error
    return hasher.sha.hexdigest()


class _Hasher:
    """One stream of parts.

    Functions and classes are numbered when they are first met, and only their number is written afterwards,
    so that they may refer to each other in circles. Other objects are references only inside themselves.
    """

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.numbers: dict[int, int] = {}
        self.numbered: list[Any] = []  # keeps the objects alive, so that an id stays that of one object
        self.open: dict[int, int] = {}
        self.path: list[str] = []

    def tag(self, *parts: object) -> None:
        """Write short parts, each with its length."""
        for part in parts:
            encoded = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            self.sha.update(f"{len(encoded)}:".encode() + encoded)

    def at(self, label: str, value: Any) -> None:
        """Write a named part of the current value."""
        self.path.append(label)
        self.tag("part", label)
        self.add(value)
        self.path.pop()

    def refuse(self, value: Any, reason: str) -> InputError:
        place = ".".join(self.path) or "the value"
        return InputError(
            "digest",
            f"{type(value).__module__}.{type(value).__qualname__} at {place}: {reason}",
            "content that can be hashed; or name the model's version yourself, Problem(version='...'), which "
            "then stands in for its code",
        )

    def add(self, value: Any) -> None:
        """Write any value."""
        kind = type(value)
        if kind in _PLAIN:
            self.tag(kind.__name__, _PLAIN[kind](value))
        elif isinstance(value, _SINGLE):
            self.tag(kind.__name__, repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, slice):
            self.tag("slice")
            self.add((value.start, value.stop, value.step))
        elif id(value) in self.numbers:
            self.tag("seen", self.numbers[id(value)])
        elif id(value) in self.open:
            self.tag("circle", self.open[id(value)])
        else:
            self.open[id(value)] = len(self.open)
            self._compound(value)
            del self.open[id(value)]

    def _compound(self, value: Any) -> None:
        library = library_name(value)
        if library is not None:
            self.tag("library", library)
            return
        if type(value) in _SEQUENCES:
            self._sequence(value)
            return
        if type(value) in _MAPPINGS:
            self._mapping(value)
            return
        if type(value) in (set, frozenset):
            self._set(value)
            return
        for kinds, write in _WRITERS:
            if isinstance(value, kinds):
                write(self, value)
                return
        self._instance(value)

    def _number(self, value: Any) -> None:
        self.numbers[id(value)] = len(self.numbers)
        self.numbered.append(value)

    # Data

    def _tensor(self, value: Tensor) -> None:
        self.tag(type(value).__qualname__, value.dtype, tuple(value.shape), value.layout)
        if value.layout is torch.sparse_coo:
            value = value.detach().coalesce()
            self._tensor(value.indices())
            self._tensor(value.values())
        elif value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise self.refuse(value, f"a tensor of layout {value.layout} or quantised")
        elif value.is_meta:
            raise self.refuse(value, "a tensor on the meta device has no content")
        else:
            flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
            self.sha.update(flat.view(torch.uint8).numpy().data)
        if type(value) not in (Tensor, nn.Parameter):
            self._state(vars(value))

    def _array(self, value: np.ndarray) -> None:
        self.tag(type(value).__qualname__, value.dtype.str, value.shape)
        if value.dtype.names:
            for name in value.dtype.names:
                self.at(name, value[name])
        elif value.dtype.kind == "T":
            self.add(value.tolist())
        elif value.dtype.hasobject:
            raise self.refuse(value, "an array of objects")
        else:
            self.sha.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        if isinstance(value, np.ma.MaskedArray):
            self.at("mask", np.ma.getmaskarray(value))
            self.at("fill_value", np.asarray(value.fill_value))
        elif type(value) is not np.ndarray:
            self._reduced(value) if is_library(type(value).__module__) else self._state(vars(value))

    def _mapping(self, value: Mapping[Any, Any]) -> None:
        self.tag(type(value).__qualname__, len(value))
        for _, key, item in sorted(((content_hash(k), k, v) for k, v in value.items()), key=lambda e: e[0]):
            self.add(key)
            self.at(f"[{key!r}]" if isinstance(key, str | int) else "[...]", item)

    def _sequence(self, value: Any) -> None:
        self.tag(type(value).__qualname__, len(value))
        for i, item in enumerate(value):
            self.at(f"[{i}]", item)

    def _set(self, value: Any) -> None:
        self.tag(type(value).__qualname__, *sorted(content_hash(item) for item in value))

    def _enum(self, value: enum.Enum) -> None:
        self.tag("enum", value.name)
        self.at("class", type(value))
        self.at("value", value.value)

    # Code

    def _function(self, value: FunctionType) -> None:
        self._number(value)
        if hasattr(value, "registry") and hasattr(value, "dispatch"):  # functools.singledispatch
            self.tag("dispatch")
            self.at("registry", dict(value.registry))
            return
        original = getattr(value, "_torchdynamo_orig_callable", None)
        if original is not None:
            self.tag("compiled")
            self.add(original)
            return
        home = value.__globals__.get("__name__", "")
        library = is_library(home)
        self.tag("function", value.__name__, value.__qualname__, package(home) if library else "")
        self.add(value.__code__)
        self.path.append(value.__qualname__)
        self.at("defaults", value.__defaults__)
        self.at("kwdefaults", value.__kwdefaults__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self.at(name, cell)
        self._state({k: v for k, v in vars(value).items() if k != "__wrapped__"})
        if not library:
            for name, item in named_by(value):
                self.at(name, "a lock" if isinstance(item, _LOCKS) else item)
        self.path.pop()

    def _cell(self, value: CellType) -> None:
        try:
            content = value.cell_contents
        except ValueError:
            self.tag("empty")
            return
        self.add(content)

    def _code(self, value: CodeType) -> None:
        self.tag("code", value.co_code, value.co_exceptiontable, value.co_flags, value.co_name)
        self.tag(value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        for names in (
            value.co_names,
            value.co_varnames,
            value.co_freevars,
            value.co_cellvars,
            value.co_consts,
        ):
            self.add(names)

    def _class(self, value: type) -> None:
        self._number(value)
        self.tag("class", value.__name__, value.__qualname__)
        self.path.append(value.__qualname__)
        self.at("metaclass", type(value))
        self.at("bases", value.__bases__)
        self._state({k: v for k, v in vars(value).items() if k not in _CLASS_BOOKKEEPING})
        self.path.pop()

    def _module(self, value: ModuleType) -> None:
        path = getattr(value, "__file__", None)
        if path is None or Path(path).suffix != ".py":
            raise self.refuse(value, f"module {value.__name__} has no source")
        self.tag("module", value.__name__, Path(path).read_bytes())

    def _method(self, value: Any) -> None:
        self.tag("method", value.__name__)
        if isinstance(value, MethodType):
            self.at("function", value.__func__)
        self.at("self", value.__self__)

    def _partial(self, value: Any) -> None:
        self.tag("partial")
        self.add((value.func, value.args, value.keywords))
        self._state(vars(value))

    def _wrapper(self, value: Any) -> None:
        self.tag(type(value).__qualname__)
        for name in ("__func__", "fget", "fset", "fdel", "func", "wrapped"):
            if hasattr(value, name):
                self.at(name, getattr(value, name))

    def _descriptor(self, value: Any) -> None:
        self.tag("descriptor", value.__objclass__.__qualname__, value.__name__)

    def _script(self, value: Any) -> None:
        self.tag("script", value.code)
        constants = value.code_with_constants[1].const_mapping
        self.at("constants", dict(constants))
        if isinstance(value, nn.Module):
            self.at("state", dict(value.state_dict()))
            for name, part in value.named_children():
                if hasattr(part, "code"):
                    self.at(name, part)

    def _graph_module(self, value: torch.fx.GraphModule) -> None:
        self.tag("graph", value.code)
        self._state(
            {k: v for k, v in vars(value).items() if k not in ("_graph", "_code", "_lineno_map", "meta")}
        )

    # Objects

    def _dataset(self, value: Dataset[Any]) -> None:
        """By its version, if it has one."""
        if getattr(value, "version", None) is None:
            self._instance(value)
            return
        self.tag("dataset", type(value).__qualname__, len(value), value.version)  # type: ignore[arg-type, attr-defined]

    def _instance(self, value: Any) -> None:
        """The class, then the content: of a base that is a container, of ``__dict__`` and of slots."""
        kind = type(value)
        if kind.__module__ == "torch._dynamo.eval_frame":  # what torch.compile makes of a module
            self.at("compiled", value._orig_mod)
            return
        self.at("class", kind)
        if is_library(kind.__module__) and self._reduces(kind):
            self._reduced(value)
            return
        self._check_readable(value)
        base = next((base for base in _CONTAINERS if isinstance(value, base)), None)
        if base is not None:
            self.at("content", _CONTAINERS[base](value))
        state = _slots(value) | getattr(value, "__dict__", {})
        if base is None and not state and not hasattr(value, "__dict__") and not hasattr(kind, "__slots__"):
            self._reduced(value)
            return
        cached = {name for name in state if isinstance(getattr(kind, name, None), _CACHED)}
        if isinstance(value, Distribution):  # a parameter may lie under the name of a cached property
            parameter = state.get("_param")
            self.tag(*[name for name in sorted(cached) if parameter is not None and state[name] is parameter])
            cached.add("_validate_args")
        if isinstance(value, Transform):
            cached |= {"_cached_x_y"} if isinstance(value, _InverseTransform) else {"_cached_x_y", "_inv"}
        self._state({name: item for name, item in state.items() if name not in cached})

    @staticmethod
    def _reduces(kind: type) -> bool:
        """True where a class of a library says itself what its content is."""
        if issubclass(kind, nn.Module | Distribution | Transform):
            return False
        own = any(getattr(kind, n, None) is not getattr(object, n) for n in ("__reduce__", "__reduce_ex__"))
        state = getattr(kind, "__getstate__", None)
        return own or kind in copyreg.dispatch_table or state is not getattr(object, "__getstate__", None)

    def _check_readable(self, value: Any) -> None:
        """Refuse an object with state outside ``__dict__``, slots and containers, as compiled ones have."""
        try:
            object.__reduce_ex__(value, 2)
        except Exception as error:  # a class may raise anything here: all of it means that it has no content
            raise self.refuse(value, str(error)) from error

    def _reduced(self, value: Any) -> None:
        """What a pickle of the value would contain."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            content = reducer(value) if reducer else value.__reduce_ex__(2)
        except Exception as error:  # a class may raise anything here: all of it means that it has no content
            raise self.refuse(value, str(error)) from error
        if isinstance(content, str):
            raise self.refuse(value, f"known by its name {content!r} only")
        self.tag("reduced", len(content))
        for part in content:
            self.add(list(part) if isinstance(part, Iterator) else part)

    def _state(self, state: Mapping[str, Any]) -> None:
        self.tag("state", len(state))
        for name in sorted(state):
            self.at(name, state[name])


_CACHED = (functools.cached_property, lazy_property)
"""Properties that write a value into the instance when they are first read. It follows from the other
content."""
_PLAIN: dict[type, Callable[[Any], object]] = {
    bool: repr,
    int: str,
    float: lambda x: "nan" if math.isnan(x) else struct.pack("<d", x),
    complex: lambda x: struct.pack("<dd", x.real, x.imag),
    str: lambda x: x,
    bytes: lambda x: x,
    bytearray: bytes,
}
"""Classes of single values, and what is written of a value."""
_WRITERS: tuple[tuple[Any, Callable[[_Hasher, Any], None]], ...] = (
    (enum.Enum, _Hasher._enum),
    (np.ndarray, _Hasher._array),
    (np.generic, lambda h, x: h.at(type(x).__qualname__, np.asarray(x))),
    (np.dtype, lambda h, x: h.tag("dtype", repr(x))),
    (np.random.Generator, lambda h, x: h.at("generator", x.bit_generator)),
    (np.random.BitGenerator, lambda h, x: h.at(type(x).__qualname__, x.state)),
    (np.random.RandomState, lambda h, x: h.at("random state", x.get_state(legacy=False))),
    (random.Random, lambda h, x: h.at("random", x.getstate())),
    (torch.Generator, lambda h, x: h.at(f"generator {x.device}", x.get_state())),
    (PurePath, lambda h, x: h.tag(type(x).__qualname__, str(x))),
    (FunctionType, _Hasher._function),
    (CodeType, _Hasher._code),
    (CellType, _Hasher._cell),
    (type, _Hasher._class),
    (ModuleType, _Hasher._module),
    (MethodType | BuiltinFunctionType, _Hasher._method),
    (_DESCRIPTORS, _Hasher._descriptor),
    (functools.partial, _Hasher._partial),
    (classmethod | staticmethod | property | functools.cached_property, _Hasher._wrapper),
    (lazy_property, _Hasher._wrapper),
    (functools._lru_cache_wrapper, lambda h, x: h.at("cached", x.__wrapped__)),
    (torch.jit.ScriptModule | torch.jit.ScriptFunction, _Hasher._script),
    (torch.fx.GraphModule, _Hasher._graph_module),
    (Dataset, _Hasher._dataset),
)
"""How values of a kind are written; the first kind that fits decides. Any other value is an instance."""


def _slots(value: Any) -> dict[str, Any]:
    """The values of the slots of all classes of an object."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if (
                isinstance(member, MemberDescriptorType)
                and "__slots__" in vars(kind)
                and hasattr(value, name)
            ):
                found[f"{kind.__qualname__}.{name}"] = member.__get__(value)
    return found
