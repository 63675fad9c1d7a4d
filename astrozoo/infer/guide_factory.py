"""Guide factories: their names in reports, and their identity in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from astrozoo import registry
from astrozoo._content_hash import content_hash
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.infer.options import RunOptions
from astrozoo.types import Problem, Result

__all__ = ["AroundMode", "checkpoint_header", "content_of", "find_factory", "guide_name", "unwrapped"]


@dataclass(frozen=True)
class AroundMode:
    """A guide factory whose parameter ``around`` is the Laplace result at the best point of a search.

    The problem and the seed determine the result, so it is no part of the identity of a checkpoint.
    """

    factory: Callable[..., Any]
    around: Result

    def __call__(self, problem: Problem) -> Any:
        return self.factory(problem, around=self.around)


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


def content_of(what: str, factory: Any) -> str:
    """A hash of a factory's code and settings.

    Args:
        what: "guide" or "objective", for messages.

    Raises:
        InputError: if it has content that cannot be hashed.
    """
    try:
        return content_hash(_content(factory))[:16]
    except InputError as error:
        expected = f"content that can be hashed, by which the checkpoint recognises the {what}"
        raise InputError(what, error.got, f"{expected}; or a run without checkpoint=") from error


def _content(value: Any) -> Any:
    """The parts of a factory that determine the guide.

    A Result counts by its numbers: the seconds that its run took differ from one process to the next.
    """
    if isinstance(value, AroundMode):
        return "around the mode of a search", _content(value.factory)
    if isinstance(value, partial):
        keywords = {name: _content(item) for name, item in value.keywords.items()}
        return _content(value.func), tuple(_content(item) for item in value.args), keywords
    if isinstance(value, Result):
        return {name: getattr(value, name) for name in _NUMBERS}
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    return value


_NUMBERS = ("draws", "location", "covariance", "variance", "guide_parameters")
"""Fields of a Result that a guide can be built from."""
