"""A guide for strong lenses: a joint normal of the lens's parameters, and the source's conditional on them.

The general guides ``full_rank`` and ``iaf`` are also suitable. The number of parameters of this one grows
with the length of a learned source's latent vector, not with its square.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import distributions as dist
from pyro.infer import autoguide
from torch import Tensor, nn

from astrozoo.types import Problem

__all__ = ["structured"]

_SCALE = 0.05
"""SD with which the guide starts, in unconstrained space."""


class _Structured(autoguide.AutoContinuous):
    """A normal in unconstrained space, with a dense covariance of the lens's coordinates.

    Given these, the source's coordinates are independent of each other, with means that are linear in the
    lens's coordinates.
    """

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        of_source = [
            name.startswith("source_")
            for name, shape in self._unconstrained_shapes.items()
            for _ in range(shape.numel())
        ]
        start = self._init_loc()
        lens = [i for i, yes in enumerate(of_source) if not yes]
        order = torch.tensor(lens + [i for i, yes in enumerate(of_source) if yes])
        self.register_buffer("place", order.argsort())
        self.register_buffer("mask", torch.tril(torch.ones(len(order), len(lens)), -1).to(start))
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(_SCALE)))
        self.weights = nn.Parameter(torch.zeros_like(self.mask))

    def initial(self, layout: Any, z0: Float[Tensor, "b dim"]) -> dict[str, Tensor]:
        """Parameters that centre the guide on ``z0``."""
        return {"loc": z0}

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """A draw of all sites in unconstrained space. Its noise and its density are auxiliary sites."""
        hidden: Any = {"is_auxiliary": True}
        base = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        noise = pyro.sample(f"_{self._pyro_name}_noise", base, infer=hidden)
        mixed = noise + (self.weights * self.mask) @ noise[: self.mask.shape[1]]
        z = self.loc + self.log_scale.exp() * mixed[self.place]
        latent = dist.Delta(z, -self.log_scale.sum(), event_dim=1)
        return pyro.sample(f"_{self._pyro_name}_latent", latent, infer=hidden)


def structured(problem: Problem) -> _Structured:
    """A normal whose source coordinates depend on the lens's coordinates, but not on each other.

    The covariance of the lens's coordinates is dense. With ``l`` coordinates of the lens and ``s`` of the
    source, the guide has ``2 (l + s) + l (l - 1) / 2 + l s`` parameters that its draws depend on.
    """
    first = {n: v if problem.batch is None else v[0] for n, v in problem.start.items()}
    return _Structured(problem.model, init_loc_fn=autoguide.init_to_value(values=first))
