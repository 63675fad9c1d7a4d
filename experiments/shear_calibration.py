"""Multiplicative and additive bias of the shear, of point fits and of the hierarchical posterior.

Each galaxy is simulated four times: with the shears +g and -g, and turned by 0 and by 90 degrees, so that its
intrinsic shape and most of its noise cancel. The noise is turned with the galaxy. All four have the same PSF,
which is not turned. A pair is a galaxy at one angle with both shears; per pair,
``m = (g_hat(+g) - g_hat(-g)) / 2 g - 1`` and ``c = (g_hat(+g) + g_hat(-g)) / 2``.

GalSim draws exponential galaxies (:class:`astrozoo.data.galaxy_population.SersicPopulation`) at a median S/N
of 20. The PSF is a Moffat profile of 0.7 arcsec with an ellipticity of 0.03. Each block of galaxies has its
own hierarchical fit, which learns the population from that block. Errors are those of a jackknife over
blocks.

Usage: python experiments/shear_calibration.py --out DIR [--pairs 20000]   (about 40 minutes of one core)
Blocks that are done are kept in DIR: a run that was interrupted continues, and one with more pairs adds some.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from astrozoo._files import write_json
from astrozoo.data.galaxy_population import SersicPopulation
from astrozoo.data.observed_stamps import ObservedStamps
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.density import layout_of
from astrozoo.infer import infer
from astrozoo.models.shear import problem
from astrozoo.physics.ellipticity import to_ellipticity
from astrozoo.shear.fits import fit_stamps, point_fits

SHEAR = 0.02
"""Both components of the shear."""
SNR = 20.0
"""Median S/N of the galaxies."""
BLOCK = 1000
"""Pairs of a block: 500 galaxies at two angles."""
WIDE = 0.5
"""Prior SD of the shear. That of the model, 0.1, would shrink the shear of a block by 0.6 %."""
POPULATION = SersicPopulation()
SURVEY = GalaxySurvey(
    size=32,
    pixel_scale=0.2,
    psf=PsfRange("moffat", (0.7, 0.7), ellipticity=0.0, shape=(0.03, 0.0)),
    snr=None,
    noise_rms=1.0,  # added by this script
    kinds=(1, 0, 0, 0, 0),
    radius=(1e-3, 1e3),
    magnitude=(-100.0, 100.0),
    centre_scatter=0.5,
)


def noise_level() -> float:
    """The noise at which the median galaxy has an S/N of :data:`SNR`."""
    stamps = simulate_galaxies(SURVEY, 400, seed=10_000, population=POPULATION, progress=False)
    return float(stamps.noiseless.square().sum((1, 2)).sqrt().median()) / SNR


def block(index: int, rms: float, draws: int) -> dict[str, object]:
    """Shears of one block: [sign, component] of each estimator, and seconds per galaxy."""
    count = BLOCK // 2
    rng = np.random.default_rng([77, index])
    noise = torch.from_numpy(rms * rng.standard_normal((count, SURVEY.size, SURVEY.size)))
    noises = torch.cat((noise, torch.rot90(noise, 1, (1, 2))))
    result: dict[str, object] = {"point": [], "hierarchical": [], "sd": []}
    seconds, effective = dict.fromkeys(("simulate", "draws", "point", "hierarchical"), 0.0), []
    for sign in (1, -1):
        started = time.process_time()
        images, psfs = [], []
        for rotation in (0.0, 90.0):
            survey = replace(SURVEY, shear=(sign * SHEAR, sign * SHEAR), rotation=rotation)
            part = simulate_galaxies(survey, count, seed=index, population=POPULATION, progress=False)
            images.append(part.noiseless.double())
            psfs.append(part.psf.double())
        rows = torch.full((BLOCK,), rms, dtype=torch.float64)
        stamps = ObservedStamps(torch.cat(images) + noises, torch.cat(psfs), rows, SURVEY.pixel_scale)
        marks = [started, time.process_time()]
        fits = fit_stamps(stamps, POPULATION.index, draws=draws, seed=index, progress=False)
        effective.append(fits.effective)
        marks.append(time.process_time())
        shapes = to_ellipticity(point_fits(stamps, POPULATION.index, start=fits.mode)[:, :2])
        result["point"].append(shapes.mean(0).tolist())  # type: ignore[attr-defined]
        marks.append(time.process_time())
        task = problem(fits.draws, shear_sd=WIDE)
        found = infer(task, "laplace", None, draws=2, seed=index, compile="never", progress=False)
        if not found.status.ok:
            raise RuntimeError(f"block {index}: {found.status}")
        value = layout_of(task).constrain(torch.as_tensor(found.location)[0])["shear"]
        result["hierarchical"].append(value.tolist())  # type: ignore[attr-defined]
        result["sd"].append(np.sqrt(np.diag(found.covariance[0]))[:2].tolist())  # type: ignore[attr-defined, index]
        marks.append(time.process_time())
        for name, spent in zip(seconds, np.diff(marks), strict=True):
            seconds[name] += float(spent) / (2 * BLOCK)
    quantiles = torch.cat(effective).quantile(torch.tensor([0.01, 0.5], dtype=torch.float64))
    return result | {"seconds": seconds, "effective_1_50": quantiles.tolist(), "draws": draws}


def bias(shears: np.ndarray) -> dict[str, list[float]]:
    """m and c of both components, with jackknife errors, of shears [block, sign, component]."""
    m = (shears[:, 0] - shears[:, 1]) / (2 * SHEAR) - 1
    c = (shears[:, 0] + shears[:, 1]) / 2
    columns = {"m1": m[:, 0], "m2": m[:, 1], "m": m.mean(1), "c1": c[:, 0], "c2": c[:, 1]}
    return {name: jackknife(values) for name, values in columns.items()}


def jackknife(values: np.ndarray) -> list[float]:
    """The mean, and its jackknife error."""
    n = len(values)
    without = (values.sum() - values) / (n - 1)
    return [float(values.mean()), float(math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=128)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rms, blocks = noise_level(), []
    for index in range(max(2, options.pairs // BLOCK)):
        path = options.out / f"block-{options.draws}-{index:03d}.json"
        if not path.is_file():
            write_json(block(index, rms, options.draws), path)
        blocks.append(json.loads(path.read_text()))
        if index == 0:
            continue
        summary = {kind: bias(np.array([b[kind] for b in blocks])) for kind in ("point", "hierarchical")}
        spent = {name: float(np.mean([b["seconds"][name] for b in blocks])) for name in blocks[0]["seconds"]}
        summary |= {"pairs": BLOCK * len(blocks), "seconds per galaxy": spent}
        summary |= {
            "effective draws (1 %, median)": np.mean([b["effective_1_50"] for b in blocks], 0).tolist()
        }
        write_json(summary, options.out / "summary.json")
        print(f"{summary['pairs']} pairs", flush=True)
        for kind in ("point", "hierarchical"):
            row = ", ".join(f"{name} {v:+.2e} +- {e:.1e}" for name, (v, e) in summary[kind].items())
            print(f"  {kind:12s} {row}", flush=True)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
