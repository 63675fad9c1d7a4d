"""Training a prior of latents together with the autoencoder whose latents they are.

:func:`joint` takes the problem of training any autoencoder of the zoo and puts a learned prior in the place
of its own: the decoder, the encoder and the prior are then fitted by one ELBO. The factor ``beta`` weights
KL(q(z | x) || p(z)). With any value but 1 the objective is not an ELBO, and the report of the training says
so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from astrozoo.errors import CaptureError, InputError
from astrozoo.models.latent_flow import LatentPrior
from astrozoo.types import Problem

__all__ = ["JointPrior", "joint"]


class _AtSite(Messenger):
    """Gives one latent site another distribution, or a factor of its log density, or both."""

    def __init__(self, site: str, distribution: Any = None, factor: float = 1.0) -> None:
        super().__init__()
        self.site, self.distribution, self.factor, self.found = site, distribution, factor, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site:
            return
        self.found = True
        msg["scale"] = msg["scale"] * self.factor
        if self.distribution is not None:
            own = msg["fn"]
            if own.event_shape != self.distribution.event_shape:
                got, expected = tuple(own.event_shape), tuple(self.distribution.event_shape)
                raise CaptureError(f"site {self.site!r}: got vectors {got}, expected {expected}, the prior's")
            msg["fn"] = self.distribution.expand(own.batch_shape)


@contextmanager
def _at(site: str, distribution: Any = None, factor: float = 1.0) -> Iterator[None]:
    """Inside this context the model has the site.

    Raises:
        CaptureError: it has not.
    """
    handler = _AtSite(site, distribution, factor)
    with handler:
        yield
    if not handler.found:
        raise CaptureError(f"site {site!r}: the autoencoder's model or guide has no such site")


@dataclass(frozen=True, eq=False)
class JointPrior:
    """An autoencoder's model with a learned prior at one of its latent sites.

    Args:
        model: of the autoencoder.
        prior: the prior; its weights are parameters of the model.
        site: name of the site of the latents, ``[galaxy, features]``.
        beta: factor of the log density of the site.
    """

    model: Callable[..., Any]
    prior: LatentPrior
    site: str
    beta: float = 1.0

    def __call__(self, data: dict[str, Any], conditions: Tensor | None = None) -> None:
        prior: Any = pyro.module("prior", self.prior.prior)
        with _at(self.site, prior(conditions), self.beta):
            self.model(**data)


class _Guide(nn.Module):
    """The autoencoder's guide, without the conditions, and with the same factor at the site."""

    def __init__(self, guide: Any, site: str, beta: float) -> None:
        super().__init__()
        self.guide, self.site, self.beta = guide, site, beta

    def forward(self, data: dict[str, Any], conditions: Tensor | None = None) -> None:
        with _at(self.site, factor=self.beta):
            self.guide(*data.values())


@dataclass(frozen=True)
class _Factory:
    """The factory of :class:`_Guide` from one of the autoencoder's."""

    problem: Problem
    name: str
    site: str
    beta: float

    def __call__(self, problem: Problem) -> _Guide:
        part = replace(self.problem, args=tuple(problem.args[0].values()), data_plates=())
        return _Guide(self.problem.factory("guides", self.name)(part), self.site, self.beta)


def joint(
    problem: Problem,
    prior: LatentPrior,
    *,
    site: str = "z",
    conditions: Mapping[str, Float[Tensor, "galaxy"]] | None = None,
    beta: float = 1.0,
) -> Problem:
    """The problem of training an autoencoder and a prior of its latents together.

    Args:
        problem: of training the autoencoder, with a mapping of data plates, the first that of the galaxies.
        prior: usually an untrained :class:`LatentPrior`.
        site: the site of the latents.
        conditions: values of the prior's conditions, by name. Their least and greatest become its ranges.
        beta: factor of KL(q(z | x) || p(z)); 1 is the ELBO.

    Raises:
        InputError: beta is not positive; conditions are missing or unknown, or not one for each galaxy; the
            problem has no mapping of data plates. Training raises a CaptureError if there is no such site.
    """
    if not beta > 0:
        raise InputError("beta", beta, "a number above 0; 1 is the ELBO")
    if not isinstance(problem.data_plates, Mapping) or not problem.data_plates:
        raise InputError("data_plates", repr(problem.data_plates), "a mapping of plates to axes of arguments")
    if set(conditions or {}) != set(prior.conditions):
        raise InputError("conditions", sorted(conditions or {}), f"values of {sorted(prior.conditions)}")
    called: Any = problem.model.forward if isinstance(problem.model, nn.Module) else problem.model
    names = list(inspect.signature(called).parameters)[: len(problem.args)]
    args: tuple[Any, ...] = (dict(zip(names, problem.args, strict=True)),)
    plates = {
        plate: {f"data.{path}": axis for path, axis in axes.items()}
        for plate, axes in problem.data_plates.items()
    }
    if conditions:
        columns = torch.stack([conditions[name] for name in prior.conditions], -1)
        prior.prior.standardise(prior.prior.centre, prior.prior.root @ prior.prior.root.mT, columns)
        args = (*args, columns)
        plates[next(iter(plates))]["conditions"] = 0
    return Problem(
        JointPrior(problem.model, prior, site, beta),
        args,
        name=problem.name if beta == 1 else f"{problem.name} with beta {beta:g}, not an ELBO",
        data_plates=plates,
        guides={known: _Factory(problem, known, site, beta) for known in problem.guides},
    )
