"""The :class:`Comm` that fits the launcher of this process."""

from __future__ import annotations

import torch

from astrozoo._comm import Comm
from astrozoo._launcher import launcher, local_rank
from astrozoo.dist.mpi import MpiComm
from astrozoo.dist.torch_comm import TorchComm
from astrozoo.errors import InputError

__all__ = ["from_launcher"]


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
        device = torch.device("cuda", local_rank() % max(1, torch.cuda.device_count()))
    return TorchComm.initialise(device) if name == "torchrun" else MpiComm(device=device)
