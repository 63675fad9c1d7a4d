"""Celeste in the zoo's list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_BOX = Option(
    "box",
    "Fit only this part of the field: first and last + 1 row and column of the r image.",
    metavar="ROWS,COLS",
    check="astrozoo.survey.fields:read_box",
)
_SURVEY = Option(
    "survey",
    "The survey whose ready description explains the images; recognised by their headers if not given.",
    metavar="NAME",
    check="astrozoo.data.surveys:check_survey",
)
_RUN_OPTIONS = (
    _SURVEY,
    _BOX,
    Option(
        "catalog",
        "A table with ra and dec [deg] (or in a unit that it states) of the sources, in place of detection.",
        type=Path,
        metavar="FILE",
    ),
    Option(
        "pictures",
        "How many of the brightest sources the report shows one by one.",
        type=int,
        metavar="N",
        default=24,
        minimum=0,
    ),
    Option(
        "sweeps",
        "The most passes over the sources.",
        type=int,
        metavar="N",
        default=20,
        minimum=1,
    ),
    Option(
        "crowded",
        "Sample whole catalogues, as a crowded field needs; the density of sources decides if not given.",
        type=bool,
    ),
    Option("stars", "A crowded field has stars only, no galaxies.", type=bool, default=False),
    Option(
        "star_fraction",
        "The probability of a star before the pixels are seen; learned from the field if it is not given.",
        type=float,
        metavar="P",
        check="astrozoo.survey.fields:check_fraction",
    ),
    Option(
        "position_error",
        "Standard deviation of the positions of --catalog in each coordinate, which are then held to it.",
        type=float,
        metavar="ARCSEC",
        check="astrozoo.survey.fields:check_position_error",
    ),
    Option("chains", "Chains of a crowded field (default 4).", type=int, metavar="N", minimum=2),
    Option(
        "draws",
        "Draws of each source (default 512); of a crowded field, catalogues of each chain (default 100).",
        type=int,
        metavar="N",
        minimum=4,
    ),
)

_SURVEY_OPTIONS = (
    _SURVEY,
    *(option for option in _RUN_OPTIONS if option.name in ("sweeps", "draws")),
    Option(
        "box_seconds",
        "Predicted time of a box, above which it is divided (120 if not given; 12 for the demonstration).",
        type=float,
        metavar="SECONDS",
        minimum=1,
    ),
)

_TWO_MODES = "the posterior of a source has a mode as a star and one as a galaxy"

ENTRY = Entry(
    name="celeste",
    summary="Stars and galaxies from multi-band survey images: type, flux, colours, position, shape, "
    "each with its uncertainty",
    citation="Regier et al. 2019, Annals of Applied Statistics 13, 1884",
    keywords=("catalogue", "photometry", "star-galaxy separation", "SDSS", "Poisson"),
    model="astrozoo.models.celeste:Celeste",
    guides=("structured", "mean_field", "point"),
    methods=("trust_region", "svi", "hmc", "mclmc", "nuts", "nutpie"),
    unsuited={
        "annealed": "the type is summed out, so that hmc and nuts sample both modes",
        "laplace": f"{_TWO_MODES}; a normal covers one of them",
        "el2o": f"{_TWO_MODES}; a normal covers one of them",
        "auto": f"{_TWO_MODES}; it samples the highest only",
        "wiener": "a source's type and shape are not linear parameters",
    },
    default_guide="structured",
    default_method="trust_region",
    options={"trust_region": {"objective": "delta"}, "svi": {"objective": "delta", "tolerance": 0.01}},
    dimensions="a type and 11 continuous dimensions per source; a field holds hundreds of sources",
    units={
        "is_star": "1 or 0",
        "log_flux": "ln nMgy",
        "colour": "ln ratio of adjacent bands",
        "offset": "arcsec (east, north)",
        "log_radius": "ln arcsec",
        "ellipticity": "1",
        "dev_logit": "logit of the de Vaucouleurs fraction",
    },
    data_sets=("sdss-2583-2-136",),
    reader="astrozoo.survey.celeste.patches:read",
    reading=(replace(_BOX, help="The part of the field that is one problem: at most 81x81 pixels."),),
    jobs={
        "run": Job(
            function="astrozoo.survey.celeste.job:run",
            takes=(),
            method="importance",
            summary="modes of every source as a star and as a galaxy, then importance sampling",
            options=_RUN_OPTIONS,
        ),
        "survey": Job(
            function="astrozoo.survey.celeste.survey_job:survey",
            takes=(),
            method="importance",
            summary="boxes of two tilings, the second from the first",
            options=_SURVEY_OPTIONS,
        ),
    },
    examples={
        "run": (
            "astrozoo run celeste --demo --out demo",
            "astrozoo run celeste --data FOLDER --box 300:556,1400:1656 --out results",
            "astrozoo run celeste --data images.yaml --out results",
            "astrozoo run celeste --data FOLDER --survey hst --out results",
            "astrozoo run celeste --data FOLDER --catalog mine.csv --out results",
            "astrozoo run celeste --data FOLDER --box 600:760,280:440 --crowded --out cluster",
            "astrozoo run celeste --data FOLDER --crowded --catalog mine.csv --position-error 0.01 --out out",
        ),
        "survey": (
            "astrozoo survey celeste --demo --out sky",
            "astrozoo survey celeste --data FOLDER_OF_FIELDS --workers 8 --out sky",
        ),
        "compare": (
            "astrozoo compare celeste --methods svi,hmc --out compared",
            "astrozoo compare celeste --data FOLDER --box 420:451,1500:1531 --methods svi,hmc --out compared",
        ),
    },
)
