"""Distributions whose code vmap refuses, in arithmetic that it accepts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["vmappable"]

# An operation without a batching rule is run row by row: right, if slow, and no reason for a warning.
torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]


def _ordered_logistic(
    self: Any, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None
) -> None:
    q = torch.sigmoid(cutpoints - predictor.unsqueeze(-1))
    self.predictor = predictor.expand(q.shape[:-1])
    self.cutpoints = cutpoints.expand(q.shape)
    p = torch.cat((q[..., :1], q[..., 1:] - q[..., :-1], 1 - q[..., -1:]), -1)
    super(dist.OrderedLogistic, self).__init__(p, validate_args=validate_args)


def _multinomial_log_prob(self: Any, value: Tensor) -> Tensor:
    logits, value = broadcast_all(self.logits, value)
    powers = torch.where(value == 0, 0.0, torch.where(value == 0, 0.0, logits) * value).sum(-1)
    return torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1) + powers


def _wishart_log_prob(self: Any, value: Tensor) -> Tensor:
    """By a Cholesky factor: the gradient of torch's determinant raises where one matrix is singular."""
    df, p, root = self.df, self.event_shape[-1], self._unbroadcasted_scale_tril
    log_det = 2 * torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    normaliser = df * (p * math.log(2) / 2 + root.diagonal(dim1=-2, dim2=-1).log().sum(-1))
    traced = torch.cholesky_solve(value, root).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (df - p - 1) / 2 * log_det - traced / 2 - normaliser - torch.mvlgamma(df / 2, p)


_REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (dist.OrderedLogistic, "__init__", _ordered_logistic),
    (torch.distributions.Multinomial, "log_prob", _multinomial_log_prob),
    (torch.distributions.Wishart, "log_prob", _wishart_log_prob),
)
"""Classes, names of their methods that do not run under vmap, and what replaces these."""


@contextmanager
def vmappable() -> Iterator[None]:
    """While it is active, the distributions above run under vmap. The caller has the lock of the process."""
    before = [getattr(owner, name) for owner, name, _ in _REPLACED]
    for owner, name, replacement in _REPLACED:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(_REPLACED, before, strict=True):
            setattr(owner, name, original)
