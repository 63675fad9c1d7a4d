"""Guides of one galaxy, or of each galaxy of a batch, that start from the encoder's posterior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from astrozoo.guides.refined import Refined, RefinedIaf, RefinedNormal
from astrozoo.models.psf_vae import Start
from astrozoo.types import Problem

__all__ = ["encoder", "encoder_iaf"]


class _FromStart(Refined):
    """The approximation is the problem's :class:`Start`: the normal at the mode near the encoder's mean."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(*problem.args[1])
        self.sizes = {name: torch.as_tensor(value).shape[-1] for name, value in problem.start.items()}

    def approximation(self, exposures: Any, start: Start) -> tuple[Tensor, Tensor]:
        return start.mean, start.root

    def sites(self, z: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, z.split(list(self.sizes.values())), strict=True))


class _Normal(_FromStart, RefinedNormal):
    pass


class _Iaf(_FromStart, RefinedIaf):
    pass


def encoder(problem: Problem) -> _Normal:
    """A full-rank normal in coordinates that are whitened by the start. It begins as the start."""
    return _Normal(problem)


def encoder_iaf(problem: Problem) -> _Iaf:
    """An inverse autoregressive flow in the same coordinates, for curved posteriors. It begins as the
    start."""
    return _Iaf(problem)
