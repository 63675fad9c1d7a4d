"""The log density of a source of known type together with the neighbours that its errors depend on.

The likelihood is that of the pixels of the source's patch, without any expansion. A neighbour has the type
that is more probable. Its pixels outside the patch enter by a quadratic form about its mode: the curvature of
its log density, without that of the prior and of the pixels inside the patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import biject_to, constraints

from astrozoo.density import Layout, Site
from astrozoo.errors import InputError
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.modes import KINDS, Modes
from astrozoo.survey.celeste.response import nearest

__all__ = ["Blend"]

_MIN_CORRELATION = 0.2
"""Smallest correlation of a neighbour with the source at which it is sampled with it.

It is the largest over all directions of both, at the modes. A neighbour of 0.2 widens the source by 2 %."""
_STEP = 0.05
"""Step of a central difference, in units in which each member's own curvature is the unit matrix.

Rounding of single precision is then below 1 % of a curvature of 1."""
_PIXELS = 60_000
"""Number of pixels, of all images and light sources, that are evaluated at once; it suits the cache."""


class _Members(NamedTuple):
    """The source, or its neighbours of one type.

    Attributes:
        density: of the ``n`` members, on the pixels of the source's patch.
        inside: 1 in pixels of the members' patches; a member has no light elsewhere.
        light: of the members in the fit of the field.
        mode: of each member.
        root: of the inverse curvature at each mode.
        precision: minus the Hessian of what pixels outside the source's patch say of each member.
    """

    density: TypedDensity
    inside: Float[Tensor, "n image p"]
    light: Float[Tensor, "n image p"]
    mode: Float[Tensor, "n d"]
    root: Float[Tensor, "n d d"]
    precision: Float[Tensor, "n d d"]


class Blend:
    """An :class:`astrozoo.objective.Density` of the source's parameters, then those of its neighbours.

    The site ``source`` is the source's, and ``neighbours``, if there are any, that of all others.

    Args:
        source: the source, with the light of all members in the background of its density.
        neighbours: the neighbours that are sampled with it, by type.
    """

    noise_dim = 0
    batch: int | None = None
    choices: tuple[int, ...] = ()
    compile_seconds = 0.0
    summed_out: list[str] = []  # noqa: RUF012
    in_vector: list[str] = []  # noqa: RUF012

    def __init__(self, source: _Members, neighbours: list[_Members]) -> None:
        self._members = [source, *neighbours]
        self._patch = source.density.patch
        light = torch.cat([member.light for member in self._members]).sum(0)
        self._background = self._patch.background[0] - light
        self.dtype, self.device = source.density.dtype, source.density.device
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
        self.notes: list[str] = []
        self._sizes = [member.mode.numel() for member in self._members]
        self.dim = sum(self._sizes)
        real, first = constraints.real_vector, self._sizes[0]
        slices = {"source": (0, first), "neighbours": (first, self.dim)}
        self.layout = Layout(
            tuple(
                Site(name, torch.Size((stop - start,)), real, biject_to(real), start, stop, 1)
                for name, (start, stop) in slices.items()
                if stop > start
            )
        )

    @classmethod
    def of(cls, job: Modes, row: int, star: bool) -> Self:
        """The density of a source of a fitted field, as a star or as a galaxy."""
        at = np.array([row])
        patch, own_light = job.patch(at)
        weight = (patch.mask * patch.counts / (patch.background + own_light) ** 2)[0]
        source = _members(job, at, star, row)
        change = _changes(source)[0]
        near = nearest(job, row)
        stars = (job.state.evidence["star"] > job.state.evidence["galaxy"])[near].numpy()
        neighbours = []
        for _, is_star, _ in KINDS:
            chosen = near[stars == is_star]
            if len(chosen):
                members = _members(job, chosen, is_star, row)
                changes = _changes(members)
                cross = torch.einsum("dip,ip,neip->nde", change, weight.to(change), changes)
                kept = torch.linalg.matrix_norm(cross, 2) > _MIN_CORRELATION
                if kept.any():
                    members = members._replace(precision=_outside(members, changes, weight))
                    neighbours.append(_chosen(members, kept.nonzero()[:, 0]))
        return cls(source, neighbours)

    @property
    def mode(self) -> Float[Tensor, "dim"]:
        """The modes of the source and its neighbours, each given the others."""
        return torch.cat([member.mode.flatten() for member in self._members])

    @property
    def root(self) -> Float[Tensor, "dim dim"]:
        """Block-diagonal matrix R. R R^T has, for each member, its covariance given the other members."""
        return torch.block_diag(*(block for member in self._members for block in member.root))

    def values(self, w: Float[Tensor, "b dim"], noise: Tensor | None = None) -> Float[Tensor, "b 1"]:
        """The log density."""
        self.counts["value"] += len(w)
        return torch.cat([self._value(rows) for rows in w.split(self._at_once)])[:, None]

    def value_and_grad(
        self, w: Float[Tensor, "b dim"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b dim"]]:
        """The log density and its gradient."""
        self.counts["gradient"] += len(w)
        parts = [self._value_and_grad(rows) for rows in w.split(self._at_once)]
        value, gradient = zip(*parts, strict=True)
        return torch.cat(value), torch.cat(gradient)

    def value_grad_hessian(self, w: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The log density, its gradient and its Hessian, by central differences of the gradient."""
        value, gradient = self.value_and_grad(w)
        unit = torch.eye(self.dim, dtype=self.dtype).expand(len(w), -1, -1)
        hessian = torch.stack([self.hvp(w, None, v) for v in unit.unbind(1)], 1)
        return value, gradient, 0.5 * (hessian + hessian.mT)

    def hvp(self, w: Tensor, noise: Tensor | None, v: Tensor) -> Tensor:
        """The Hessian times a vector, by a central difference of the gradient."""
        self.counts["hvp"] += len(w)
        size = torch.linalg.vector_norm(torch.linalg.solve(self.root, v.mT).mT, dim=1, keepdim=True)
        step = _STEP / size.clamp_min(torch.finfo(w.dtype).tiny)  # of one length in each direction
        ahead, behind = (self.value_and_grad(w + sign * step * v)[1] for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    def take(self, rows: Tensor) -> Self:
        """Itself: the density is of one problem."""
        return self

    def compile_soon(self) -> None:
        """Do nothing: no graph is ever compiled."""

    def initial(self, b: int, generator: torch.Generator | None = None) -> Float[Tensor, "b dim"]:
        """The modes."""
        return self.mode.repeat(b, 1)

    def discrete(self, z: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """No discrete sites."""
        return {}

    def derived(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No deterministic sites."""
        return {}

    def undefined_at(self, z: Float[Tensor, "b dim"], row: int) -> InputError:
        """The error for a start without a finite density."""
        return InputError("start", f"parameters {z[row].tolist()}", "a finite log density")

    @property
    def _at_once(self) -> int:
        members = sum(len(member.mode) for member in self._members)
        return max(1, _PIXELS // (members * self._background.numel()))

    def _split(self, w: Float[Tensor, "b dim"]) -> list[Float[Tensor, "bn d"]]:
        """The parameters of each member, all copies of one member after another."""
        parts = w.split(self._sizes, 1)
        return [x.reshape(-1, member.mode.shape[1]) for x, member in zip(parts, self._members, strict=True)]

    def _value(self, w: Float[Tensor, "b dim"]) -> Float[Tensor, "b"]:
        rate = self._background.repeat(len(w), 1, 1)
        value = rate.new_zeros(len(w))
        for member, u in zip(self._members, self._split(w), strict=True):
            density = member.density.take(torch.arange(len(member.mode)).repeat(len(w)))
            unit = density.images(u[:, : density.n_bending])
            light = density.electrons(u)[..., None] * unit * member.inside.repeat(len(w), 1, 1)
            rate += light.unflatten(0, (len(w), -1)).sum(1)
            off = (u - member.mode.repeat(len(w), 1))[:, None]
            other = -0.5 * (off @ member.precision.repeat(len(w), 1, 1) @ off.mT)[:, 0, 0]
            value += (density.log_prior(u) + other).unflatten(0, (len(w), -1)).sum(1)
        return value + self._log_likelihood(rate)

    def _value_and_grad(self, w: Float[Tensor, "b dim"]) -> tuple[Tensor, Tensor]:
        b, patch = len(w), self._patch
        rate = self._background.repeat(b, 1, 1)
        value, lights = rate.new_zeros(b), []
        for member, u in zip(self._members, self._split(w), strict=True):
            density = member.density.take(torch.arange(len(member.mode)).repeat(b))
            inside = member.inside.repeat(b, 1, 1)
            light, slope, chain = density.light(u)
            rate += (light * inside).unflatten(0, (b, -1)).sum(1)
            pull = -((u - member.mode.repeat(b, 1))[:, None] @ member.precision.repeat(b, 1, 1))[:, 0]
            other = 0.5 * ((u - member.mode.repeat(b, 1)) * pull).sum(1)
            value += (density.log_prior(u) + other).unflatten(0, (b, -1)).sum(1)
            lights.append((slope, chain, inside, density.prior_slopes(u)[0] + pull))
        excess = patch.mask * (patch.counts / rate - 1)
        gradient = []
        for slope, chain, inside, other in lights:
            n = len(inside) // b
            per_pixel = (excess.repeat_interleave(n, 0) * inside).to(slope)
            d_tau = (slope @ per_pixel[..., None]).squeeze(-1).to(chain)
            gradient.append((torch.einsum("bit,bitd->bd", d_tau, chain) + other).reshape(b, -1))
        return value + self._log_likelihood(rate), torch.cat(gradient, 1)

    def _log_likelihood(self, rate: Float[Tensor, "b image p"]) -> Float[Tensor, "b"]:
        patch = self._patch
        return (patch.mask * (patch.counts * rate.log() - rate)).sum((-2, -1))


def _members(job: Modes, rows: Int[np.ndarray, "n"], star: bool, row: int) -> _Members:
    """Sources of one type on the patch of the source ``row``."""
    state, name = job.state, KINDS[int(star)][0]
    density = job.density(job.canvas.patches(rows, at=np.full(len(rows), row)), rows, star)
    inside, light = (torch.empty_like(density.patch.counts) for _ in range(2))
    for k, member in enumerate(rows.tolist()):
        one, painted = np.array([member]), state.light[member]
        assert painted is not None  # every source has been fitted
        for out, values in ((inside, torch.ones_like(painted)), (light, painted)):
            ((_, there),) = job.canvas.felt(one, values[None], [np.array([row])])
            out[k] = there[0]
    mode, root = state.mode[name][rows], torch.linalg.cholesky(state.covariance[name][rows])
    return _Members(density, inside, light, mode, root, torch.zeros_like(root))


def _changes(members: _Members) -> Float[Tensor, "n d image p"]:
    """Changes of the light in variables in which each member's own curvature is the unit matrix."""
    _, slope, chain = members.density.linearised(members.mode)
    chain = (chain @ members.root[:, None]).to(slope)
    return torch.einsum("nitp,nitd->ndip", slope, chain) * members.inside[:, None].to(slope)


def _outside(
    members: _Members, changes: Float[Tensor, "n d image p"], weight: Float[Tensor, "image p"]
) -> Float[Tensor, "n d d"]:
    """The curvature of each member's log density, without those of the prior and of the patch's pixels."""
    within = torch.einsum("ndip,ip,neip->nde", changes, weight.to(changes), changes).to(members.root)
    prior = -(members.root.mT @ members.density.prior_slopes(members.mode)[1] @ members.root)
    left = torch.eye(within.shape[1], dtype=within.dtype) - within - prior
    values, vectors = torch.linalg.eigh(left)
    half = vectors.mT @ torch.linalg.inv(members.root)
    return half.mT @ (values.clamp_min(0.0)[..., None] * half)


def _chosen(members: _Members, at: Int[Tensor, "c"]) -> _Members:
    return _Members(members.density.take(at), *(part[at] for part in members[1:]))
