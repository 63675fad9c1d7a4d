"""Processes that share one run: implementations of :class:`Comm`, and fields that are cut in slabs.

``astrozoo.infer(problem, comm=comm, shard="data")`` takes any of them:

* :class:`Alone`: one process.
* :class:`TorchComm`: processes of ``torchrun``; gloo on CPUs, NCCL on CUDA devices.
* :class:`MpiComm`: processes of ``mpiexec``, by mpi4py.

:func:`from_launcher` makes the one that fits the launcher of this process. Inside :func:`together` all runs
are shared.
"""

from __future__ import annotations

from astrozoo._comm import Comm
from astrozoo._sharing import together
from astrozoo.dist.comm import Alone
from astrozoo.dist.launcher import from_launcher
from astrozoo.dist.mpi import MpiComm
from astrozoo.dist.torch_comm import TorchComm

__all__ = ["Alone", "Comm", "MpiComm", "TorchComm", "from_launcher", "together"]
