"""What "converged" means for an ensemble of Markov chains: one rule for status, report and summary."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.types import Status

__all__ = ["ensemble_status", "status_by_r_hat"]

R_HAT = 1.05
"""Split R-hat below which chains are taken to agree."""


def ensemble_status(
    z: Float[Tensor, "b c n d"], diverging: Tensor, discrete: Float[Tensor, "b c n e"] | None = None
) -> list[Status]:
    """Of each problem: by the split R-hat of its draws and its share of divergences.

    Args:
        z: unconstrained draws.
        discrete: indices of the values of discrete sites; those on which all draws agree have settled.
    """
    if z.shape[2] < 4:
        return [Status.BUDGET_SPENT] * len(z)
    return status_by_r_hat(_split_r_hat(z), diverging, discrete)


def status_by_r_hat(
    r_hats: Float[Tensor, "b d"], diverging: Tensor, discrete: Float[Tensor, "b c n e"] | None = None
) -> list[Status]:
    """The same rule, where the draws themselves are not in memory.

    Args:
        r_hats: split R-hat of each latent.
        diverging: of each draw, ``[b, c, n]``.
    """
    if diverging.shape[2] < 4:
        return [Status.BUDGET_SPENT] * len(r_hats)
    # NaN where nothing moved; a model of discrete latents alone has no column.
    r_hat = r_hats.amax(1) if r_hats.shape[1] else r_hats.new_ones(len(r_hats))
    if discrete is not None and discrete.shape[3]:
        agreed = (discrete == discrete[:, :1, :1]).flatten(1, 2).all(1)
        r_hat = torch.maximum(r_hat, torch.where(agreed, 1.0, _split_r_hat(discrete)).amax(1))
    share = diverging.to(r_hats.dtype).mean((1, 2))
    out = []
    for r, bad in zip(r_hat.tolist(), share.tolist(), strict=True):
        settled = r < R_HAT and bad < 0.01
        out.append(
            Status.CONVERGED if settled else Status.DIVERGED if bad > 0.1 or r != r else Status.BUDGET_SPENT
        )
    return out


def _split_r_hat(z: Float[Tensor, "b c n d"]) -> Float[Tensor, "b d"]:
    half = z.shape[2] // 2
    parts = torch.cat((z[:, :, :half], z[:, :, -half:]), 1)
    return (1 - 1 / half + parts.mean(2).var(1) / parts.var(2).mean(1)).sqrt()
