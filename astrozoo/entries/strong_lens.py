"""Strong lenses in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

ENTRY = Entry(
    name="strong_lens",
    summary="Strong gravitational lenses: mass, lens light, source and subhalos from one image, together",
    citation="Gu et al. 2022, ApJ 935, 49; Chianese, Coogan et al. 2020, MNRAS 496, 381",
    keywords=("gravitational lensing", "substructure", "Sersic", "HST", "Euclid"),
    model="astrozoo.models.strong_lens:StrongLens",
    guides=("mean_field", "full_rank", "iaf", "structured"),
    methods=("auto", "laplace", "hmc", "trust_region", "svi"),
    default_guide="full_rank",
    default_method="auto",
    options={
        "laplace": {"start": "search"},
        "hmc": {"start": "search"},
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
    demo={"setting": "compact"},
    reading=(Option("band", "The band of a Euclid lens (default VIS).", metavar="NAME"),),
    settings=(
        Option(
            "setting",
            "Which parameters are free (default gigalens).",
            metavar="NAME",
            choices=("gigalens", "compact", "talk"),
        ),
        Option("source", "Model of the source's light.", metavar="NAME", choices=("sersic", "learned")),
        Option(
            "source_weights",
            "Weights of the learned source that `astrozoo train strong_lens` has written.",
            type=Path,
            metavar="FILE",
        ),
        Option("supersample", "Rays per pixel and axis (default 1).", type=int, metavar="N", minimum=1),
        Option("subhalos", "Number of NFW subhalos (default 0).", type=int, metavar="N", minimum=0),
    ),
    jobs={
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
        ),
    },
)
