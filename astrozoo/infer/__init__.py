"""Inference backends, one per file, and :func:`infer`, which runs one of them by name.

The package is itself callable: ``astrozoo.infer(problem, ...)`` is ``astrozoo.infer.infer(problem, ...)``, so
that the function and the backends (``astrozoo.infer.svi``) share one name. Importing it imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from astrozoo.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from astrozoo.types import Problem, Result

__all__ = ["METHODS", "infer"]

METHODS = {
    "auto": "astrozoo.infer.auto:auto",
    "el2o": "astrozoo.infer.el2o:el2o",
    "hmc": "astrozoo.infer.hmc:hmc",
    "laplace": "astrozoo.infer.laplace:laplace",
    "nutpie": "astrozoo.infer.nutpie:nutpie",
    "nuts": "astrozoo.infer.nuts:nuts",
    "svi": "astrozoo.infer.svi:svi",
    "trust_region": "astrozoo.infer.trust_region:trust_region",
}
"""Backends by name: "module:function"."""

_POSITIVE = (
    "budget",
    "chains",
    "draws",
    "learning_rate",
    "max_steps",
    "max_tree_depth",
    "minibatch",
    "particles",
    "radius",
    "starts",
    "steps",
    "tolerance",
)
_WHOLE = (
    "budget",
    "chains",
    "draws",
    "max_steps",
    "max_tree_depth",
    "minibatch",
    "particles",
    "seed",
    "starts",
    "steps",
    "warmup",
)


def infer(
    problem: Problem,
    method: str = "trust_region",
    guide: str | Callable[[Problem], Any] | None = "mean_field",
    **options: Any,
) -> Result:
    """Infer the posterior of ``problem``.

    Args:
        method: one of :data:`METHODS`.
        guide: for the variational methods: a name from ``problem.guides`` or of the zoo's general guides
            ("mean_field", "full_rank", "low_rank" ...), or a factory ``guide(problem)`` of a Pyro guide.
            The other methods use none.
        options: of the backend's function: all know ``seed``, ``draws``, ``chains``, ``budget``,
            ``start``, ``compile``, ``progress``, ``checkpoint`` and ``throw``. ``start="search"``: the
            highest point that many climbs from draws of the prior reach, as in ``auto``.

    Raises:
        UnknownNameError: for an unknown method, guide or option.
        InputError: for an option out of its range. Both before any work.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    module, name = METHODS[method].split(":")
    backend = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(backend).parameters
    for option, value in options.items():
        if option not in parameters or option in ("problem", "guide"):
            raise UnknownNameError(
                f"option of {method}", option, [p for p in parameters if p not in ("problem", "guide")]
            )
        _check(option, value, parameters[option].default)
    chosen = None if parameters["guide"].default is None else _factory(problem, guide)
    if isinstance(options.get("start"), str):
        if method != "auto":
            from astrozoo.infer._search import from_search

            return from_search(backend, problem, chosen, options)
        del options["start"]  # it searches anyhow
    return backend(problem, chosen, **options)


def _check(option: str, value: Any, default: Any) -> None:
    if value is None and default is None:
        return
    if option in _WHOLE and (isinstance(value, bool) or not hasattr(value, "__index__")):
        raise InputError(option, repr(value), "a whole number")
    if option in _POSITIVE and not value > 0:
        raise InputError(option, repr(value), "a positive number")
    if option in ("seed", "warmup") and value < 0:
        raise InputError(option, repr(value), "no negative number")
    if option == "target_acceptance" and not 0 < value < 1:
        raise InputError(option, repr(value), "a number between 0 and 1")
    if option == "start" and isinstance(value, str) and value != "search":
        raise InputError(option, repr(value), "'search', values, or a Result")
    if option == "compile" and value not in ("auto", "always", "never"):
        raise InputError(option, repr(value), "'auto', 'always' or 'never'")


def _factory(problem: Problem, guide: Any) -> Any:
    if isinstance(guide, str):
        if guide in problem.guides:
            return problem.factory("guides", guide)
        from astrozoo import registry

        if guide not in registry.GUIDES:
            raise UnknownNameError("guide", guide, {*problem.guides, *registry.GUIDES})
        return registry.guide(guide)
    if not callable(guide):
        raise InputError("guide", repr(guide), "a name, or a factory of Pyro guides")
    return guide


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Result:
        return infer(*args, **options)

    def __getattr__(self, name: str) -> ModuleType:
        if name in METHODS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Callable
