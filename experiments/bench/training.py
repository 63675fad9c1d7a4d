"""A step of ``astrozoo.train`` beside a step of a plain PyTorch loop: the same network, data and optimiser.

    python -m experiments.bench.training [--nets convolutional,galaxy_vae] [--steps 300] [--batches 64,128]
        [--threads 1,0]

The networks are a convolutional variational autoencoder of 64 x 64 images, those of ``galaxy_vae`` in their
two stages, those of ``psf_vae`` in their last phase, and the flow of ``latent_flow``, in single precision, on
the CPU. The two loops alternate step by step in one process:
after each step of training's optimiser its clock stops, and the plain loop makes one step. A step of
``astrozoo.train`` is all that happens between two such points: the schedule of the learning rate,
Lightning's hooks, the next minibatch, the Pyro programs, the backward pass and Adam.

Each setting gives a CSV row: steps per second of training, medians [ms], the median of the ratios of
neighbouring steps with its standard error (from blocks of steps), the quartiles of the ratios, and the
median of the extra milliseconds.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import astrozoo
from astrozoo.data.latents import LatentTable
from astrozoo.data.noisy_stamps import Stamp
from astrozoo.data.stamps import Pixels
from astrozoo.models import galaxy_population, galaxy_vae, galaxy_vae_training, latent_flow
from astrozoo.models.galaxy_encoder import moments, render
from astrozoo.nets.autoencoder import ConvolutionalDecoder, ConvolutionalEncoder
from astrozoo.nets.galaxy_vae import Nets
from astrozoo.types import Problem

__all__ = ["measure"]

SIZE = 64
"""[px] Side of an image."""
LATENT = 32
"""Latent dimensions of the autoencoder."""
IMAGES = 4096
"""Images of the data set: 64 MB, more than fits into a CPU cache."""
WARM = 20
"""First steps that are not counted, because caches and allocators fill in them."""
BLOCKS = 10
"""Blocks of steps whose medians give the standard error of the ratio."""


@dataclass(frozen=True, eq=False)
class Model:
    """z ~ N(0, 1), image ~ N(decoder(z), 0.1)."""

    decoder: nn.Module

    def __call__(self, x: Tensor) -> None:
        decoder: Any = pyro.module("decoder", self.decoder)
        with pyro.plate("image", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(2), obs=x)


class Guide(nn.Module):
    """q(z | image) of an encoder."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.encoder = ConvolutionalEncoder(SIZE, LATENT)

    def forward(self, x: Tensor) -> None:
        mean, sd = self.encoder(x)
        with pyro.plate("image", len(x)):
            pyro.sample("z", dist.Normal(mean, sd).to_event(1))


@dataclass(frozen=True, eq=False)
class Case:
    """Networks to train in both loops.

    Args:
        problem: for ``astrozoo.train``, with the guide's factory.
        data: tensors whose leading axis is that of the images.
        loss: the same objective in torch's functions: minus the ELBO per image of a minibatch, with one
            draw from the generator.
        parameters: that the plain loop trains.
    """

    problem: Problem
    guide: Any
    data: tuple[Tensor, ...]
    loss: Callable[[tuple[Tensor, ...], torch.Generator], Tensor]
    parameters: list[nn.Parameter]


def convolutional() -> Case:
    """The convolutional autoencoder."""
    x = torch.rand(IMAGES, SIZE, SIZE)
    encoder, decoder = ConvolutionalEncoder(SIZE, LATENT), ConvolutionalDecoder(SIZE, LATENT)

    def loss(rows: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        (x,) = rows
        mean, sd = encoder(x)
        z = mean + sd * torch.randn(mean.shape, generator=generator)
        return negative_elbo(z, mean, sd, normal(decoder(z), 0.1).log_prob(x).sum((1, 2)))

    problem = Problem(Model(ConvolutionalDecoder(SIZE, LATENT)), (x,), data_plates={"image": {"x": 0}})
    return Case(problem, Guide, (x,), loss, [*encoder.parameters(), *decoder.parameters()])


def galaxy(second: bool) -> Case:
    """The networks of ``galaxy_vae`` in a stage of their training."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGES, galaxy_vae.SIZE, galaxy_vae.SIZE, generator=generator)
    noise, used = torch.rand(IMAGES, generator=generator) + 0.1, torch.ones_like(image, dtype=torch.bool)
    pixels = Pixels(image, noise, used)

    def nets() -> Nets:
        made = galaxy_vae_training.untrained(pixels)
        return galaxy_vae_training.of_second_stage(made) if second else made

    plain = nets()

    def loss(rows: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        image, noise, used = rows
        mean, sd = plain.encoder(image, noise)
        z = mean + sd * torch.randn(mean.shape, generator=generator)
        expected, variance = plain.decoder(z)
        density = normal(expected, (noise[:, None, None] ** 2 + variance).sqrt()).log_prob(image)
        return negative_elbo(z, mean, sd, torch.where(used, density, 0.0).sum((1, 2)))

    trained = [p for net in (plain.encoder, plain.decoder) for p in net.parameters() if p.requires_grad]
    return Case(galaxy_vae.training_problem(pixels, nets()), "encoder", tuple(pixels), loss, trained)


def psf_galaxy() -> Case:
    """The networks of ``psf_vae`` in the last phase of their training."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGES, 32, 32, generator=generator)
    psf = torch.ones(IMAGES, 15, 15) / 225
    stamp = Stamp(image, image, psf)
    plain, ours = galaxy_population.untrained(), galaxy_population.untrained()

    def loss(rows: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        image, _, psf = rows
        mean, sd = moments(plain, image, psf)
        z = mean + sd * torch.randn(mean.shape, generator=generator)
        model = render(plain.decoder, z, psf, image.shape[-2:])
        return negative_elbo(z, mean, sd, normal(model, 1.0).log_prob(image).sum((1, 2)))

    problem = galaxy_population.problem(stamp, ours, robust=False, corrected=True)
    return Case(problem, "corrected", tuple(stamp), loss, [p for net in plain for p in net.parameters()])


def flow() -> Case:
    """The flow of ``latent_flow`` with three conditions."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(IMAGES, 16, generator=generator)
    sd, conditions = torch.full_like(mean, 0.1), torch.randn(IMAGES, 3, generator=generator)
    table = LatentTable(mean, sd, conditions, ("redshift", "magnitude", "colour"))
    plain, ours = latent_flow.fitted_to(table), latent_flow.fitted_to(table)

    def loss(rows: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        mean, sd, conditions = rows
        z = mean + sd * torch.randn(mean.shape, generator=generator)
        return (normal(mean, sd).log_prob(z).sum(-1) - plain.prior(conditions).log_prob(z)).mean()

    trained = [p for p in plain.prior.parameters() if p.requires_grad]
    return Case(latent_flow.training_problem(ours, table), "posterior", (mean, sd, conditions), loss, trained)


def normal(mean: Tensor | float, sd: Tensor | float) -> Any:
    """Without checks of the arguments."""
    return dist.Normal(mean, sd, validate_args=False)


def negative_elbo(z: Tensor, mean: Tensor, sd: Tensor, likelihood: Tensor) -> Tensor:
    """Per image."""
    return (normal(mean, sd).log_prob(z).sum(-1) - normal(0.0, 1.0).log_prob(z).sum(-1) - likelihood).mean()


NETS: dict[str, Callable[[], Case]] = {
    "convolutional": convolutional,
    "galaxy_vae": lambda: galaxy(False),
    "galaxy_vae-second-stage": lambda: galaxy(True),
    "psf_vae": psf_galaxy,
    "latent_flow": flow,
}


class Plain:
    """The loop that one writes by hand; :meth:`step` makes one step."""

    def __init__(self, case: Case, batch: int) -> None:
        self.case, self.batch = case, batch
        self.optimiser = torch.optim.Adam(case.parameters, 1e-3)
        self.generator = torch.Generator().manual_seed(0)
        self.rows: list[Tensor] = []

    def step(self) -> None:
        """One minibatch."""
        if not self.rows:
            order = torch.randperm(len(self.case.data[0]), generator=self.generator)
            self.rows = list(order.split(self.batch))
        rows = self.rows.pop()
        loss = self.case.loss(tuple(x[rows] for x in self.case.data), self.generator)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


class Alternation:
    """A hook of optimisers: after each step of another optimiser the plain loop makes a step.

    Attributes:
        seconds: pairs of the durations of a step of the other optimiser's loop and of the plain one [s].
    """

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.seconds: list[tuple[float, float]] = []
        self.resumed: float | None = None

    def __call__(self, optimiser: Any, args: Any, kwargs: Any) -> None:
        if optimiser is self.plain.optimiser:
            return
        stopped = time.perf_counter()
        self.plain.step()
        finished = time.perf_counter()
        if self.resumed is not None:
            self.seconds.append((stopped - self.resumed, finished - stopped))
        self.resumed = time.perf_counter()


def measure(nets: str, batch: int, threads: int, steps: int) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    case = NETS[nets]()
    plain = Plain(case, batch)
    alternation = Alternation(plain)
    hook = register_optimizer_step_post_hook(alternation)
    astrozoo.train(case.problem, case.guide, steps=steps + WARM + 1, batch=batch, progress=False)
    hook.remove()
    ours, theirs = np.asarray(alternation.seconds[WARM:]).T * 1e3
    ratios = ours / theirs
    blocks = [np.median(block) for block in np.array_split(ratios, BLOCKS)]
    low, high = np.quantile(ratios, (0.25, 0.75))
    return {
        "nets": nets,
        "batch": batch,
        "threads": threads,
        "steps": len(ratios),
        "steps_per_second": f"{1e3 / np.median(ours):.1f}",
        "plain_ms": f"{np.median(theirs):.2f}",
        "astrozoo_ms": f"{np.median(ours):.2f}",
        "ratio": f"{np.median(ratios):.4f}",
        "standard_error": f"{np.std(blocks, ddof=1) / BLOCKS**0.5:.4f}",
        "quartiles": f"{low:.3f}-{high:.3f}",
        "ratio_of_totals": f"{ours.sum() / theirs.sum():.4f}",
        "extra_ms": f"{np.median(ours - theirs):.2f}",
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batches", default="64,128")
    parser.add_argument("--threads", default="1,0", help="0: all of torch's default")
    options = parser.parse_args()
    default, writer = torch.get_num_threads(), None
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads or default)
        settings = product(options.nets.split(","), map(int, options.batches.split(",")))
        for nets, batch in settings:
            row = measure(nets, batch, torch.get_num_threads(), options.steps)
            if writer is None:
                writer = csv.DictWriter(sys.stdout, row)
                writer.writeheader()
            writer.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
