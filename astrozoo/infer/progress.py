"""Progress bars and clocks of runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from astrozoo.objective import Objective

__all__ = ["Clock", "Report", "progress_bar"]

Report = Callable[[int, str], None]
"""Called with the number of steps done and a short text."""


@contextmanager
def progress_bar(name: str, total: int, shown: bool) -> Iterator[Report]:
    """A bar on standard error, updated by calling what is yielded; nothing where that is no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


class Clock:
    """Seconds of running, without those of compiling an objective.

    Args:
        readings: earlier readings of a run that is continued; the clock continues from the last.
    """

    def __init__(self, objective: Objective, readings: Sequence[np.ndarray]) -> None:
        self.objective = objective
        earlier = np.asarray(readings)
        last = earlier[np.isfinite(earlier)].max() if np.isfinite(earlier).any() else 0.0
        self.offset = 0.0
        self.offset = last - self()

    def __call__(self) -> float:
        """The reading now."""
        return self.offset + time.monotonic() - self.objective.compile_seconds
