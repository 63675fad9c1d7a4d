"""Coordinates in which a posterior is nearly a standard normal: those of a normal, with one bend.

A posterior of few dimensions is often a banana: the mean of some coordinates depends on the square of the
position ``t`` along one direction. The coordinates ``q = centre + root u + curve t^2`` straighten it. They
preserve volume, because the curve does not change ``t``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from astrozoo.infer import _metric, _operators
from astrozoo.infer._metric import DENSE_LIMIT, estimated
from astrozoo.infer._operators import Dense, Metric, Preconditioner
from astrozoo.infer.adam import AdamDirection

__all__ = ["Chart", "arrays", "bent", "flat", "padded", "restored"]

_FITTING = 100
"""Steps of Adam that fit a bend."""
_RATES = (0.1, 0.01)
"""First and last learning rate of these steps, for elements of a unit vector."""
_WORTHWHILE = 0.9
"""A bend is used if it reduces the Fisher divergence from a normal to less than this fraction, in chains that
it was not fitted to."""


@dataclass(frozen=True)
class Chart:
    """``q = centre + root u + curve t^2``, ``t = shift + along . u``, with ``along . root^-1 curve = 0``.

    Args:
        metric: the centre and the root.
    """

    metric: Metric
    curve: Float[Tensor, "B d"]
    along: Float[Tensor, "B d"]
    shift: Float[Tensor, "B"]

    def position(self, u: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``q`` of ``u``."""
        straight = self.metric.centre[:, None] + self.metric.velocity(u)
        return straight + self.curve[:, None] * self._place(u).square()

    def coordinates(self, q: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """``u`` of ``q``."""
        u = self.metric.whiten(q - self.metric.centre[:, None])
        return u - self.metric.whiten(self.curve[:, None]) * self._place(u).square()

    def force(self, g: Float[Tensor, "B C d"], u: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """The gradient with respect to ``u`` of a function whose gradient with respect to ``q`` is ``g``."""
        across = g @ self.curve[..., None]
        return self.metric.force(g) + 2 * self._place(u) * across * self.along[:, None]

    def take(self, rows: list[int]) -> Chart:
        """The chart of a subset of the problems."""
        return Chart(self.metric.take(rows), self.curve[rows], self.along[rows], self.shift[rows])

    def _place(self, u: Tensor) -> Float[Tensor, "B C 1"]:
        return self.shift[:, None, None] + u @ self.along[..., None]


def flat(metric: Metric) -> Chart:
    """The chart of a metric, without a bend."""
    none = torch.zeros_like(metric.centre)
    return Chart(metric, none, none, none[:, 0])


def padded(chart: Chart, discrete: int) -> Chart:
    """The chart with further coordinates at the end, which never move."""
    curve, along = (pad(x, (0, discrete)) for x in (chart.curve, chart.along))
    return Chart(_metric.padded(chart.metric, discrete), curve, along, chart.shift)


def arrays(chart: Chart) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint."""
    held = {f"chart_{n}": getattr(chart, n).cpu().numpy() for n in ("curve", "along", "shift")}
    return held | _operators.arrays(chart.metric)


def restored(
    held: Mapping[str, np.ndarray], device: torch.device, outer: Preconditioner | None = None
) -> Chart:
    """The chart that a checkpoint contains; ``outer`` as in :func:`astrozoo.infer._operators.restored`."""
    parts = [torch.as_tensor(held[f"chart_{n}"], device=device) for n in ("curve", "along", "shift")]
    return Chart(_operators.restored(held, device, outer), *parts)


def bent(metric: Metric, x: Float[Tensor, "B n d"], g: Float[Tensor, "B n d"]) -> Chart:
    """The chart of a metric with a bend that is fitted to draws and gradients, if that is closer to a normal.

    The bend minimises the Fisher divergence in the first half of the rows. It is used if it also has a
    smaller divergence than no bend in the other half. Above ``DENSE_LIMIT`` dimensions there is none.
    """
    if not isinstance(metric, Dense) or x.shape[2] > DENSE_LIMIT or x.shape[1] < 4 * x.shape[2]:
        return flat(metric)
    w, h = metric.whiten(x - metric.centre[:, None]), metric.force(g)
    v, c = _bend(w, h)
    inner: Any = estimated(*_straightened(w, h, v, c))
    curve = metric.velocity(c[:, None])[:, 0]
    centre = metric.centre + metric.velocity(inner.centre[:, None])[:, 0] - curve
    whole = Dense(centre, metric.root @ inner.root, inner.inverse @ metric.inverse)
    return Chart(whole, curve, inner.force(v[:, None])[:, 0], (v * inner.centre).sum(1))


def _straightened(w: Tensor, h: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Draws without the bend ``c (v . w)^2 - c``, and the gradients with respect to them."""
    t = w @ v[..., None]
    return w - c[:, None] * (t.square() - 1), h + 2 * t * (h @ c[..., None]) * v[:, None]


def _divergence(w: Tensor, h: Tensor, v: Tensor, c: Tensor) -> Float[Tensor, "B"]:
    """The Fisher divergence from a standard normal with any mean."""
    y, g = _straightened(w, h, v, c)
    return (y + g).var(1).sum(1)


def _bend(w: Float[Tensor, "B n d"], h: Float[Tensor, "B n d"]) -> tuple[Tensor, Tensor]:
    """A direction, and the bend across it, which is zero if it is not worthwhile."""
    half = w.shape[1] // 2
    start = torch.linalg.eigh(w.mT @ w)[1][..., -1]
    p = torch.stack((start, torch.zeros_like(start)))
    direction = AdamDirection(beta2=0.95)

    def parts(p: Tensor) -> tuple[Tensor, Tensor]:
        v = p[0] / p[0].norm(dim=1, keepdim=True)
        return v, p[1] - (p[1] * v).sum(1, keepdim=True) * v

    for i in range(_FITTING):
        with torch.enable_grad():
            p.requires_grad_()
            (slope,) = torch.autograd.grad(_divergence(w[:, :half], h[:, :half], *parts(p)).sum(), p)
        rate = _RATES[0] * (_RATES[1] / _RATES[0]) ** (i / _FITTING)
        p = p.detach() - rate * direction(slope)
    v, c = parts(p)
    after, before = (_divergence(w[:, half:], h[:, half:], v, bend) for bend in (c, torch.zeros_like(c)))
    return v, torch.where((after < _WORTHWHILE * before)[:, None], c, 0.0)
