"""How the continuous latent sites of a problem lie in one unconstrained vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    Transform,
    biject_to,
    constraints,
)

__all__ = ["Layout", "Site", "bijection", "grouped", "innermost", "is_bijective", "lower_triangle"]


@dataclass(frozen=True)
class Site:
    """A continuous latent site of one problem, and its slice of the unconstrained vector.

    Args:
        event_dim: how many of the last axes of ``shape`` are one event of the site's distribution.
        plates: name, size and (negative) dimension of each plate around it.
    """

    name: str
    shape: torch.Size
    support: Any
    transform: Any
    start: int
    stop: int
    event_dim: int = 0
    plates: tuple[tuple[str, int, int], ...] = ()

    @property
    def unconstrained_shape(self) -> torch.Size:
        """Shape of the site's unconstrained value."""
        return torch.Size(self.transform.inverse_shape(self.shape))


@dataclass(frozen=True)
class Layout:
    """How the continuous latent sites of one problem lie in one unconstrained vector.

    Args:
        together: groups of sites whose transforms are elementwise and of the same kind, with one transform
            per group. A graph then has a tenth of the operations of one transform per site.
    """

    sites: tuple[Site, ...]
    together: tuple[tuple[tuple[Site, ...], Transform], ...] = ()

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return self.sites[-1].stop if self.sites else 0

    def constrain(self, z: Float[Tensor, "*b dim"]) -> dict[str, Tensor]:
        """Constrained values, each ``[*b, *shape]``."""
        return {s.name: s.transform(self._part(z, s)) for s in self.sites}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*b dim"]:
        """The inverse of :meth:`constrain`."""
        parts = []
        for s in self.sites:
            value = values[s.name]
            lead = value.shape[: value.ndim - len(s.shape)]
            parts.append(s.transform.inv(value).reshape(*lead, s.stop - s.start))
        return torch.cat(parts, -1)

    def constrain_with_jacobian(self, z: Float[Tensor, "dim"]) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values and the log of the Jacobian's determinant, of one vector."""
        lengths = [s.stop - s.start for s in self.sites]
        names = [s.name for s in self.sites]
        parts = dict(zip(names, z.split(lengths), strict=True)) if lengths else {}
        values: dict[str, Tensor] = {}
        total = z.new_zeros(())
        for sites, transform in self.together:
            x = torch.cat([parts.pop(s.name) for s in sites])
            y = transform(x)
            total = total + transform.log_abs_det_jacobian(x, y).sum()
            pieces = y.split([s.stop - s.start for s in sites])
            values |= {s.name: piece.view(s.shape) for s, piece in zip(sites, pieces, strict=True)}
        for s in self.sites:
            if s.name in parts:
                x = parts[s.name].view(s.unconstrained_shape)
                values[s.name] = s.transform(x)
                if _elementwise(s.transform) != []:  # it is not the identity
                    total = total + s.transform.log_abs_det_jacobian(x, values[s.name]).sum()
        return {name: values[name] for name in names}, total

    @staticmethod
    def _part(z: Tensor, site: Site) -> Tensor:
        return z[..., site.start : site.stop].reshape(z.shape[:-1] + site.unconstrained_shape)


def grouped(sites: list[Site]) -> tuple[tuple[tuple[Site, ...], Transform], ...]:
    """``together`` of a :class:`Layout`."""
    groups: dict[tuple[type, ...], list[Site]] = {}
    for s in sites:
        steps = _elementwise(s.transform)
        if steps:
            groups.setdefault(tuple(map(type, steps)), []).append(s)
    return tuple((tuple(group), _joined(group)) for group in groups.values())


def _elementwise(transform: Any) -> list[Transform] | None:
    """The exponentials, sigmoids and affine maps that a transform consists of, or None."""
    if isinstance(transform, IndependentTransform):
        return _elementwise(transform.base_transform)
    if isinstance(transform, ComposeTransform):
        parts = [_elementwise(part) for part in transform.parts]
        return None if None in parts else [step for part in parts for step in part or ()]
    single = type(transform) in (ExpTransform, SigmoidTransform, AffineTransform)
    return [transform] if single and transform.event_dim == 0 else None


def _joined(sites: list[Site]) -> Transform:
    """The transform of the concatenation of sites whose transforms are of the same kind."""

    def whole(numbers: list[Any]) -> Tensor:
        tensors = [torch.as_tensor(number, dtype=torch.get_default_dtype()) for number in numbers]
        return torch.cat([x.expand(s.shape).reshape(-1) for x, s in zip(tensors, sites, strict=True)])

    def joined(steps: tuple[Any, ...]) -> Transform:
        if isinstance(steps[0], AffineTransform):
            return AffineTransform(whole([t.loc for t in steps]), whole([t.scale for t in steps]))
        return steps[0]

    steps_of_sites = [_elementwise(s.transform) or [] for s in sites]
    return ComposeTransform([joined(steps) for steps in zip(*steps_of_sites, strict=True)])


class _LowerCholesky(Transform):
    """Vectors to Cholesky factors: the strict lower triangle first, then the logarithms of the diagonal."""

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def inverse_shape(self, shape: Any) -> torch.Size:
        n = shape[-1]
        return torch.Size((*shape[:-2], n * (n + 1) // 2))

    def forward_shape(self, shape: Any) -> torch.Size:
        n = math.isqrt(2 * shape[-1])
        return torch.Size((*shape[:-1], n, n))

    def _call(self, x: Tensor) -> Tensor:
        n = math.isqrt(2 * x.shape[-1])
        return lower_triangle(x[..., :-n], n) + torch.diag_embed(x[..., -n:].exp())

    def _inverse(self, y: Tensor) -> Tensor:
        n = y.shape[-1]
        row, column = torch.tril_indices(n, n, -1, device=y.device)
        return torch.cat((y[..., row, column], y.diagonal(dim1=-2, dim2=-1).log()), -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., -y.shape[-1] :].sum(-1)


class _PositiveDefinite(_LowerCholesky):
    """Vectors to positive-definite matrices ``L L'``, with ``L`` that of :class:`_LowerCholesky`."""

    codomain: Any = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        root = super()._call(x)
        return root @ root.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        n = y.shape[-1]
        power = torch.arange(n + 1, 1, -1, dtype=x.dtype, device=x.device)  # n + 1 for the first diagonal
        return n * math.log(2) + (power * x[..., -n:]).sum(-1)


def lower_triangle(below: Float[Tensor, "*b m"], n: int) -> Float[Tensor, "*b n n"]:
    """The matrix with these entries below its diagonal, row by row, and zeros elsewhere."""
    row, column = torch.tril_indices(n, n, -1, device=below.device)
    place = torch.full((n, n), below.shape[-1], device=below.device)  # of the zero that is appended
    place[row, column] = torch.arange(below.shape[-1], device=below.device)
    padded = torch.cat((below, below.new_zeros(*below.shape[:-1], 1)), -1)
    return padded.index_select(-1, place.reshape(-1)).unflatten(-1, (n, n))


_ON_A_CIRCLE = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
"""Distributions of angles. Torch declares all reals as their support; they are normalised over one turn."""


def innermost(fn: Any) -> Any:
    """The distribution inside wrappers that only mask, expand or reinterpret dimensions."""
    wrappers = (torch.distributions.Independent, dist.Independent, dist.MaskedDistribution)
    while isinstance(fn, (*wrappers, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def bijection(fn: Any) -> tuple[Any, Any]:
    """The support of a distribution, and a bijection onto it from vectors that have its dimension.

    Raises:
        NotImplementedError: if there is none.
    """
    inner = innermost(fn)
    if isinstance(inner, dist.Empirical | dist.Stable):
        raise NotImplementedError(f"{type(inner).__name__} has no density")
    if isinstance(inner, _ON_A_CIRCLE):
        turn = constraints.independent(constraints.interval(-math.pi, math.pi), fn.event_dim)
        return turn, biject_to(turn)
    if isinstance(inner, dist.Unit):
        raise NotImplementedError("Unit has no values")
    if _inherits_support(inner) and not _is_real(inner.base_dist.support):
        base = bijection(inner.base_dist)[1]
        return fn.support, ComposeTransform([base, *inner.transforms])
    return fn.support, _onto(fn.support)


def _is_real(support: Any) -> bool:
    """Whether a constraint allows all real values, of any shape."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _inherits_support(fn: Any) -> bool:
    """Whether ``fn`` is a transformed distribution whose ``support`` is only that of its last transform."""
    plain = torch.distributions.TransformedDistribution
    return isinstance(fn, plain) and type(fn).support is plain.support


def _onto(support: Any) -> Transform:
    """A bijection onto a constraint, including those without a bijection in torch."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):  # it only wraps that of its components
        return _onto(support.base_constraint)
    if isinstance(support, constraints.independent):
        return IndependentTransform(_onto(support.base_constraint), support.reinterpreted_batch_ndims)
    if support is constraints.lower_cholesky:
        return _LowerCholesky()
    if support in (constraints.positive_definite, constraints.positive_semidefinite):
        return _PositiveDefinite()
    return biject_to(support)


def is_bijective(transform: Any, x: Tensor) -> bool:
    """Whether ``x`` goes through the transform and back unchanged."""
    back = transform.inv(transform(x))
    tolerance = torch.finfo(x.dtype).eps ** 0.4
    return back.shape == x.shape and torch.allclose(back, x, rtol=tolerance, atol=tolerance)
