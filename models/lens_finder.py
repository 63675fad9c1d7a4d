"""The probability that a stamp shows a strong gravitational lens, with its uncertainty.

    weight_k ~ N(0, scale^2 / features)
    offset ~ N(0, scale^2)
    label ~ Bernoulli(logit^-1(offset + features . weight))

``features`` are those of a residual network (:mod:`astrozoo.nets.classifier`), frozen, of labelled stamps
that the network was not trained on, standardised. Half of these are lenses. The posterior odds of a stamp
are the likelihood ratio ``exp(offset + features . weight)`` times the prior odds, which the user states as a
prevalence.

The weights' posterior is narrow and does not see that a stamp is unlike all labelled ones. Whether it is says
the density of statistics of the network's layers (:mod:`astrozoo.models.lens_reference`).

References:
    Lanusse et al. 2018, MNRAS 473, 3895 (the network); Bishop 2006, section 4.5 (the regression);
    Lee et al. 2018, arXiv 1807.03888 (the density).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.finder_files import MISSING, LensStamps, read_stamps
from astrozoo.errors import InputError
from astrozoo.models.lens_reference import Finder, load
from astrozoo.types import Problem

__all__ = ["Labelled", "LensFinder", "log_odds", "problem", "read", "simulate"]

_SIMULATED = 300
"""Stamps of :func:`simulate`."""
_SIMULATED_FEATURES = 4
"""Their features."""


class Labelled(NamedTuple):
    """Labelled stamps.

    Attributes:
        features: of each stamp, standardised.
        label: 1 of a lens, 0 of anything else.
    """

    features: Float[Tensor, "n f"]
    label: Float[Tensor, "n"]


@dataclass(frozen=True)
class LensFinder:
    """Bayesian logistic regression on features.

    Args:
        scale: prior SD of the logit's slope along a random direction of the features, and of the offset.
    """

    scale: float = 10.0

    def __call__(self, data: Labelled) -> None:
        features, label = data
        n = features.shape[-1]
        zeros = features.new_zeros(n)
        weight = pyro.sample("weight", dist.Normal(zeros, self.scale / math.sqrt(n)).to_event(1))
        offset = pyro.sample("offset", dist.Normal(zeros.new_zeros(()), self.scale))
        with pyro.plate("stamp", len(features)):
            logits = offset + features @ weight
            pyro.sample("label", dist.Bernoulli(logits=logits), obs=label)


def problem(
    data: Labelled | LensStamps,
    *,
    weights: str | Path | Trained | Finder = "lens_finder",
    scale: float = 10.0,
) -> Problem:
    """The weights of the features, given labelled stamps.

    Args:
        data: labelled features; or stamps, of which only the bands are checked: the labelled stamps are then
            those that came with the network's weights.
        weights: see :func:`~astrozoo.models.lens_reference.load`.
        scale: see :class:`LensFinder`.

    Raises:
        InputError: the scale is not positive, or there are no labelled stamps.
        DataError: the stamps do not fit the network.
    """
    if not scale > 0:
        raise InputError("scale", scale, "a number above 0")
    start = {}
    if isinstance(data, LensStamps):
        finder = weights if isinstance(weights, Finder) else load(weights)
        finder.check(data)
        start = finder.start()
        data = Labelled(*finder.labelled())
    if not len(data.label):
        raise InputError("labelled stamps", 0, "1 or more")
    return Problem(
        LensFinder(scale),
        (data,),
        name="lens_finder",
        data_plates={"stamp": {"data.features": 0, "data.label": 0}},
        start=start,
        dims={"weight": ("feature",)},
    )


def simulate(
    seed: int = 0, *, stamps: int = _SIMULATED, features: int = _SIMULATED_FEATURES, scale: float = 2.0
) -> tuple[Labelled, dict[str, Tensor]]:
    """Labels drawn from the model for normal features, and the weights that they come from."""
    for name, value in (("stamps", stamps), ("features", features)):
        if value < 1:
            raise InputError(name, value, "1 or more")
    generator = torch.Generator().manual_seed(seed)
    like: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    weight = scale / math.sqrt(features) * torch.randn(features, **like)
    offset = scale * torch.randn((), **like)
    drawn = torch.randn(stamps, features, **like)
    label = (torch.rand(stamps, **like) < torch.sigmoid(offset + drawn @ weight)).to(torch.float64)
    return Labelled(drawn, label), {"weight": weight, "offset": offset}


def read(path: str | Path, bands: str | None = None, missing: float = MISSING) -> LensStamps:
    """Stamps of a file or folder; see :func:`astrozoo.data.finder_files.read_stamps`."""
    return read_stamps(Path(path), bands=bands, missing=missing)


def log_odds(prevalence: float) -> float:
    """Log prior odds of a fraction of lenses.

    Raises:
        InputError: the fraction is not between 0 and 1.
    """
    if not 0 < prevalence < 1:
        raise InputError("prevalence", prevalence, "a fraction between 0 and 1, such as 0.001")
    return math.log(prevalence / (1 - prevalence))
