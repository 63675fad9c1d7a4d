"""The line of progress of a survey's stage: tasks, sources, sources per second, time left."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from astrozoo.infer.progress import progress_bar
from astrozoo.survey.sky.engine import Ended

__all__ = ["Progress"]

_NAMES = {"fields": "scanning fields", "first": "fitting boxes", "second": "fitting shifted boxes"}


class Progress:
    """Progress of the tasks of a stage.

    Args:
        stage: its name.
        total: number of tasks.
        done: how many an earlier run has done.
        shown: whether it is shown.
    """

    def __init__(self, stage: str, total: int, done: int, shown: bool) -> None:
        self.stage, self.total, self.earlier, self.shown = stage, total, done, shown
        self.done = self.failed = self.sources = 0
        self.stack = ExitStack()

    def __enter__(self) -> Progress:
        name = _NAMES.get(self.stage, self.stage)
        self._report = self.stack.enter_context(progress_bar(name, self.total, self.shown))
        self.started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def __call__(self, ended: Ended) -> None:
        """One task has ended."""
        self.done += 1
        self.failed += bool(ended.error)
        if isinstance(ended.value, dict):
            self.sources += int(ended.value.get("sources", 0))
        seconds = max(time.monotonic() - self.started, 1e-9)
        left = (self.total - self.earlier - self.done) * seconds / self.done
        text = f"{self.sources} sources, {self.sources / seconds:.1f} a second, {_duration(left)} left"
        if self.failed:
            text += f", {self.failed} failed"
        self._report(self.earlier + self.done, text)


def _duration(seconds: float) -> str:
    for limit, unit, name in ((5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds:.0f} s" if name == "min" and seconds < 90 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
