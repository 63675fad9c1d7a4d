"""What a result is of and where it was made: hashes by content, versions and machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["environment", "hash_into"]


def hash_into(h: Any, value: Any) -> None:
    """Feed a value to a hash by content: the same in every process, whatever addresses objects have."""
    h.update(f"{type(value).__qualname__}(".encode())
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        h.update(f"{tuple(value.shape)}{value.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        h.update(f"{value.shape}{value.dtype}".encode() + value.tobytes())
    elif isinstance(value, torch.nn.Module):
        hash_into(h, value.state_dict())
    elif isinstance(value, Mapping):
        for key in value:
            hash_into(h, (key, value[key]))
    elif isinstance(value, list | tuple):
        for item in value:
            hash_into(h, item)
    elif isinstance(value, set | frozenset):
        hash_into(h, sorted(value, key=repr))
    elif is_dataclass(value):
        for name in fields(value):
            hash_into(h, getattr(value, name.name))
    elif isinstance(value, CodeType):
        hash_into(h, (value.co_code, value.co_names, value.co_consts))
    elif isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        settings = [item for item in held if not callable(item)]
        hash_into(h, (value.__qualname__, value.__code__, value.__defaults__, settings))
    elif isinstance(value, MethodType):
        hash_into(h, (value.__func__, value.__self__))
    elif isinstance(value, partial):
        hash_into(h, (value.func, value.args, value.keywords))
    elif type(value).__repr__ is not object.__repr__:
        h.update(repr(value).encode())
    else:
        hash_into(h, vars(value))
    h.update(b")")


def environment() -> dict[str, str]:
    """Versions and machine, recorded with every result."""

    def found(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    versions = {name: found(name) for name in ("astrozoo", "torch", "pyro-ppl", "arviz", "numpy")}
    return {
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
