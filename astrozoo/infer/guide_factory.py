"""Guide factories: their names in reports, and their identity in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from astrozoo import registry
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.infer.identity import content_of
from astrozoo.infer.options import RunOptions
from astrozoo.types import Problem, Result

__all__ = ["AroundMode", "checkpoint_header", "find_factory", "guide_name", "unwrapped"]


@dataclass(frozen=True)
class AroundMode:
    """A guide factory whose parameter ``around`` is the Laplace result at the best point of a search.

    The problem and the seed determine the result, so it is no part of the identity of a checkpoint:
    ``checkpoint_identity`` is all that counts (:mod:`astrozoo.infer.identity`).
    """

    factory: Callable[..., Any]
    around: Result

    def __call__(self, problem: Problem) -> Any:
        return self.factory(problem, around=self.around)

    @property
    def checkpoint_identity(self) -> Any:
        """What tells this factory from another."""
        return "around the mode of a search", self.factory


def find_factory(problem: Problem, guide: Any) -> Callable[[Problem], Any]:
    """The guide factory that a user chose, by a name of the problem's or the zoo's guides, or itself.

    Raises:
        UnknownNameError: for an unknown name.
        InputError: if it is neither a name nor a function.
    """
    if isinstance(guide, str):
        if guide in problem.guides:
            return problem.factory("guides", guide)
        if guide not in registry.GUIDES:
            raise UnknownNameError("guide", guide, {*problem.guides, *registry.GUIDES})
        return registry.guide(guide)
    if not callable(guide):
        raise InputError("guide", repr(guide), "a name, or a factory of Pyro guides")
    return guide


def unwrapped(guide: Any) -> Any:
    """The factory that the user chose, without the result of a search."""
    return guide.factory if isinstance(guide, AroundMode) else guide


def guide_name(guide: Any) -> str:
    """The name of a guide factory, for reports and checkpoints."""
    factory = unwrapped(guide)
    return getattr(factory, "__name__", type(factory).__name__)


def checkpoint_header(run: RunOptions, problem: Problem, guide: Any, objective: str) -> dict[str, Any]:
    """What a checkpoint records of the guide and the objective: their names, and hashes of their content.

    The hashes change with the code and the settings of the factories, so that the file of an edited guide is
    not continued.

    Returns:
        entries of the header; none for a run without a checkpoint.

    Raises:
        InputError: if a factory has content that cannot be hashed.
    """
    if run.checkpoint is None:
        return {}
    header = {"guide": guide_name(guide), "content of the guide": content_of("guide", guide)}
    header["objective"] = objective
    if objective in problem.objectives:
        factory = problem.factory("objectives", objective)
        header["content of the objective"] = content_of("objective", factory)
    return header
