"""What belongs to the user and what to an installed library, and which globals a function's code names."""

from __future__ import annotations

import builtins
import dis
import functools
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

__all__ = ["is_library", "library_name", "named_by", "package"]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def named_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function's code names and the modules that it imports, with their values.

    Of a module of the user only those attributes are listed whose names occur in the code.
    """
    names: set[str] = set()
    modules: set[str] = set()
    attributes: set[str] = set()
    for code in _codes(function.__code__):
        attributes |= set(code.co_names)
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                level = steps[i - 2].argval
                relative = (
                    importlib.util.resolve_name("." * level + step.argval, _home(function)) if level else ""
                )
                modules.add(relative or step.argval)
    for name in sorted(names):
        if name in function.__globals__:
            yield from _described(name, function.__globals__[name], attributes)
        elif not hasattr(builtins, name):
            yield name, "not defined"
    for name in sorted(modules):
        yield from _described(name, name if is_library(name) else importlib.import_module(name), attributes)


def _described(
    label: str, value: Any, attributes: set[str], within: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, ModuleType) or is_library(value.__name__):
        yield label, value
    elif id(value) not in within:
        for name in sorted(attributes & vars(value).keys()):
            yield from _described(f"{label}.{name}", vars(value)[name], attributes, within | {id(value)})


_INSTALLED = frozenset(
    Path(folder).resolve()
    for folder in [
        *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
)
"""Folders of the standard library and of installed packages."""


@functools.cache
def is_library(module: str) -> bool:
    """True for a module of the standard library or of an installed package; never for one of astrozoo."""
    top = module.partition(".")[0]
    if top in ("astrozoo", "__main__", ""):
        return False
    loaded = sys.modules.get(module) or sys.modules.get(top)
    try:
        spec = importlib.util.find_spec(top) if loaded is None else getattr(loaded, "__spec__", None)
    except (ImportError, ValueError):
        return False
    path = getattr(loaded, "__file__", None) or getattr(spec, "origin", None)
    if path is None:  # a module inside a compiled extension, such as torch._C._nn
        path = getattr(sys.modules.get(top), "__file__", None)
    if path is None or path in ("built-in", "frozen"):
        return top in sys.stdlib_module_names or (spec is not None and path is not None)
    return not {*Path(path).resolve().parents}.isdisjoint(_INSTALLED)


@functools.cache
def package(module: str) -> str:
    """Name and version of the package that a library module belongs to."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        return f"{top} {version(top)}"
    except PackageNotFoundError:  # the name of the package differs, as that of pyro does
        stated = getattr(sys.modules.get(top), "__version__", None)
        if isinstance(stated, str):  # reading the metadata of all packages takes 0.1 s
            return f"{top} {stated}"
        known = packages_distributions().get(top, [])
        return f"{top} {[f'{name} {version(name)}' for name in sorted(set(known))]}"


def library_name(value: Any) -> str | None:
    """Name and version of what is found under its name in a library; None for anything else."""
    if isinstance(value, ModuleType):
        return f"{value.__name__} {package(value.__name__)}" if is_library(value.__name__) else None
    kind = type(value)
    if isinstance(value, np.ufunc):
        known = any(
            getattr(sys.modules.get(m), value.__name__, None) is value for m in ("numpy", "scipy.special")
        )
        return f"ufunc {value.__name__} {package('numpy')}" if known else None
    if kind.__module__ == "torch._ops":
        return f"{value} {package('torch')}"
    if isinstance(value, BuiltinFunctionType):
        owner = value.__self__
        if isinstance(owner, ModuleType | type | None):
            home = (
                value.__module__
                or getattr(owner, "__module__", None)
                or getattr(owner, "__name__", "builtins")
            )
            if is_library(home):
                return f"{home}.{value.__qualname__} {package(home)}"
        return None
    if not isinstance(value, FunctionType | type) and not (callable(value) and is_library(kind.__module__)):
        return None
    home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(home, str) and isinstance(name, str) and is_library(home)):
        return None
    found: Any = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{home}.{name} {package(home)}" if found is value else None
