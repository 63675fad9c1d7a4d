"""Blends of galaxies and stars in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option("catalog", "Table of sources: columns x, y [px], is_star.", type=Path, metavar="FILE"),
    Option("detect", "Detect sources although the file has a catalogue.", type=bool),
    Option(
        "noise",
        "SD of a pixel, in place of the file's or the measured one.",
        type=float,
        metavar="SD",
        minimum=1e-30,
    ),
    Option(
        "gain",
        "Electrons per unit of the images, where the file has no variance: adds photon noise.",
        type=float,
        metavar="G",
        minimum=1e-30,
    ),
    Option("bands", "Bands to use, separated by commas.", metavar="NAMES"),
    Option("box", "Part of the images to use: y0:y1,x0:x1 [px].", metavar="BOX"),
)
_SETTINGS = (
    Option(
        "prior",
        "Prior of the shape of a galaxy (default sersic).",
        metavar="NAME",
        choices=("sersic", "latent"),
    ),
)

ENTRY = Entry(
    name="deblend",
    summary="Blended galaxies and stars: the image of each source and its fluxes, with their uncertainty",
    citation="Melchior et al. 2018, A&C 24, 129; Lanusse et al. 2019, arXiv 1912.03980",
    keywords=("deblending", "galaxies", "photometry", "multi-band", "learned prior", "Sersic"),
    model="astrozoo.models.deblend:Deblend",
    guides=("full_rank", "mean_field"),
    methods=("laplace", "hmc", "trust_region", "svi", "mclmc", "nuts", "nutpie", "el2o", "auto"),
    unsuited={
        "annealed": "few latents need no levels of noise: hmc and nuts sample them",
        "wiener": "the image is not linear in shapes and positions",
    },
    default_guide="full_rank",
    default_method="laplace",
    options={
        "laplace": {"draws": 400, "compile": "never"},
        "hmc": {"chains": 8, "draws": 150, "warmup": 100},
    },
    dimensions="per source one per band and 2 of position; per galaxy 4 (Sersic) or 13 (latent) of shape",
    units={"log_flux": "ln(unit of the images)", "position": "px", "log_radius": "ln(FWHM of the PSF)"},
    reader="astrozoo.data.scene_files:read_scene",
    reading=_READING,
    settings=_SETTINGS,
    jobs={"run": Job("astrozoo.deblending.job:run", options=(*_READING, *_SETTINGS))},
    examples={
        "run": (
            "astrozoo run deblend --demo --out demo",
            "astrozoo run deblend --data hsc_cosmos.npz --out results",
            "astrozoo run deblend --data cutout.fits --catalog sources.csv --prior latent --out results",
            "astrozoo run deblend --data images.yaml --box 0:60,10:70 --method hmc --out results",
        ),
    },
)
