"""General guides for any model: Pyro's auto-guides and zuko's flows, with a start that backends can choose.

Each factory takes a problem and returns a Pyro guide. Discrete sites are left out: they are summed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
import zuko
from jaxtyping import Float
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.transforms import LowerCholeskyAffine
from pyro.infer import autoguide
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from astrozoo.errors import InputError
from astrozoo.types import DENSE_COVARIANCE, Problem, Result

__all__ = ["full_rank", "iaf", "low_rank", "mean_field", "nsf", "point"]

_SCALE = 0.05


class _Named:
    """Starts of guides that keep a location per site."""

    _location = "locs.{}_unconstrained"

    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return self._by_site(self._location, layout, z0)

    @staticmethod
    def _by_site(name: str, layout: Any, x: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        return {
            name.format(s.name): x[:, s.start : s.stop].reshape(len(x), *s.unconstrained_shape)
            for s in layout.sites
        }


class _Whitened(autoguide.AutoContinuous):
    """Guides in coordinates that an earlier result whitens, and that start as its normal.

    Without one the coordinates are the model's unconstrained own, and the start is narrow.
    """

    centre: Tensor
    root: Tensor
    loc: Any

    def __init__(self, model: Any, around: Result | None, **settings: Any) -> None:
        self._around = around
        super().__init__(model, **settings)

    def _init_loc(self) -> Float[Tensor, "dim"]:
        """The start; Pyro asks for it before it makes any matrix over the latents.

        Raises:
            InputError: if there are more latents than a dense covariance may have.
        """
        if self.latent_dim > DENSE_COVARIANCE:
            raise InputError(
                "guide",
                f"one with matrices over {self.latent_dim} latents",
                f"at most {DENSE_COVARIANCE} latents, or mean_field or low_rank",
            )
        return super()._init_loc()

    def _whiten(self, start: Float[Tensor, "dim"]) -> tuple[Float[Tensor, "dim"], float]:
        """Keep the coordinates; the start in them, and its width."""
        centre, root, width = torch.zeros_like(start), torch.eye(len(start)).to(start), _SCALE
        if self._around is not None:
            centre, root = (held.to(start) for held in _whitening(self._around, len(start)))
            width = 1.0
        self.register_buffer("centre", centre)
        self.register_buffer("root", root)
        return self._inwards(start[None])[0], width

    def _inwards(self, z: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
        return torch.linalg.solve_triangular(self.root, (z - self.centre).mT, upper=False).mT

    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": self._inwards(z0)}


class _MeanField(_Named, autoguide.AutoNormal):
    def normal(
        self, layout: Any, mean: Float[Tensor, "b dim"], sd: Float[Tensor, "b dim"]
    ) -> dict[str, Tensor]:
        """Parameters of the normals with these moments."""
        transform = torch.distributions.biject_to(self.scale_constraint)
        scales = self._by_site("scales.{}_unconstrained", layout, transform.inv(sd))
        return self.initial(layout, mean) | scales


class _FullRank(_Whitened, autoguide.AutoMultivariateNormal):
    """``centre + root (loc + L noise)``, ``L`` lower triangular."""

    scale: Any  # of the rows of L, and their rest: parameters, which Pyro's module hands out as tensors
    scale_tril: Any

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        start, width = self._whiten(self.loc.detach())
        self.loc, self.scale = nn.Parameter(start), torch.full_like(start, width)

    def _moments(self) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim dim"]]:
        """Mean and Cholesky factor of the covariance."""
        factor = self.scale[..., None] * self.scale_tril
        if self._around is None:  # spares a product with the identity
            return self.loc, factor
        return self.centre + self.root @ self.loc, self.root @ factor

    def get_transform(self, *args: Any, **kwargs: Any) -> LowerCholeskyAffine:
        """From the noise to all sites, unconstrained."""
        return LowerCholeskyAffine(*self._moments())

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.MultivariateNormal:
        """The normal of all sites, unconstrained."""
        mean, factor = self._moments()
        return dist.MultivariateNormal(mean, scale_tril=factor)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        mean, factor = self._moments()
        return mean, factor.square().sum(-1).sqrt()


class _LowRank(autoguide.AutoLowRankMultivariateNormal):
    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": z0}


class _Flow(_Whitened):
    """Standard normals through an autoregressive flow (in the direction that takes one pass), then scaled.

    It starts as independent normals: the last layer of every network is zero, hence the flow the identity.
    """

    def __init__(
        self, model: Any, make: Callable[[int], zuko.lazy.Flow], around: Result | None, **settings: Any
    ) -> None:
        super().__init__(model, around, **settings)
        self._make = make

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        start = self._init_loc()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.flow = self._make(self.latent_dim).to(start)
        for parameter in _last_layers(self.flow):
            nn.init.zeros_(parameter)
        start, width = self._whiten(start)
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(width)))

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw of all sites, unconstrained; its noise and its density are auxiliary sites."""
        hidden: Any = {"is_auxiliary": True}
        base = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        noise = pyro.sample(f"_{self._pyro_name}_noise", base, infer=hidden)
        y, log_jacobian = self.flow.transform().call_and_ladj(noise)
        latent = self.centre + self.root @ (self.loc + self.log_scale.exp() * y)
        log_density = -log_jacobian - self.log_scale.sum() - self.root.diagonal().log().sum()
        placed = dist.Delta(latent, log_density, event_dim=1)
        return pyro.sample(f"_{self._pyro_name}_latent", placed, infer=hidden)


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


def _last_layers(flow: zuko.lazy.Flow) -> list[nn.Parameter]:
    """Weights and biases that a flow's transforms are directly made of."""
    found: list[nn.Parameter] = []
    for step in flow.transform.modules():
        if isinstance(step, zuko.flows.MaskedAutoregressiveTransform):
            found += step.hyper[-1].parameters()
        elif isinstance(step, zuko.flows.ElementWiseTransform):
            found += step.parameters()
    return found


class _Point(_Named, autoguide.AutoDelta):
    _location = "{}_unconstrained"


def mean_field(problem: Problem) -> autoguide.AutoNormal:
    """Independent normals in unconstrained space."""
    return _MeanField(_continuous(problem), init_loc_fn=_start(problem), init_scale=_SCALE)


def full_rank(problem: Problem, around: Result | None = None) -> autoguide.AutoMultivariateNormal:
    """One normal with a dense covariance in unconstrained space.

    Args:
        around: a result with a covariance (Laplace's, say), in whose whitened coordinates the guide works,
            and as whose normal it starts: the remedy where scales differ by orders of magnitude.

    Raises:
        InputError: ``around`` is of another or a batched problem, or its covariance not positive definite.
    """
    return _FullRank(_continuous(problem), around, init_loc_fn=_start(problem))


def low_rank(problem: Problem, rank: int | None = None) -> autoguide.AutoLowRankMultivariateNormal:
    """One normal with a covariance of ``rank`` (default: the root of the dimension) plus a diagonal."""
    return _LowRank(_continuous(problem), init_loc_fn=_start(problem), init_scale=_SCALE, rank=rank)


def iaf(
    problem: Problem, transforms: int = 3, hidden: int | None = None, around: Result | None = None
) -> _Flow:
    """An inverse autoregressive flow with affine steps: any covariance, and curved posteriors.

    Args:
        transforms: number of steps; the order of coordinates is turned round in between.
        hidden: width of the two hidden layers of each step (default: 2 dimensions, at least 16).
        around: see :func:`full_rank`.

    Raises:
        InputError: as :func:`full_rank`.

    References:
        Kingma et al. 2016 (IAF).
    """
    return _flow(problem, zuko.flows.MAF, transforms, hidden, around)


def nsf(
    problem: Problem,
    transforms: int = 3,
    hidden: int | None = None,
    bins: int = 8,
    around: Result | None = None,
) -> _Flow:
    """As :func:`iaf`, with rational-quadratic splines: also skewed, heavy or several-peaked marginals.

    Splines act on standard normals between -5 and 5, and leave what is outside as it is.

    Args:
        transforms: number of steps.
        hidden: width of the two hidden layers of each step (default: 2 dimensions, at least 16).
        bins: pieces of each spline.
        around: see :func:`full_rank`.

    References:
        Durkan et al. 2019 (neural spline flows).
    """
    return _flow(problem, zuko.flows.NSF, transforms, hidden, around, bins=bins)


def _flow(
    problem: Problem, kind: Any, transforms: int, hidden: int | None, around: Result | None, **settings: Any
) -> _Flow:
    def make(dim: int) -> zuko.lazy.Flow:
        width = max(16, 2 * dim) if hidden is None else hidden
        smooth = {"hidden_features": (width, width), "activation": nn.SiLU}  # second derivatives exist
        return kind(dim, transforms=transforms, **smooth, **settings)

    return _Flow(_continuous(problem), make, around, init_loc_fn=_start(problem))


def point(problem: Problem) -> autoguide.AutoDelta:
    """A point estimate: the mode of the density over constrained values."""
    return _Point(_continuous(problem), init_loc_fn=_start(problem))


def _continuous(problem: Problem) -> Any:
    def discrete(msg: Any) -> bool:
        latent = msg["type"] == "sample" and not msg["is_observed"] and not site_is_subsample(msg)
        return latent and bool(msg["fn"].support.is_discrete)

    return poutine.block(problem.model, hide_fn=discrete)


def _start(problem: Problem) -> Any:
    return autoguide.init_to_value(values=dict(_first(problem)), fallback=_origin)


def _first(problem: Problem) -> dict[str, Tensor]:
    return {n: v if problem.batch is None else v[0] for n, v in problem.start.items()}


def _origin(site: Any) -> Tensor:
    """The image of zero in unconstrained space: unlike a prior median it exists for improper priors too."""
    fn = site["fn"]
    transform = torch.distributions.biject_to(fn.support)
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    return transform(torch.zeros(shape))
