"""A limit on the time that a piece of code of another library may take in this process."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["time_limit"]


class _Expired(BaseException):
    """Raised in the middle of the code. It is no Exception, so that the code does not handle it itself."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End the code inside this context after so many seconds.

    In the main thread it is ended by the alarm signal, also while it waits for another process. In any other
    thread (and on Windows) it is ended when it next runs Python code.

    Raises:
        TimeoutError: if the time is over.
    """
    in_main = threading.current_thread() is threading.main_thread()
    limited = _by_signal if in_main and hasattr(signal, "setitimer") else _by_thread
    try:
        with limited(seconds):
            yield
    except _Expired:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def expire(number: int, frame: FrameType | None) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # a timer of the user's, which now rings late by the time that the code took
            signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    lock, over = threading.Lock(), False

    def expire() -> None:
        with lock:
            if not over:
                raise_in(thread, ctypes.py_object(_Expired))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
            raise_in(thread, None)  # an exception that has been set and not yet raised
        timer.cancel()
