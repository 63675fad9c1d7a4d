"""A dark subhalo on an arc: found where there is one, not found where there is none.

    python experiments/lens_substructure.py --out runs/substructure

Lenses of GalSim and caustics, half of them with a subhalo (NFW, ``--mass`` solar masses) near their Einstein
ring. Each is fitted (many starts of Adam, then Newton steps in a trust region
to convergence) without a subhalo and, from ``--places`` places around the ring, with one. ``gain`` is
what the subhalo adds to the greatest log posterior density, less ln of its prior there (so, what it adds to
the log likelihood and the other priors); it is detected above ``--threshold``. Writes
``substructure.json`` (gains, detections, false positives, recovered masses and places) and
``substructure.png``. All lenses and places run as one batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lens_common import ascend
from torch import Tensor

from astrozoo.data.lens_image import LensImage
from astrozoo.data.simulate_lens import simulate_lens
from astrozoo.density import LogDensity, log_density
from astrozoo.infer.trust_region import maximise
from astrozoo.models.strong_lens import Prior, problem
from astrozoo.physics import lensing

REDSHIFTS, CONCENTRATION = (0.5, 1.5), 15.0
SHAPE, PIXEL = (56, 56), 0.075
FIXED = {"centre_x": 0.0, "centre_y": 0.0}
PRIOR = Prior(
    einstein_radius=(1.2, 0.2),
    source_radius=(0.25, 0.3),
    source_centre=0.2,
    source_amplitude=(1.0, 2.0),
    subhalo_log_mass=(7.0, 10.5),
    subhalo_reach=2.0,
)


def simulated(seed: int, mass: float | None, snr: float) -> tuple[LensImage, dict[str, Any]]:
    """One lens; its subhalo, if it has one, a tenth of an Einstein radius from the ring's brightest part."""
    settings: dict[str, Any] = {"kind": "smooth", "shape": SHAPE, "pixel_scale": PIXEL, "peak_snr": snr}
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


def density(images: list[LensImage], subhalos: int, compile: str) -> LogDensity:
    options = {"redshifts": REDSHIFTS, "concentration": CONCENTRATION, "supersample": 2, "prior": PRIOR}
    return log_density(problem(images, setting="compact", subhalos=subhalos, **options), compile=compile)


def smooth_fit(
    images: list[LensImage], starts: int, steps: int, seed: int, compile: str
) -> tuple[Tensor, Tensor]:
    """The best point without subhalos of each image, and its log density."""
    target = density([image for image in images for _ in range(starts)], 0, compile)
    generator = torch.Generator().manual_seed(seed)
    z = target.initial(target.batch or 1, generator)
    z = z + 0.3 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    z, value = ascend(target, z, steps, label="without")
    best = value.reshape(len(images), starts).argmax(1)
    rows = torch.arange(len(images)) * starts + best
    ended = maximise(target.take(rows), z[rows])
    return ended.w, ended.value


def subhalo_fit(
    images: list[LensImage], smooth: Tensor, places: int, steps: int, compile: str
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """From the smooth fits: greatest log density with a subhalo, less its prior's; and where it is."""
    without = density(images, 0, compile)
    target = density([image for image in images for _ in range(places)], 1, compile)
    values = {name: v.repeat_interleave(places, 0) for name, v in without.layout.constrain(smooth).items()}
    angle = torch.arange(len(images) * places, dtype=smooth.dtype) * (2 * math.pi / places)
    ring = values["einstein_radius"][:, None] * torch.stack((angle.cos(), angle.sin()), -1)
    values["subhalo_position"] = ring[:, None].clamp(-1.9, 1.9)
    values["subhalo_log_mass"] = torch.full((len(ring), 1), 8.3, dtype=smooth.dtype)
    z, value = ascend(target, target.layout.unconstrain(values), steps, rate=0.03, label="with")
    best = value.reshape(len(images), places).argmax(1)
    rows = torch.arange(len(images)) * places + best
    ended = maximise(target.take(rows), z[rows])
    return ended.w, ended.value - subhalo_prior(target, ended.w), target.layout.constrain(ended.w)


def subhalo_prior(target: LogDensity, z: Tensor) -> Tensor:
    """ln of the unconstrained prior density of mass and place: uniform, so only the transforms' Jacobians."""
    total = torch.zeros(len(z), dtype=z.dtype)
    low, high = PRIOR.subhalo_log_mass
    total = total - math.log(high - low) - 2 * math.log(2 * PRIOR.subhalo_reach)
    for site in target.layout.sites:
        if site.name.startswith("subhalo"):
            part = z[:, site.start : site.stop].reshape(len(z), *site.unconstrained_shape)
            jacobian = site.transform.log_abs_det_jacobian(part, site.transform(part))
            total = total + jacobian.reshape(len(z), -1).sum(1)
    return total


def picture(rows: list[dict[str, Any]], images: list[LensImage], threshold: float, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    gains = {kind: [r["gain"] for r in rows if r["subhalo"] is kind] for kind in (False, True)}
    edges = np.linspace(0, max(max(gains[True]), 2 * threshold), 30)
    for kind, label in ((False, "no subhalo"), (True, "subhalo")):
        axes[0].hist(np.clip(gains[kind], 0, edges[-1]), edges, alpha=0.6, label=label)
    axes[0].axvline(threshold, color="k", ls="--")
    axes[0].set_xlabel("gain of log posterior")
    axes[0].legend()
    found = [r for r in rows if r["subhalo"] and r["gain"] > threshold]
    axes[1].scatter([r["distance"] for r in found], [r["log_mass"] for r in found])
    axes[1].axhline(rows[-1]["true log_mass"], color="k", ls="--")
    axes[1].set_xlabel("distance of the found from the true place [arcsec]")
    axes[1].set_ylabel("log10 mass found [solar masses]")
    best = max(range(len(rows)), key=lambda i: rows[i]["gain"])
    axes[2].imshow(images[best].image, origin="lower", extent=images[best].extent, cmap="magma")
    axes[2].plot(*rows[best]["place"], "c+", ms=14, label="found")
    if rows[best]["subhalo"]:
        axes[2].plot(*rows[best]["true place"], "wx", ms=10, label="true")
    axes[2].legend()
    axes[2].set_title(f"greatest gain: {rows[best]['gain']:.1f}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lenses", type=int, default=10, help="of each kind")
    parser.add_argument("--mass", type=float, default=1e9, help="M200 [solar masses]")
    parser.add_argument("--snr", type=float, default=100.0, help="of the brightest pixel")
    parser.add_argument("--threshold", type=float, default=10.0)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--places", type=int, default=6)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, n = time.monotonic(), options.lenses
    pairs = [simulated(options.seed + i, options.mass if i >= n else None, options.snr) for i in range(2 * n)]
    images = [image for image, _ in pairs]
    smooth, without = smooth_fit(images, options.starts, options.steps, options.seed, options.compile)
    _, having, found = subhalo_fit(images, smooth, options.places, options.steps, options.compile)
    rows: list[dict[str, Any]] = []
    for i, (_, truth) in enumerate(pairs):
        place = found["subhalo_position"][i, 0].tolist()
        row = {"subhalo": i >= n, "gain": float(having[i] - without[i]), "place": place}
        row |= {"log_mass": float(found["subhalo_log_mass"][i, 0])}
        if i >= n:
            row |= {"true place": truth["place"].tolist(), "true log_mass": truth["log_mass"]}
            row |= {"distance": math.dist(place, truth["place"])}
        rows.append(row)
    detected = [
        [r["gain"] > options.threshold for r in rows if r["subhalo"] is kind] for kind in (True, False)
    ]
    report = {
        "detected": f"{sum(detected[0])} of {n}",
        "false positives": f"{sum(detected[1])} of {n}",
        "threshold": options.threshold,
        "seconds": time.monotonic() - began,
        "lenses": rows,
    }
    (options.out / "substructure.json").write_text(json.dumps(report, indent=1))
    picture(rows, images, options.threshold, options.out / "substructure.png")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
