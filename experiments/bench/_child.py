"""Child processes of the benchmarks, each with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

__all__ = ["ChildError", "run_child"]


class ChildError(Exception):
    """A child process failed or took too long; the message says which."""


def run_child(arguments: Sequence[str], limit: float, **variables: str) -> tuple[float, str]:
    """Run Python in a new process.

    Args:
        arguments: of Python.
        limit: [s] the process and its children are ended after it.
        variables: added to the environment.

    Returns:
        Seconds from its start to its end, and its standard output.

    Raises:
        ChildError: on a time-out or an exit status other than 0.
    """
    environment: Mapping[str, str] = {**os.environ, **variables}
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"timed out after {limit:.0f} s") from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # its own children too, such as a compiler
            child.wait()
    seconds = time.monotonic() - began
    if child.returncode != 0:
        raise ChildError(f"failed with exit status {child.returncode} after {seconds:.0f} s")
    return seconds, out
