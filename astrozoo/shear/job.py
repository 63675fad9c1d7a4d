"""What ``astrozoo run shear`` does: from stamps of galaxies to the posterior of their shear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from astrozoo import registry
from astrozoo._console import say
from astrozoo._files import replacing
from astrozoo._jobs import CHECKPOINT, unless_interrupted
from astrozoo.data.galaxy_population import SersicPopulation
from astrozoo.data.observed_stamps import ObservedStamps, read_observed
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.diagnostics.metrics import z_scores
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.models.sersic_stamp import render
from astrozoo.models.shear import problem
from astrozoo.physics.ellipticity import to_ellipticity
from astrozoo.shear.fits import Fits, check_index, fit_stamps, point_fits
from astrozoo.shear.pictures import STAMPS_CAPTION, SUMMARY_CAPTION, stamps_figure, summary_figure
from astrozoo.types import Outcome, Page, Result

__all__ = ["demonstration", "run"]

_FEW = 10
"""Effective number of draws below which a galaxy is counted in a warning: its likelihood has an error of a
third."""
_SHEAR = 0.04
"""Modulus of the shear of the demonstration."""
_SURVEY = GalaxySurvey(
    size=32,
    pixel_scale=0.2,
    psf=PsfRange("moffat", (0.65, 0.75), ellipticity=0.02),
    snr=None,
    noise_rms=0.0044,  # the median galaxy then has an S/N of 20
    kinds=(1, 0, 0, 0, 0),
    radius=(1e-3, 1e3),
    magnitude=(-100.0, 100.0),
    centre_scatter=0.5,
)


def demonstration(
    count: int, seed: int, sersic: float = 1.0, progress: bool = True
) -> tuple[ObservedStamps, dict[str, Tensor]]:
    """Galaxies of a median S/N of 20 that GalSim draws, and the truth behind them: site -> value."""
    angle = np.random.default_rng([seed, 9]).uniform(0, 2 * np.pi)
    shear = (_SHEAR * math.cos(angle), _SHEAR * math.sin(angle))
    population = SersicPopulation(index=sersic)
    survey = GalaxySurvey(**{**vars(_SURVEY), "shear": shear})
    drawn = simulate_galaxies(survey, count, seed=seed, population=population, progress=progress)
    stamps = ObservedStamps(
        drawn.image.double(), drawn.psf.double(), drawn.noise_rms.double(), survey.pixel_scale
    )
    to_ln = math.log(10) / 2.5
    truth = {
        "shear": shear,
        "ellipticity_sd": population.ellipticity_sd,
        "log_flux_mean": to_ln * (survey.zero_point - population.magnitude[0]),
        "log_flux_sd": to_ln * population.magnitude[1],
        "log_radius_mean": population.log_radius[0],
        "log_radius_sd": population.log_radius[1],
        "radius_slope": population.radius_slope,
    }
    return stamps, {name: torch.tensor(value, dtype=torch.float64) for name, value in truth.items()}


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "laplace",
    guide: str = "full_rank",
    seed: int = 0,
    device: str = "cpu",
    pixel_scale: float | None = None,
    sersic: float = 1.0,
    interim_draws: int = 128,
    galaxies: int = 1000,
) -> Outcome:
    """Fit each galaxy, then all of them together, and show both.

    Args:
        out: folder, which exists.
        path: file of stamps (:func:`~astrozoo.data.observed_stamps.read_observed`). Without it, the
            demonstration.
        demo: the demonstration.
        device: of the hierarchical fit; single galaxies are fitted on the CPU.
        pixel_scale, sersic, interim_draws: see :func:`astrozoo.shear.fits.read`.
        galaxies: of the demonstration.

    Raises:
        InputError: options that do not fit together.
        DataError: the file is unusable.
    """
    check_index(sersic)
    truth: dict[str, Tensor] = {}
    if path is None:
        if pixel_scale is not None:
            raise InputError("--pixel-scale", pixel_scale, "--pixel-scale with --data only")
        print(f"demonstration: {galaxies} galaxies, drawn by GalSim with seed {seed}")
        stamps, truth = demonstration(galaxies, seed, sersic)
        origin = f"drawn by GalSim, seed {seed}"
    else:
        stamps, origin = read_observed(path, pixel_scale), str(path)
    fits = fit_stamps(stamps, sersic, draws=interim_draws - interim_draws % 2, seed=seed)
    few = int((fits.effective < _FEW).sum())
    if few:
        say(f"{few} of {len(fits.mode)} galaxies have fewer than {_FEW} effective draws; use more draws")
    points = to_ellipticity(point_fits(stamps, sersic, start=fits.mode)[:, :2])
    task = problem(fits.draws).to(device=device)
    (out / CHECKPOINT).mkdir(exist_ok=True)
    settings = registry.get("shear").options.get(method, {})
    kept = out / CHECKPOINT / f"{method}.npz"
    result = unless_interrupted(infer(task, method, guide, seed=seed, checkpoint=kept, **settings))
    model = render(fits.mode, stamps.psf, sersic, stamps.pixel_scale)
    chi2 = ((stamps.image - model) / stamps.noise_rms[:, None, None]).square().mean((1, 2))
    _write_table(fits, chi2, out / "galaxies.csv")
    rows = _table(result, points, truth)
    pages = [
        Page(
            "Shear",
            [
                f"The data are {origin}. Point fits are the mean of the ellipticities of greatest "
                "likelihood: noise biases them.",
                rows,
                (summary_figure(result, fits, points, truth.get("shear")), SUMMARY_CAPTION),
                (stamps_figure(stamps, model, fits), STAMPS_CAPTION),
            ],
        )
    ]
    if truth:
        scores = z_scores(result, truth)
        worst = [{"site": name, "largest |mean - truth| / SD": np.abs(z).max()} for name, z in scores.items()]
        pages.append(Page("Simulated truth", [f"The data are {origin}.", worst]))
    return Outcome(
        result, pages, _summary(result, fits, chi2, few, origin), {"galaxies.csv": "fits, one by one"}
    )


def _table(result: Result, points: Tensor, truth: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A row for each component of the shear."""
    draws = result.draws["shear"].reshape(-1, 2)
    error = points.std(0) / math.sqrt(len(points))
    rows = []
    for k, name in enumerate(("g1", "g2")):
        row = {"": name, "mean": draws[:, k].mean(), "SD": draws[:, k].std()}
        row |= {"point fits": float(points[:, k].mean()), "their error": float(error[k])}
        rows.append(row | ({"truth": float(truth["shear"][k])} if truth else {}))
    return rows


def _summary(result: Result, fits: Fits, chi2: Tensor, few: int, origin: str) -> dict[str, Any]:
    draws = result.draws["shear"].reshape(-1, 2)
    values = {f"g{k + 1}": f"{draws[:, k].mean():+.4f} +- {draws[:, k].std():.4f}" for k in range(2)}
    return values | {
        "data": origin,
        "galaxies": len(fits.mode),
        "chi2 per pixel, median": float(chi2.median()),
        "effective draws, median": float(fits.effective.median()),
        f"galaxies with fewer than {_FEW} effective draws": few,
        "milliseconds per galaxy, fits": 1000 * fits.seconds / len(fits.mode),
    }


def _write_table(fits: Fits, chi2: Tensor, path: Path) -> None:
    """Write the modes of the interim posterior, as CSV."""
    e1, e2 = to_ellipticity(fits.mode[:, :2]).T.numpy()
    _, _, log_radius, log_flux, x, y = fits.mode.T.numpy()
    columns = {"e1": e1, "e2": e2, "half_light_radius": np.exp(log_radius), "flux": np.exp(log_flux)}
    columns |= {"x": x, "y": y, "chi2_per_pixel": chi2.numpy(), "effective_draws": fits.effective.numpy()}
    with replacing(path) as partial:
        Table(columns).write(partial, format="ascii.csv", overwrite=True)
