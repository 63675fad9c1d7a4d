"""Strong lenses among stamps in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option(
        "bands", "Bands to use in the order of the weights' (g,r,i), separated by commas.", metavar="NAMES"
    ),
    Option(
        "missing", "Value of pixels without data, besides NaN (default 100).", type=float, metavar="VALUE"
    ),
)
_WEIGHTS = Option(
    "weights", "Weights that `astrozoo train lens_finder` has written.", type=Path, metavar="FILE"
)

ENTRY = Entry(
    name="lens_finder",
    summary="Strong gravitational lenses among stamps of galaxies: ranked, with calibrated probabilities",
    citation="Lanusse et al. 2018, MNRAS 473, 3895",
    keywords=("gravitational lensing", "classification", "neural network", "logistic regression"),
    model="astrozoo.models.lens_finder:LensFinder",
    guides=("full_rank", "mean_field"),
    methods=("laplace", "trust_region", "svi", "hmc", "mclmc", "nuts", "nutpie", "el2o", "auto"),
    unsuited={
        "annealed": "the posterior of a logistic regression has one mode, which hmc samples",
        "wiener": "labels are not normal",
    },
    default_guide="full_rank",
    default_method="laplace",
    options={"laplace": {"compile": "never"}},
    dimensions="33: a weight for each of 32 features, and an offset",
    units={"weight": "nat", "offset": "nat"},
    reading=_READING,
    settings=(_WEIGHTS,),
    jobs={
        "run": Job(
            "astrozoo.finder.job:run",
            options=(
                *_READING,
                _WEIGHTS,
                Option(
                    "prevalence",
                    "Fraction of lenses among such stamps: the prior odds (default 0.001).",
                    type=float,
                    metavar="FRACTION",
                ),
                Option(
                    "candidates",
                    "How many of the best stamps to write for strong_lens.",
                    type=int,
                    metavar="N",
                    default=3,
                    minimum=0,
                ),
                Option(
                    "pixel_scale",
                    "Side of a pixel, for these files.",
                    type=float,
                    metavar="ARCSEC",
                    minimum=1e-4,
                ),
                Option(
                    "psf_fwhm",
                    "Width of the PSF in the first band, for these files.",
                    type=float,
                    metavar="ARCSEC",
                    minimum=1e-4,
                ),
            ),
        ),
        "train": Job(
            "astrozoo.models.lens_finder_training:training",
            options=(
                Option(
                    "survey",
                    "Survey that is simulated.",
                    metavar="NAME",
                    default="ground",
                    choices=("ground", "space"),
                ),
                Option(
                    "stamps",
                    "Number of simulated stamps to train on.",
                    type=int,
                    metavar="N",
                    default=24_000,
                    minimum=200,
                ),
                Option(
                    "passes",
                    "How often each stamp is used.",
                    type=float,
                    metavar="N",
                    default=20.0,
                    minimum=0.01,
                ),
            ),
            takes=("device",),
            summary="the network, then the labelled stamps that probabilities rest on",
        ),
    },
    examples={
        "run": (
            "astrozoo run lens_finder --demo --out demo",
            "astrozoo run lens_finder --data FOLDER --pixel-scale 0.2 --psf-fwhm 0.9 --out found",
            "astrozoo run lens_finder --data stamps.npz --prevalence 0.01 --out found",
        ),
        "train": (
            "astrozoo train lens_finder --out weights",
            "astrozoo train lens_finder --survey space --out weights",
            "astrozoo train lens_finder --data FOLDER --out weights",
        ),
    },
)
