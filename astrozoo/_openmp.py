"""How many OpenMP threads there are and how they wait, set before torch loads its OpenMP runtime.

By default a thread that waits at the end of a parallel loop spins. On a machine whose cores are shared it
then spins for a thread that is not running at all, and a fit takes five times as long. Waiting threads
sleep instead, unless the user has chosen otherwise.

OpenMP starts one thread for each core of the process's CPU affinity, but it does not know the CPU quota of a
container. Threads beyond the quota are stopped for a part of every period, and all others wait for them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

__all__ = ["available_cores", "let_threads_sleep", "limit_threads"]

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables with which a user chooses how threads wait. None of them is ever replaced."""


def let_threads_sleep() -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE``, unless the user has chosen a policy or torch is loaded already.

    OpenMP reads the variable when it is loaded, with torch. A program that imports torch before astrozoo sets
    the variable itself.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables with which a user chooses the number of threads. None of them is ever replaced."""


def limit_threads() -> None:
    """Set ``OMP_NUM_THREADS`` if the CPU quota is less than the CPU affinity.

    It is left alone if the user has chosen a number, or if torch is loaded already: then its number of
    threads may be the user's choice.
    """
    if "torch" in sys.modules or any(name in os.environ for name in COUNTS):
        return
    cores = available_cores()
    if cores < _affinity():
        os.environ["OMP_NUM_THREADS"] = str(cores)


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: of its CPU affinity and of its cgroup's quota the smaller one.

    Args:
        root: of the file system. A group may use no more than any group that contains it.
    """
    quotas = []
    cgroups = root / "proc/self/cgroup"
    for line in cgroups.read_text(encoding="utf-8").splitlines() if cgroups.is_file() else []:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # version 2: one tree for all controllers
        group = PurePosixPath(name.lstrip("/"))
        quotas += [_quota(mount / parent) for parent in (group, *group.parents)]
        if controllers:  # the tree may have a link named for one controller only
            quotas += [_quota(root / "sys/fs/cgroup/cpu" / parent) for parent in (group, *group.parents)]
    return max(1, int(min([float(_affinity()), *quotas])))


def _affinity() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(group: Path) -> float:
    """Cores' worth of time that a cgroup may use; infinite if nothing limits it."""
    if (group / "cpu.max").is_file():  # version 2
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    elif (group / "cpu.cfs_quota_us").is_file():  # version 1
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((group / name).read_text(encoding="utf-8").strip() for name in names)
    else:
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
