"""Steps of Newton's method in the parameters of all overlapping sources at once.

Sources that overlap converge slowly when they are fitted in turn: if the errors of two are correlated with
coefficient rho, the remaining error shrinks by rho^2 per sweep. A joint step does not have this limit.

Light is additive, so the cross terms of the log density's Hessian are products of the derivatives of the
sources' light, and sums over sources can be made in the images of the field. The step is computed by a Krylov
method. Each Hessian-vector product paints the changes of all sources' light and reads the total in every
patch. The preconditioner is the curvature of each source alone.

The light of a source is the mean of the light of its two types, weighted by their probabilities. Each type
has separate parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from astrozoo.infer.subproblem import subproblem_krylov
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.canvas import Canvas
from astrozoo.survey.celeste.modes import BATCH, KINDS, Modes

__all__ = ["settle"]

_MAX_STEP = 10.0
"""Longest step of a source [standard deviations, given its neighbours]. The quadratic model fails beyond."""
_MIN_PROBABILITY = 0.01
"""Probability of a type below which its light is left out of a joint step."""
_TILE = 256
"""Side of the squares whose sources are moved together [px]. It keeps the joint linear system small."""
_FRACTIONS = (1.0, 0.5, 0.25, 0.0)
"""Fractions of a step that are tried in turn, until the joint density of its sources does not decrease."""


@dataclass(frozen=True)
class _Typed:
    """Sources of one type, linearised at their modes, in variables in which the curvature is the unit matrix.

    Attributes:
        at: indices of the sources in their batch.
        share: the probability of the type.
        density: the density without pixels, which is the prior.
        root: change of the parameters per unit of the variables.
        gradient: of the log density, weighted by the probability.
        slope: derivative of the light in the quantities that each image depends on.
        chain: derivative of these quantities in the variables, weighted by the probability.
    """

    at: Int[Tensor, "c"]
    share: Float[Tensor, "c"]
    density: TypedDensity
    root: Float[Tensor, "c d d"]
    gradient: Float[Tensor, "c d"]
    slope: Float[Tensor, "c image 7 p"]
    chain: Float[Tensor, "c image 7 d"]

    @classmethod
    def of(cls, density: TypedDensity, mode: Tensor, covariance: Tensor, share: Tensor, at: Tensor) -> _Typed:
        gradient, slope, chain = density.linearised(mode)
        root = torch.linalg.cholesky(covariance) / share.sqrt()[:, None, None]
        pull = (root.mT @ (share[:, None] * gradient)[..., None]).squeeze(-1)
        chain = (share[:, None, None, None] * chain @ root[:, None]).to(slope)
        return cls(at, share, density.without_pixels(), root, pull, slope, chain)

    def light(self, z: Float[Tensor, "c d"]) -> Float[Tensor, "c image p"]:
        """The change of the light for a change ``z`` of the variables."""
        change = self.chain @ z[:, None, :, None].to(self.chain)
        return (change.mT @ self.slope).squeeze(-2)

    def pull(self, weighted: Float[Tensor, "c image p"]) -> Float[Tensor, "c d"]:
        """The transpose of :meth:`light`, applied to an image."""
        onto = self.slope @ weighted[..., None]
        return (self.chain.mT @ onto).squeeze(-1).sum(1)

    def step(self, z: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
        """The step of the parameters, limited to ``_MAX_STEP``."""
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return (self.root @ (z * (_MAX_STEP / length.clamp_min(_MAX_STEP)))[..., None]).squeeze(-1)


@dataclass(frozen=True)
class _Batch:
    """Sources of one patch size.

    Attributes:
        rows: their indices in the field.
        weight: minus the second derivative of the log density in the light of each pixel.
        types: the types (star, galaxy) whose probability is not negligible.
    """

    rows: Int[np.ndarray, "b"]
    weight: Float[Tensor, "b image p"]
    types: dict[str, _Typed]


def settle(job: Modes) -> None:
    """Move the sources that wait for a fit, and their neighbours, towards their joint mode, tile by tile.

    The step of a group of overlapping sources is shortened until their joint density does not decrease. A
    source that moves noticeably then waits for a fit, and so do the sources whose background it changes.
    """
    moving = job.state.waiting.copy()
    for i in np.flatnonzero(job.state.waiting):
        moving[job.adjacent[i]] = True
    tiles = (job.sources.xy[0] // _TILE).astype(int)
    for tile in np.unique(tiles[moving], axis=0):
        _settle(job, moving & (tiles == tile).all(1))


def _settle(job: Modes, moving: Bool[np.ndarray, "s"]) -> None:
    state, rows = job.state, np.flatnonzero(moving)
    batches = [_linearised(job, members) for members in job.sources.batches(rows, BATCH)]
    group = _groups(job.adjacent, moving)
    count = int(group.max()) + 1
    owner = job.canvas.labelled((batch.rows, group[batch.rows]) for batch in batches)
    painted = {i: state.light[i] for i in rows.tolist()}

    def density() -> Float[np.ndarray, "g"]:
        total = job.canvas.log_likelihood(owner, count)
        for batch in batches:
            for name, typed in batch.types.items():
                members = batch.rows[typed.at.numpy()]
                log_prior = typed.density.log_prior(state.mode[name][members])
                np.add.at(total, group[members], (typed.share * log_prior).numpy())
        return total

    before, taken, trying = density(), np.zeros(count), np.ones(count, bool)
    steps = _steps(job.canvas, batches)
    for part in _FRACTIONS:
        more = np.where(trying, part - taken, 0.0)
        for batch, step in zip(batches, steps, strict=True):
            for name, typed in batch.types.items():
                members = batch.rows[typed.at.numpy()]
                state.mode[name][members] += torch.from_numpy(more[group[members]])[:, None] * step[name]
        taken[trying] = part
        job.repaint(rows[trying[group[rows]]])
        trying &= ~(density() >= before)
        if not trying.any():
            break
    job.moved(rows, painted)


def _linearised(job: Modes, rows: Int[np.ndarray, "b"]) -> _Batch:
    state = job.state
    patch, own_light = job.patch(rows)
    p_star = job.p_star(rows)
    types = {}
    for name, star, _ in KINDS:
        share = p_star if star else 1 - p_star
        at = torch.nonzero(share > _MIN_PROBABILITY)[:, 0]
        if len(at):
            members = rows[at.numpy()]
            density = job.density(patch, rows, star).take(at)
            mode, covariance = state.mode[name][members], state.covariance[name][members]
            types[name] = _Typed.of(density, mode, covariance, share[at], at)
            state.counts["gradient"] += len(at)
    weight = patch.mask * patch.counts / (patch.background + own_light) ** 2
    return _Batch(rows, weight.float(), types)


def _groups(adjacent: Sequence[Int[np.ndarray, "n"]], moving: Bool[np.ndarray, "s"]) -> Int[np.ndarray, "s"]:
    """A number for each connected group of moving sources; -1 for sources that do not move."""
    rows = np.flatnonzero(moving)
    place = np.full(len(moving), -1)
    place[rows] = np.arange(len(rows))
    pairs = [(place[i], place[j]) for i in rows.tolist() for j in adjacent[i] if moving[j]]
    i, j = np.array(pairs, int).reshape(-1, 2).T
    joined = csr_array((np.ones(len(i)), (i, j)), shape=(len(rows), len(rows)))
    group = np.full(len(moving), -1)
    group[rows] = connected_components(joined, directed=False)[1]
    return group


def _steps(canvas: Canvas, batches: Sequence[_Batch]) -> list[dict[str, Float[Tensor, "c d"]]]:
    """The step of every type of every source to the maximum of the joint quadratic model."""
    parts = [(k, name, typed) for k, batch in enumerate(batches) for name, typed in batch.types.items()]
    sizes = [typed.gradient.numel() for _, _, typed in parts]

    def split(z: Float[Tensor, "n"]) -> list[dict[str, Tensor]]:
        out: list[dict[str, Tensor]] = [{} for _ in batches]
        for (k, name, typed), part in zip(parts, z.split(sizes), strict=True):
            out[k][name] = part.reshape(typed.gradient.shape)
        return out

    def product(z: Float[Tensor, "1 n"], _: Int[Tensor, "1"]) -> Float[Tensor, "1 n"]:
        changed = []
        for batch, moves in zip(batches, split(z[0]), strict=True):
            light = torch.zeros_like(batch.weight)
            for name, typed in batch.types.items():
                light.index_add_(0, typed.at, typed.light(moves[name]))
            changed.append(light)
        totals = canvas.sums([batch.rows for batch in batches], changed)
        pulls = [
            typed.pull((batch.weight * (total - own_light))[typed.at]).flatten()
            for batch, own_light, total in zip(batches, changed, totals, strict=True)
            for typed in batch.types.values()
        ]
        return -(z + torch.cat(pulls).to(z))

    gradient = torch.cat([typed.gradient.flatten() for _, _, typed in parts])[None]
    radius = _MAX_STEP * sum(len(typed.at) for _, _, typed in parts) ** 0.5
    z, _ = subproblem_krylov(product, gradient, torch.full((1,), radius, dtype=gradient.dtype))
    return [
        {name: batch.types[name].step(part) for name, part in moves.items()}
        for batch, moves in zip(batches, split(z[0]), strict=True)
    ]
