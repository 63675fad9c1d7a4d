"""Which launcher started this process, from its environment. Importing this file imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from astrozoo.errors import InputError

__all__ = ["check_alone", "launcher", "local_rank", "rank_of_launcher"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
_MPI = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")
"""Variables that MPICH (and Intel MPI), PRRTE and Open MPI set in the processes that they start."""
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
"""Variables with the number of the process on its machine, of torchrun, MPICH, Open MPI and SLURM."""
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Variables with the number of processes."""
_RANK = ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Variables with the number of the process, of the same launchers."""


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """ "torchrun", "mpiexec", or None for a process that was started on its own."""
    if all(name in environment for name in _TORCHRUN):
        return "torchrun"
    return "mpiexec" if any(name in environment for name in _MPI) else None


def rank_of_launcher() -> int | None:
    """The number that the launcher gave this process; None without a launcher."""
    if launcher() is None:
        return None
    return next((int(os.environ[variable]) for variable in _RANK if variable in os.environ), 0)


def local_rank() -> int:
    """The number of this process among those of the launcher on its machine."""
    return next((int(os.environ[variable]) for variable in _LOCAL if variable in os.environ), 0)


def check_alone() -> None:
    """Check that a command without ``--shard`` is not run by several processes.

    Raises:
        InputError: it is.
    """
    size = max(int(os.environ.get(name, "1")) for name in _SIZE)
    if launcher() is not None and size > 1:
        expected = "--shard data, chains or problems: without it each process would do the same work"
        raise InputError("--shard", f"none, in {size} processes of {launcher()}", expected)
