"""Real lenses: a power law with shear, the lens's own light, and a source of pixels.

    python experiments/lens_real.py --out runs/real --lens slacs1430+4105 --lens euclid_q1_102020532

Each ``--lens`` is a folder or file that ``astrozoo.data.lenses.read`` reads, or the name of one under the
data root's ``strong_lens``. Of each it writes ``<name>.png`` (image, arcs, model, residuals, the source with
its SD, the posterior of the Einstein radius) and ``<name>.json``. The pictures show survey data: they stay
outside the repository.

As lens modellers do: many starts with a Sersic source, drawn from a prior around the radius at which there is
light beyond the lens's; from the best, a source of pixels (:mod:`astrozoo.models.pixelated_lens`), the spread
and length of its prior by evidence; Gauss-Newton to the joint mode; HMC over mass, lens light and pixels
together, its mass matrix the curvature there, corrected during the warm-up.

Pixels are used in a ring around the arcs: outside the lens's core, whose light no Sersic profile follows to
the noise, and inside the frame. Noise is the archive's map, taken as independent. Resampling correlates
noise, and a map may allow for that: chi2 of blank sky about its own mean, under the same map, is given
beside chi2 in the arcs: it is what a perfect model would reach.
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
from jaxtyping import Bool, Float
from lens_common import ascend, draws_of, gauss_newton, prior_starts
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor

import astrozoo
from astrozoo._files import write_json
from astrozoo.data import root
from astrozoo.data.lens_image import LensImage
from astrozoo.data.lenses import read
from astrozoo.density import log_density
from astrozoo.diagnostics.arviz import ess, r_hat
from astrozoo.models.pixelated_lens import PixelatedLens, regularised
from astrozoo.models.strong_lens import Prior, observe, problem
from astrozoo.types import Problem, Result

ANCHORS = 100
LENGTH = 5.0
"""Least length of trajectories: mass and light are wider than the curvature at the mode says (by half, on the
Euclid lens), and bent; 1,600 pixels are not, and the criterion that adapts the length heeds the many."""


@dataclass(frozen=True)
class Cut:
    """What of an image is fitted, and how finely.

    Args:
        size: side of the square around the lens [arcsec].
        ring: least and greatest distance from the lens [arcsec].
        supersample: rays per pixel and axis.
        pixels: of the source, along a side.
        halo: whether the lens's light needs a second component.
        psf: side of the PSF that is kept [px].
    """

    size: float
    ring: tuple[float, float]
    supersample: int = 2
    pixels: int = 40
    halo: bool = False
    psf: int = 21


CUTS = {
    "slacs1430+4105": Cut(5.6, (0.5, 2.8), supersample=1, halo=True),
    "euclid_q1_102020532": Cut(5.0, (0.45, 2.5)),
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
    return replace(part, mask=part.mask & (distance > cut.ring[0]) & (distance < cut.ring[1]))


def guessed(part: LensImage, cut: Cut) -> Prior:
    """Priors on the scale of this image.

    The lens alone would be as bright as the faintest third of the pixels at each distance; what is beyond
    that are arcs, and their mean distance is where the prior of the Einstein radius has its median.
    """
    distance, area = np.hypot(*part.coordinates()), part.pixel_scale**2
    shell = (distance / part.pixel_scale).astype(int)
    alone = np.array([np.quantile(part.image[shell == i], 0.3) for i in range(shell.max() + 1)])[shell]
    excess = np.where(part.mask, np.maximum((part.image - alone) / part.sigma() - 3, 0), 0.0)
    inner = np.median(part.image[part.mask & (distance < cut.ring[0] + 0.1)]) / area
    return Prior(
        einstein_radius=(float((excess * distance).sum() / excess.sum()), 0.2),
        slope=(2.0, 0.1, 1.0, 3.0),
        ellipticity=0.15,
        lens_radius=(1.5, 0.7),
        lens_index=(0.7, 8.0),
        lens_ellipticity=(0.15, 0.6),
        lens_amplitude=(float(0.3 * inner), 1.5),
        source_radius=(0.3, 0.5),
        source_ellipticity=(0.2, 0.6),
        source_centre=0.4,
        source_amplitude=(float(np.quantile((part.image - alone)[part.mask], 0.95) / area), 1.0),
    )


def searched(task: Problem, seed: int, starts: int, steps: int, compile: str) -> dict[str, Tensor]:
    """The best point from draws of the prior: all climb for a third of the steps, then the best quarter."""
    target = log_density(task, compile=compile)
    z = prior_starts(task, starts, seed)
    scale = z.std(0)
    z, value = ascend(target, z, steps // 3, rate=0.15 * scale, label="Sersic source, all")
    best = value.argsort(descending=True)[: max(1, starts // 4)]
    z, value = ascend(target, z[best], steps, rate=0.05 * scale, label="Sersic source, best")
    return target.layout.constrain(z[value.argmax()])


def pixelated(task: Problem, values: dict[str, Tensor], part: LensImage, cut: Cut) -> PixelatedLens:
    """A grid around where the arcs' bright pixels come from; spread and length are first guesses."""
    model, data = task.model, task.args[0]
    dark = model.render(values, data, ("lens",))[0].numpy()
    bright = part.mask & (gaussian_filter(part.image - dark, 1.0) > 3 * part.sigma())
    x, y = (torch.as_tensor(c[bright]) for c in part.coordinates())
    ax, ay = model.deflection(values, x, y)
    ends = [np.quantile(b.numpy(), (0.02, 0.98)) for b in (x - ax, y - ay)]
    settings = {name: getattr(model, name) for name in model.__dataclass_fields__}
    lens = PixelatedLens(
        **settings,
        middle=tuple(float(end.mean()) for end in ends),
        side=1.5 * float(max(end[1] - end[0] for end in ends)),
        pixels=cut.pixels,
        spread=float(np.quantile((part.image - dark)[bright], 0.9) / part.pixel_scale**2),
        length=0.1,
        halo=cut.halo,
    )
    points = torch.stack((x, y), -1).numpy()
    return lens.anchored(values, points[:: -(-len(points) // ANCHORS)])


def fitted(
    model: PixelatedLens, values: dict[str, Tensor], data: Any, **shared: Any
) -> tuple[Problem, Result]:
    """The joint mode of lens and source, the source's prior chosen by evidence before and once more there."""
    blank = torch.zeros(model.pixels, model.pixels, dtype=data.image.dtype)
    values = {n: v for n, v in values.items() if not n.startswith("source")} | {"source_field": blank}
    if model.halo:  # from a faint one
        faint = (("radius", 2), ("ellipticity", 1), ("amplitude", 0.03))
        values = {f"halo_{n}": values[f"lens_{n}"] * k for n, k in faint} | values
    for iterations in (5, 60):
        model, field = regularised(model, values, data)
        values = values | {"source_field": field}
        print(f"source: SD {model.spread:.3g}, length {model.length:.3g} arcsec", flush=True)
        task = Problem(model, (data,), name="strong_lens", start=values)
        layout = log_density(task, compile="never").layout
        result = gauss_newton(
            task,
            layout.unconstrain({n: v[None] for n, v in values.items()})[0],
            iterations=iterations,
            enough=0.1,
            **shared,
        )
        values = layout.constrain(torch.as_tensor(result.location)[0])
    return task, result


def sky_chi2(lens: LensImage) -> float:
    """Mean squared (pixel - local mean) over the map's variance, in the faintest quarter of the frame."""
    mean = uniform_filter(lens.image, 15)
    faint = lens.mask & (mean < np.quantile(mean[lens.mask], 0.25))
    return float((((lens.image - mean) / lens.sigma()) ** 2)[faint].mean())


def arcs_of(part: LensImage, dark: Float[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The archive's mask; without one, where light beyond the lens's stands out."""
    if part.arc is not None:
        return part.arc & part.mask
    return part.mask & (gaussian_filter(part.image - dark, 1.0) > 1.5 * part.sigma())


def scores(part: LensImage, task: Problem, mode: Result, result: Result) -> dict[str, Any]:
    """Mean images over draws, chi2 in the arcs and elsewhere, and of the whole per degree of freedom."""
    data, drawn = task.args[0], draws_of(result, 60)
    model = torch.stack([task.model.render(v, data)[0] for v in drawn]).mean(0).numpy()
    dark = torch.stack([task.model.render(v, data, ("lens",))[0] for v in drawn[:10]]).mean(0).numpy()
    residual = np.where(part.mask, (part.image - model) / part.sigma(model), np.nan)
    arcs = arcs_of(part, dark)
    (site,) = (s for s in log_density(task, compile="never").layout.sites if s.name == "source_field")
    constrained = mode.covariance[0].shape[0] - np.trace(
        mode.covariance[0][site.start : site.stop, site.start : site.stop]
    )
    free = int(part.mask.sum()) - constrained
    return {
        "model": model, "dark": dark, "residual": residual, "arcs": arcs,
        "chi2 in arcs": float(np.mean(residual[arcs] ** 2)),
        "chi2 outside arcs": float(np.mean(residual[part.mask & ~arcs] ** 2)),
        "chi2 per degree of freedom": float(np.nansum(residual**2) / free),
        "parameters that the data determine": float(constrained),
    }  # fmt: skip


def picture(part: LensImage, task: Problem, result: Result, report: dict[str, Any], path: Path) -> None:
    """Draws the figure; takes what is no number out of the report."""
    model, dark, residual, arcs = (report.pop(name) for name in ("model", "dark", "residual", "arcs"))
    lens, drawn = task.model, draws_of(result, 200)
    source = torch.stack([lens.coloured(v["source_field"]) for v in drawn]).numpy()
    (x0, y0), half = lens.middle, lens.side / 2
    behind = (x0 - half, x0 + half, y0 - half, y0 + half)
    alone, bent = (np.where(part.mask, image - dark, np.nan) for image in (part.image, model))
    top, arc = {"vmin": 0, "vmax": np.quantile(part.image[part.mask], 0.995)}, np.nanquantile(alone, 0.998)
    plates: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        (f"image [{part.unit}]", part.image, top),
        ("model", np.where(part.mask, model, np.nan), top),
        ("residual / noise; arcs outlined", residual, {"vmin": -4, "vmax": 4, "cmap": "coolwarm"}),
        ("image less lens light; critical line", alone, {"vmin": 0, "vmax": arc}),
        ("model of the arcs", bent, {"vmin": 0, "vmax": arc}),
        (f"source, mean [{part.unit} / arcsec$^2$]; caustic", source.mean(0), {"extent": behind}),
        ("source, SD", source.std(0), {"extent": behind, "vmin": 0}),
    ]
    figure, axes = plt.subplots(2, 4, figsize=(18, 8.5), layout="constrained")
    for axis, (title, values, limits) in zip(axes.flat, plates, strict=False):
        given = {"cmap": "magma", "extent": part.extent, **limits}
        figure.colorbar(axis.imshow(values, origin="lower", **given), ax=axis, shrink=0.8)
        axis.set_title(title)
    axes[0, 2].contour(*part.coordinates(), arcs, levels=[0.5], colors="k", linewidths=0.7)
    for line, caustic in critical(lens, drawn[len(drawn) // 2], part):
        axes[0, 3].plot(*line, "c", lw=0.8)
        axes[1, 1].plot(*caustic, "c", lw=0.8)
    axes[1, 1].set(xlim=behind[:2], ylim=behind[2:])
    radius = result.draws["einstein_radius"].ravel()
    axes[1, 3].hist(radius, 40, color="C0", alpha=0.6, density=True)
    axes[1, 3].set_xlabel("Einstein radius [arcsec]")
    axes[1, 3].set_title(f"{radius.mean():.4f} ± {radius.std():.4f} ({result.method})")
    figure.suptitle(
        f"{part.name}: chi2 per pixel: arcs {report['chi2 in arcs']:.2f}, "
        f"elsewhere {report['chi2 outside arcs']:.2f}, "
        f"blank sky {report['chi2 of blank sky']:.2f}; "
        f"per degree of freedom {report['chi2 per degree of freedom']:.2f}"
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def critical(
    lens: PixelatedLens, values: dict[str, Tensor], part: LensImage
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lines of infinite magnification, each as (x, y) on the sky and behind the lens [arcsec]."""
    x, y = (torch.as_tensor(c) for c in part.coordinates())
    bx, by = ((a - b).numpy() for a, b in zip((x, y), lens.deflection(values, x, y), strict=True))
    (xy, xx), (yy, yx) = np.gradient(bx), np.gradient(by)
    drawn = plt.figure().gca().contour(x, y, xx * yy - xy * yx, levels=[0.0])
    plt.close()
    found = []
    for line in drawn.allsegs[0]:
        if np.ptp(line, 0).min() > 5 * part.pixel_scale:  # not the singular centre's
            px, py = torch.as_tensor(line.T)
            ax, ay = lens.deflection(values, px, py)
            caustic = lens.placed(values, px - ax, py - ay)
            found.append((line.T, torch.stack(caustic).numpy()))
    return found


def fit(name: str, options: argparse.Namespace) -> dict[str, Any]:
    path, base = Path(name), root()
    if not path.exists() and base is not None:
        path = base / "strong_lens" / name
    lens, cut = read(path), CUTS.get(path.name, Cut(6.0, (0.4, 3.0)))
    part = prepared(lens, cut)
    shared = {"seed": options.seed, "compile": options.compile}
    began = time.monotonic()
    task = problem(observe(part), supersample=cut.supersample, prior=guessed(part, cut))
    values = searched(task, starts=options.starts, steps=options.steps, **shared)
    print(f"{name}: searched for {time.monotonic() - began:.0f} s", flush=True)
    task, mode = fitted(pixelated(task, values, part, cut), values, task.args[0], **shared)
    print(f"{name}: mode {mode.status} after {time.monotonic() - began:.0f} s", flush=True)
    result = mode
    if options.method == "hmc":
        shape = {"chains": options.chains, "draws": options.draws, "warmup": options.warmup}
        result = astrozoo.infer(task, method="hmc", precondition=mode, least_length=LENGTH, **shape, **shared)
        print(f"{name}: sampled after {time.monotonic() - began:.0f} s", flush=True)
    report = {
        "pixels": int(part.mask.sum()),
        "dimensions": int(mode.location.shape[1]),
        "source": {n: getattr(task.model, n) for n in ("middle", "side", "pixels", "spread", "length")},
        "chi2 of blank sky": sky_chi2(lens),
        "mode": str(mode.status),
        "method": result.method,
        "status": str(result.status),
        "seconds": time.monotonic() - began,
        **scores(part, task, mode, result),
    }
    for site, draws in result.draws.items():
        flat, told = draws.reshape(-1, *draws.shape[2:]), {}
        if site != "source_field":
            told = {"mean": flat.mean(0).tolist(), "sd": flat.std(0).tolist()}
        if len(draws) > 1:
            told |= {"R-hat": float(r_hat(draws).max()), "effective draws": float(ess(draws, "bulk").min())}
        report[site] = told
    options.out.mkdir(parents=True, exist_ok=True)
    picture(part, task, result, report, options.out / f"{path.name}.png")
    write_json(report, options.out / f"{path.name}.json")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lens", action="append", help=f"default: {', '.join(CUTS)}")
    parser.add_argument("--method", choices=("gauss_newton", "hmc"), default="hmc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=120)
    options = parser.parse_args()
    for name in options.lens or CUTS:
        print(json.dumps({name: fit(name, options)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
