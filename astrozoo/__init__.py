"""astrozoo: probabilistic models of astronomical images, declared once in Pyro, inferred with anything.

Importing it is quick: torch, Pyro and ArviZ are loaded when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from astrozoo._openmp import let_threads_sleep, limit_threads

limit_threads()
let_threads_sleep()  # before anything below can import torch

from astrozoo.registry import Entry, get, list_models  # noqa: E402

if TYPE_CHECKING:
    from astrozoo._goodness import goodness_of
    from astrozoo._predictive import predictive
    from astrozoo._trained import Trained
    from astrozoo.data.weights import load_weights
    from astrozoo.diagnostics.report import report
    from astrozoo.errors import AstrozooError
    from astrozoo.galsim_galaxy import GalSimGalaxy
    from astrozoo.infer import infer
    from astrozoo.train import train
    from astrozoo.types import Goodness, Problem, Result, Status, load, stack

__all__ = [
    "AstrozooError",
    "Entry",
    "GalSimGalaxy",
    "Goodness",
    "Problem",
    "Result",
    "Status",
    "Trained",
    "get",
    "goodness_of",
    "infer",
    "list_models",
    "load",
    "load_weights",
    "predictive",
    "report",
    "stack",
    "train",
]

__version__ = "0.1.0"

_LAZY = {
    "AstrozooError": "astrozoo.errors",
    "GalSimGalaxy": "astrozoo.galsim_galaxy",
    "Goodness": "astrozoo.types",
    "Problem": "astrozoo.types",
    "Result": "astrozoo.types",
    "Status": "astrozoo.types",
    "Trained": "astrozoo._trained",
    "goodness_of": "astrozoo._goodness",
    "load": "astrozoo.types",
    "load_weights": "astrozoo.data.weights",
    "predictive": "astrozoo._predictive",
    "report": "astrozoo.diagnostics.report",
    "stack": "astrozoo.types",
}


def __getattr__(name: str) -> Any:
    if name in ("infer", "train"):
        return import_module(f"astrozoo.{name}")  # a package that can be called
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
