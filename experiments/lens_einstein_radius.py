"""The Einstein radius of one simulated lens, by Hamiltonian Monte Carlo and by variational inference.

    python experiments/lens_einstein_radius.py --out runs/einstein_radius

GalSim draws a galaxy, which caustics lenses by an isothermal sphere. The image has photon noise. The model is
that of Chianese, Coogan et al. 2020: one Einstein radius, a source from a decoder, Poisson noise. The decoder
is that of the learned source. The experiment writes:

* ``einstein_radius.png``: p(r_ein | x) by both methods, the truth, and the best-fitting beside the true
  source;
* ``einstein_radius.json``: means, SDs, the distance from the truth, R-hat, effective draws, divergences,
  seconds, and the Wasserstein-1 distance of the two posteriors over the SD of HMC;
* ``VI.nc`` and ``HMC.nc``: the posteriors.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lens_common import ascend
from scipy.ndimage import map_coordinates
from scipy.stats import gaussian_kde, wasserstein_distance

import astrozoo
from astrozoo._files import write_json
from astrozoo.data.lens_image import LensImage
from astrozoo.data.simulate_lens import simulate_lens
from astrozoo.density import log_density
from astrozoo.diagnostics.arviz import ess, r_hat
from astrozoo.guides.auto import iaf
from astrozoo.lens.gauss_newton import gauss_newton
from astrozoo.lens.pictures import draws_of
from astrozoo.models.strong_lens import Prior, observe, problem
from astrozoo.types import Problem, Result

LENS = {
    "einstein_radius": 1.3,
    "slope": 2.0,
    "axis_ratio": 1.0,
    "gamma1": 0.0,
    "gamma2": 0.0,
    "centre_x": 0.0,
    "centre_y": 0.0,
    "source_x": 0.12,
    "source_y": -0.08,
    "source_radius": 0.25,
}
SITE = "einstein_radius"


def infer(task: Problem, chains: int, draws: int, **shared: Any) -> dict[str, tuple[Result, float]]:
    """The result of each method and its seconds, which include the search for the mode where both start."""
    found, began = {}, time.monotonic()
    target = log_density(task, compile=shared["compile"])
    z, _ = ascend(target, target.initial(1), 150, label="mode")
    mode = gauss_newton(task, z[0], seed=shared["seed"])
    first = time.monotonic() - began
    print(f"mode: {mode.status}, {first:.0f} s", flush=True)
    flow = partial(iaf, transforms=2, around=mode)
    runs: dict[str, dict[str, Any]] = {
        "VI": {"method": "svi", "guide": flow, "particles": 8, "learning_rate": 0.01, "budget": 400},
        "HMC": {
            "method": "hmc",
            "precondition": mode,
            "chains": chains,
            "draws": draws,
            "warmup": draws // 2,
            "target_acceptance": 0.95,  # at 0.8 one trajectory in ten or twenty diverges
        },
    }
    for name, options in runs.items():
        began = time.monotonic()
        found[name] = (astrozoo.infer(task, **options, **shared), time.monotonic() - began + first)
        print(f"{name}: {found[name][0].status}, {found[name][1]:.0f} s", flush=True)
    return found


def summary(found: dict[str, tuple[Result, float]], truth: float) -> dict[str, Any]:
    """Mean, SD and convergence diagnostics of the Einstein radius."""
    draws = {name: result.draws[SITE].ravel() for name, (result, _) in found.items()}
    spread = draws["HMC"].std()
    report: dict[str, Any] = {"truth": truth}
    for name, (result, seconds) in found.items():
        report[name] = {
            "mean": draws[name].mean(),
            "sd": draws[name].std(),
            "(mean - truth) / sd": (draws[name].mean() - truth) / draws[name].std(),
            "status": result.status.value,
            "seconds": seconds,
            "compile seconds": result.stats.get("compile_seconds", 0.0),
        }
    chains = found["HMC"][0]
    report["HMC"] |= {
        "R-hat": float(r_hat(chains.draws[SITE])),
        "effective draws": float(ess(chains.draws[SITE], "bulk")),
        "share of diverging trajectories, by chain": chains.sample_stats["diverging"].mean(1).tolist(),
    }
    report["W1 in SDs of HMC"] = wasserstein_distance(draws["VI"], draws["HMC"]) / spread
    return report


def sources(task: Problem, result: Result, half: float, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD over draws of the source's surface brightness, on a square of ``2 half`` arcsec."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = [v["source_amplitude"][0] * task.model.source_light(v, x, y) for v in draws_of(result, 200)]
    stack = torch.stack(images)
    return stack.mean(0).numpy(), stack.std(0).numpy()


def true_source(truth: dict[str, Any], half: float, n: int = 120) -> np.ndarray:
    """Surface brightness of the simulated galaxy [electron / s / arcsec^2], on the same square."""
    axis = np.linspace(-half, half, n)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    middle = len(truth["source"]) // 2
    place = [(p - truth[f"source_{c}"]) / truth["source_pixel"] + middle for p, c in ((y, "y"), (x, "x"))]
    return map_coordinates(truth["source"], place, order=1) * truth["flux"] / truth["source_pixel"] ** 2


def picture(
    image: LensImage,
    truth: dict[str, Any],
    task: Problem,
    found: dict[str, tuple[Result, float]],
    report: dict[str, Any],
    path: Path,
) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), width_ratios=(1.5, 1, 1, 1), layout="constrained")
    colours = {"HMC": "C0", "VI": "C1"}
    for name, (result, _) in found.items():
        draws = result.draws[SITE].ravel()
        grid = np.linspace(draws.min(), draws.max(), 300)
        axes[0].fill_between(grid, gaussian_kde(draws)(grid), color=colours[name], alpha=0.35, label=name)
    axes[0].axvline(truth[SITE], color="k", ls="--", label="truth")
    axes[0].set_xlabel("Einstein radius [arcsec]")
    axes[0].set_ylabel("p($r_{ein}$ | x)")
    axes[0].set_ylim(0)
    axes[0].legend(title=f"W1 = {report['W1 in SDs of HMC']:.2f} SD")
    half = 0.9
    best, _ = sources(task, found["HMC"][0], half)
    true = true_source(truth, half)
    shown = {
        "image": (image.image, image.extent),
        "source: truth": (true, (-half, half, -half, half)),
        "source: mean of HMC": (best, (-half, half, -half, half)),
    }
    for axis, (title, (values, extent)) in zip(axes[1:], shown.items(), strict=True):
        limits = {} if title == "image" else {"vmin": 0, "vmax": np.quantile(true, 0.998)}
        axis.imshow(values, origin="lower", extent=extent, cmap="magma", **limits)
        axis.set_title(title)
        axis.set_xlabel("arcsec")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    image, truth = simulate_lens(options.seed, lens=LENS, shape=(40, 40), pixel_scale=0.1, peak_snr=25.0)
    prior = Prior(
        source_amplitude=(truth["flux"] / (11.96 * LENS["source_radius"] ** 2), 0.5),
        source_radius=(0.25, 0.2),
    )
    task = problem(observe(image), setting="talk", prior=prior, supersample=2)
    found = infer(task, options.chains, options.draws, seed=options.seed, compile=options.compile)
    report = summary(found, truth[SITE])
    write_json(report, options.out / "einstein_radius.json")
    for name, (result, _) in found.items():
        result.save(options.out / f"{name}.nc")
    picture(image, truth, task, found, report, options.out / "einstein_radius.png")
    print(json.dumps(report, indent=1, default=float))


if __name__ == "__main__":
    main()
