"""A model of the curvature that successive gradients keep up to date, in place of Hessians."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer._sampled import Sampled
from astrozoo.infer._trust_region_state import TrustRegionState
from astrozoo.infer.subproblem import subproblem_krylov

__all__ = ["Secant", "updated"]

DRIFT = 0.1
"""How far from where a Hessian was evaluated it still tells that a row has converged [posterior SDs]."""
SKIP = 1e-8
"""Least cosine between a step and what its curvature was wrong by, for an update."""


class Secant(Sampled):
    """Fixed draws with one gradient a step: ``state.curvature`` is a model of the Hessian.

    The model changes by symmetric rank-one updates, after accepted and after rejected steps. For a row that
    has no model yet, it is the Hessian. Near the maximum Newton steps are taken, because only their gain
    bounds the gain of every other step. If Hessians are dense, a Newton step evaluates the Hessian, which
    becomes the model. Otherwise it uses Hessian-vector products, preconditioned with the model.

    Args:
        near: predicted gain [nat] within the radius, below which a row is near its maximum.

    References:
        Conn, Gould & Toint 1991; Nocedal & Wright 2006, algorithm 6.2.
    """

    def __init__(self, *options: Any, near: float) -> None:
        super().__init__(*options)
        self.near = near
        self._asked: tuple[Tensor, ...] = ()

    def model(self, state: TrustRegionState, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step, its predicted gain and the objective, ``[b, p], [b], [b]``; NaN where derivatives are NaN."""
        self._evaluate(state, rows[state.curvature[rows].isnan().flatten(1).any(1)])
        value, g, _ = self._remembered(state, rows)
        radius = state.radius[rows]
        s, gain = self._solve(g, state.curvature[rows], radius)
        vague = (gain < self.near) & (torch.linalg.vector_norm(s, dim=1) < 0.9 * radius)
        vague &= state.levels[rows, 0] > 0
        if self.dense:
            vague &= state.moved[rows] > DRIFT
        if vague.any():
            s[vague], gain[vague] = self._newton(state, rows[vague], g[vague], radius[vague])
        self._asked = rows, g, s, gain
        return s, gain, value

    def accept(self, state: TrustRegionState, rows: Tensor, accepted: Tensor, changed: Tensor) -> None:
        """Update the model by the curvature along the steps, and the cache as :class:`Sampled` does."""
        asked, *columns = self._asked
        g, s, gain = (x[torch.searchsorted(asked, rows)] for x in columns)
        state.curvature[rows] = updated(state.curvature[rows], s, self._proposed[1] - g)
        state.moved[rows] += torch.where(accepted, (2 * gain).sqrt(), 0.0)
        super().accept(state, rows, accepted, changed)

    def hessian(self, state: TrustRegionState) -> Tensor:
        """The model at the end of the run."""
        return state.curvature

    def _newton(
        self, state: TrustRegionState, rows: Tensor, g: Tensor, radius: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Newton's step and its gain.

        With Hessian-vector products the step is at most one posterior SD long, by the SDs of the model.
        """
        if self.dense:
            self._evaluate(state, rows)
            return self._solve(g, state.curvature[rows], radius)
        root, failed = torch.linalg.cholesky_ex(-state.curvature[rows])
        root = torch.where(failed[:, None, None] > 0, torch.eye(g.shape[1]).to(root), root)

        def whitened(x: Tensor, some: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root[some], x[..., None], upper=False)[..., 0]

        def back(u: Tensor, some: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root[some].mT, u[..., None], upper=True)[..., 0]

        def product(u: Tensor, some: Tensor) -> Tensor:
            v, levels = back(u, some), state.levels[rows[some], 0]
            found = self.grouped(
                levels, lambda i, level: self._products(state, rows[some[i]], v[i], level)[:1]
            )
            return whitened(found[0], some)

        every = torch.arange(len(rows), device=rows.device)
        longest = torch.where(failed > 0, radius, 1.0)
        u, gain = subproblem_krylov(product, whitened(g, every), longest)
        return back(u, every), gain

    def _evaluate(self, state: TrustRegionState, rows: Tensor) -> None:
        """Evaluate the Hessians of some rows, and cache their values and gradients."""
        if not len(rows):
            return
        value, g, state.curvature[rows] = self.grouped(
            state.levels[rows, 0], lambda i, level: self._exact(state.w[rows[i]], rows[i], level)
        )
        state.moved[rows] = 0.0
        self.known |= dict(
            zip(rows.tolist(), zip(value, g, torch.zeros_like(value), strict=True), strict=True)
        )

    def _derivatives(self, w: Tensor, rows: Tensor, level: int) -> tuple[Tensor, ...]:
        return self._gradient(w, rows, level, 0)

    _ahead = _derivatives


def updated(
    H: Float[Tensor, "b p p"], s: Float[Tensor, "b p"], y: Float[Tensor, "b p"]
) -> Float[Tensor, "b p p"]:
    """``H`` plus the symmetric matrix of rank one for which the sum maps the step ``s`` to ``y``.

    ``y`` is the difference of the gradients along the step. ``H`` does not change if no such matrix exists,
    or if rounding errors dominate the matrix.
    """
    r = y - (H @ s[..., None])[..., 0]
    along = (r * s).sum(1)
    size = torch.linalg.vector_norm(r, dim=1) * torch.linalg.vector_norm(s, dim=1)
    sound = (along.abs() > SKIP * size) & r.isfinite().all(1)
    change = r[:, :, None] * (r / torch.where(sound, along, 1.0)[:, None])[:, None]
    return torch.where(sound[:, None, None], H + change, H)
