"""Log likelihoods, log priors and replicated data of the draws of a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from astrozoo._capture import Model
from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem, Result

__all__ = ["predictive"]

_CHUNK = 100
"""Draws that the model is run for at once, at most."""
NUMBERS_AT_ONCE = 2**22
"""Numbers in the draws or in the results of one such run, at most: 32 MiB in double precision, of which the
model's intermediate results take ten to thirty times as much."""
MAX_NUMBERS = 60_000_000
"""Numbers in the groups of all draws together, at most: 480 MB in double precision, which any laptop has."""


def predictive(problem: Problem, result: Result, *, seed: int = 0, most: int = 1000) -> Result:
    """The same result with its groups ``observed``, ``log_likelihood``, ``log_prior`` and ``predictive``.

    The model is run once for every draw (vectorised). The result has the log probability of each element,
    ``[chain, draw, (problem), *shape of the plates]``, and a new draw of each observed site.

    A likelihood that cannot be drawn from in batches has no replicated data; ``stats["notes"]`` reports it.

    Args:
        problem: the problem of ``result``.
        result: a result with draws.
        seed: seed of the replicated data.
        most: greatest number of draws to use. If there are more, evenly spaced draws of every chain are used.

    The groups together have at most ``MAX_NUMBERS`` numbers. Fewer draws are used where all would give more.
    If one draw of each chain gives more, only ``observed`` is filled in. ``stats["notes"]`` reports both.

    Raises:
        InputError: the result is of another problem, or lacks draws of a latent site.
        CaptureError: the model cannot be run in batches.
    """
    if result.digest != problem.digest:
        raise InputError("result", f"one of problem {result.digest}", f"one of problem {problem.digest}")
    if most < 1:
        raise InputError("most", most, "1 or more")
    scope = Scope(problem.dtype, problem.device)
    first = rows_of(problem.args, 0) if problem.batch is not None else problem.args
    model = Model(problem.model, [first], scope)
    latents = [s.name for s in model.layout.sites] + [d.name for d in model.discrete]
    missing = sorted(set(latents) - result.draws.keys())
    if missing:
        raise InputError("draws", f"none of {missing}", "draws of all latent sites")
    draws = {name: result.draws[name] for name in latents}
    chains = len(next(iter(draws.values())))
    rows = problem.batch or 1
    if sorted(result.parameters) != sorted(model.parameters.names):
        raise InputError("parameters of the result", sorted(result.parameters), f"{model.parameters.names}")
    flat = torch.zeros(rows, 0, dtype=problem.dtype, device=problem.device)
    if model.parameters:
        flat = model.parameters.unconstrain(result.parameters, flat).expand(rows, -1)

    def tensors(chosen: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        like: Any = {"dtype": problem.dtype, "device": problem.device}
        return {name: torch.as_tensor(x, **like).flatten(0, 1) for name, x in chosen.items()}

    first_draw = tensors({name: x[:1, :1] for name, x in draws.items()})
    with scope.drawing(seed), torch.no_grad():
        observed = _observed(model, {k: v[0] for k, v in first_draw.items()}, flat, problem)
        groups, _ = _run(model, first_draw, flat, problem, at_once=1)
    size = sum(x.numel() for sites in groups.values() for x in sites.values())
    fitting = MAX_NUMBERS // max(1, size)  # draws
    found: dict[str, dict[str, Tensor]] = {}
    notes: list[str] = []
    wanted = min(_count(draws, most), fitting) // chains * chains if fitting >= chains else 0
    if wanted < _count(draws, most):
        reason = f"of a draw they are {size} numbers, and at most {MAX_NUMBERS} in all are computed"
        made = f"of {wanted} draws only" if wanted else "omitted"
        notes.append(f"log likelihoods and replicated data are {made}: {reason}")
    if wanted:
        thin = {name: _thinned(x, wanted) for name, x in draws.items()}
        kept = next(iter(thin.values())).shape[1]
        values = tensors(thin)
        widest = max(size, sum(x[0].numel() for x in values.values()))
        at_once = max(1, min(_CHUNK, NUMBERS_AT_ONCE // max(1, widest)))
        with scope.drawing(seed), torch.no_grad():
            found, unreplicated = _run(model, values, flat, problem, at_once=at_once)
        notes += unreplicated
    shaped: dict[str, Any] = {
        group: {name: x.unflatten(0, (chains, kept)).cpu().numpy() for name, x in sites.items()}
        for group, sites in found.items()
    }
    data = {name: x.cpu().numpy() for name, x in observed.items()}
    stats = {**result.stats, "notes": [*result.stats.get("notes", ()), *notes]} if notes else result.stats
    return replace(result, observed=data, stats=stats, **shaped)


def _count(draws: Mapping[str, np.ndarray], most: int) -> int:
    """Draws that are evaluated if memory is no concern: whole numbers of every chain."""
    chains, per_chain = next(iter(draws.values())).shape[:2]
    return chains * min(per_chain, max(1, most // chains))


def _thinned(draws: np.ndarray, most: int) -> np.ndarray:
    per_chain = max(1, most // len(draws))
    if draws.shape[1] <= per_chain:
        return draws
    return draws[:, np.linspace(0, draws.shape[1] - 1, per_chain).round().astype(int)]


def _run(
    model: Model, values: Mapping[str, Tensor], parameters: Tensor, problem: Problem, *, at_once: int
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """By group and site, ``[draw, (problem), ...]``, and a note on each site without replicated data."""
    notes: dict[str, str] = {}

    def run_draw(
        given: dict[str, Tensor], flat: Tensor, args: tuple[Any, ...]
    ) -> dict[str, dict[str, Tensor]]:
        with model.parameters.given(flat):
            sites: Any = model.run(given, args).nodes
        out: dict[str, dict[str, Tensor]] = {"log_likelihood": {}, "log_prior": {}, "predictive": {}}
        for name, site in sites.items():
            if site["type"] != "sample" or site_is_subsample(site) or name in model.derived:
                continue
            group = "log_prior" if name in given else "log_likelihood"
            out[group][name] = site["log_prob"]
            if name not in given and _has_data(site):
                try:
                    out["predictive"][name] = site["fn"].sample().to(site["value"].dtype)
                except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                    reason = str(error).strip().split("\n")[0]
                    notes[name] = f"no replicated data of {name!r}: {type(site['fn']).__name__}: {reason}"
        return out

    leaves, spec = pytree.tree_flatten(problem.args)
    dims = [0 if isinstance(leaf, Tensor) else None for leaf in leaves]
    over: Any = run_draw
    if problem.batch is not None:
        in_dims = (0, 0, pytree.tree_unflatten(dims, spec))
        over = vmap(run_draw, in_dims=in_dims, randomness="different")
    over = vmap(over, in_dims=(0, None, None), randomness="different")
    flat = parameters[0] if problem.batch is None else parameters
    total = len(next(iter(values.values())))
    found: dict[str, dict[str, Tensor]] = {}
    try:
        for i in range(0, total, at_once):
            part = over({n: x[i : i + at_once] for n, x in values.items()}, flat, problem.args)
            for group, sites in part.items():
                whole = found.setdefault(group, {})
                for name, x in sites.items():
                    if name not in whole:
                        whole[name] = x.new_empty(total, *x.shape[1:])
                    whole[name][i : i + len(x)] = x
    except (RuntimeError, NotImplementedError) as error:
        raise CaptureError(f"the model cannot be run for many draws at once: {error}") from error
    return found, list(notes.values())


def _has_data(site: Any) -> bool:
    """True at an observed site, except a ``pyro.factor``, which has a density but no data."""
    return site["is_observed"] and hasattr(site["fn"], "has_rsample") and site["value"].numel() > 0


def _observed(
    model: Model, values: Mapping[str, Tensor], parameters: Tensor, problem: Problem
) -> dict[str, Tensor]:
    rows = range(problem.batch) if problem.batch is not None else [None]
    observed = []
    for row in rows:
        args = problem.args if row is None else rows_of(problem.args, row)
        given = values if row is None else {name: x[row] for name, x in values.items()}
        with model.parameters.given(parameters[row or 0]):
            nodes: Any = model.run(given, args).nodes
        values_of_row = {
            name: site["value"]
            for name, site in nodes.items()
            if site["type"] == "sample"
            and name not in given
            and name not in model.derived
            and not site_is_subsample(site)
            and _has_data(site)
        }
        observed.append(values_of_row)
    if problem.batch is None:
        return observed[0]
    return {name: torch.stack([sites[name] for sites in observed]) for name in observed[0]}
