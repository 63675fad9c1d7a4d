"""Two interleaved half circles in the plane: a prior whose density is known, and the energy that learns it.

A point is on the upper half of a circle of radius 1 around the origin, or on the lower half of one around
(1, 0.5), at a uniform angle, plus normal scatter of SD :data:`WIDTH` in each coordinate.

:func:`density` is the exact density. :class:`LearnedPoints` is the model that the energy is fitted with, by
denoising score matching at noise levels :data:`LEVELS`: a point gets noise, and is normal around what the
score of noisy points predicts. Of the base, a normal, the score is known. The network adds minus the
gradient of its energy. ``experiments/two_moons.py`` fits it; the weights ship.

References:
    Vincent 2011, Neural Comput. 23, 1661.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.weights import load_weights
from astrozoo.models.image_prior import Field
from astrozoo.nets.score import PointNetwork, ScalarEnergy
from astrozoo.types import Problem

__all__ = ["LEVELS", "WIDTH", "LearnedPoints", "base", "density", "draw", "load", "make_energy", "problem"]

WIDTH = 0.1
"""SD of the scatter about the half circles."""
LEVELS = (0.03, 1.0)
"""Noise levels of training. The prior has the energy of the least one, which widens the moons by 4 %."""
_MEAN = (0.5, 0.25)
"""Middle of the two moons."""
_SD = 0.8
"""SD of the base: about that of a coordinate of the two moons (0.87 and 0.5)."""
_ANGLES = 400
"""Angles of the sum that stands for the density of a half circle. They are 0.008 apart."""


def base(like: Tensor) -> Field:
    """The normal that the energy multiplies."""
    return Field(like.new_tensor(_MEAN), like.new_tensor(_SD))


def draw(count: int, generator: torch.Generator) -> Float[Tensor, "point 2"]:
    """Points without noise."""
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    angle = math.pi * torch.rand(count, **options)
    lower = torch.rand(count, **options) < 0.5
    scatter = WIDTH * torch.randn(count, 2, **options)
    return _arc(angle, lower) + scatter


def _arc(angle: Tensor, lower: Tensor) -> Float[Tensor, "n 2"]:
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return torch.stack((x, y), -1)


def density(points: Float[Tensor, "*b 2"], width: float = WIDTH) -> Float[Tensor, "*b"]:
    """Density of points without noise, or with noise if ``width`` includes it.

    Args:
        width: SD about the half circles, 0.03 or more.
    """
    angle = (torch.arange(_ANGLES, dtype=points.dtype) + 0.5) * math.pi / _ANGLES
    lower = torch.tensor([False, True])
    middles = _arc(*torch.broadcast_tensors(angle[:, None], lower)).flatten(0, 1)
    squares = (points[..., None, :] - middles).square().sum(-1) / width**2
    return (-squares / 2).exp().mean(-1) / (2 * math.pi * width**2)


def make_energy() -> ScalarEnergy:
    """The network, untrained."""
    return ScalarEnergy(PointNetwork(2), sd=_SD)


@dataclass(frozen=True, eq=False)
class LearnedPoints:
    """The model of points that the energy is fitted with.

    Args:
        energy: its weights are parameters of the model.
        levels: least and most noise level.
    """

    energy: ScalarEnergy = field(default_factory=make_energy)
    levels: tuple[float, float] = LEVELS

    def __call__(self, points: Float[Tensor, "point 2"]) -> None:
        energy: Any = pyro.module("energy", self.energy)
        normal = base(points)
        least, most = map(math.log, self.levels)
        with pyro.plate("point", len(points)):
            log_sigma = pyro.sample("log_sigma", dist.Uniform(points.new_tensor(least), most))
            unit = dist.Normal(torch.zeros_like(points), 1.0).to_event(1)
            sigma = log_sigma.exp()[:, None]
            noisy = points + sigma * pyro.sample("noise", unit)
            learned = energy.score((noisy - normal.mean)[..., None, None], log_sigma.exp())[..., 0, 0]
            score = learned - (noisy - normal.mean) / (normal.root**2 + sigma**2)
            pyro.sample("clean", dist.Normal(noisy + sigma**2 * score, sigma).to_event(1), obs=points)


def problem(points: Float[Tensor, "point 2"], *, seed: int = 0) -> Problem:
    """The problem of fitting the energy.

    Args:
        points: without noise.
        seed: of the network's first weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LearnedPoints()
    guides = {"prior": "astrozoo.guides.denoising:prior"}
    return Problem(model, (points,), name="two_moons", data_plates={"point": {"points": 0}}, guides=guides)


def load(weights: str | Path | Trained = "two_moons", *, dtype: torch.dtype = torch.float64) -> ScalarEnergy:
    """The trained energy of points minus the middle of the moons.

    Args:
        weights: the shipped ones, a file written by training, or the result of training.
        dtype: of the network; the weights are stored in float32.

    Raises:
        DataError: the file is missing or corrupt, or its weights are of another model.
    """
    trained = weights if isinstance(weights, Trained) else load_weights(weights)
    energy = make_energy()
    trained.load_into(energy, "model.energy")
    return energy.to(dtype=dtype).eval().requires_grad_(False)
