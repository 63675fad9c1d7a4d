"""Inference backends, one per file, and :func:`infer`, which runs one of them by name.

The package is itself callable: ``astrozoo.infer(problem, ...)`` is ``astrozoo.infer.infer(problem, ...)``, so
that the function and the backends (``astrozoo.infer.svi``) share one name. Importing it imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from astrozoo import registry
from astrozoo.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from astrozoo.infer.options import RunOptions
    from astrozoo.types import Problem, Result

__all__ = ["infer"]


def infer(
    problem: Problem,
    method: str = "trust_region",
    guide: str | Callable[[Problem], Any] | None = "mean_field",
    **options: Any,
) -> Result:
    """Infer the posterior of ``problem``.

    Args:
        method: one of :data:`astrozoo.registry.METHODS`.
        guide: for the variational methods: a name from ``problem.guides`` or of the zoo's general guides
            ("mean_field", "full_rank", "low_rank" ...), or a factory ``guide(problem)`` of a Pyro guide.
            The other methods use none.
        options: those of :class:`astrozoo.infer.options.RunOptions`, which every method takes (``seed``,
            ``draws``, ``chains``, ``budget``, ``start``, ``compile``, ``progress``, ``checkpoint``,
            ``throw``, ``keep``, ``comm``, ``shard``), and those of the method's own settings
            (:mod:`astrozoo.infer.options`).

    Raises:
        UnknownNameError: for an unknown method, guide, option or site to keep.
        InputError: for an option of another method, or a value of the wrong type or out of its range. Both
            are raised before any work.
        CaptureError: for a model that cannot be captured; it names the site or the cause.
        RankError: if a process that shares the run ends or computes something else than the others.
    """
    from astrozoo.infer.options import parse

    if method not in registry.METHODS:
        raise UnknownNameError("method", method, registry.METHODS)
    run, settings = parse(method, options)
    _check_keep(problem, run.keep)
    problem, run = _divided(problem, method, run, settings)
    result = _run(problem, method, guide, run, settings)
    if run.comm is not None:
        shared = {"ranks": run.comm.size, "shard": run.shard, **run.comm.counts}
        result = replace(result, stats={**result.stats, "shared": shared})
    if not problem.images:
        return result
    from astrozoo._goodness import goodness_of

    return replace(result, goodness=goodness_of(problem, result))


def _divided(problem: Problem, method: str, run: RunOptions, settings: Any) -> tuple[Problem, RunOptions]:
    """The problem with its evaluations divided among the processes that share the run, if there are any.

    Samplers of chains one after another divide these themselves (:mod:`astrozoo.infer._chains`).

    Raises:
        InputError: if the run cannot be shared in this way.
    """
    from astrozoo._sharing import SharedProblem, ambient, share

    around = ambient()
    if run.comm is None and around is not None:
        run = replace(run, comm=around[0], shard=around[1])
    if run.comm is None or isinstance(problem, SharedProblem):
        return problem, run
    chains, comm, size = registry.METHODS[method].chains, run.comm, run.comm.size
    if run.shard == "chains" and not chains:
        names = [name for name, row in registry.METHODS.items() if row.chains]
        expected = f"one with Markov chains ({', '.join(names)}), or another shard"
        raise InputError("shard", f"'chains' with method {method!r}", expected)
    if run.shard == "chains" and run.chains * (problem.batch or 1) < size:
        raise InputError("chains", run.chains, f"at least {size}, one for each rank")
    for name in ("stream", "minibatch"):
        if getattr(settings, name, None) is not None and (name == "stream" or run.shard == "data"):
            raise InputError(name, getattr(settings, name), f"none in a run with shard={run.shard!r}")
    if comm.rank > 0:
        run = replace(run, progress=False)
    shared = share(problem, comm, run.shard)
    return (problem if chains == "apart" and run.shard != "data" else shared), run


def _run(problem: Problem, method: str, guide: Any, run: Any, settings: Any) -> Result:
    from astrozoo.infer.guide_factory import find_factory

    row = registry.METHODS[method]
    factory = find_factory(problem, guide) if row.takes_guide else None
    general = not row.takes_guide or (isinstance(guide, str) and guide not in problem.guides)
    if general and _no_continuous_latents(problem, method):
        from astrozoo.infer._enumerated import enumerated

        return enumerated(problem, method, run)
    if isinstance(run.start, str):
        if method != "auto":
            from astrozoo.infer._search import infer_from_search

            return infer_from_search(problem, method, factory, run, settings)
        run = replace(run, start=None)  # auto always searches
    if row.takes_guide:
        return row.backend(problem, factory, run, settings)
    return row.backend(problem, run, settings)


def _check_keep(problem: Problem, keep: Sequence[str] | None) -> None:
    if keep:
        from astrozoo.density import names_of_draws

        names = names_of_draws(problem)
        for name in keep:
            if name not in names:
                raise UnknownNameError("site to keep", name, names)


def _no_continuous_latents(problem: Problem, method: str) -> bool:
    from astrozoo.density import few_assignments, layout_of

    return layout_of(problem).dim == 0 and (method != "hmc" or few_assignments(problem))


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Result:
        return infer(*args, **options)

    def __getattr__(self, name: str) -> ModuleType:
        if name in registry.METHODS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Callable
