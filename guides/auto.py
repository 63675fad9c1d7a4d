"""General guides for any model: Pyro's stock auto-guides, with a start that backends can choose.

Each factory takes a problem and returns a Pyro guide. Discrete sites are left out: they are summed over.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import autoguide
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from astrozoo.types import Problem

__all__ = ["full_rank", "low_rank", "mean_field", "point"]

_SCALE = 0.05


class _Named:
    """Starts of guides that keep a location per site."""

    _location = "locs.{}_unconstrained"

    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        shape = {s.name: s.unconstrained_shape for s in layout.sites}
        return {
            self._location.format(s.name): z0[:, s.start : s.stop].reshape(len(z0), *shape[s.name])
            for s in layout.sites
        }


class _Flat:
    """Starts of guides that keep one location vector."""

    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": z0}


class _MeanField(_Named, autoguide.AutoNormal):
    pass


class _FullRank(_Flat, autoguide.AutoMultivariateNormal):
    pass


class _LowRank(_Flat, autoguide.AutoLowRankMultivariateNormal):
    pass


class _Point(_Named, autoguide.AutoDelta):
    _location = "{}_unconstrained"


def mean_field(problem: Problem) -> autoguide.AutoNormal:
    """Independent normals in unconstrained space."""
    return _MeanField(_continuous(problem), init_loc_fn=_start(problem), init_scale=_SCALE)


def full_rank(problem: Problem) -> autoguide.AutoMultivariateNormal:
    """One normal with a dense covariance in unconstrained space."""
    return _FullRank(_continuous(problem), init_loc_fn=_start(problem), init_scale=_SCALE)


def low_rank(problem: Problem, rank: int | None = None) -> autoguide.AutoLowRankMultivariateNormal:
    """One normal with a covariance of ``rank`` (default: the root of the dimension) plus a diagonal."""
    return _LowRank(_continuous(problem), init_loc_fn=_start(problem), init_scale=_SCALE, rank=rank)


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
