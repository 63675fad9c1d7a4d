"""Exception types, and the policy of which is raised when.

* A bad input is an exception, raised before any long work, that says what it is about, what was got and
  what was expected: :class:`InputError`, or :class:`DataError` when the fault lies in a file.
* A name that the zoo does not know is an :class:`UnknownNameError`, which suggests the nearest one.
* A model or guide that cannot be turned into pure functions is a :class:`CaptureError`.
* Results that cannot be written are an :class:`OutputError`.
* Processes that share a run and cannot continue it together are a :class:`RankError`.
* A *statistical* failure (divergence, no convergence, a spent budget) is never an exception: it is a
  :class:`astrozoo.types.Status` in the result, unless the caller asks for ``throw=True``, which raises
  :class:`InferenceError`.

Every one derives from :class:`AstrozooError`; the command line prints its message in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AstrozooError",
    "CaptureError",
    "DataError",
    "InferenceError",
    "InputError",
    "OutputError",
    "RankError",
    "UnknownNameError",
]


class AstrozooError(Exception):
    """Base of every error that astrozoo raises on purpose."""


class InputError(AstrozooError, ValueError):
    """A bad argument: ``what`` it is about, what was ``got``, what was ``expected``."""

    def __init__(self, what: str, got: object, expected: str) -> None:
        self.what, self.got, self.expected = what, got, expected
        super().__init__(f"{what}: got {got}, expected {expected}")


class DataError(InputError):
    """A file is missing, truncated or holds something other than it should."""


class UnknownNameError(AstrozooError, LookupError):
    """A model, guide, method or data set of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(self.known) or 'none'}")


class CaptureError(AstrozooError):
    """A model or guide cannot be turned into pure functions of a flat vector."""


class InferenceError(AstrozooError):
    """A run did not converge and the caller asked for ``throw=True``."""


class OutputError(AstrozooError, OSError):
    """A result cannot be written (no permission, disk full)."""


class RankError(AstrozooError, RuntimeError):
    """A process of a shared run has ended, cannot be reached, or no longer agrees with the others."""
