"""How OpenMP threads wait for one another, set before torch loads its OpenMP runtime.

By default a thread that waits at the end of a parallel loop spins. On a machine whose cores are shared it
then spins for a thread that is not running at all, and a fit takes five times as long. Waiting threads
sleep instead, unless the user has chosen otherwise.
"""

from __future__ import annotations

import os
import sys

__all__ = ["let_threads_sleep"]

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables with which a user chooses how threads wait. None of them is ever replaced."""


def let_threads_sleep() -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE``, unless the user has chosen a policy or torch is loaded already.

    OpenMP reads the variable when it is loaded, with torch. A program that imports torch before astrozoo sets
    the variable itself.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
