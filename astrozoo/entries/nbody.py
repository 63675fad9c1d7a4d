"""Initial conditions of the universe in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]

_READING = (
    Option(
        "kind",
        "What the values are. By default the name of the array of an NPZ file; of a FITS file counts.",
        metavar="NAME",
        choices=("counts", "density", "kappa"),
    ),
    Option(
        "box",
        "Length of the first axis, if the file does not say.",
        type=float,
        metavar="MPC/H",
        minimum=1e-3,
    ),
    Option("mean", "Counts of a cell of mean density (default: that of the data).", type=float, metavar="N"),
    Option("noise", "SD of a cell of a density contrast or a convergence.", type=float, metavar="SD"),
    Option("mask_grid", "NPY or FITS file that is 1 in cells with data.", type=Path, metavar="FILE"),
    Option(
        "depth",
        "Of a convergence: cells along the line of sight.",
        type=int,
        metavar="N",
        minimum=4,
    ),
)
_SETTINGS = (
    Option("bias", "Linear bias of the galaxies (default 1).", type=float, metavar="B"),
    Option("steps", "Particle-mesh steps (default 3; 0: LPT alone).", type=int, metavar="N", minimum=0),
    Option("redshift", "Redshift of the data (default 0; of a convergence 0.5).", type=float, metavar="Z"),
    Option("source_redshift", "Redshift of the sources of a convergence.", type=float, metavar="Z"),
    Option("free", "Infer Omega_m and sigma8 too.", type=bool),
    Option("omega_m", "Density of matter (default 0.3089).", type=float, metavar="OMEGA"),
    Option("sigma8", "SD of the linear density in 8 Mpc/h (default 0.8159).", type=float, metavar="S"),
    Option(
        "spectrum",
        "File of the linear power spectrum today: columns k [h/Mpc] and P [(Mpc/h)^3].",
        type=Path,
        metavar="FILE",
    ),
)
_MODE = "the mode of the white noise overfits the noise of the data"

ENTRY = Entry(
    name="nbody",
    summary="Initial conditions of the universe from a density field, by N-body simulations",
    citation="Jasche & Lavaux 2019, A&A 625, A64; Feng et al. 2016, MNRAS 463, 2273",
    keywords=("large-scale structure", "N-body", "particle mesh", "initial conditions", "cosmology"),
    model="astrozoo.models.nbody:NBody",
    reader="astrozoo.models.nbody_grid:read",
    guides=("fourier", "mean_field"),
    methods=("hmc", "mclmc", "svi", "trust_region", "nuts", "nutpie"),
    unsuited={
        "annealed": "hmc needs no levels of noise, each of which costs hundreds of simulations",
        "laplace": _MODE,
        "auto": _MODE,
        "wiener": "the density is not linear in the white noise",
        "el2o": "it needs a matrix of all pairs of cells",
    },
    default_guide="fourier",
    default_method="hmc",
    options={
        "hmc": {"chains": 4, "draws": 100, "warmup": 60},
        "mclmc": {"chains": 4, "draws": 100, "warmup": 60},
        "svi": {"draws": 200, "particles": 2},
        "trust_region": {"draws": 200},
    },
    dimensions="one per cell: 32,768 in a box of 32^3",
    units={"white": "1", "linear": "1", "density": "mean density"},
    reading=_READING,
    settings=_SETTINGS,
    jobs={
        "run": Job(
            "astrozoo.nbody.job:run",
            shared=True,
            options=(
                *_READING,
                *_SETTINGS,
                Option("size", "Cells along an axis of the simulated box.", type=int, metavar="N", minimum=4),
                Option("draws", "Draws of each chain.", type=int, metavar="N", minimum=4),
                Option("chains", "Chains of the sampler.", type=int, metavar="N", minimum=1),
                Option("warmup", "Iterations of adaptation.", type=int, metavar="N", minimum=0),
            ),
        )
    },
    examples={
        "run": (
            "astrozoo run nbody --demo --out demo",
            "astrozoo run nbody --data galaxies.npz --box 256 --bias 1.5 --out results",
            "astrozoo run nbody --data contrast.fits --kind density --noise 0.3 --box 512 --out results",
        ),
    },
)
