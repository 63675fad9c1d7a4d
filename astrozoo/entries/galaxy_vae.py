"""Galaxy images of a variational autoencoder in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_SIZE = Option(
    "size",
    "Side of the frame that stamps are cropped or padded to: that of the weights.",
    type=int,
    metavar="PX",
    minimum=8,
)
_READING = (
    Option(
        "noise",
        "SD of the noise of a pixel, in the file's unit. Measured at the border of each stamp if not given.",
        type=float,
        metavar="SD",
        minimum=0,
    ),
    _SIZE,
    Option("subtract_sky", "Subtract the median of each stamp's border.", type=bool),
    Option("first", "The first stamp to read, from 0.", type=int, metavar="N", minimum=0),
    Option("count", "How many stamps to read; all by default.", type=int, metavar="N", minimum=1),
)
_WEIGHTS = Option(
    "weights",
    "Weights that `astrozoo train galaxy_vae` has written.",
    type=Path,
    metavar="FILE",
)

ENTRY = Entry(
    name="galaxy_vae",
    summary="Images of single galaxies by a variational autoencoder: a mean and a variance of each pixel",
    citation="Regier, McAuliffe & Prabhat 2015, NIPS Workshop on Advances in Approximate Bayesian Inference",
    keywords=("galaxies", "variational autoencoder", "morphology", "generative model"),
    model="astrozoo.models.galaxy_vae:GalaxyVAE",
    guides=("encoder", "encoder_iaf", "full_rank", "mean_field"),
    methods=("laplace", "trust_region", "svi", "hmc", "mclmc", "nuts", "nutpie", "el2o", "auto"),
    unsuited={
        "annealed": "few latents need no levels of noise: hmc and nuts sample them",
        "wiener": "the decoder is not linear",
    },
    default_guide="encoder",
    default_method="trust_region",
    options={"trust_region": {"mode": "fixed"}},
    dimensions="8 latents per galaxy",
    units={"z": "1"},
    reading=_READING,
    settings=(_WEIGHTS,),
    jobs={
        "run": Job("astrozoo.galaxies.vae_job:run", options=(*_READING, _WEIGHTS)),
        "train": Job(
            "astrozoo.models.galaxy_vae_training:training",
            options=(
                Option(
                    "galaxies",
                    "Number of simulated galaxies to train on.",
                    type=int,
                    metavar="N",
                    default=16_000,
                    minimum=20,
                ),
                Option("size", "Side of the stamps.", type=int, metavar="PX", default=69, minimum=8),
                Option(
                    "nets",
                    "Kind of the networks.",
                    metavar="NAME",
                    default="dense",
                    choices=("dense", "convolutional", "residual"),
                ),
            ),
            takes=("device",),
            summary="the networks, in two stages: the mean, then the variance of each pixel",
        ),
    },
    examples={
        "run": (
            "astrozoo run galaxy_vae --demo --out demo",
            "astrozoo run galaxy_vae --data stamps.fits --count 20 --out results",
            "astrozoo run galaxy_vae --data stamps.npz --noise 0.01 --method hmc --out results",
        ),
        "train": (
            "astrozoo train galaxy_vae --out weights",
            "astrozoo train galaxy_vae --data stamps.npz --out weights",
        ),
    },
)
