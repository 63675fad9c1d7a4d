"""The training of :mod:`astrozoo.models.galaxy_vae` in two stages, and its galaxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from astrozoo._trained import Trained
from astrozoo.data.stamps import Pixels, Stamps, standardise
from astrozoo.errors import InputError
from astrozoo.models.galaxy_vae import load, read, training_problem
from astrozoo.nets.galaxy_vae import HIDDEN, LATENT, SIZE, Decoder, Encoder, Kind, Nets

__all__ = ["of_second_stage", "simulated_stamps", "stages", "survey", "training", "untrained"]

_DARKEST = 0.02
"""Least brightness of the mean galaxy at which training starts, in units of the rms of a galaxy's light.
Where f_mu is much less, its gradient vanishes."""
_CROPPED = 4
"""One simulated galaxy in this number is cropped, to half of the side or more. Catalogues crop stamps to
the size of the galaxy, and the encoder then sees padding."""
_FEWEST_GALAXIES = 20
"""Fewest galaxies to train on: one in twenty is not trained on."""


def training(
    *,
    out: Path,
    path: Path | None,
    seed: int,
    device: str = "cpu",
    galaxies: int = 16_000,
    size: int = SIZE,
    nets: Kind = "dense",
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """The two stages of training, as arguments of :func:`astrozoo.train`; ``load`` reads the result.

    Args:
        out: folder of the run; simulated galaxies are cached in a folder below it.
        path: stamps to train on (:func:`read`). None: galaxies drawn by GalSim.
        seed: of the galaxies and of the networks' initial weights.
        device: device to train on.
        galaxies: number of simulated galaxies.
        size: side of the stamps [px].
        nets: "dense" (Regier et al. 2015), "convolutional" or "residual" (as Lanusse et al. 2021, smaller).

    Raises:
        DataError: if the file has no stamps.
        InputError: if there are fewer than 20 galaxies.
    """
    stamps = (
        simulated_stamps(galaxies, seed, size, out / "galaxies") if path is None else read(path, size=size)
    )
    if len(stamps) < _FEWEST_GALAXIES:
        raise InputError("galaxies", len(stamps), f"{_FEWEST_GALAXIES} or more")
    held_out = max(1, len(stamps) // 20)
    return stages(stamps[:-held_out], stamps[-held_out:], seed=seed, device=device, kind=nets)


def stages(
    stamps: Stamps,
    held_out: Stamps,
    *,
    seed: int = 0,
    device: str = "cpu",
    kind: Kind = "dense",
    steps: tuple[int, int] = (5500, 600),
    latent: int = LATENT,
    hidden: Sequence[int] = HIDDEN,
) -> Sequence[Callable[[Trained | None], dict[str, Any]]]:
    """What :func:`training` returns, for given galaxies.

    Args:
        held_out: galaxies whose ELBO is in the curve.
        steps: of the two stages.
        latent, hidden, kind: see :class:`Decoder`.
    """
    shared = {"guide": "encoder", "device": device, "batch": min(64, len(stamps)), "gradient_clip": 1e4}

    def first(_: Trained | None) -> dict[str, Any]:
        nets = untrained(stamps.pixels, latent=latent, hidden=hidden, kind=kind, seed=seed)
        return of(nets) | {"steps": steps[0], "learning_rate": 4e-3}

    def second(before: Trained | None) -> dict[str, Any]:
        if before is None:
            raise InputError("second stage", "no weights", "those of the first")
        return of(of_second_stage(load(before, dtype=torch.float32))) | {
            "steps": steps[1],
            "learning_rate": 1e-3,
        }

    def of(nets: Nets) -> dict[str, Any]:
        problems = (training_problem(data, nets) for data in (stamps.pixels, held_out.pixels))
        return dict(zip(("problem", "held_out"), problems, strict=True)) | shared

    return first, second


def untrained(
    pixels: Pixels,
    *,
    latent: int = LATENT,
    hidden: Sequence[int] = HIDDEN,
    kind: Kind = "dense",
    seed: int = 0,
) -> Nets:
    """Networks with random weights, whose f_mu is near the mean of these galaxies.

    Raises:
        InputError: ``kind`` is not a kind of networks.
    """
    if kind not in get_args(Kind):
        raise InputError("nets", repr(kind), f"one of {', '.join(get_args(Kind))}")
    size = pixels.image.shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = Nets(Decoder(size, latent, hidden, kind, per_pixel=False), Encoder(size, latent, hidden, kind))
    with torch.no_grad():
        nets.decoder.log_mean.copy_(pixels.image.mean(0).clamp_min(_DARKEST).log())
    return nets


def of_second_stage(nets: Nets) -> Nets:
    """The networks of the first stage, changed in place: f_sigma alone is trained, with a value in each
    pixel."""
    nets.encoder.requires_grad_(False)
    nets.decoder.requires_grad_(False).per_pixel = True
    decoder = nets.decoder
    for part in (decoder.variance, decoder.whole_variance, decoder.log_variance):
        part.requires_grad_(True)
    return nets


def survey(size: int = SIZE) -> Any:
    """The :class:`~astrozoo.data.galaxy_survey.GalaxySurvey` that the shipped weights are trained on.

    The PSF and the pixels are those of HST's camera ACS. Galaxies fit into the stamp.
    """
    from astrozoo.data.galaxy_survey import GalaxySurvey, PsfRange

    return GalaxySurvey(
        size=size,
        pixel_scale=0.03,
        psf=PsfRange(fwhm=(0.08, 0.12)),
        snr=(20.0, 500.0),
        radius=(0.08, 0.45),
        centre_scatter=1.5,
    )


def simulated_stamps(galaxies: int, seed: int, size: int = SIZE, cache: Path | None = None) -> Stamps:
    """Stamps of galaxies that GalSim draws for :func:`survey`, some of them cropped as catalogues crop
    stamps.

    Args:
        cache: folder in which drawn galaxies are saved.
    """
    from astrozoo.data.simulate_galaxies import simulate_galaxies

    drawn = simulate_galaxies(survey(size), galaxies, seed=seed, cache=cache)
    sides = torch.randint(size // 2, size, (galaxies,), generator=torch.Generator().manual_seed(seed))
    images = []
    for i, image in enumerate(drawn.image.numpy()):
        edge = 0 if i % _CROPPED else (size - int(sides[i])) // 2
        images.append(image[edge : size - edge, edge : size - edge])
    return standardise(images, size, drawn.noise_rms.numpy())
