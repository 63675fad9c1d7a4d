"""Strong lenses in the zoo's list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]


def _plane(name: str, what: str) -> Option:
    return Option(
        name, f"{what}, if its name does not tell: FILE, FILE[2] or FILE[SCI].", metavar="FILE[HDU]"
    )


_READING = (
    Option("band", "The band to read. It is needed if there are several and none is VIS.", metavar="NAME"),
    _plane("image", "The image"),
    _plane("noise", "The noise map (standard deviations)"),
    _plane("weight", "The weight map (inverse variances or exposure times)"),
    _plane("psf", "The PSF"),
    _plane("mask", "The mask"),
    Option("good", "The value of the mask in pixels to use, 0 or 1.", type=int, metavar="N", minimum=0),
    Option("pixel_scale", "Side of a pixel, if the header does not tell.", type=float, metavar="ARCSEC"),
    Option("unit", "Unit of the image, in place of BUNIT.", metavar="UNIT"),
    Option(
        "exposure",
        "Electrons per unit of the image (the exposure time, if that is electrons per second), in place of a "
        "noise map.",
        type=float,
        metavar="N",
    ),
    Option(
        "crop",
        "Side of the square around the lens that is fitted; 0: all. By default the arcs decide.",
        type=float,
        metavar="ARCSEC",
        minimum=0,
    ),
    Option(
        "core",
        "Radius around the lens in which pixels are masked. By default where no Sersic profile fits.",
        type=float,
        metavar="ARCSEC",
        minimum=0,
    ),
)
_SOURCE = Option("source", "Model of the source's light.", metavar="NAME", choices=("sersic", "learned"))
_SETTINGS = (
    Option(
        "setting",
        "Which parameters are free (default gigalens).",
        metavar="NAME",
        choices=("gigalens", "compact", "talk"),
    ),
    Option(
        "prior",
        "image (the default: scales come from the image), gigalens, or a TOML file with fields of Prior.",
        metavar="NAME|FILE",
    ),
    Option(
        "source_weights",
        "Weights of the learned source that `astrozoo train strong_lens` has written.",
        type=Path,
        metavar="FILE",
    ),
    Option("supersample", "Rays per pixel and axis (default 1).", type=int, metavar="N", minimum=1),
    Option("subhalos", "Number of NFW subhalos (default 0).", type=int, metavar="N", minimum=0),
)

ENTRY = Entry(
    name="strong_lens",
    summary="Strong gravitational lenses: mass, lens light, source and subhalos from one image, together",
    citation="Gu et al. 2022, ApJ 935, 49; Chianese, Coogan et al. 2020, MNRAS 496, 381",
    keywords=("gravitational lensing", "substructure", "Sersic", "HST", "Euclid"),
    model="astrozoo.models.strong_lens:StrongLens",
    guides=("mean_field", "full_rank", "iaf", "structured"),
    methods=("auto", "laplace", "el2o", "hmc", "mclmc", "nuts", "nutpie", "trust_region", "svi"),
    unsuited={
        "annealed": "auto finds the mode by a search, which is tested on lenses; levels of noise are not",
        "wiener": "the image is not linear in the mass",
    },
    default_guide="full_rank",
    default_method="auto",
    options={
        "laplace": {"start": "search"},
        "el2o": {"start": "search"},
        "hmc": {"start": "search"},
        "mclmc": {"start": "search"},
        "nuts": {"start": "search"},
        "nutpie": {"start": "search"},
        "trust_region": {"start": "search", "particles": 8, "tolerance": 1e-2},
        "svi": {"start": "search", "particles": 4, "tolerance": 5e-2},
    },
    dimensions="22 with Sersic light; 32 for the latents of a learned source; 3 per subhalo",
    units={
        "einstein_radius": "arcsec",
        "slope": "1",
        "ellipticity": "1",
        "centre": "arcsec",
        "shear": "1",
        "lens_radius": "arcsec",
        "source_radius": "arcsec",
        "lens_amplitude": "image unit / arcsec^2",
        "source_amplitude": "image unit / arcsec^2",
        "subhalo_log_mass": "log10 solar mass",
        "subhalo_position": "arcsec",
    },
    simulated={"prior": "gigalens"},
    demo={"setting": "compact"},
    reading=_READING,
    settings=(_SOURCE, *_SETTINGS),
    jobs={
        "run": Job(
            "astrozoo.lens.job:run",
            shared=True,
            options=(
                *_READING,
                *_SETTINGS,
                replace(
                    _SOURCE,
                    help="Model of the source's light. By default a Sersic profile; if that leaves more than "
                    "noise, the one of greatest evidence.",
                    choices=("sersic", "learned", "pixelated"),
                ),
                Option(
                    "source_pixels",
                    "Pixels along a side of a pixelated source (even).",
                    type=int,
                    metavar="N",
                    default=40,
                    minimum=8,
                ),
                Option("draws", "Draws of each chain.", type=int, metavar="N", minimum=4),
                Option("chains", "Chains of the sampler.", type=int, metavar="N", minimum=2),
            ),
        ),
        "train": Job(
            "astrozoo.models.learned_source:training",
            options=(
                Option(
                    "galaxies",
                    "Number of simulated galaxies to train on.",
                    type=int,
                    metavar="N",
                    default=12_000,
                    minimum=10,
                ),
                Option(
                    "photons",
                    "Photons of one galaxy: the depth of the images.",
                    type=int,
                    metavar="N",
                    default=30_000,
                    minimum=1,
                ),
            ),
            takes=("device",),
            summary="the decoder and the prior of the learned source",
        ),
    },
    examples={
        "train": (
            "astrozoo train strong_lens --out weights",
            "astrozoo train strong_lens --galaxies 2000 --steps 500 --out quick",
        ),
        "run": (
            "astrozoo run strong_lens --demo --out demo",
            "astrozoo run strong_lens --data FOLDER --supersample 2 --out results",
            "astrozoo run strong_lens --data FOLDER --pixel-scale 0.05 --source pixelated --out results",
        ),
    },
)
