"""Detection of a dark subhalo on an arc: the rate of detections, and the rate of false positives.

    python experiments/lens_substructure.py --out runs/substructure

GalSim and caustics simulate lenses. Half of them have a subhalo (NFW, ``--mass`` solar masses) near the
Einstein ring. Sources have Sersic indices of .5 to 2.5, like the star-forming galaxies that make most arcs.
(With a sharper centre, in images as deep as these, the error of the rays exceeds the effect of a subhalo.)

1. Each lens is fitted without a subhalo, by a few starts of Adam and then by Levenberg-Marquardt.
2. A matched filter searches the residuals. At positions along the arcs it compares them with the change of
   the image by a subhalo of 1e9 solar masses, minus the part that the smooth lens's parameters can reproduce.
3. A fit with a subhalo starts at the best position.

``gain`` is the change of the largest log posterior density by the subhalo, without the prior of the subhalo:
half a delta chi2, plus the change of the other priors. A subhalo is detected if the gain exceeds
``--threshold``. Lenses whose fits did not converge, or whose chi2 with a subhalo is five SDs above that of
noise, are counted separately. Rates have Jeffreys' 68 % intervals. Finished batches are saved and are not
fitted again. The experiment writes ``substructure.json`` (gains, detections, false positives, recovered
masses and positions) and ``substructure.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from lens_common import ascend, prior_starts
from rich.progress import track
from scipy.ndimage import maximum_filter
from torch import Tensor

from astrozoo._files import write_json
from astrozoo.data.lens_image import LensImage
from astrozoo.data.simulate_lens import draw_source, simulate_lens
from astrozoo.density import Layout, log_density
from astrozoo.diagnostics.sbc import in_batches
from astrozoo.models.strong_lens import SETTINGS, Prior, StrongLens, observe, problem
from astrozoo.physics import imaging, lensing
from astrozoo.types import Problem

REDSHIFTS, CONCENTRATION = (0.5, 1.5), 15.0
SHAPE, PIXEL = (56, 56), 0.075
ENOUGH = 0.02  # gain of a step at which a fit has converged [nat]
SETTINGS_OF_A_BATCH = {"mass", "snr", "exposure", "starts", "steps", "supersample"}
SPACING = 6  # every so many pixels of the arcs is a place to look at
INDEX = (0.5, 2.5)
RAYS = 12  # per pixel and axis of the simulated images
FIXED = {"centre_x": 0.0, "centre_y": 0.0}
PRIOR = Prior(
    einstein_radius=(1.2, 0.2),
    source_radius=(0.25, 0.3),
    source_ellipticity=(0.3, 0.7),
    source_centre=0.2,
    source_amplitude=(1.0, 2.0),
    subhalo_log_mass=(7.0, 10.5),
    subhalo_reach=2.0,
)


def simulated(seed: int, mass: float | None, snr: float, exposure: float) -> tuple[LensImage, dict[str, Any]]:
    """One lens. A subhalo lies a tenth of an Einstein radius from the brightest part of the ring."""
    source = draw_source(np.random.default_rng((seed, 1)), "smooth", INDEX)
    settings: dict[str, Any] = {"source": source, "shape": SHAPE, "pixel_scale": PIXEL, "rays": RAYS}
    settings |= {"peak_snr": snr, "exposure": exposure}
    image, truth = simulate_lens(seed, lens=FIXED, **settings)
    if mass is None:
        return image, truth
    x, y = image.coordinates()
    brightest = truth["model"].argmax()
    place = np.array([x.ravel()[brightest], y.ravel()[brightest]]) * 1.1
    to = {"dtype": torch.float64}
    scales = lensing.nfw_of_mass(torch.tensor(mass, **to), torch.tensor(CONCENTRATION, **to), *REDSHIFTS)

    def perturber(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rays = torch.from_numpy(x), torch.from_numpy(y)
        ax, ay = lensing.nfw(*rays, *scales, torch.from_numpy(place))
        return ax.numpy(), ay.numpy()

    image, truth = simulate_lens(seed, lens=FIXED, perturber=perturber, **settings)
    return image, truth | {"place": place, "log_mass": math.log10(mass)}


class Fit:
    """A lens with or without a subhalo as a function of unconstrained vectors."""

    def __init__(
        self, image: LensImage, subhalos: int, supersample: int, layout: Layout | None = None
    ) -> None:
        options: dict[str, Any] = {"redshifts": REDSHIFTS, "concentration": CONCENTRATION, "prior": PRIOR}
        settings = SETTINGS["compact"] | {"supersample": supersample, "subhalos": subhalos}
        self.model, self.data = StrongLens(**settings, **options), observe(image)
        self.layout = layout or log_density(Problem(self.model, (self.data,)), compile="never").layout

    def seen(self, z: Tensor) -> Float[Tensor, "pixels"]:
        """The noiseless image."""
        return self.model.render(self.layout.constrain(z), self.data).flatten()

    def log_prior(self, z: Float[Tensor, "dim"], but: str = "none") -> Tensor:
        """Log prior density of the unconstrained vector, without sites whose names begin with ``but``."""
        values, jacobian = self.layout.constrain_with_jacobian(z)
        priors = self.model.sites(self.data)
        if but != "none":
            for site in self.layout.sites:
                if site.name.startswith(but):
                    part = z[site.start : site.stop].reshape(site.unconstrained_shape)
                    jacobian = jacobian - site.transform.log_abs_det_jacobian(part, values[site.name]).sum()
        return jacobian + sum(p.log_prob(values[n]).sum() for n, p in priors.items() if not n.startswith(but))

    def log_likelihood(self, image: Float[Tensor, "pixels"]) -> Tensor:
        sd = self.data.total_variance(image.view_as(self.data.image)).flatten().sqrt()
        return torch.distributions.Normal(image, sd).log_prob(self.data.image.flatten()).sum()

    def slopes(self, z: Float[Tensor, "dim"]) -> Float[Tensor, "dim pixels"]:
        """Derivatives of the image by each coordinate, by central differences."""
        shifts = 1e-4 * torch.eye(len(z)).to(z)
        return torch.stack([self.seen(z + s) - self.seen(z - s) for s in shifts]) / 2e-4

    def climb(self, z: Float[Tensor, "dim"], iterations: int = 80) -> tuple[Tensor, Tensor, float]:
        """Levenberg-Marquardt. Returns the point, its noiseless image and the gain of the last step [nat]."""
        image, damping, gained = self.seen(z), 1e-2, math.inf
        value = self.log_likelihood(image) + self.log_prior(z)
        for _ in range(iterations):
            rows, weight = (
                self.slopes(z),
                1 / self.data.total_variance(image.view_as(self.data.image)).flatten(),
            )
            bend = torch.func.hessian(self.log_prior)(z)
            pull = rows @ (weight * (self.data.image.flatten() - image)) + torch.func.grad(self.log_prior)(z)
            curvature = (rows * weight) @ rows.T - bend.clamp_max(0.0) * torch.eye(len(z)).to(z)
            gained = 0.0
            while damping < 1e8:
                trial = z + torch.linalg.solve(curvature + damping * curvature.diagonal().diag(), pull)
                new = self.seen(trial)
                risen = self.log_likelihood(new) + self.log_prior(trial) - value
                if risen > 0:
                    z, image, value, gained = trial, new, value + risen, float(risen)
                    damping = max(damping / 8, 1e-8)
                    break
                damping *= 5
            if gained < ENOUGH:
                break
        return z, image, gained


def starts_of(images: list[LensImage], starts: int, steps: int, seed: int, compile: str) -> Tensor:
    """For each image the best point without a subhalo that Adam finds, with one ray per pixel."""
    many = [image for image in images for _ in range(starts)]
    target = log_density(problem(many, setting="compact", prior=PRIOR), compile=compile)
    z = prior_starts(problem(images[0], setting="compact", prior=PRIOR), len(many), seed)
    z, value = ascend(target, z, steps, rate=0.1 * z.std(0), label="without")
    return z[torch.arange(len(images)) * starts + value.reshape(len(images), starts).argmax(1)]


def scanned(smooth: Fit, one: Fit, z: Tensor, image: Tensor) -> Tensor:
    """A start of the fit with a subhalo, at the place where it explains most of the residuals.

    With whitened residuals r and the change d by a subhalo of 1e9 solar masses, both without their parts in
    the span of the smooth fit's slopes, an amplitude ``r d / d d`` gains ``(r d)^2 / (2 d d)``.
    """
    data = smooth.data
    weight = data.total_variance(image.view_as(data.image)).flatten().rsqrt()
    span, _ = torch.linalg.qr((smooth.slopes(z) * weight).T)

    def left(rows: Tensor) -> Tensor:
        return rows * weight - (rows * weight) @ span @ span.T

    ny, nx = data.image.shape[-2:]
    near = maximum_filter((image * weight).view(ny, nx).numpy(), 5) > 5  # pixels with arcs about them
    x, y = imaging.pixel_grid((ny, nx), data.pixel_scale)
    places = torch.stack((x[near], y[near]), -1)[::SPACING]
    places = places[places.abs().amax(1) < 0.95 * PRIOR.subhalo_reach]
    values, log_mass = smooth.layout.constrain(z), torch.full((1,), 9.0).to(z)
    put = [values | {"subhalo_log_mass": log_mass, "subhalo_position": place[None]} for place in places]
    changes = left(torch.stack([one.model.render(v, data).flatten() for v in put]) - image)
    pull, size = changes @ left(data.image.flatten() - image), changes.square().sum(1)
    best = (pull.clamp_min(0).square() / size).argmax()
    amplitude = (pull[best] / size[best]).clamp_min(0.1)
    begin = put[int(best)] | {"subhalo_log_mass": log_mass + amplitude.log10().clamp(-1, 1)}
    return one.layout.unconstrain({name: v[None] for name, v in begin.items()})[0]


def searched(smooth: Fit, one: Fit, image: LensImage, z: Tensor) -> dict[str, Any]:
    """The gain of a subhalo in the log density of one lens, and its position."""
    z, clean, last = smooth.climb(z)
    without = smooth.log_likelihood(clean) + smooth.log_prior(z)
    w, lit, end = one.climb(scanned(smooth, one, z, clean))
    having = one.log_likelihood(lit) + one.log_prior(w, but="subhalo")
    found = one.layout.constrain(w)
    shown = lit.view(image.shape).numpy()
    square = ((image.image - shown) / image.sigma(shown)) ** 2
    return {
        "gain": float(having - without),
        "place": found["subhalo_position"][0].tolist(),
        "log_mass": float(found["subhalo_log_mass"][0]),
        "reduced chi2": float(square.sum() / (square.size - len(w))),
        "last gains": [last, end],
    }


def picture(
    rows: list[dict[str, Any]], best: dict[str, Any], image: LensImage, threshold: float, path: Path
) -> None:
    """Gains with and without a subhalo, recovered masses and positions, and the lens of largest gain."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    gains = {kind: [r["gain"] for r in rows if r["subhalo"] is kind] for kind in (False, True)}
    edges = np.linspace(0, max([2 * threshold, *gains[True]]), 30)
    for kind, label in ((False, "no subhalo"), (True, "subhalo")):
        axes[0].hist(np.clip(gains[kind], 0, edges[-1]), edges, alpha=0.6, label=label)
    axes[0].axvline(threshold, color="k", ls="--")
    axes[0].set_xlabel("gain of log posterior")
    axes[0].legend()
    found = [r for r in rows if r["subhalo"] and r["gain"] > threshold]
    axes[1].scatter([r["distance"] for r in found], [r["log_mass"] for r in found])
    for row in found:
        axes[1].axhline(row["true log_mass"], color="k", ls="--")
    axes[1].set_xlabel("distance of the found from the true place [arcsec]")
    axes[1].set_ylabel("log10 mass found [solar masses]")
    axes[2].imshow(image.image, origin="lower", extent=image.extent, cmap="magma")
    axes[2].plot(*best["place"], "c+", ms=14, label="found")
    if best["subhalo"]:
        axes[2].plot(*best["true place"], "wx", ms=10, label="true")
    axes[2].legend()
    axes[2].set_title(f"greatest gain: {best['gain']:.1f}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def batch(seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Simulate and search a batch of lenses; those of odd seeds have a subhalo."""
    began = time.monotonic()
    has = [seed % 2 == 1 for seed in seeds]
    pairs = [
        simulated(seed, options.mass if one else None, options.snr, options.exposure)
        for seed, one in zip(seeds, has, strict=True)
    ]
    images = [image for image, _ in pairs]
    z = starts_of(images, options.starts, options.steps, seeds[0], options.compile)
    layouts = [Fit(images[0], k, 1).layout for k in (0, 1)]
    most = 1 + 5 * math.sqrt(2 / (SHAPE[0] * SHAPE[1]))
    rows: list[dict[str, Any]] = []
    for (image, truth), one, start, seed in zip(pairs, has, z, seeds, strict=True):
        fits = [Fit(image, k, options.supersample, layout) for k, layout in enumerate(layouts)]
        row = {"seed": seed, "subhalo": one, **searched(*fits, image, start)}
        row["usable"] = row["reduced chi2"] < most and max(row["last gains"]) < ENOUGH
        if one:
            row |= {"true place": truth["place"].tolist(), "true log_mass": truth["log_mass"]}
            row |= {"distance": math.dist(row["place"], truth["place"])}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return {"rows": rows, "seconds": time.monotonic() - began}


def rate(rows: Sequence[Mapping[str, Any]], threshold: float) -> str:
    """Number of gains above the threshold, and the 68 % interval of the rate."""
    n, passed = len(rows), sum(row["gain"] > threshold for row in rows)
    low, high = scipy.stats.beta.interval(0.68, passed + 0.5, n - passed + 0.5)
    return f"{passed} of {n} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lenses", type=int, default=40, help="every second one has a subhalo")
    parser.add_argument("--batch", type=int, default=10, help="lenses started at once")
    parser.add_argument("--mass", type=float, default=1e9, help="M200 [solar masses]")
    parser.add_argument("--snr", type=float, default=200.0, help="brightest pixel over sky rms")
    parser.add_argument("--exposure", type=float, default=1e4, help="[s]")
    parser.add_argument("--threshold", type=float, default=10.0)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--supersample", type=int, default=6)
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(options).items() if name in SETTINGS_OF_A_BATCH}
    seeds = range(options.seed, options.seed + options.lenses)
    batches = in_batches(options.out, seeds, options.batch, asked, partial(batch, options=options))
    done = list(track(batches, "batches of lenses", total=math.ceil(len(seeds) / options.batch)))
    rows = [row for part in done for row in part["rows"]]
    usable = [row for row in rows if row["usable"]]
    having, lacking = ([row for row in usable if row["subhalo"] is kind] for kind in (True, False))
    report = {
        "detected": rate(having, options.threshold),
        "false positives": rate(lacking, options.threshold),
        "greatest gain without a subhalo": max((row["gain"] for row in lacking), default=None),
        "fits that failed": len(rows) - len(usable),
        "threshold": options.threshold,
        "seconds": sum(part["seconds"] for part in done),
        "lenses": rows,
    }
    write_json(report, options.out / "substructure.json")
    if usable:
        best = max(usable, key=lambda row: row["gain"])
        mass = options.mass if best["subhalo"] else None
        image, _ = simulated(best["seed"], mass, options.snr, options.exposure)
        picture(usable, best, image, options.threshold, options.out / "substructure.png")
    print(json.dumps({name: value for name, value in report.items() if name != "lenses"}, indent=1))


if __name__ == "__main__":
    main()
