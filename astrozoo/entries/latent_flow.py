"""Learned priors of latents in the zoo's list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_FLOWS = ("maf", "nsf", "iaf", "realnvp")
_CONDITIONS = Option(
    "conditions",
    "Columns of the table that the prior is conditional on, separated by commas; '' for none. Default: all.",
    metavar="NAMES",
)
_INFER = Option(
    "infer_conditions",
    "The galaxy's conditions are unknown and inferred, not those of the table.",
    type=bool,
    default=False,
)
_UNDER = Option(
    "inferred_under",
    "The prior under which the encoder's means and SDs were inferred: N(0, I) or none.",
    metavar="PRIOR",
    default="normal",
    choices=("normal", "flat"),
)
_GALAXY = Option(
    "galaxy", "Row of the galaxy whose latents are inferred (default 0).", type=int, metavar="N", minimum=0
)
_WEIGHTS = Option(
    "weights", "Weights of a prior that `astrozoo train latent_flow` has written.", type=Path, metavar="FILE"
)
_GALAXIES = Option(
    "galaxies",
    "Rows of the table that is drawn if there is no --data.",
    type=int,
    metavar="N",
    default=4000,
    minimum=20,
)
_FLOW = Option("flow", "Kind of the flow.", metavar="KIND", default="realnvp", choices=_FLOWS)

ENTRY = Entry(
    name="latent_flow",
    summary="A prior of a galaxy's latents, p(z) or p(z | size, magnitude, redshift), for any autoencoder",
    citation="Lanusse et al. 2021, MNRAS 504, 5543; Tomczak & Welling 2018 (VampPrior)",
    keywords=("normalizing flow", "VAE", "prior", "galaxy morphology", "conditional sampling"),
    model="astrozoo.models.latent_flow:LatentGalaxy",
    guides=("mean_field", "full_rank"),
    methods=("hmc", "mclmc", "nuts", "nutpie", "trust_region", "svi", "laplace", "el2o", "auto"),
    unsuited={
        "annealed": "few latents need no levels of noise: hmc and nuts sample them",
        "wiener": "the latents are not a linear function of the flow's noise",
    },
    default_guide="full_rank",
    default_method="hmc",
    options={"hmc": {"draws": 100, "chains": 16}},
    dimensions="the latents of one galaxy (16 for the shipped prior), and one for each unknown condition",
    units={"noise": "1", "z": "1", "half_light_radius": "arcsec", "magnitude": "mag", "redshift": "1"},
    reading=(_CONDITIONS,),
    settings=(_GALAXY, _WEIGHTS, _INFER, _UNDER),
    jobs={
        "run": Job(
            "astrozoo.galaxies.latent_flow_job:run",
            shared=True,
            options=(
                _CONDITIONS,
                _FLOW,
                Option("steps", "Steps of training.", type=int, metavar="N", default=1000, minimum=1),
                _GALAXIES,
                replace(_GALAXY, help=f"{_GALAXY.help[:-13]}(default: the first not trained on)."),
                replace(_WEIGHTS, help=f"{_WEIGHTS.help[:-1]}; nothing is then trained."),
                _INFER,
                _UNDER,
            ),
        ),
        "train": Job(
            "astrozoo.models.latent_flow:training",
            options=(replace(_FLOW, choices=(*_FLOWS, "vamp")), _CONDITIONS, _GALAXIES),
            takes=("device",),
            summary="a prior of a table of latents",
        ),
    },
    examples={
        "run": (
            "astrozoo run latent_flow --demo --out demo",
            "astrozoo run latent_flow --data LATENTS.npz --conditions half_light_radius --out results",
            "astrozoo run latent_flow --data LATENTS.npz --weights weights/weights.safetensors --out results",
        ),
        "train": ("astrozoo train latent_flow --data LATENTS.npz --out weights",),
    },
)
