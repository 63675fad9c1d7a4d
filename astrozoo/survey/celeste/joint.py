"""Steps of Newton's method in the parameters of all overlapping sources at once.

Sources that share their light pull at each other, and fitted in turn they settle slowly: where the errors of
two correlate by rho, what is left shrinks by rho^2 a sweep. Light adds, so the cross terms of the log
density's Hessian are products of the sources' slopes, and the field itself holds the sums over sources: the
step is found by a Krylov method, each product of which paints what all sources change and looks at it in
every patch, preconditioned by each source's own curvature.

A source's light is that of its two types by their probabilities, and each type has its own parameters.
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
"""Longest step of a source [standard deviations, given its neighbours]: second order fails farther away."""
_MIN_PROBABILITY = 0.01
"""Probability of a type below which its light is left out of a joint step."""
_TILE = 256
"""Side of the squares whose sources are moved at once [px]: it keeps the joint system small."""
_FRACTIONS = (1.0, 0.5, 0.25, 0.0)
"""Fractions of a step that are tried in turn, until the joint density of its sources rises."""


@dataclass(frozen=True)
class _Typed:
    """Sources of one type, linearised at their modes in variables of unit curvature.

    Args:
        at: which of their batch they are.
        share: the probability of the type.
        density: without pixels: its prior.
        root: step per variable.
        gradient: of the log density, by probability.
        slope: of the light, by probability, in what each image depends on.
        chain: of that in the variables.
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
        """What the variables change of the light."""
        change = self.chain @ z[:, None, :, None].to(self.chain)
        return (change.mT @ self.slope).squeeze(-2)

    def pull(self, weighted: Float[Tensor, "c image p"]) -> Float[Tensor, "c d"]:
        """The transpose of :meth:`light`."""
        onto = self.slope @ weighted[..., None]
        return (self.chain.mT @ onto).squeeze(-1).sum(1)

    def step(self, z: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
        """The parameters' step, of limited length."""
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return (self.root @ (z * (_MAX_STEP / length.clamp_min(_MAX_STEP)))[..., None]).squeeze(-1)


@dataclass(frozen=True)
class _Batch:
    """Sources of one patch size.

    Args:
        rows: which of the field they are.
        weight: minus the second derivative of the log density in the light of each pixel.
        types: those that are in question, star or galaxy.
    """

    rows: Int[np.ndarray, "b"]
    weight: Float[Tensor, "b image p"]
    types: dict[str, _Typed]


def settle(job: Modes) -> None:
    """Move the sources that wait, and those next to them, towards their joint mode, tile by tile.

    The step of sources that overlap is shortened until their joint density rises. Those that move noticeably
    wait for a fit of their own, and so do those on whose light they tell.
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
                of = batch.rows[typed.at.numpy()]
                np.add.at(
                    total, group[of], (typed.share * typed.density.log_prior(state.mode[name][of])).numpy()
                )
        return total

    before, taken, trying = density(), np.zeros(count), np.ones(count, bool)
    steps = _steps(job.canvas, batches)
    for part in _FRACTIONS:
        more = np.where(trying, part - taken, 0.0)
        for batch, step in zip(batches, steps, strict=True):
            for name, typed in batch.types.items():
                of = batch.rows[typed.at.numpy()]
                state.mode[name][of] += torch.from_numpy(more[group[of]])[:, None] * step[name]
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
            of = rows[at.numpy()]
            density = job.density(patch, rows, star).take(at)
            types[name] = _Typed.of(density, state.mode[name][of], state.covariance[name][of], share[at], at)
            state.counts["gradient"] += len(at)
    weight = patch.mask * patch.counts / (patch.background + own_light) ** 2
    return _Batch(rows, weight.float(), types)


def _groups(adjacent: Sequence[Int[np.ndarray, "n"]], moving: Bool[np.ndarray, "s"]) -> Int[np.ndarray, "s"]:
    """A number for each set of moving sources that hang together; -1 for those that stay."""
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
    """The step of every type of every source that leads to the joint mode, as far as second order tells."""
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
        felt = canvas.sums([batch.rows for batch in batches], changed)
        pulls = [
            typed.pull((batch.weight * (total - own_light))[typed.at]).flatten()
            for batch, own_light, total in zip(batches, changed, felt, strict=True)
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
