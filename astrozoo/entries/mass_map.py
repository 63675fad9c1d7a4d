"""Mass maps from weak lensing in the zoo's list."""

from __future__ import annotations

from pathlib import Path

from astrozoo.entry import Entry, Job, Option

__all__ = ["ENTRY"]


def _column(name: str, what: str) -> Option:
    return Option(name, f"Column of the catalogue with {what}; common names are known.", metavar="NAME")


_READING = (
    Option(
        "pixel",
        "Side of a pixel. Of a catalogue 0.29 by default, of maps that of the header.",
        type=float,
        metavar="ARCMIN",
        minimum=1e-3,
    ),
    Option("margin", "Empty margin around a catalogue (default 5).", type=float, metavar="ARCMIN", minimum=0),
    _column("ra", "right ascensions [deg]"),
    _column("dec", "declinations [deg]"),
    _column("e1", "the first component"),
    _column("e2", "the second component"),
    _column("weight", "weights"),
    Option(
        "x_axis",
        "Where the x axis of the catalogue's components points (default west).",
        metavar="NAME",
        choices=("west", "east"),
    ),
    Option(
        "sigma_e",
        "SD of a component of the ellipticity of one galaxy. Measured if not given.",
        type=float,
        metavar="SD",
        minimum=1e-6,
    ),
    Option("second", "Of maps: the file of the second component.", type=Path, metavar="FILE"),
    Option("noise_map", "Of maps: the SD of each pixel.", type=Path, metavar="FILE"),
    Option("mask_map", "Of maps: 1 in pixels with data.", type=Path, metavar="FILE"),
)
_SETTINGS = (
    Option(
        "prior",
        "Prior of the convergence (default lognormal).",
        metavar="NAME",
        choices=("lognormal", "gaussian", "hybrid"),
    ),
    Option(
        "shift",
        "Minus the least convergence of the log-normal prior (default 0.035).",
        type=float,
        metavar="K",
    ),
    Option("reduced", "The data are the reduced shear, gamma / (1 - kappa).", type=bool),
    Option(
        "spectrum",
        "File of the power spectrum of the convergence: columns ell and C_ell.",
        type=Path,
        metavar="FILE",
    ),
)
_MODE = "the mode of the white noise overfits the noise of the data"

ENTRY = Entry(
    name="mass_map",
    summary="Maps of projected mass from weak lensing, with their uncertainty",
    citation="Kaiser & Squires 1993, ApJ 404, 441; Remy et al. 2022, A&A 672, A51",
    keywords=("weak lensing", "shear", "convergence", "dark matter", "Wiener filter", "log-normal"),
    model="astrozoo.models.mass_map:MassMap",
    guides=("fourier", "mean_field"),
    methods=("hmc", "mclmc", "annealed", "wiener", "svi", "trust_region", "nuts", "nutpie"),
    unsuited={
        "laplace": _MODE,
        "auto": _MODE,
        "el2o": "it needs a matrix of all pairs of pixels",
    },
    default_guide="fourier",
    default_method="hmc",
    options={
        "hmc": {"chains": 4, "draws": 250, "warmup": 120, "compile": "never"},
        "mclmc": {"chains": 4, "draws": 250, "warmup": 120, "compile": "never"},
        "annealed": {"chains": 4, "draws": 250, "warmup": 60, "compile": "never"},
        "wiener": {"draws": 400, "compile": "never"},
        "svi": {"draws": 400, "compile": "never"},
        "trust_region": {"draws": 400, "compile": "never"},
    },
    required={"wiener": {"prior": "gaussian"}},
    dimensions="one per pixel: 130,000 in a map of 360 x 360",
    units={"white": "1", "kappa": "1"},
    reading=_READING,
    settings=_SETTINGS,
    jobs={
        "run": Job(
            "astrozoo.massmap.job:run",
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
            "astrozoo run mass_map --demo --out demo",
            "astrozoo run mass_map --data shear.fits --out results",
            "astrozoo run mass_map --data shear.csv --e1 g1 --e2 g2 --x-axis east --pixel 1 --out results",
            "astrozoo run mass_map --data e1.fits --second e2.fits --noise-map sd.fits --mask-map mask.fits "
            "--prior gaussian --method wiener --out results",
        ),
    },
)
