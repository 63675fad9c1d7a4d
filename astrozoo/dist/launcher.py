"""Which launcher started this process, and the :class:`Comm` that fits it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from astrozoo._comm import Comm
from astrozoo.dist.mpi import MpiComm
from astrozoo.dist.torch_comm import TorchComm
from astrozoo.errors import InputError

__all__ = ["from_launcher", "launcher"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
_MPI = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")
"""Variables that MPICH (and Intel MPI), PRRTE and Open MPI set in the processes that they start."""
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
"""Variables with the number of the process among those on its machine, by torchrun, MPICH, Open MPI, SLURM."""


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """ "torchrun", "mpiexec", or None for a process that was started on its own."""
    if all(name in environment for name in _TORCHRUN):
        return "torchrun"
    return "mpiexec" if any(name in environment for name in _MPI) else None


def from_launcher(device: torch.device | str = "cpu") -> Comm:
    """The Comm of the processes that ``torchrun`` or ``mpiexec`` started with this one.

    Args:
        device: "cpu", or "cuda" for the CUDA device of the number that this process has on its machine.

    Raises:
        InputError: this process was started by neither.
    """
    name = launcher()
    if name is None:
        raise InputError(
            "a run that is shared by processes",
            "a process without a launcher",
            "`torchrun --nproc-per-node N -m astrozoo ...` or `mpiexec -n N python -m astrozoo ...`",
        )
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        local = next((int(os.environ[variable]) for variable in _LOCAL if variable in os.environ), 0)
        device = torch.device("cuda", local % max(1, torch.cuda.device_count()))
    return TorchComm.initialise(device) if name == "torchrun" else MpiComm(device=device)
