"""General guides for any model: normals, normalizing flows (zuko), and a point.

Each factory takes a problem and returns a Pyro guide of its continuous latents. Discrete sites are left out,
because they are summed over. A guide draws one unconstrained vector. The problem's layout (the same as the
log density's) maps it to the sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
import zuko
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from astrozoo.density import Layout, layout_of, lower_triangle
from astrozoo.errors import InputError
from astrozoo.nets.flow import flow_distribution, inverted, make_flow, start_as_identity
from astrozoo.types import DENSE_COVARIANCE, Problem, Result

__all__ = ["full_rank", "iaf", "low_rank", "mean_field", "nsf", "point"]

_SCALE = 0.05
"""SD with which guides start, in unconstrained space. It is narrow, so that they explore from the start."""
_HIDDEN: Any = {"is_auxiliary": True}
"""Mark of a guide's sites that the model does not have."""


class _Guide(nn.Module):
    """A guide that draws the unconstrained vector by its method ``latent``.

    Args:
        problem: its layout maps the vector to sites, and its ``start`` is where the guide starts.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.layout = layout_of(problem)
        self.loc = nn.Parameter(_start(problem, self.layout))

    def latent(self) -> Float[Tensor, "dim"]:
        """A draw of the vector. What it samples are auxiliary sites with its density."""
        raise NotImplementedError

    def forward(self, *args: Any) -> dict[str, Tensor]:
        """Sample all sites. ``args``, those of the model, are not used."""
        values, log_jacobian = self.layout.constrain_with_jacobian(self.latent())
        density = dist.Delta(log_jacobian.new_zeros(()), -log_jacobian)
        pyro.sample("_guide_jacobian", density, infer=_HIDDEN)
        return self._place(values)

    def _place(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        every = dict.fromkeys(plate for site in self.layout.sites for plate in site.plates)
        plates = {plate: pyro.plate(plate[0], plate[1], dim=plate[2]) for plate in every}
        placed = {}
        for site in self.layout.sites:
            with ExitStack() as around:
                for plate in site.plates:
                    around.enter_context(plates[plate])
                point = dist.Delta(values[site.name], event_dim=site.event_dim)
                placed[site.name] = pyro.sample(site.name, point)
        return placed

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": z0}


class _MeanField(_Guide):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.scale = nn.Parameter(torch.full_like(self.loc, _inverse_softplus(_SCALE)))

    def latent(self) -> Float[Tensor, "dim"]:
        return pyro.sample(
            "_guide_latent", dist.Normal(self.loc, softplus(self.scale)).to_event(1), infer=_HIDDEN
        )

    def normal(
        self, layout: Layout, mean: Float[Tensor, "b dim"], sd: Float[Tensor, "b dim"]
    ) -> dict[str, Tensor]:
        """Parameters of the normals with these moments."""
        return {"loc": mean, "scale": sd + torch.log(-torch.expm1(-sd))}


class _Whitened(_Guide):
    """A guide in coordinates that are whitened by an earlier result. It starts as the normal of that result.

    Without a result, the coordinates are those of the layout, and the guide starts narrow.

    Raises:
        InputError: if there are more latents than a dense covariance may have.
    """

    centre: Tensor
    root: Tensor

    def __init__(self, problem: Problem, around: Result | None) -> None:
        super().__init__(problem)
        if len(self.loc) > DENSE_COVARIANCE:
            raise InputError(
                "guide",
                f"one with matrices over {len(self.loc)} latents",
                f"at most {DENSE_COVARIANCE} latents, or mean_field or low_rank",
            )
        self.whitens, self.width = around is not None, _SCALE
        if around is not None:
            centre, root = (x.to(self.loc) for x in _whitening(around, len(self.loc)))
            self.register_buffer("centre", centre)
            self.register_buffer("root", root)
            self.loc, self.width = nn.Parameter(self._inwards(self.loc.detach()[None])[0]), 1.0

    def _inwards(self, z: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
        if not self.whitens:
            return z
        return torch.linalg.solve_triangular(self.root, (z - self.centre).mT, upper=False).mT

    def initial(self, layout: Layout, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": self._inwards(z0)}


class _FullRank(_Whitened):
    """``centre + root (loc + L noise)``, ``L`` lower triangular.

    The parameters are softplus^-1 of the scale of each row of ``L``, and the rows' entries below the
    diagonal in units of that scale.
    """

    def __init__(self, problem: Problem, around: Result | None) -> None:
        super().__init__(problem, around)
        d = len(self.loc)
        self.scale = nn.Parameter(torch.full_like(self.loc, _inverse_softplus(self.width)))
        self.below = nn.Parameter(self.loc.new_zeros(d * (d - 1) // 2))

    def latent(self) -> Float[Tensor, "dim"]:
        d = len(self.loc)
        unit = lower_triangle(self.below, d) + torch.eye(d).to(self.loc)
        factor = softplus(self.scale)[:, None] * unit
        mean: Tensor = self.loc
        if self.whitens:
            mean, factor = self.centre + self.root @ mean, self.root @ factor
        return pyro.sample("_guide_latent", dist.MultivariateNormal(mean, scale_tril=factor), infer=_HIDDEN)


class _LowRank(_Guide):
    """A normal with the covariance ``diag(scale) (1 + F F') diag(scale)``."""

    def __init__(self, problem: Problem, rank: int | None) -> None:
        super().__init__(problem)
        rank = round(len(self.loc) ** 0.5) if rank is None else rank
        self.scale = nn.Parameter(torch.full_like(self.loc, _inverse_softplus(_SCALE)))
        self.factor = nn.Parameter(
            torch.randn(len(self.loc), rank).to(self.loc) * (0.5 / max(rank, 1)) ** 0.5
        )

    def latent(self) -> Float[Tensor, "dim"]:
        scale = softplus(self.scale)
        normal = dist.LowRankMultivariateNormal(self.loc, scale[:, None] * self.factor, scale.square())
        return pyro.sample("_guide_latent", normal, infer=_HIDDEN)


class _Flow(_Whitened):
    """Standard normals through an autoregressive flow (in the direction that takes one pass), then scaled.

    It starts as independent normals: the last layer of every network is zero, hence the flow the identity.
    """

    def __init__(
        self, problem: Problem, make: Callable[[int], zuko.lazy.Flow], around: Result | None
    ) -> None:
        super().__init__(problem, around)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.flow = make(len(self.loc)).to(self.loc)
        start_as_identity(self.flow)
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(self.width)))

    def latent(self) -> Float[Tensor, "dim"]:
        flow = flow_distribution(self.flow)
        noise = pyro.sample("_guide_noise", flow.noise, infer=_HIDDEN)
        y, log_jacobian = flow.push_with_jacobian(noise)
        z = self.loc + self.log_scale.exp() * y
        log_density = -log_jacobian - self.log_scale.sum()
        if self.whitens:
            z = self.centre + self.root @ z
            log_density = log_density - self.root.diagonal().log().sum()
        return pyro.sample("_guide_latent", dist.Delta(z, log_density, event_dim=1), infer=_HIDDEN)


class _Point(_Guide):
    """A point, without a density: its ELBO is the log density over constrained values."""

    def forward(self, *args: Any) -> dict[str, Tensor]:
        return self._place(self.layout.constrain(self.loc))


def _inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def _whitening(around: Result, dim: int) -> tuple[Tensor, Tensor]:
    """Location and lower Cholesky factor of a result of one problem."""
    if around.location is None or around.covariance is None or around.location.shape != (1, dim):
        got = None if around.covariance is None else around.covariance.shape
        raise InputError("around", f"a result with a covariance of shape {got}", f"{(1, dim, dim)}")
    covariance = torch.from_numpy(around.covariance[0])
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not root.isfinite().all():
        raise InputError("around", "a covariance that is not positive definite", "a converged result")
    return torch.from_numpy(around.location[0]), root


def mean_field(problem: Problem) -> _MeanField:
    """Independent normals in unconstrained space."""
    return _MeanField(problem)


def full_rank(problem: Problem, around: Result | None = None) -> _FullRank:
    """One normal with a dense covariance in unconstrained space.

    Args:
        around: a result with a covariance, such as that of Laplace. The guide uses coordinates that are
            whitened by it, and starts as its normal. This helps if scales differ by orders of magnitude.

    Raises:
        InputError: ``around`` is the result of another or a batched problem, or its covariance is not
            positive definite.
    """
    return _FullRank(problem, around)


def low_rank(problem: Problem, rank: int | None = None) -> _LowRank:
    """One normal with a covariance of ``rank`` (default: the root of the dimension) plus a diagonal."""
    return _LowRank(problem, rank)


def iaf(
    problem: Problem, transforms: int = 3, hidden: int | None = None, around: Result | None = None
) -> _Flow:
    """An inverse autoregressive flow with affine steps: any covariance, and curved posteriors.

    Args:
        transforms: number of steps; the order of the coordinates is reversed between steps.
        hidden: width of the two hidden layers of each step (default: 2 dimensions, at least 16).
        around: see :func:`full_rank`.

    Raises:
        InputError: as :func:`full_rank`.

    References:
        Kingma et al. 2016 (IAF).
    """
    return _flow(problem, "maf", transforms, hidden, around)


def nsf(
    problem: Problem,
    transforms: int = 3,
    hidden: int | None = None,
    bins: int = 8,
    around: Result | None = None,
) -> _Flow:
    """A flow like :func:`iaf`, with rational-quadratic splines, for skewed, heavy or multi-modal marginals.

    Splines transform standard normals between -5 and 5. Outside they are the identity.

    Args:
        transforms: number of steps.
        hidden: width of the two hidden layers of each step (default: 2 dimensions, at least 16).
        bins: pieces of each spline.
        around: see :func:`full_rank`.

    References:
        Durkan et al. 2019 (neural spline flows).
    """
    return _flow(problem, "nsf", transforms, hidden, around, bins=bins)


def _flow(
    problem: Problem, kind: str, transforms: int, hidden: int | None, around: Result | None, **settings: Any
) -> _Flow:
    def make(dim: int) -> zuko.lazy.Flow:
        width = max(16, 2 * dim) if hidden is None else hidden
        return inverted(make_flow(kind, dim, transforms=transforms, hidden=(width, width), **settings))

    return _Flow(problem, make, around)


def point(problem: Problem) -> _Point:
    """A point estimate: the mode of the density over constrained values."""
    return _Point(problem)


def _start(problem: Problem, layout: Layout) -> Float[Tensor, "dim"]:
    """The problem's start (of its first problem, if it is a batch), and zero for the sites that it lacks."""
    z = torch.zeros(layout.dim, dtype=problem.dtype, device=problem.device)
    for site in layout.sites:
        if site.name in problem.start:
            value = problem.start[site.name]
            value = value if problem.batch is None else value[0]
            z[site.start : site.stop] = site.transform.inv(value.to(z)).reshape(-1)
    return z
