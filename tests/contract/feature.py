"""One feature of Pyro: a small model that uses it, and what every method owes for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

F64 = torch.float64
ALL = "*"

Moments = tuple[Any, Any]
"""Mean and SD of a site, scalars or arrays of its shape."""


@dataclass(frozen=True)
class Feature:
    """A model, and its exact answer by a closed form or by quadrature of a density written out by hand.

    Args:
        expected: site -> exact mean and SD of its posterior.
        refused: method, or "*" for all -> pattern of the message of the CaptureError.
        heavy: the posterior has heavier tails than any normal approximation, so that importance weights of
            approximations have no variance; only their draws' finiteness is checked.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    expected: Mapping[str, Moments] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    heavy: bool = False

    def reason(self, method: str) -> str | None:
        """The pattern of the refusal by this method, or None."""
        return self.refused.get(method, self.refused.get(ALL))


def tensor(*values: Any) -> torch.Tensor:
    """In double precision."""
    return torch.tensor(values, dtype=F64)


def normal(mean: float, precision: float, data: Any = (), data_precision: float = 0.0) -> Moments:
    """Posterior of the mean of normal data under a normal prior."""
    total = precision + len(data) * data_precision
    return (mean * precision + data_precision * float(np.sum(data))) / total, total**-0.5


def of(distribution: Any) -> Moments:
    """Of a distribution of ``scipy.stats``."""
    return distribution.mean(), distribution.std()


def integral(log_p: Callable[[Any], Any], low: float, high: float, of: Any = None) -> Moments:
    """Mean and SD of ``x`` (or of a function of it) under an unnormalised density, by the midpoint rule."""
    edges = np.linspace(low, high, 20_001)
    x = (edges[1:] + edges[:-1]) / 2
    log = log_p(x)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    value = x if of is None else of(x)
    mean = (weight * value).sum()
    return mean, np.sqrt((weight * (value - mean) ** 2).sum())


def integral_2d(log_p: Callable[[Any, Any], Any], x: tuple[float, float], y: tuple[float, float]) -> Any:
    """Mean and SD of both coordinates of a density on a rectangle, by the midpoint rule."""
    n = 1500
    grid = [np.linspace(a, b, 2 * n + 1)[1::2] for a, b in (x, y)]
    X, Y = np.meshgrid(*grid, indexing="ij")
    log = log_p(X, Y)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    means = [(weight * v).sum() for v in (X, Y)]
    sds = [np.sqrt((weight * (v - m) ** 2).sum()) for v, m in zip((X, Y), means, strict=True)]
    return tuple(zip(means, sds, strict=True))


def discrete(weights: Mapping[Any, float]) -> Moments:
    """Mean and SD of a value (a scalar or a tuple) with these unnormalised probabilities."""
    values = np.asarray([np.asarray(value, dtype=float) for value in weights])
    p = np.asarray(list(weights.values()))
    p = (p / p.sum()).reshape(-1, *[1] * (values.ndim - 1))
    mean = (p * values).sum(0)
    return mean, np.sqrt((p * (values - mean) ** 2).sum(0))
