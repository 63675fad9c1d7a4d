"""Periodic fields on a mesh, cut in slabs: Fourier transforms and rows of neighbours, over ``all_to_all``.

Rank r of n has the rows ``r X / n`` to ``(r + 1) X / n`` of the first axis of a field. Of its Fourier
transform it has all rows and a part of the second axis: one exchange between the transforms of the other
axes and that of the first. Slabs may differ by one row, and may be empty.

Everything is differentiable to any order (:mod:`astrozoo.dist.exchange`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from astrozoo._comm import Comm, chunk
from astrozoo.dist.exchange import exchange

__all__ = ["Slabs"]


@dataclass(frozen=True)
class Slabs:
    """How a mesh is cut.

    Args:
        comm: the ranks.
        shape: of the whole mesh.
    """

    comm: Comm
    shape: tuple[int, int, int]

    @property
    def rows(self) -> slice:
        """The rows of the first axis of a field that this rank has."""
        return chunk(self.shape[0], self.comm.size, self.comm.rank)

    @property
    def columns(self) -> slice:
        """The rows of the second axis of a Fourier transform that this rank has."""
        return chunk(self.shape[1], self.comm.size, self.comm.rank)

    def own(self, field: Shaped[Tensor, "*b x y z"]) -> Shaped[Tensor, "*b rows y z"]:
        """This rank's slab of a whole field."""
        return field[..., self.rows, :, :].contiguous()

    def whole(self, slab: Shaped[Tensor, "*b rows y z"]) -> Shaped[Tensor, "*b x y z"]:
        """The whole field on every rank. It has no derivative."""
        most = -(-self.shape[0] // self.comm.size)
        lead, sides = slab.shape[:-3], slab.shape[-2:]
        padded = slab.new_zeros(*lead, most, *sides)
        padded[..., : slab.shape[-3], :, :] = slab
        every = self.comm.all_gather(padded)
        cuts = (_length(chunk(self.shape[0], self.comm.size, rank)) for rank in range(self.comm.size))
        return torch.cat([every[rank][..., :n, :, :] for rank, n in enumerate(cuts)], -3)

    def transform(self, slab: Float[Tensor, "*b rows y z"]) -> Complex[Tensor, "*b x columns h"]:
        """The part of ``rfftn`` of the whole field that this rank has."""
        planes = torch.fft.rfft2(slab)
        return torch.fft.fft(self._turned(planes, -2, -3), dim=-3)

    def inverse(self, waves: Complex[Tensor, "*b x columns h"]) -> Float[Tensor, "*b rows y z"]:
        """This rank's slab of ``irfftn``."""
        planes = self._turned(torch.fft.ifft(waves, dim=-3), -3, -2)
        return torch.fft.irfft2(planes, s=self.shape[1:])

    def filter_bank(
        self, slab: Float[Tensor, "*b rows y z"], kernels: Shaped[Tensor, "m x columns h"]
    ) -> Float[Tensor, "*b m rows y z"]:
        """:func:`astrozoo.physics.fourier.filter_bank` of the whole field, of which this rank has a slab.

        Args:
            kernels: the part of each filter that belongs to :meth:`transform`. It has no gradient.
        """
        return _Filter.apply(slab, kernels, self, False)

    def with_halo(self, slab: Float[Tensor, "*b rows y z"], halo: int) -> Float[Tensor, "*b more y z"]:
        """The slab with ``halo`` rows of its neighbours before and after it. The mesh is periodic."""
        parts, shapes, places = self._rows_for_all(slab, halo)
        received = exchange(parts, shapes, self.comm)
        more = torch.cat(received, -3)
        return more.index_select(-3, torch.argsort(torch.cat(places)).to(slab.device))

    def fold(self, more: Float[Tensor, "*b more y z"], halo: int) -> Float[Tensor, "*b rows y z"]:
        """The adjoint of :meth:`with_halo`: rows beyond the slab are added to those of their owners."""
        size, rank = self.comm.size, self.comm.rank
        mine = self._wanted(rank, halo)
        parts, shapes, targets = [], [], []
        count = _length(self.rows)
        for other in range(size):
            place = self._places(mine, other)
            parts.append(more.index_select(-3, place.to(more.device)))
            wanted = self._wanted(other, halo)
            target = wanted[self._places(wanted, rank)] - self.rows.start
            shapes.append((*more.shape[:-3], len(target), *more.shape[-2:]))
            targets.append(target)
        received = exchange(parts, tuple(shapes), self.comm)
        slab = more.new_zeros(*more.shape[:-3], count, *more.shape[-2:])
        return slab.index_add(-3, torch.cat(targets).to(more.device), torch.cat(received, -3))

    def _turned(self, waves: Tensor, cut: int, joined: int) -> Tensor:
        """Cut an axis among ranks and join the one that was cut. Complex numbers travel as pairs."""
        size, rank = self.comm.size, self.comm.rank
        length, other = self.shape[cut], self.shape[joined]
        pairs = torch.view_as_real(waves.resolve_conj())
        cut, joined = cut - 1, joined - 1
        parts = [
            pairs.narrow(cut, c.start, _length(c)) for c in (chunk(length, size, r) for r in range(size))
        ]
        shape = list(pairs.shape)
        shape[cut] = _length(chunk(length, size, rank))
        shapes = []
        for r in range(size):
            shape[joined] = _length(chunk(other, size, r))
            shapes.append(tuple(shape))
        return torch.view_as_complex(torch.cat(exchange(parts, tuple(shapes), self.comm), joined))

    def _wanted(self, rank: int, halo: int) -> Int[Tensor, "more"]:
        """The rows of the mesh that a rank has with its halo."""
        rows = chunk(self.shape[0], self.comm.size, rank)
        return torch.arange(rows.start - halo, rows.stop + halo).remainder(self.shape[0])

    def _places(self, wanted: Int[Tensor, "more"], owner: int) -> Int[Tensor, "some"]:
        """Which of the wanted rows a rank owns."""
        rows = chunk(self.shape[0], self.comm.size, owner)
        return ((wanted >= rows.start) & (wanted < rows.stop)).nonzero()[:, 0]

    def _rows_for_all(self, slab: Tensor, halo: int) -> tuple[list[Tensor], Any, list[Tensor]]:
        size, rank = self.comm.size, self.comm.rank
        mine = self._wanted(rank, halo)
        parts, shapes, places = [], [], []
        for other in range(size):
            wanted = self._wanted(other, halo)
            chosen = wanted[self._places(wanted, rank)] - self.rows.start
            parts.append(slab.index_select(-3, chosen.to(slab.device)))
            place = self._places(mine, other)
            shapes.append((*slab.shape[:-3], len(place), *slab.shape[-2:]))
            places.append(place)
        return parts, tuple(shapes), places


class _Filter(torch.autograd.Function):
    """As that of :mod:`astrozoo.physics.fourier`: a bank of filters, or its adjoint."""

    @staticmethod
    def forward(x: Tensor, kernels: Tensor, slabs: Slabs, adjoint: bool) -> Tensor:
        waves = slabs.transform(x)
        product = (waves * kernels.conj()).sum(-4) if adjoint else waves.unsqueeze(-4) * kernels
        return slabs.inverse(product)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernels, ctx.slabs, ctx.adjoint = inputs
        ctx.save_for_backward(kernels)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        (kernels,) = ctx.saved_tensors
        return _Filter.apply(gradient[0], kernels, ctx.slabs, not ctx.adjoint), None, None, None


def _length(rows: slice) -> int:
    return rows.stop - rows.start
