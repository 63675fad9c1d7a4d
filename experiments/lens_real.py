"""Real lenses: a power law with shear, the lens's own light, and a learned source.

    python experiments/lens_real.py --out runs/real --lens slacs1430+4105 --lens euclid_q1_102020532

Each ``--lens`` is a folder or file that ``astrozoo.data.lenses.read`` reads, or the name of one under the
data root's ``strong_lens``. Of each it writes ``<name>.png`` (image, model, residuals, the source with its
SD, the posterior of the Einstein radius) and ``<name>.json``. The pictures show survey data: they stay
outside the repository.

Pixels are used in a ring around the arcs: outside the lens's core, whose light no Sersic profile follows to
the noise, and inside the frame. Archives' noise maps count what resampling correlates as if it were
independent; chi2 of blank sky about its own mean, under the same map, is given beside chi2 in the arcs: it
is what a perfect model would reach.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lens_common import ascend, draws_of, gauss_newton
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor

import astrozoo
from astrozoo.data import root
from astrozoo.data.lens_image import LensImage
from astrozoo.data.lenses import read
from astrozoo.density import log_density
from astrozoo.models.strong_lens import Prior, observe, problem
from astrozoo.types import Problem, Result


@dataclass(frozen=True)
class Cut:
    """What of an image is fitted.

    Args:
        size: side of the square around the lens [arcsec].
        ring: least and greatest distance from the lens [arcsec].
        einstein_radius: first guess [arcsec].
        psf: side of the PSF that is kept [px].
    """

    size: float
    ring: tuple[float, float]
    einstein_radius: float
    psf: int = 21


CUTS = {
    "slacs1430+4105": Cut(5.6, (0.45, 2.8), 1.5),
    "euclid_q1_102020532": Cut(5.0, (0.45, 2.5), 1.2),
}


def prepared(lens: LensImage, cut: Cut) -> LensImage:
    """The square around the brightest smooth pixel near the middle, with pixels outside the ring masked."""
    blurred = np.where(np.hypot(*lens.coordinates()) < 1.0, gaussian_filter(lens.image, 1.0), -np.inf)
    centre = np.unravel_index(blurred.argmax(), lens.shape)
    size = min(round(cut.size / lens.pixel_scale), *lens.shape)
    if any(c - size // 2 < 0 or c - size // 2 + size > n for c, n in zip(centre, lens.shape, strict=True)):
        centre = (lens.shape[0] // 2, lens.shape[1] // 2)
    part = lens.trim_psf(min(cut.psf, len(lens.psf))).crop(size, centre=(int(centre[0]), int(centre[1])))
    distance = np.hypot(*part.coordinates())
    inside = (distance > cut.ring[0]) & (distance < cut.ring[1])
    arc = part.arc if part.arc is not None else (distance > 0.9) & inside
    return replace(part, mask=part.mask & inside, arc=arc & part.mask & inside)


def posed(part: LensImage, cut: Cut, supersample: int, source: str) -> Problem:
    """Priors on the scale of this image: brightness from the ring's inner and outer parts."""
    area = part.pixel_scale**2
    distance = np.hypot(*part.coordinates())
    core = np.median(part.image[(distance < cut.ring[0] + 0.1) & (distance > cut.ring[0])]) / area
    arcs = np.quantile(part.image[part.arc], 0.8) / area
    prior = Prior(
        einstein_radius=(cut.einstein_radius, 0.1),
        slope=(2.0, 0.15, 1.0, 3.0),
        ellipticity=0.15,
        centre=0.1,
        lens_radius=(1.5, 0.7),
        lens_index=(0.7, 8.0),
        lens_ellipticity=(0.15, 0.6),
        lens_centre=0.1,
        lens_amplitude=(0.3 * core, 1.5),
        source_radius=(0.3, 0.5),
        source_centre=0.3,
        source_amplitude=(0.5 * arcs, 1.0),
    )
    return problem(observe(part), setting="gigalens", source=source, supersample=supersample, prior=prior)


def mode(simple: Problem, full: Problem, seed: int, starts: int, steps: int, compile: str) -> Tensor:
    """A start of the full problem: the best of many starts with a Sersic source, its latents in the middle.

    A decoded source that begins far from the arcs settles on noise, and the lens's light takes the arcs.
    """
    target = log_density(simple, compile=compile)
    generator = torch.Generator().manual_seed(seed)
    z = target.initial(starts, generator)
    z = z + 0.2 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    z, value = ascend(target, z, steps, label="Sersic source")
    found = gauss_newton(simple, z[value.argmax()], seed=seed, compile=compile)
    best = target.layout.constrain(torch.from_numpy(found.location))
    layout = log_density(full, compile=compile).layout
    values = {site.name: best.get(site.name, torch.zeros(1, *site.shape).to(z)) for site in layout.sites}
    return layout.unconstrain(values)[0]


def sky_chi2(lens: LensImage) -> float:
    """Mean squared (pixel - local mean) over the map's variance, in the faintest quarter of the frame."""
    mean = uniform_filter(lens.image, 15)
    faint = lens.mask & (mean < np.quantile(mean[lens.mask], 0.25))
    return float((((lens.image - mean) / lens.sigma()) ** 2)[faint].mean())


def chi2(part: LensImage, model: np.ndarray, where: np.ndarray) -> float:
    return float((((part.image - model) / part.sigma(model)) ** 2)[where & part.mask].mean())


def picture(part: LensImage, task: Problem, result: Result, report: dict[str, Any], path: Path) -> np.ndarray:
    """Draws the figure and returns the mean model."""
    data, drawn = task.args[0], draws_of(result, 60)
    model = torch.stack([task.model.render(values, data)[0] for values in drawn]).mean(0).numpy()
    light = torch.stack([task.model.render(v, data, parts=("lens",))[0] for v in drawn[:10]]).mean(0).numpy()
    half = 3 * float(np.mean([v["source_radius"] for v in drawn]))
    x0, y0 = np.mean([v["source_centre"].numpy() for v in drawn], 0)
    axis = torch.linspace(-half, half, 100, dtype=torch.float64)
    y, x = torch.meshgrid(axis + y0, axis + x0, indexing="ij")
    source = torch.stack([v["source_amplitude"][0] * task.model.source_light(v, x, y) for v in drawn]).numpy()
    residual = np.where(part.mask, (part.image - model) / part.sigma(model), np.nan)
    figure, axes = plt.subplots(2, 4, figsize=(18, 8.5), layout="constrained")
    top = np.quantile(part.image[part.mask], 0.995)
    sky, behind = part.extent, (x0 - half, x0 + half, y0 - half, y0 + half)
    arcs = np.where(part.mask, part.image - light, np.nan)
    plates: list[tuple[str, np.ndarray, Any, dict[str, Any]]] = [
        (f"{part.name}: image [{part.unit}]", part.image, sky, {"vmin": 0, "vmax": top}),
        ("model", np.where(part.mask, model, np.nan), sky, {"vmin": 0, "vmax": top}),
        ("residual / noise", residual, sky, {"vmin": -5, "vmax": 5, "cmap": "coolwarm"}),
        ("image less lens light", arcs, sky, {"vmin": 0, "vmax": np.nanquantile(arcs, 0.995)}),
        (
            "model of the arcs",
            np.where(part.mask, model - light, np.nan),
            sky,
            {"vmin": 0, "vmax": np.nanquantile(arcs, 0.995)},
        ),
        (f"source, mean [{part.unit} / arcsec$^2$]", source.mean(0), behind, {"vmin": 0}),
        ("source, SD", source.std(0), behind, {"vmin": 0}),
    ]
    for axis_, (title, values, extent, limits) in zip(axes.flat, plates, strict=False):
        shown = axis_.imshow(values, origin="lower", extent=extent, **{"cmap": "magma", **limits})
        axis_.set_title(title)
        figure.colorbar(shown, ax=axis_, shrink=0.8)
        if values is residual:
            axis_.contour(*part.coordinates(), part.arc, levels=[0.5], colors="k", linewidths=0.7)
    radius = result.draws["einstein_radius"].ravel()
    axes[1, 3].hist(radius, 40, color="C0", alpha=0.6, density=True)
    axes[1, 3].set_xlabel("Einstein radius [arcsec]")
    axes[1, 3].set_title(f"{radius.mean():.4f} ± {radius.std():.4f} ({result.method}, {result.status})")
    figure.suptitle(
        f"reduced chi2: arcs {chi2(part, model, part.arc):.2f}, all pixels used "
        f"{chi2(part, model, part.mask):.2f}; blank sky {report['chi2 of blank sky']:.2f}"
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return model


def fit(name: str, options: argparse.Namespace) -> dict[str, Any]:
    path = Path(name)
    base = root()
    if not path.exists() and base is not None:
        path = base / "strong_lens" / name
    lens, cut = read(path), CUTS.get(path.name, Cut(6.0, (0.4, 3.0), 1.2))
    part = prepared(lens, cut)
    simple, task = (posed(part, cut, options.supersample, source) for source in ("sersic", "learned"))
    began = time.monotonic()
    shared = {"seed": options.seed, "compile": options.compile}
    best = mode(simple, task, starts=options.starts, steps=options.steps, **shared)
    result = gauss_newton(task, best, **shared)
    print(f"{name}: mode {result.status} after {time.monotonic() - began:.0f} s", flush=True)
    if options.method == "hmc":
        shape = {"chains": options.chains, "draws": options.draws, "warmup": options.draws}
        result = astrozoo.infer(task, method="hmc", precondition=result, **shape, **shared)
    report: dict[str, Any] = {
        "pixels": int(part.mask.sum()),
        "pixels in arcs": int((part.arc & part.mask).sum()),
        "dimensions": int(best.numel()),
        "chi2 of blank sky": sky_chi2(lens),
        "method": result.method,
        "status": str(result.status),
        "seconds": time.monotonic() - began,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    model = picture(part, task, result, report, options.out / f"{path.name}.png")
    report |= {"chi2 in arcs": chi2(part, model, part.arc), "chi2": chi2(part, model, part.mask)}
    for site in ("einstein_radius", "slope", "ellipticity", "shear", "source_radius"):
        values = result.draws[site].reshape(-1, *result.draws[site].shape[2:])
        report[site] = {"mean": values.mean(0).tolist(), "sd": values.std(0).tolist()}
    (options.out / f"{path.name}.json").write_text(json.dumps(report, indent=1))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lens", action="append", help=f"default: {', '.join(CUTS)}")
    parser.add_argument("--method", choices=("gauss_newton", "hmc"), default="hmc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--supersample", type=int, default=1)
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--draws", type=int, default=150)
    options = parser.parse_args()
    for name in options.lens or CUTS:
        print(json.dumps({name: fit(name, options)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
