"""The model that the networks of :mod:`astrozoo.models.psf_vae` are trained with, and the phases of training.

Latents are in the unit of each stamp's own noise and pixels. Three phases follow one another:

1. The encoder sees noisy images and the decoder is compared with the noiseless ones, by a robust measure. Signal
   to noise ratios are raised, so that the latents of faint structure do not collapse to their prior.
2. The same at the final signal-to-noise ratios, with the encoder's correction.
3. The ELBO of the noisy images.

Only the last phase maximises an ELBO. The first two need galaxies whose noiseless images are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._trained import Trained
from astrozoo.data.noisy_stamps import NoisyStamps, Stamp
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.errors import InputError
from astrozoo.nets.galaxy import LATENT, GalaxyDecoder
from astrozoo.physics.convolved_gaussians import convolved_image, transfer_function
from astrozoo.types import Problem

__all__ = ["SURVEY", "GalaxyPopulation", "phases", "problem", "training"]

SURVEY = GalaxySurvey(size=48, pixel_scale=0.1, psf=PsfRange("moffat", (0.2, 0.45), 0.03), centre_scatter=0.5)
"""The galaxies that the shipped weights are trained on. Radii are .1 to .8 arcsec, or 1 to 8 px."""
SNR = (6.0, 300.0)
"""Signal-to-noise ratios of the last phases; see :class:`~astrozoo.data.noisy_stamps.NoisyStamps`."""
BOOST = 4.0
"""Factor by which signal-to-noise ratios are raised in the first phase."""


@dataclass(frozen=True, eq=False)
class GalaxyPopulation:
    """Many galaxies, each with latents of its own; the weights of the decoder are parameters.

    Args:
        decoder: from latents to light.
        robust: whether the model is compared with the noiseless images, by ``pixels / 2 log(1 + chi2 / pixels)``
            in place of ``chi2 / 2``: bright galaxies that are not yet fitted do not dominate.
    """

    decoder: GalaxyDecoder = field(default_factory=GalaxyDecoder)
    robust: bool = False

    def __call__(self, stamp: Stamp) -> None:
        decoder: Any = pyro.module("decoder", self.decoder)
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
                pyro.sample("image", dist.Normal(model, 1.0, validate_args=False).to_event(2), obs=stamp.image)


def render(
    decoder: GalaxyDecoder, z: Float[Tensor, "n z"], psf: Float[Tensor, "n k l"], shape: Sequence[int]
) -> Float[Tensor, "n y x"]:
    """Images in units of the noise, of latents in the units of their stamps."""
    stamp = (shape[0], shape[1])
    return convolved_image(decoder(z), transfer_function(psf, stamp), stamp)


def problem(stamps: Any, decoder: GalaxyDecoder, *, robust: bool, corrected: bool) -> Problem:
    """The problem of fitting the decoder and the encoder.

    Args:
        stamps: a :class:`~astrozoo.data.noisy_stamps.NoisyStamps`, or a Stamp of several galaxies.
        robust: see :class:`GalaxyPopulation`.
        corrected: whether the encoder's correction is used and trained.
    """
    name = "corrected" if corrected else "first_guess"
    return Problem(
        GalaxyPopulation(decoder, robust),
        (stamps,),
        name="psf_vae",
        data_plates={"galaxy": {"stamp": 0}},
        guides={name: f"astrozoo.guides.psf_vae:{name}"},
    )


def phases(
    noiseless: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n k l"],
    held_out: Stamp,
    *,
    seed: int = 0,
    device: str = "cpu",
    steps: tuple[int, int, int] = STEPS,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """The phases of training: functions of the weights so far that return arguments of :func:`astrozoo.train`.

    Args:
        noiseless, psf: galaxies, each with its PSF.
        held_out: galaxies whose objective is in the curve of each phase; in the last one it is the ELBO.
        seed: of the initial weights and of the noise.
        steps: number of steps of each phase.
    """

    def noisy(boost: float, phase: int) -> NoisyStamps:
        low, high = SNR
        return NoisyStamps(noiseless, psf, snr=(boost * low, boost * high), seed=3 * seed + phase)

    def phase(number: int) -> Callable[[Trained | None], dict[str, Any]]:
        robust, correct, boost, rate = _PHASES[number]

        def arguments(before: Trained | None) -> dict[str, Any]:
            decoder, guide = networks(before, correct, seed)
            problems = (
                problem(stamps, decoder, robust=robust, corrected=correct)
                for stamps in (noisy(boost, number), held_out)
            )
            return {
                **dict(zip(("problem", "held_out"), problems, strict=True)),
                "guide": guide,
                "steps": steps[number],
                "batch": 128,
                "learning_rate": rate,
                "gradient_clip": _CLIP,
                "device": device,
            }

        return arguments

    return tuple(phase(number) for number in range(len(_PHASES)))
