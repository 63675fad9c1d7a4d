"""A command that several processes run together: one folder, one bar, one message, one end."""

from __future__ import annotations

import _thread
import contextlib
import io
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from astrozoo._comm import Comm
from astrozoo._sharing import Kind, together
from astrozoo.dist.launcher import from_launcher
from astrozoo.errors import RankError

__all__ = ["end_together", "shared_command"]

AGREEMENT = 5.0
"""[s] After Ctrl-C, how long a rank waits for an evaluation at which all ranks stop with the same state. If
there is none (data are being read, a graph is being compiled), it ends without."""
REPEATED = 2.0
"""[s] Interrupts that follow the first within this time are copies: the terminal and the launcher each send
one."""
TURN = 1.0
"""[s] How long ranks other than the first wait before they report an error. If the first rank has the same
error, it has ended all of them by then."""
LAST_TURN = 3.0
"""[s] How long a rank that has lost another waits before it reports that. The rank with the cause reports
first."""

_COMM: list[Comm] = []
"""The processes that share the command of this process, for :func:`end_together`."""


@contextlib.contextmanager
def shared_command(shard: Kind, device: str, out: Path) -> Iterator[tuple[Comm, Path]]:
    """Inside this context all runs are shared by the processes of the launcher.

    Only the first process prints, and writes into ``out``; the others get a temporary folder. An interrupt
    ends the run of all processes at the same evaluation.

    Args:
        shard: what the processes divide.
        device: see :func:`astrozoo.dist.from_launcher`.

    Raises:
        InputError: no launcher started this process.
    """
    comm = from_launcher(device)
    _COMM[:] = [comm]
    with contextlib.ExitStack() as opened:
        if comm.rank > 0:
            out = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            opened.enter_context(contextlib.redirect_stdout(io.StringIO()))
        opened.enter_context(_stopping_together(comm))
        opened.enter_context(together(comm, shard))
        yield comm, out
    comm.barrier()


@contextlib.contextmanager
def _stopping_together(comm: Comm) -> Iterator[None]:
    first: list[float] = []

    def expire() -> None:
        if comm.interrupted:
            _thread.interrupt_main()

    def interrupt(number: int, frame: Any) -> None:
        if not first:
            first.append(time.monotonic())
            comm.interrupted = True
            timer = threading.Timer(AGREEMENT, expire)
            timer.daemon = True
            timer.start()
        elif time.monotonic() - first[0] > REPEATED:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_together(error: BaseException, code: int, say: Callable[[str], None], message: str) -> None:
    """Report the error of a shared command once, and end all its processes.

    Returns in a process that shares no command (yet).

    Args:
        say: prints a message.
    """
    for comm in _COMM:
        if isinstance(error, RankError) and "drifted" not in message:
            time.sleep(LAST_TURN)
        elif comm.rank > 0:
            time.sleep(TURN)
        say(message if comm.rank == 0 else f"rank {comm.rank}: {message}")
        sys.stdout.flush()
        sys.stderr.flush()
        comm.abort(code)
