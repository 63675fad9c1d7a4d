"""Tasks of a survey on Dask: a few at a time are with the scheduler, failures are tried again, then recorded.

Dask's scheduler replaces dead workers and runs their tasks again. What happens to a task that fails is
decided here: it is tried again, and then put into quarantine with its reason, and the others go on. A result
that cannot be written, as on a full disk, ends the run: all others would fail likewise.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from astrozoo.errors import AstrozooError, InputError, OutputError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["AHEAD", "Ended", "cluster", "run_tasks"]

AHEAD = 4
"""Tasks per worker that the scheduler has at a time. Workers never wait, and a survey of any size takes no
more of the scheduler's memory than a small one."""
_CONNECT = "20s"
"""Time in which a scheduler must answer. On a busy machine it takes seconds."""
_COUNT_INTERVAL = 5.0
"""[s] Time between two counts of the workers, which may come and go."""
_DEATHS = 3
"""Workers that may die during a task before it is given up: its memory may be what kills them."""


@dataclass(frozen=True)
class Ended:
    """How a task ended.

    Args:
        name: of the task.
        value: what it returned, if it did not fail.
        error: why it failed, in words.
        seconds: of its last run.
    """

    name: str
    value: Any = None
    error: str = ""
    seconds: float = 0.0


@contextmanager
def cluster(workers: int, scheduler: str | None = None, memory: str | None = None) -> Iterator[Client]:
    """A client of a running scheduler, or of workers on this machine, which end with it.

    Args:
        workers: processes to start, where no scheduler is given.
        scheduler: address of a running one, such as ``tcp://host:8786``.
        memory: of each worker, such as ``4GB``: above it, a worker is ended and its task runs again.

    Raises:
        InputError: the scheduler does not answer, or Dask is not installed.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError("survey", f"no module {error.name}", "pip install 'astrozoo[survey]'") from error
    quiet = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        "distributed.admin.tick.limit": "1h",
        "distributed.comm.timeouts.connect": _CONNECT,
    }
    with dask.config.set(quiet):
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout=_CONNECT)
            except (OSError, ValueError) as error:
                raise InputError(
                    "--scheduler", f"{scheduler} ({error})", "the address of a running one"
                ) from error
            with client:
                yield client
            return
        options: dict[str, Any] = {} if memory is None else {"memory_limit": memory}
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs="CRITICAL",
            **options,
        )
        with local, Client(local) as client:
            yield client


def run_tasks(
    client: Client,
    function: Callable[..., Any],
    tasks: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    retries: int = 1,
) -> Iterator[Ended]:
    """Run tasks, and yield how each ended, in the order in which they end.

    Args:
        client: of a cluster.
        function: called with the keywords of a task, in a worker. What it returns goes through the scheduler,
            and should be small.
        tasks: name and keywords of each; they are taken as workers become free.
        retries: how often a task that fails is tried again.

    Raises:
        OutputError: a task could not write its result. Tasks that have not ended are cancelled.
    """
    from distributed import as_completed

    waiting, tries = iter(tasks), itertools.count()
    running = as_completed()
    sent: dict[str, tuple[str, Mapping[str, Any], int, Any]] = {}
    threads, counted = 0, -math.inf

    def send(name: str, keywords: Mapping[str, Any], attempt: int) -> None:
        key = f"{name}-{next(tries)}-{os.getpid()}"
        future = client.submit(guarded, function, dict(keywords), key=key, pure=False)
        sent[key] = (name, keywords, attempt, future)
        running.add(future)

    def refill() -> None:
        nonlocal threads, counted
        if time.monotonic() - counted > _COUNT_INTERVAL:
            threads, counted = sum(client.nthreads().values()), time.monotonic()
        for name, keywords in itertools.islice(waiting, max(0 if sent else 1, AHEAD * threads - len(sent))):
            send(name, keywords, 0)

    try:
        refill()
        for future in running:
            name, keywords, attempt, _ = sent.pop(future.key)
            ended = _result(name, future)
            future.release()
            if ended.error and attempt < retries:
                send(name, keywords, attempt + 1)
                continue
            if ended.error and isinstance(ended.value, OutputError):
                raise OutputError(f"{name}: {ended.error}")
            refill()
            yield ended
    finally:
        client.cancel([future for *_, future in sent.values()], force=True)


def guarded(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: the function's value, or its error in words."""
    started = time.process_time()
    try:
        value = function(**keywords)
    except Exception as error:
        text = f"{error}" if isinstance(error, AstrozooError) else f"{type(error).__name__}: {error}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, AstrozooError) else f" ({frame.name}, line {frame.lineno})"
        return {"error": text + where, "output": isinstance(error, OutputError)}
    return {"value": value, "seconds": time.process_time() - started}


def _result(name: str, future: Any) -> Ended:
    """How a future ended: also one whose workers died."""
    if future.status == "finished":
        answer = future.result()
        if "error" in answer:
            return Ended(name, OutputError() if answer["output"] else None, answer["error"])
        return Ended(name, answer["value"], "", answer["seconds"])
    error = future.exception() if future.status == "error" else None
    if type(error).__name__ == "KilledWorker":
        return Ended(name, None, f"{_DEATHS + 1} workers died while they ran it (memory?)")
    return Ended(name, None, f"{future.status}: {error}")
