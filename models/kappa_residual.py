"""The learned part of the hybrid prior of mass maps.

The hybrid prior multiplies the log-normal prior by ``exp(-E(g))``. The Gaussian field of the log-normal,
``g``, is ``log(1 + kappa / k0)`` plus a constant, and E is a network from maps to numbers. The log-normal has
the power of the theory, and the network what simulated halos have beyond it.

:class:`KappaResidual` is the model that the network is fitted with: denoising score matching at noise levels
:data:`LEVELS`. A map ``g`` gets noise, and is normal around what the score of noisy maps predicts. Of the
Gaussian field with noise the score is known: ``-(P + sigma^2)^-1 y`` in Fourier space. The network adds minus
the gradient of its energy. ``experiments/train_kappa_residual.py`` fits it.

References:
    Vincent 2011, Neural Comput. 23, 1661; Remy et al. 2022, A&A 672, A51 (Gaussian score plus a residual).
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
from torch.func import functional_call

from astrozoo._trained import Trained
from astrozoo.data.weights import load_weights
from astrozoo.nets.score import ResidualUNet, ScalarEnergy
from astrozoo.types import Problem

__all__ = [
    "LEVELS",
    "MULTIPLE",
    "PIXEL",
    "SHIFT",
    "KappaResidual",
    "energy_at",
    "load",
    "make_energy",
    "problem",
    "weights",
]

LEVELS = (0.05, 0.3)
"""Noise levels of training, in units of g, whose SD is 0.4. The prior has the energy of the least one: its
noise is a tenth of the SD of the field."""
SHIFT = 0.06
"""k0 of the hybrid prior: more than minus the least convergence of simulated halo maps, 0.053."""
PIXEL = 0.29
"""[arcmin] Side of the pixels that the network is trained on."""
MULTIPLE = 8
"""Sides of maps are multiples of this [px]: the network halves them three times."""
_SD = 0.4
"""SD of g, by which the network's input is scaled."""


def make_energy() -> ScalarEnergy:
    """The network, untrained: a periodic U-Net at half the resolution."""
    return ScalarEnergy(ResidualUNet(channels=(16, 24, 32), block=2, periodic=True), sd=_SD)


@dataclass(frozen=True, eq=False)
class KappaResidual:
    """The model of maps ``g`` that the energy is fitted with.

    Args:
        energy: its weights are parameters of the model.
        levels: least and most noise level.
    """

    energy: ScalarEnergy = field(default_factory=make_energy)
    levels: tuple[float, float] = LEVELS

    def __call__(self, fields: Float[Tensor, "map y x"], power: Float[Tensor, "y h"]) -> None:
        energy: Any = pyro.module("energy", self.energy)
        least, most = map(math.log, self.levels)
        with pyro.plate("map", len(fields)):
            log_sigma = pyro.sample("log_sigma", dist.Uniform(fields.new_tensor(least), most))
            unit = dist.Normal(torch.zeros_like(fields), 1.0).to_event(2)
            sigma = log_sigma.exp()[:, None, None]
            noisy = fields + sigma * pyro.sample("noise", unit)
            score = gaussian_score(noisy, power, sigma) + energy.score(noisy[:, None], log_sigma.exp())[:, 0]
            pyro.sample("field", dist.Normal(noisy + sigma**2 * score, sigma).to_event(2), obs=fields)


def gaussian_score(
    noisy: Float[Tensor, "b y x"], power: Float[Tensor, "y h"], sigma: Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b y x"]:
    """The score of a Gaussian field with white noise.

    Args:
        power: of each mode, in units of that of white noise of unit variance.
    """
    waves = torch.fft.rfft2(noisy) / (power + sigma**2)
    return -torch.fft.irfft2(waves, s=noisy.shape[-2:])


def problem(fields: Any, power: Float[Tensor, "y h"], *, seed: int = 0) -> Problem:
    """The problem of fitting the energy.

    Args:
        fields: maps g of mean 0: a tensor ``[map, y, x]`` or a Dataset of such maps.
        power: of the Gaussian field.
        seed: of the network's first weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = KappaResidual()
    guides = {"prior": "astrozoo.guides.denoising:prior"}
    plates = {"map": {"fields": 0}}
    return Problem(model, (fields, power), name="kappa_residual", data_plates=plates, guides=guides)


def load(
    weights: Path | Trained | str = "kappa_residual", *, dtype: torch.dtype = torch.float64
) -> ScalarEnergy:
    """The trained energy.

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


def weights() -> dict[str, Tensor]:
    """The shipped weights of the network, by name, for :func:`energy_at`."""
    return load().network.state_dict()


def _structure() -> torch.nn.Module:
    with torch.device("meta"):  # draws no random numbers
        network = make_energy().network.float().requires_grad_(False)
    network = network.to_empty(device="cpu")
    for value in network.state_dict().values():
        value.zero_()
    return network


_STRUCTURE = _structure()
"""The network, all of whose weights are 0. It is made before any model runs: weights that are made inside a
run would be taken for parameters of the model."""


def energy_at(field: Float[Tensor, "y x"], weights: dict[str, Tensor]) -> Float[Tensor, ""]:
    """E of a map g of mean 0, at the least noise level.

    The network computes in single precision, which is twice as fast. Its output is summed in the precision of
    the map: over 1e5 pixels the error of the sum is then below 0.01 nat.

    Args:
        weights: of the network (:func:`weights`).
    """
    level = LEVELS[0]
    images = (field / math.hypot(level, _SD)).float()[None, None]
    single = {name: value.float() for name, value in weights.items()}
    output = functional_call(_STRUCTURE, single, (images, images.new_full((1,), level)))
    return output.to(field.dtype).sum()
