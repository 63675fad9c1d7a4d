"""Shear in the zoo's list."""

from __future__ import annotations

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option("pixel_scale", "Side of a pixel, if the file does not tell.", type=float, metavar="ARCSEC"),
    Option(
        "sersic",
        "Sersic index of the galaxies: 0.5 (Gaussian) or 1 (exponential).",
        type=float,
        metavar="N",
        default=1.0,
        check="astrozoo.shear.fits:check_index",
    ),
    Option(
        "interim_draws",
        "Draws of each galaxy under the interim prior.",
        type=int,
        metavar="N",
        default=128,
        minimum=16,
    ),
)

ENTRY = Entry(
    name="shear",
    summary="Gravitational shear of a batch of galaxies, with the distribution of their shapes learned",
    citation="Schneider et al. 2015, ApJ 807, 87",
    keywords=("weak lensing", "cosmic shear", "hierarchical", "calibration", "importance sampling"),
    model="astrozoo.models.shear:Shear",
    guides=("full_rank", "mean_field"),
    methods=("laplace", "trust_region", "svi", "hmc", "mclmc", "nuts", "nutpie", "auto"),
    unsuited={
        "annealed": "few latents need no levels of noise: hmc and nuts sample them",
        "el2o": "the trust region fits the same normal, by exact second derivatives",
        "wiener": "the likelihood of the shear is not that of a linear model",
    },
    default_guide="full_rank",
    default_method="laplace",
    dimensions="the two components of the shear, and six numbers of the population",
    units={
        "shear": "reduced shear (+x, +y of the stamps)",
        "ellipticity_sd": "ln axis ratio",
        "log_flux_mean": "ln flux",
        "log_radius_mean": "ln arcsec",
    },
    reader="astrozoo.shear.fits:read",
    reading=_READING,
    jobs={
        "run": Job(
            function="astrozoo.shear.job:run",
            shared=True,
            options=(
                *_READING,
                Option(
                    "galaxies",
                    "Galaxies of the demonstration.",
                    type=int,
                    metavar="N",
                    default=1000,
                    minimum=50,
                ),
            ),
        )
    },
    examples={
        "run": (
            "astrozoo run shear --demo --out demo",
            "astrozoo run shear --data STAMPS.npz --out results",
            "astrozoo run shear --data STAMPS.npz --sersic 0.5 --method hmc --out results",
        ),
        "compare": ("astrozoo compare shear --methods trust_region,hmc --out compared",),
    },
)
