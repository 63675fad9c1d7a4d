"""Progress bars and clocks of runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from astrozoo._compile import announcing
from astrozoo.objective import Objective

__all__ = ["Clock", "Report", "progress_bar"]

Report = Callable[[int, str], None]
"""Called with the number of steps done and a short text."""

LINE_INTERVAL = 20.0
"""Time between two lines of progress where there is no terminal [s]: at most 180 lines an hour."""


@contextmanager
def progress_bar(name: str, total: int, shown: bool) -> Iterator[Report]:
    """A bar on standard error, updated by calling what is yielded.

    Where standard error is not a terminal, a line is printed every :data:`LINE_INTERVAL` seconds instead. A
    compilation meanwhile prints a line when it begins and one when it ends.
    """
    if not shown:
        yield lambda done, text: None
        return
    with announcing(lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)):
        if sys.stderr.isatty():
            with _bar(name, total) as report:
                yield report
        else:
            yield _Lines(name, total)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Report]:
    """A bar of rich, above which other lines are printed."""
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


class _Lines:
    """Progress as lines of text, for logs: one each :data:`LINE_INTERVAL` at most, none in a short run."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, text: str) -> None:
        now = time.monotonic()
        if now - self.printed >= LINE_INTERVAL:
            self.printed = now
            line = f"{self.name}: {done} of {self.total}, {now - self.started:.0f} s"
            print(f"{line}, {text}" if text else line, file=sys.stderr, flush=True)


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
