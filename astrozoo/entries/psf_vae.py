"""Galaxies seen through a PSF in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option("first", "The first galaxy to read, from 0.", type=int, metavar="N", minimum=0),
    Option("count", "How many galaxies to read; all by default.", type=int, metavar="N", minimum=1),
    Option(
        "size",
        "Largest side of a stamp; larger ones are cut around their middle.",
        type=int,
        metavar="PX",
        minimum=8,
    ),
    Option("pixel_scale", "Side of a pixel, if the file does not state it.", type=float, metavar="ARCSEC"),
    Option(
        "noise",
        "SD of the noise of a pixel, in place of the file's, in its unit.",
        type=float,
        metavar="SD",
        minimum=0,
    ),
)
_WEIGHTS = Option(
    "weights",
    "Weights that `astrozoo train psf_vae` has written.",
    type=Path,
    metavar="FILE",
)
_DISCREPANCY = Option(
    "discrepancy",
    "Pixels scatter about the decoder's light by a fraction that is inferred; needs independent noise.",
    type=bool,
)

ENTRY = Entry(
    name="psf_vae",
    summary="Deconvolved galaxies: one latent vector, any PSF, pixel scale, noise and number of exposures",
    citation="Lanusse et al. 2021, MNRAS 504, 5543",
    keywords=("galaxies", "variational autoencoder", "PSF", "deconvolution", "correlated noise"),
    model="astrozoo.models.psf_vae:PsfVae",
    guides=("encoder", "encoder_iaf", "full_rank", "mean_field"),
    methods=("trust_region", "svi", "laplace", "hmc", "mclmc", "nuts", "nutpie", "el2o", "auto"),
    unsuited={
        "annealed": "few latents need no levels of noise: hmc and nuts sample them",
        "wiener": "the image is not linear in the latents",
    },
    default_guide="encoder",
    default_method="laplace",
    options={"trust_region": {"mode": "fixed"}, "svi": {"tolerance": 0.05, "particles": 4}},
    dimensions="16 latents per galaxy, and one flux ratio per exposure after the first",
    units={
        "latent": "1",
        "log_flux_ratio": "ln ratio to the first exposure",
        "log_discrepancy": "ln fraction of the light",
    },
    reading=_READING,
    settings=(_WEIGHTS, _DISCREPANCY),
    jobs={
        "run": Job("astrozoo.galaxies.psf_job:run", options=(*_READING, _WEIGHTS, _DISCREPANCY)),
        "train": Job(
            "astrozoo.models.galaxy_population:training",
            options=(
                Option(
                    "galaxies",
                    "Number of simulated galaxies to train on.",
                    type=int,
                    metavar="N",
                    default=4_000,
                    minimum=20,
                ),
            ),
            takes=("device",),
            summary="the networks, in three phases, of which the last one maximises the ELBO",
        ),
    },
    examples={
        "run": (
            "astrozoo run psf_vae --demo --out demo",
            "astrozoo run psf_vae --data stamps.npz --count 20 --out results",
            "astrozoo run psf_vae --data FOLDER --pixel-scale 0.168 --method hmc --out results",
            "astrozoo run psf_vae --data COSMOS --first 3 --count 1 --out results",
        ),
        "train": (
            "astrozoo train psf_vae --out weights",
            "astrozoo train psf_vae --galaxies 500 --steps 100 --out quick",
        ),
    },
)
