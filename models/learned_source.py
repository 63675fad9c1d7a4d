"""A learned prior on source galaxies: a small decoder and a flow over its latents.

A lens model uses both::

    decoder, prior = learned_source.load()
    z = pyro.sample("source_latent", prior)          # [32]
    image = decoder(z)                               # [64, 64], surface brightness summing to 1

If a sampler needs independent normals instead of ``z``, transform them by the flow: ``z = prior.push(u)``
with ``u ~ N(0, I)`` has the same prior, and takes two passes.

:class:`LearnedSource` is the model that the weights are fitted with. ``astrozoo train strong_lens`` fits new
weights to galaxies drawn by GalSim (:mod:`astrozoo.data.galaxies`). Half of these galaxies are smooth and
half are clumpy. They are convolved with a Gaussian whose sigma is one pixel, and their half-light radii are 5
to 9 pixels. They have no structure smaller than that Gaussian, no spiral arms, no dust and no mergers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import zuko
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.weights import load_weights
from astrozoo.nets.autoencoder import ConvolutionalDecoder
from astrozoo.nets.flow import FlowDistribution, flow_distribution, make_flow
from astrozoo.types import Problem

__all__ = [
    "LATENT",
    "SIZE",
    "Decoder",
    "LearnedSource",
    "SourceGenerator",
    "generator",
    "latent_flow",
    "load",
    "problem",
    "training",
]

LATENT = 32
"""Length of the latent vector."""
SIZE = 64
"""[px] Side of the decoded image."""


class Decoder(ConvolutionalDecoder):
    """A network from latent vectors to images, which are positive and sum to 1."""

    def __init__(self) -> None:
        super().__init__(SIZE, LATENT)

    def log_image(self, z: Float[Tensor, "*b latent"]) -> Float[Tensor, "*b y x"]:
        """Logarithm of :meth:`forward`."""
        image = super().forward(z)
        return image.flatten(-2).log_softmax(-1).reshape(image.shape)

    def forward(self, z: Float[Tensor, "*b latent"]) -> Float[Tensor, "*b y x"]:
        """Surface brightness, summing to 1."""
        return self.log_image(z).exp()


def latent_flow() -> zuko.lazy.Flow:
    """The untrained flow over latents. Its steps are affine couplings, so both directions are quick."""
    return make_flow("maf", LATENT, transforms=6, passes=2)


@dataclass(frozen=True, eq=False)
class LearnedSource:
    """The generative model of galaxies that the decoder and the flow are fitted with.

    The flow is the prior of a galaxy's latents. The image is a multinomial count of photons over the pixels,
    so pixels have the weights that they have in an observation with that number of photons.

    Args:
        photons: number of photons of a galaxy.
        decoder: network from latents to images; its weights are parameters of the model.
        flow: flow over the latents; its weights are parameters of the model.
    """

    photons: int = 30_000
    decoder: Decoder = field(default_factory=Decoder)
    flow: zuko.lazy.Flow = field(default_factory=latent_flow)

    def __call__(self, images: Float[Tensor, "galaxy y x"]) -> None:
        decoder: Any = pyro.module("decoder", self.decoder)
        flow: Any = pyro.module("flow", self.flow)
        with pyro.plate("galaxy", len(images)):
            z = pyro.sample("latent", flow_distribution(flow))
            logits = decoder.log_image(z).flatten(-2)
            photons = dist.Multinomial(self.photons, logits=logits, validate_args=False)
            pyro.sample("image", photons, obs=self.photons * images.flatten(-2))


def problem(images: Any, *, photons: int = 30_000, seed: int = 0) -> Problem:
    """The problem of fitting the decoder and the flow to galaxies.

    Args:
        images: galaxies of unit sum: a tensor ``[galaxy, y, x]``, or a Dataset of such images.
        photons: see :class:`LearnedSource`.
        seed: seed of the networks' initial weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LearnedSource(photons)
    guides = {"encoder": "astrozoo.guides.learned_source:encoder"}
    plates = {"galaxy": {"images": 0}}
    return Problem(model, (images,), name="learned_source", data_plates=plates, guides=guides)


def training(
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str = "cpu",
    galaxies: int = 12_000,
    photons: int = 30_000,
) -> dict[str, Any]:
    """Arguments of :func:`astrozoo.train` that fit new weights; ``load(weights=...)`` reads the result.

    Args:
        out: folder of the run; simulated galaxies are saved in a folder below it.
        path: a safetensors file with ``images``, ``[galaxy, 64, 64]``, each of sum 1. None simulates them.
        seed: seed of the galaxies and of the networks' initial weights.
        device: device to train on.
        galaxies: number of simulated galaxies.
        photons: see :class:`LearnedSource`.

    Raises:
        DataError: if the file does not hold such images.
    """
    from astrozoo.data.galaxies import Galaxies, read_galaxies, render_galaxies

    if path is not None:
        images = read_galaxies(path, SIZE)
        images, held_out = images[: -(len(images) // 10)], images[-(len(images) // 10) :]
    else:
        images = render_galaxies(galaxies, seed, SIZE, out / "galaxies")
        held_out = render_galaxies(max(1, galaxies // 12), seed + 1, SIZE, out / "galaxies")
    return {
        "problem": problem(Galaxies(images), photons=photons, seed=seed),
        "guide": "encoder",
        "held_out": problem(held_out, photons=photons, seed=seed),
        "steps": 2600,
        "batch": 64,
        "learning_rate": 2e-3,
        "gradient_clip": 100.0,
        "device": device,
    }


def load(
    *,
    weights: str | Path | Trained = "learned_source",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Decoder, FlowDistribution]:
    """The decoder and the prior over its latents.

    Args:
        weights: the name of the package's weights, a file written by training, or the result of training.
        dtype: dtype of the networks; the weights are stored in float32.
        device: device of the networks.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing or corrupt, or its weights are of another model.
    """
    trained = weights if isinstance(weights, Trained) else load_weights(weights)
    with torch.no_grad():  # a model may load them while it is captured: they are no parameters of its own
        decoder, flow = Decoder(), latent_flow()
        for name, module in (("decoder", decoder), ("flow", flow)):
            trained.load_into(module, f"model.{name}")
            module.to(dtype=dtype, device=device).eval().requires_grad_(False)
    return decoder, flow_distribution(flow)


@dataclass(frozen=True, eq=False)
class SourceGenerator:
    """Draws galaxies for :class:`astrozoo.galsim_galaxy.GalSimGalaxy`.

    The galaxies have unit flux, and half-light radii of 5 to 9 pixels. The model knows no angles.

    Args:
        decoder, prior: see :func:`load`.
    """

    decoder: Decoder
    prior: FlowDistribution
    size: int = SIZE
    pixel_scale: float | None = None
    inputs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def draw(self, random: torch.Generator, inputs: Mapping[str, float]) -> Float[Tensor, "y x"]:
        """A galaxy that sums to 1."""
        z = self.prior.push(torch.randn(LATENT, generator=random))
        return self.decoder(z)


def generator(*, weights: str | Path | Trained = "learned_source") -> SourceGenerator:
    """The generator of galaxies; see :func:`load`."""
    return SourceGenerator(*load(weights=weights, dtype=torch.float32))
