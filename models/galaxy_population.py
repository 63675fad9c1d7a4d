"""The model that the networks of :mod:`astrozoo.models.psf_vae` are trained with, and the phases of training.

Latents are in the unit of each stamp's own noise and pixels. Three phases follow one another:

1. The encoder sees noisy images and the decoder is compared with the noiseless ones, by a robust measure.
   Signal-to-noise ratios are raised, so that the latents of faint structure do not collapse to their prior.
2. The same at the final signal-to-noise ratios, with the encoder's correction.
3. The ELBO of the noisy images.

Only the last phase maximises an ELBO. The first two need galaxies whose noiseless images are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.noisy_stamps import NoisyStamps, Stamp, noisy_stamps
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.data.weights import load_weights
from astrozoo.errors import InputError
from astrozoo.models.galaxy_encoder import moments, render
from astrozoo.nets.galaxy import ENCODED, LATENT, GalaxyDecoder, MomentEncoder, Networks
from astrozoo.types import Problem

__all__ = [
    "SNR",
    "STEPS",
    "SURVEY",
    "GalaxyPopulation",
    "elbos",
    "load",
    "phases",
    "problem",
    "training",
    "untrained",
    "weights_of_draws",
]

SURVEY = GalaxySurvey(size=48, pixel_scale=0.1, psf=PsfRange("moffat", (0.2, 0.45), 0.03), centre_scatter=0.5)
"""The galaxies that the shipped weights are trained on. Radii are .1 to .8 arcsec, or 1 to 8 px."""
SNR = (6.0, 300.0)
"""Signal-to-noise ratios of the last phases; see :class:`~astrozoo.data.noisy_stamps.NoisyStamps`."""
STEPS = (1100, 450, 250)
"""Steps of the phases, of 64 galaxies each. A step takes .04, .1 and .1 CPU seconds."""


class _Phase(NamedTuple):
    """Settings of a phase: the objective, whether the encoder is corrected, the factor by which
    signal-to-noise ratios are raised, and the learning rate."""

    robust: bool
    correct: bool
    boost: float
    rate: float


_PHASES = (_Phase(True, False, 4.0, 2e-3), _Phase(True, True, 1.0, 1e-3), _Phase(False, True, 1.0, 3e-4))
"""In the first, higher signal-to-noise ratios keep the latents of faint structure from collapse."""
_CLIP = 300.0
"""[nat] Largest norm of the gradient of the loss per galaxy. Typical norms are a third of it after a hundred
steps; single bright galaxies, which a new decoder does not fit, have norms of thousands."""


@dataclass(frozen=True, eq=False)
class GalaxyPopulation:
    """Many galaxies, each with latents of its own; the weights of the decoder are parameters.

    Args:
        networks: the model reads the decoder, and its guide the encoder.
        robust: whether the model is compared with the noiseless images, by
            ``pixels / 2 log(1 + chi2 / pixels)`` in place of ``chi2 / 2``: bright galaxies that are not yet
            fitted do not dominate.
    """

    networks: Networks
    robust: bool = False

    def __call__(self, stamp: Stamp) -> None:
        decoder: Any = pyro.module("decoder", self.networks.decoder)
        galaxies = len(stamp.image)
        with pyro.plate("galaxy", galaxies):
            prior = dist.Normal(stamp.image.new_zeros(galaxies, LATENT), 1.0, validate_args=False)
            z = pyro.sample("latent", prior.to_event(1))
            model = render(decoder, z, stamp.psf, stamp.image.shape[-2:])
            if self.robust:
                pixels = model[0].numel()
                chi2 = (stamp.noiseless - model).square().sum((-2, -1))
                pyro.factor("fit", -pixels / 2 * (chi2 / pixels).log1p())
            else:
                pyro.sample(
                    "image", dist.Normal(model, 1.0, validate_args=False).to_event(2), obs=stamp.image
                )


def problem(stamps: Any, networks: Networks, *, robust: bool, corrected: bool) -> Problem:
    """The problem of fitting the decoder and the encoder.

    Args:
        stamps: a :class:`~astrozoo.data.noisy_stamps.NoisyStamps`, or a Stamp of several galaxies.
        robust: see :class:`GalaxyPopulation`.
        corrected: whether the encoder's correction is used and trained.
    """
    guide = "corrected" if corrected else "first_guess"
    return Problem(
        GalaxyPopulation(networks, robust),
        (stamps,),
        name="psf_vae",
        data_plates={"galaxy": {"stamp": 0}},
        guides={guide: f"astrozoo.guides.galaxy_population:{guide}"},
    )


def untrained(seed: int = 0) -> Networks:
    """Networks with initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Networks(GalaxyDecoder(), MomentEncoder())


def load(
    weights: str | Path | Trained = "psf_vae",
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Networks:
    """The trained networks, frozen.

    Args:
        weights: the name of the package's weights, a file written by training, or the result of training.
        dtype: of the networks; the weights are stored in float32.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing, corrupt or of another version, or its weights are of another model.
    """
    networks = _filled(weights if isinstance(weights, Trained) else load_weights(weights))
    for module in networks:
        module.to(dtype=dtype, device=device).eval().requires_grad_(False)
    return networks


def _filled(trained: Trained) -> Networks:
    networks = untrained()
    trained.load_into(networks.decoder, "model.decoder")
    trained.load_into(networks.encoder, "guide.encoder")
    return networks


def phases(
    noiseless: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n k l"],
    held_out: Stamp,
    *,
    seed: int = 0,
    device: str = "cpu",
    steps: tuple[int, int, int] = STEPS,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """The phases of training: functions of the weights so far that return arguments of
    :func:`astrozoo.train`.

    Args:
        noiseless, psf: galaxies, each with its PSF.
        held_out: galaxies whose objective is in the curve of each phase; in the last one it is the ELBO.
        seed: of the initial weights and of the noise.
        steps: number of steps of each phase.
    """

    def noisy(boost: float, phase: int) -> NoisyStamps:
        low, high = SNR
        return NoisyStamps(
            noiseless, psf, snr=(boost * low, boost * high), size=ENCODED, seed=3 * seed + phase
        )

    def phase(number: int) -> Callable[[Trained | None], dict[str, Any]]:
        robust, correct, boost, rate = _PHASES[number]

        def arguments(before: Trained | None) -> dict[str, Any]:
            networks = untrained(seed) if before is None else _filled(before)
            kind = {"robust": robust, "corrected": correct}
            return {
                "problem": problem(noisy(boost, number), networks, **kind),
                "held_out": problem(held_out, networks, **kind),
                "guide": "corrected" if correct else "first_guess",
                "steps": steps[number],
                "batch": 64,
                "learning_rate": rate,
                "gradient_clip": _CLIP,
                "device": device,
            }

        return arguments

    return tuple(phase(number) for number in range(len(_PHASES)))


def training(
    *, out: Path, path: Path | None, seed: int, device: str = "cpu", galaxies: int = 4_000
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """What ``astrozoo train psf_vae`` runs: the phases of training on simulated galaxies.

    Args:
        out: folder of the run; simulated galaxies are cached in a folder below it.
        path: must be None: the first phases need noiseless images, which no observed galaxy has.
        seed: of the galaxies, of their noise and of the initial weights.
        device: device to train on.
        galaxies: number of simulated galaxies. A twelfth as many further ones are held out.

    Raises:
        InputError: a path is given.
    """
    if path is not None:
        raise InputError("--data", path, "nothing: these networks are trained on simulated galaxies")
    cache = out / "galaxies"
    stamps = simulate_galaxies(SURVEY, galaxies, seed=2 * seed, cache=cache)
    others = simulate_galaxies(SURVEY, max(galaxies // 12, 1), seed=2 * seed + 1, cache=cache)
    held_out = noisy_stamps(others.noiseless, others.psf, snr=SNR, size=ENCODED, seed=seed)
    return phases(stamps.noiseless, stamps.psf, held_out, seed=seed, device=device)


@torch.no_grad()
def elbos(networks: Networks, stamp: Stamp, *, draws: int = 8, seed: int = 0) -> Float[Tensor, "n"]:
    """The ELBO of each galaxy under the encoder with its correction, a mean over draws [nat]."""
    return weights_of_draws(networks, stamp, draws=draws, seed=seed).mean(0)


@torch.no_grad()
def weights_of_draws(
    networks: Networks, stamp: Stamp, *, draws: int, seed: int = 0
) -> Float[Tensor, "draw n"]:
    """``log p(x, z) - log q(z | x)`` of draws of the encoder with its correction [nat].

    Their mean over draws is the ELBO of a galaxy, and the logarithm of their mean exponential its
    importance-weighted bound.
    """
    mean, sd = moments(networks, stamp.image, stamp.psf)
    generator = torch.Generator().manual_seed(seed)
    q, prior = dist.Normal(mean, sd), dist.Normal(torch.zeros_like(mean), 1.0)
    rows = []
    for _ in range(draws):
        z = mean + sd * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        model = render(networks.decoder, z, stamp.psf, stamp.image.shape[-2:])
        likelihood = dist.Normal(model, 1.0).log_prob(stamp.image).sum((-2, -1))
        rows.append(likelihood + (prior.log_prob(z) - q.log_prob(z)).sum(-1))
    return torch.stack(rows)
