"""Processes of MPI, by mpi4py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from astrozoo.dist.comm import Counting

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["MpiComm"]


class MpiComm(Counting):
    """A communicator of MPI. Tensors on a CUDA device are copied to the host and back.

    Args:
        comm: a communicator of mpi4py; None: that of all processes of ``mpiexec``.
        device: of this process.
    """

    def __init__(self, comm: MPI.Comm | None = None, device: torch.device | str = "cpu") -> None:
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD if comm is None else comm
        super().__init__(self.comm.Get_rank(), self.comm.Get_size(), device)

    def abort(self, code: int) -> None:
        """End all processes of MPI with an exit code."""
        self.comm.Abort(code)
        os._exit(code)  # Abort may return before this process is ended

    def _all_reduce(self, x: Tensor) -> Tensor:
        total = torch.empty_like(x, device="cpu")
        self.comm.Allreduce(x.cpu().numpy(), total.numpy())
        return total.to(x.device)

    def _all_gather(self, x: Tensor) -> Tensor:
        every = torch.empty((self.size, *x.shape), dtype=x.dtype)
        self.comm.Allgather(x.cpu().numpy(), every.numpy())
        return every.to(x.device)

    def _broadcast(self, x: Tensor, root: int) -> Tensor:
        content = x.cpu().clone()
        self.comm.Bcast(content.numpy(), root)
        return content.to(x.device)

    def _all_to_all(self, flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
        out = torch.empty(sum(received), dtype=flat.dtype)
        self.comm.Alltoallv((flat.cpu().numpy(), sent), (out.numpy(), received))
        return out.to(flat.device)

    def _barrier(self) -> None:
        self.comm.Barrier()
