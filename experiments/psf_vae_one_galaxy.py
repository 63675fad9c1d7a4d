"""One galaxy under several PSFs and noise levels, by each backend, against long chains and the truth.

    python -m experiments.psf_vae_one_galaxy --out runs/psf_vae_one_galaxy [--galaxy 3] [--weights FILE]
        [--draws 2000]

Takes about 5 minutes on one core. Files in ``--out``: ``scores.json`` and ``maps.png``. The scores have, for
each view of the galaxy and each backend:

- the Wasserstein distance of each latent's marginal from long HMC chains, in posterior SDs: median, largest;
- CPU seconds, without those of the problem's start, and counts of gradients and products with a Hessian;
- how many 68 % intervals of noiseless pixels contain the truth, of the pixels that the galaxy lights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import wasserstein_distance

import astrozoo
from astrozoo._files import write_json
from astrozoo.data.psf_stamps import PsfStamp
from astrozoo.data.simulate_galaxies import GalaxyStamps, GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.galaxies.psf_maps import maps_of
from astrozoo.galaxies.psf_pictures import stretch
from astrozoo.models import psf_vae
from astrozoo.types import Problem, Result

SEED = 1_000_003
"""Seed of the galaxies: none is in the training set."""
SIZE = 40
"""[px] Side of the stamps."""
VIEWS: Mapping[str, tuple[float, float]] = {
    "FWHM .2, S/N 100": (0.2, 100.0),
    "FWHM .2, S/N 25": (0.2, 25.0),
    "FWHM .45, S/N 100": (0.45, 100.0),
}
"""PSFs [arcsec] and signal-to-noise ratios."""
BACKENDS: Mapping[str, tuple[str, str | None, Mapping[str, Any]]] = {
    "trust region": ("trust_region", "encoder", {"tolerance": 0.02, "particles": 8}),
    "svi": ("svi", "encoder", {"tolerance": 0.05, "particles": 4}),
    "svi, IAF": ("svi", "encoder_iaf", {"tolerance": 0.05, "particles": 4}),
    "hmc": ("hmc", None, {"chains": 16, "draws": 100}),
}
"""Name -> method, guide and options."""


def viewed(galaxy: int, fwhm: float, snr: float) -> GalaxyStamps:
    """The same galaxy through another PSF, with another noise."""
    survey = GalaxySurvey(
        size=SIZE, psf=PsfRange("moffat", (fwhm, fwhm), 0.02), snr=(snr, snr), kinds=(0, 0, 1, 0, 0)
    )
    return simulate_galaxies(survey, galaxy + 1, seed=SEED, progress=False)[galaxy : galaxy + 1]


def problem_of(stamps: GalaxyStamps, weights: Any) -> Problem:
    """The problem of the first stamp."""
    image, psf, noise = stamps.image[0].numpy(), stamps.psf[0].numpy(), float(stamps.noise_rms[0])
    return psf_vae.problem(PsfStamp(image, psf, noise, 0.1), weights=weights)


def compared(problem: Problem, result: Result, long: Result, clean: np.ndarray) -> dict[str, float]:
    """Distances from the long chains, and the coverage of pixels."""
    z, reference = (r.draws["latent"].reshape(-1, 16) for r in (result, long))
    distances = [wasserstein_distance(a, b) / b.std() for a, b in zip(z.T, reference.T, strict=True)]
    exposures, _ = problem.args
    model: Any = problem.model
    with torch.no_grad():
        drawn = model.images(exposures, torch.as_tensor(z[:: max(len(z) // 300, 1)]))[0].numpy()
    low, high = np.quantile(drawn, (0.16, 0.84), axis=0)
    lit = clean > float(exposures[0].sd.min())
    return {
        "W1, median [SD]": float(np.median(distances)),
        "W1, largest [SD]": float(np.max(distances)),
        "coverage of 68 % intervals": float(((low < clean) & (clean < high))[lit].mean()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="weights file; by default the package's")
    parser.add_argument("--galaxy", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2000, help="draws of each of 16 long chains")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    weights = None if options.weights is None else astrozoo.load_weights(str(options.weights))
    sharp = viewed(options.galaxy, 0.06, 100.0)
    figure, axes = plt.subplots(
        len(VIEWS), 2 + 2 * (len(BACKENDS) + 1), figsize=(22, 2.3 * len(VIEWS)), layout="constrained"
    )
    scores: dict[str, Any] = {}
    for row, (view, (fwhm, snr)) in zip(axes, VIEWS.items(), strict=True):
        stamps = viewed(options.galaxy, fwhm, snr)
        problem = problem_of(stamps, weights)
        shared: dict[str, Any] = {"seed": 0, "compile": "never", "progress": False}
        began = time.process_time()
        long = astrozoo.infer(
            problem, "hmc", chains=16, draws=options.draws, seed=1, compile="never", progress=False
        )
        scores[view] = {"long hmc": {"CPU seconds": time.process_time() - began, "status": long.verdict}}
        results = {"long hmc": long}
        for name, (method, guide, settings) in BACKENDS.items():
            began = time.process_time()
            result = astrozoo.infer(problem, method, guide, **shared, **settings)
            scores[view][name] = {"CPU seconds": time.process_time() - began, "status": result.verdict}
            scores[view][name] |= compared(problem, result, long, stamps.noiseless[0].numpy())
            scores[view][name]["counts"] = result.stats["counts"]
            results[name] = result
            print(view, name, scores[view][name], flush=True)
        scores[view]["long hmc"] |= compared(problem, long, long, stamps.noiseless[0].numpy())
        truth = sharp.noiseless[0].numpy() * float(stamps.flux[0] / sharp.flux[0])
        draw_row(row, view, problem, stamps, truth, results)
    for axis, title in zip(axes[0], ("data", "truth, FWHM .06", *titles()), strict=True):
        axis.set_title(title, fontsize=8)
    figure.savefig(options.out / "maps.png", dpi=70)
    write_json(scores, options.out / "scores.json")


def titles() -> list[str]:
    """Titles of the columns of the backends."""
    return [f"{name}: {what}" for name in ("long hmc", *BACKENDS) for what in ("mean", "SD")]


def draw_row(
    row: Any,
    view: str,
    problem: Problem,
    stamps: GalaxyStamps,
    truth: np.ndarray,
    results: Mapping[str, Result],
) -> None:
    """Data, truth, and the deconvolved mean and SD of each backend."""
    norm = stretch(float(truth.max()))
    row[0].imshow(
        stamps.image[0], origin="lower", cmap="magma", norm=stretch(float(stamps.noiseless[0].max()))
    )
    row[0].set_ylabel(view, fontsize=8)
    row[1].imshow(truth, origin="lower", cmap="magma", norm=norm)
    for k, result in enumerate(results.values()):
        (maps,) = maps_of(problem, result)
        for axis, values in zip(
            row[2 + 2 * k : 4 + 2 * k], (maps.deconvolved, maps.deconvolved_sd), strict=True
        ):
            axis.imshow(values, origin="lower", cmap="magma", norm=norm)
    for axis in row:
        axis.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
