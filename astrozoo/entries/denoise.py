"""Images without their noise in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option(
        "noise",
        "SD of the noise of each pixel: a number or the file of an image. Of the demonstration: a number.",
        metavar="SD|FILE",
    ),
    Option("mask_map", "Image that is not 0 where there are data.", type=Path, metavar="FILE"),
    Option(
        "margin",
        "Width of the empty margin of an image, by default an eighth of its sides.",
        type=int,
        metavar="PX",
        minimum=0,
    ),
)
_SETTINGS = (
    Option(
        "prior",
        "Prior (default gaussian, of images). two_moons is of points in the plane.",
        metavar="NAME",
        choices=("gaussian", "two_moons"),
    ),
    Option("slope", "Slope of the prior's power spectrum; fitted if not given.", type=float, metavar="S"),
)
_ROUTINE = "the posterior of an image is exact by wiener; that of the two moons has several modes"

ENTRY = Entry(
    name="denoise",
    summary="Images without their noise, with their uncertainty; points under a learned prior",
    citation="Wiener 1949; Remy et al. 2022, A&A 672, A51",
    keywords=("denoising", "Wiener filter", "inpainting", "score", "two moons"),
    model="astrozoo.models.denoise:Denoise",
    guides=("fourier", "mean_field"),
    methods=("hmc", "mclmc", "wiener", "svi", "trust_region", "nuts", "nutpie"),
    unsuited={
        "annealed": "it has not been tested on these posteriors",
        "laplace": _ROUTINE,
        "auto": _ROUTINE,
        "el2o": "it needs a matrix of all pairs of pixels",
    },
    default_guide="fourier",
    default_method="wiener",
    options={
        "hmc": {"chains": 4, "draws": 250, "warmup": 120, "compile": "never"},
        "mclmc": {"chains": 4, "draws": 250, "warmup": 120, "compile": "never"},
        "wiener": {"draws": 400, "compile": "never"},
        "svi": {"draws": 400, "compile": "never"},
        "trust_region": {"draws": 400, "compile": "never"},
    },
    required={"wiener": {"prior": "gaussian"}},
    dimensions="one per pixel: 11,664 in an image of 96 x 96 with its margin",
    units={"white": "1", "image": "that of the data"},
    reading=_READING,
    settings=_SETTINGS,
    jobs={
        "run": Job(
            "astrozoo.images.denoise_job:run",
            shared=True,
            options=(
                *_READING,
                *_SETTINGS,
                Option("draws", "Draws of each chain.", type=int, metavar="N", minimum=4),
                Option("chains", "Chains of the sampler.", type=int, metavar="N", minimum=1),
            ),
        )
    },
    examples={
        "run": (
            "astrozoo run denoise --demo --out demo",
            "astrozoo run denoise --demo --prior two_moons --method hmc --out demo",
            "astrozoo run denoise --data image.fits --noise 0.1 --out results",
            "astrozoo run denoise --data image.fits --noise sd.fits --mask-map mask.fits --out results",
        ),
    },
)
