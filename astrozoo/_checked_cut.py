"""Cuts of a problem's data that have been tried on its model: a private helper of :mod:`astrozoo.density`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from astrozoo._capture import Model
from astrozoo._parameters import Parameters
from astrozoo._plates import Cut
from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope
from astrozoo.errors import CaptureError
from astrozoo.types import Problem

__all__ = ["TRIED", "CheckedCut", "checked_cut"]

TRIED = 4
"""Elements of each plate on which a cut is tried: the fewest whose halves have more than one element."""


@dataclass(frozen=True)
class CheckedCut:
    """A cut that has been tried on the model.

    Args:
        cut: of the problem's arguments.
        local: latent sites inside the plates, whose values are cut with the data.
        discrete: discrete latent sites, inside the plates or not.
        parameters: of the model.
        inside: for each plate, the sites with a log probability inside it.
        axes: for each plate, the axis of the values of each of its latent sites that lies along it.
    """

    cut: Cut
    local: tuple[str, ...]
    discrete: tuple[str, ...]
    parameters: Parameters
    inside: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, Mapping[str, int]]


def checked_cut(problem: Problem, plates: Sequence[str]) -> CheckedCut:
    """The cut of a problem's data, after a check on a few elements of each of these plates.

    The check cuts those elements into halves. Inside the plate, the log probabilities of the halves must add
    up to that of the whole. Outside the plate, the log probability must not change.

    Raises:
        InputError: if the declaration leaves open which axes are cut.
        CaptureError: if a plate holds no site, or the parts do not add up, because a tensor that is cut is
            not data, data depend on one another, or the plate's size is fixed.
    """
    row = problem.args if problem.batch is None else rows_of(problem.args, 0)
    scope = Scope(problem.dtype, problem.device)
    named = isinstance(problem.data_plates, Mapping)
    cut = problem.cut(None if named else _lengths(problem, row, scope))
    few = {plate: torch.arange(min(TRIED, length)) for plate, length in cut.lengths.items()}
    few = {p: index for p, index in few.items() if p in plates or _reads(cut, p, row)}
    args = cut.take(row, few)
    generator = torch.Generator().manual_seed(0)
    local: list[str] = []
    inside: dict[str, tuple[str, ...]] = {}
    axes: dict[str, dict[str, int]] = {}
    with scope.drawing(), torch.no_grad(), ExitStack() as opened:
        try:
            model = Model(problem.model, [args], scope)
            z = torch.rand(model.layout.dim, generator=generator, dtype=problem.dtype) - 0.5
            values = model.layout.constrain(z.to(problem.device))
            values |= {d.name: d.first() for d in model.discrete}
            flat = model.parameters.initial(problem.dtype, problem.device)
            opened.enter_context(model.parameters.given(flat))
            whole = model.run(values, args)
        except (RuntimeError, ValueError, CaptureError) as error:
            raise CaptureError(
                f"data plates {list(few)} cannot be cut: with {TRIED} elements of each the model fails "
                f"({error}): a size is fixed in the model, or another tensor must be cut with these"
            ) from error
        for plate in plates:
            halves = [cut.take(row, few | {plate: rows}) for rows in few[plate].chunk(2)]
            _try(plate, model, values, whole, halves, few[plate].chunk(2))
            sites = {n: s for n, s in whole.nodes.items() if _in_plate(s, plate)}
            local += [n for n in sites if n in values]
            inside[plate] = tuple(sites)
            axes[plate] = {n: _axis(s, plate) for n, s in sites.items() if n in values}
    names = tuple(d.name for d in model.discrete)
    return CheckedCut(cut, tuple(dict.fromkeys(local)), names, model.parameters, inside, axes)


def _reads(cut: Cut, plate: str, args: tuple[Any, ...]) -> bool:
    """Whether the plate cuts a Dataset, which a model cannot take whole."""
    leaves = pytree.tree_leaves(args)
    return any(isinstance(leaves[at], Dataset) for at in cut.axes[plate])


def _lengths(problem: Problem, row: tuple[Any, ...], scope: Scope) -> dict[str, int]:
    """Lengths of the data plates, from a run of the model. A Dataset gives its length itself."""
    if problem.datasets:
        return {plate: len(problem.datasets[0]) for plate in problem.data_plates}  # type: ignore[arg-type]
    with scope.drawing(), torch.no_grad():
        nodes = poutine.trace(problem.model).get_trace(*row).nodes
    frames = {f.name: f.size for site in nodes.values() for f in site.get("cond_indep_stack", ())}
    for plate in problem.data_plates:
        if plate not in frames:
            raise CaptureError(f"there is no site in data plate {plate!r}; the model's are {sorted(frames)}")
    return {plate: frames[plate] for plate in problem.data_plates}


def _try(
    plate: str,
    model: Model,
    values: Mapping[str, Tensor],
    whole: poutine.Trace,
    halves: Sequence[tuple[Any, ...]],
    index: Sequence[Tensor],
) -> None:
    """Compare the halves of a plate with the whole; see the errors of :func:`checked_cut`.

    Args:
        halves: the arguments of each half.
        index: the elements of each half.
    """
    inside = [s for s in whole.nodes.values() if _in_plate(s, plate)]
    if not inside:
        known = {f.name for s in whole.nodes.values() for f in s.get("cond_indep_stack", ())}
        raise CaptureError(f"there is no site in data plate {plate!r}; the model's are {sorted(known)}")
    size = next(f.size for f in inside[0]["cond_indep_stack"] if f.name == plate)
    elements = sum(map(len, index))
    if size != elements:
        raise CaptureError(
            f"data plate {plate!r} cannot be cut: its size in the model stays {size} when the data have "
            f"{elements} elements; take it from the shape of the data"
        )
    axes = {n: _axis(s, plate) for n, s in whole.nodes.items() if n in values and _in_plate(s, plate)}
    expected = _split(whole, plate)
    parts = []
    for rows, args in zip(index, halves, strict=True):
        chosen = {
            name: value.index_select(axes[name], rows.to(value.device)) if name in axes else value
            for name, value in values.items()
        }
        try:
            part = model.run(chosen, args)
        except (RuntimeError, ValueError) as error:
            raise CaptureError(f"data plate {plate!r} cannot be cut: {error}") from error
        parts.append(_split(part, plate))
    got = torch.stack([torch.stack([p[0] for p in parts]).sum(), *[p[1] for p in parts]])
    wanted = torch.stack([expected[0], *[expected[1]] * len(parts)])
    tolerance = 1e-6 if got.dtype == torch.float64 else 1e-4
    if not torch.allclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise CaptureError(
            f"data plate {plate!r} cannot be cut: the parts of the log likelihood do not add up to "
            "the whole; a tensor that is not data is cut, one that is data is not, or data depend on one "
            'another. Declare the axes that are cut, as in data_plates={"data": {"x": 0, "y": 0}}'
        )


def _axis(site: Any, plate: str) -> int:
    """The axis of a site's value that lies along a plate."""
    frame = next(f for f in site["cond_indep_stack"] if f.name == plate)
    if frame.dim is None:
        raise CaptureError(f"site {site['name']!r} lies in the sequential plate {plate!r}: vectorise it")
    return site["value"].ndim - len(site["fn"].event_shape) + frame.dim


def _split(of: poutine.Trace, plate: str) -> tuple[Tensor, Tensor]:
    """Log probability inside the plate and outside it."""
    zero = torch.zeros(())
    sites = [s for s in of.nodes.values() if "log_prob_sum" in s]
    inside = sum((s["log_prob_sum"] for s in sites if _in_plate(s, plate)), zero)
    return inside, sum((s["log_prob_sum"] for s in sites if not _in_plate(s, plate)), zero)


def _in_plate(site: Any, plate: str) -> bool:
    return any(f.name == plate for f in site.get("cond_indep_stack", ())) and "log_prob_sum" in site
