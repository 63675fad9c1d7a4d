"""The nouns shared by every room: :class:`Problem`, :class:`Status`, :class:`Result`, :class:`Outcome`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from astrozoo._problem import Problem, stack
from astrozoo._provenance import environment
from astrozoo._result import DENSE_COVARIANCE, Goodness, Result, Status, load

__all__ = [
    "DENSE_COVARIANCE",
    "Goodness",
    "Outcome",
    "Page",
    "Problem",
    "Result",
    "Status",
    "environment",
    "load",
    "stack",
]


@dataclass(frozen=True, eq=False)
class Page:
    """A section that a model adds to a report.

    Args:
        title: its heading.
        parts: in order, each a paragraph (``str``), a table (a sequence of one mapping per row), or a figure
            with its caption (``(matplotlib Figure, str)``).
    """

    title: str
    parts: Sequence[Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an entry's own job hands back to ``astrozoo run``.

    Args:
        result: saved as ``posterior.nc``.
        pages: sections for the report, before the general ones.
        summary: scalars and short strings, added to ``summary.json`` and shown on screen.
        files: names of the files that the job wrote into the output folder, each with a line on what it is.
    """

    result: Result
    pages: Sequence[Page] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
