"""Where a result was made: versions and machine."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["environment"]


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
