"""How well the lens finder's probabilities tell lenses from what is mistaken for them, and when it says that
a stamp is unlike those of its training.

    python -m experiments.lens_finder_roc --out runs/lens_finder [--stamps 4096] [--weights FILE]

Files in ``--out``:

- ``scores.json``: AUROC, calibration error and the rate of true positives at 1 % of false ones, with 95 %
  intervals, of simulated stamps that were not trained on; false positives by kind; the fraction of stamps of
  other instruments and of corrupted stamps that is flagged; stamps of the local data, one by one;
- ``roc.png``: the ROC curve, the calibration curve, and completeness against Einstein radius and S/N;
- ``false_positives.png``: the stamps that are no lenses and have the highest scores;
- ``gallery.png``: the first stamps of a ranking.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import astrozoo
from astrozoo import data
from astrozoo._files import write_json
from astrozoo.data.finder_files import LensStamps, read_stamps
from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_survey import KINDS, SURVEYS, LensSurvey
from astrozoo.data.simulate_lens_stamps import SimulatedStamps, simulate_lens_stamps
from astrozoo.finder.pictures import coloured, gallery
from astrozoo.finder.ranking import probabilities, ranking
from astrozoo.finder.scores import (
    auroc,
    auroc_interval,
    calibration_error,
    calibration_table,
    true_positive_rate,
    wilson,
)
from astrozoo.models import lens_finder
from astrozoo.models.lens_reference import Finder, cropped, load
from astrozoo.types import Result

SEED = 2_000_003
"""Of the test stamps; no stamps of the training have it."""
SHIFTED = 400
"""Stamps of each kind of shift: a rate of 0.9 is then known to 0.015."""
FALSE_POSITIVES = 0.01
"""Rate of false positives at which completeness is shown."""


def named(drawn: SimulatedStamps, survey: LensSurvey) -> LensStamps:
    """Simulated stamps with labels."""
    names = tuple(f"{KINDS[k]} {i}" for i, k in enumerate(drawn.truth.kind.tolist()))
    return LensStamps(drawn.image, names, survey.bands, (drawn.truth.kind == 0).float())


def shifts(survey: LensSurvey) -> dict[str, Callable[[], Tensor]]:
    """Stamps of other instruments, and corrupted ones."""

    def drawn(**changes: Any) -> Tensor:
        return simulate_lens_stamps(replace(survey, **changes), SHIFTED, seed=SEED + 1).image

    def corrupted(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def made() -> Tensor:
            image = drawn(missing=0.0)
            noise = prepare(image).noise[:, :, None, None]
            return change(image, noise)

        return made

    generator = torch.Generator().manual_seed(5)

    def uniform(image: Tensor) -> Tensor:
        return torch.rand(image.shape, generator=generator)

    def dead(image: Tensor, noise: Tensor) -> Tensor:
        half = image.shape[-1] // 2
        image[..., :half, :half] = 0.0
        return image

    def gradient(image: Tensor, noise: Tensor) -> Tensor:
        return image + 8 * noise * torch.linspace(-1, 1, image.shape[-1])

    def stripes(image: Tensor, noise: Tensor) -> Tensor:
        return image + 2 * noise * torch.randn(*image.shape[:3], 1, generator=generator)

    def rounded(image: Tensor, noise: Tensor) -> Tensor:
        dither = 1e-3 * uniform(image)  # else most differences of pixels are 0, which is refused
        return noise * (3 * (image / (3 * noise)).round() + dither)

    wide = tuple((2.2 * low, 2.2 * high) for low, high in survey.fwhm)
    sharp = tuple((0.25 * low, 0.25 * high) for low, high in survey.fwhm)
    others: dict[str, Callable[[], Tensor]] = {
        "the training's own survey": drawn,
        "PSF of a space telescope": lambda: drawn(fwhm=sharp),
        "PSF 2.2 times as wide": lambda: drawn(fwhm=wide),
        "pixels twice as large": lambda: drawn(pixel_scale=tuple(2 * s for s in survey.pixel_scale)),
        "ten times as deep": lambda: drawn(noise=tuple(0.1 * s for s in survey.noise)),
        "hot pixels (0.5 %)": corrupted(lambda i, n: torch.where(uniform(i) < 0.005, i + 100 * n, i)),
        "a dead quadrant": corrupted(dead),
        "a gradient of the sky": corrupted(gradient),
        "stripes": corrupted(stripes),
        "noise alone": corrupted(lambda i, n: n * torch.randn(i.shape, generator=generator)),
        "clipped at 5 sigma": corrupted(lambda i, n: i.clamp_max(5 * n)),
        "rounded to 3 sigma": corrupted(rounded),
    }  # fmt: skip
    if len(survey.bands) > 1:
        others["bands in reverse"] = lambda: drawn().flip(1)
    return others


def flagged(finder: Finder, survey: LensSurvey) -> dict[str, dict[str, Any]]:
    """The fraction of stamps that is flagged, of each kind of shift, with its 95 % interval."""
    found: dict[str, dict[str, Any]] = {}
    for name, make in shifts(survey).items():
        image = make()
        names = tuple(map(str, range(len(image))))
        _, unlike = finder.unlike(finder.describe(LensStamps(image, names, survey.bands)))
        count = int(unlike.sum())
        found[name] = {"flagged": round(count / len(image), 4), "95 %": wilson(count, len(image))}
    rates = [row["flagged"] for name, row in found.items() if "own" not in name]
    found["all shifts, mean"] = {"flagged": round(float(np.mean(rates)), 4)}
    return found


def real(finder: Finder, result: Result) -> dict[str, Any]:
    """Stamps of the lens-finding challenge and of luminous red galaxies of DES, at even odds."""
    root = data.root()
    if root is None or len(finder.bands) != 3:
        return {}
    sets = {
        "challenge, ground": (root / "lens_finding" / "ground_based", "Band3,Band1,Band2"),
        "DES luminous red galaxies": (root / "des_lrg" / "lens", None),
    }
    out: dict[str, Any] = {}
    for name, (folder, bands) in sets.items():
        if not folder.is_dir():
            continue
        stamps = read_stamps(folder, bands=bands)
        described = finder.describe(stamps)
        found = probabilities(result, described.features.numpy(), 0.5)
        distance, unlike = finder.unlike(described)
        label = [None] * len(stamps) if stamps.label is None else stamps.label.tolist()
        columns = (stamps.names, label, found.mean, found.low, found.high, distance, unlike)
        out[name] = [
            {
                "stamp": stamp,
                "lens": None if lens is None else bool(lens),
                "probability at even odds": round(float(p), 4),
                "90 %": [round(float(low), 4), round(float(high), 4)],
                "distance": round(float(d), 3),
                "unlike the training": bool(u),
            }
            for stamp, lens, p, low, high, d, u in zip(*columns, strict=True)
        ]
        if stamps.label is not None:
            lens = stamps.label.numpy() > 0.5
            interval = auroc_interval(found.log_ratio, lens)
            out[f"{name}: AUROC"] = [round(auroc(found.log_ratio, lens), 3), *map(float, interval)]
    return out


def completeness(
    detected: np.ndarray, value: np.ndarray, edges: np.ndarray
) -> list[tuple[float, float, float, float]]:
    """Middle of each bin, fraction detected, and its 95 % interval."""
    rows = []
    for low, high in pairwise(edges):
        inside = (value >= low) & (value < high)
        k, n = int(detected[inside].sum()), int(inside.sum())
        rows.append(((low * high) ** 0.5, k / max(n, 1), *wilson(k, n)))
    return rows


def roc_figure(score: np.ndarray, mean: np.ndarray, drawn: SimulatedStamps, path: Path) -> dict[str, Any]:
    """Four panels; returns the completeness that two of them show."""
    lens = drawn.truth.kind.numpy() == 0
    threshold = np.quantile(score[~lens], 1 - FALSE_POSITIVES)
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    order = np.argsort(-score)
    true, false = np.cumsum(lens[order]) / lens.sum(), np.cumsum(~lens[order]) / (~lens).sum()
    axes[0].plot(np.maximum(false, 1e-4), true)
    axes[0].set(xscale="log", xlabel="false positives", ylabel="true positives", xlim=(5e-4, 1), ylim=(0, 1))
    rows = calibration_table(mean, lens)
    stated, seen = (np.array([row[name] for row in rows]) for name in ("stated", "lenses"))
    low, high = (np.array([row[name] for row in rows]) for name in ("low", "high"))
    axes[1].errorbar(stated, seen, np.clip([seen - low, high - seen], 0, None), fmt="o", ms=4)
    axes[1].plot([0, 1], [0, 1], color="0.6", lw=1)
    axes[1].set(xlabel="stated probability", ylabel="fraction of lenses")
    detected = score[lens] > threshold
    radius, snr = drawn.truth.einstein_radius.numpy()[lens], drawn.truth.snr.numpy()[lens]
    tables: dict[str, Any] = {}
    for axis, (name, value, edges) in zip(
        axes[2:],
        (
            ("Einstein radius [arcsec]", radius, np.geomspace(radius.min(), radius.max() * 1.001, 7)),
            ("S/N of the arcs", snr, np.geomspace(snr.min(), snr.max() * 1.001, 7)),
        ),
        strict=True,
    ):
        found = completeness(detected, value, edges)
        tables[name] = [[round(float(x), 3) for x in row] for row in found]
        x, y, low, high = np.array(found).T
        axis.errorbar(x, y, [y - low, high - y], fmt="o-", ms=4)
        axis.set(xlabel=name, ylabel="found at 1 % false positives", ylim=(0, 1), xscale="log")
    figure.savefig(path, dpi=70)
    plt.close(figure)
    return tables


def false_positives(score: np.ndarray, drawn: SimulatedStamps, path: Path) -> None:
    """The stamps without a lens that have the highest scores."""
    kind = drawn.truth.kind.numpy()
    worst = [i for i in np.argsort(-score) if kind[i]][:24]
    image = prepare(drawn.image[worst]).image.numpy()
    figure, axes = plt.subplots(2, 12, figsize=(15, 3), layout="constrained")
    for axis, stamp, i in zip(axes.flat, image, worst, strict=True):
        axis.imshow(coloured(stamp), origin="lower")
        axis.set_title(f"{KINDS[kind[i]]} {score[i]:.1f}", fontsize=8)
        axis.set_axis_off()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--survey", default="ground", choices=tuple(SURVEYS))
    parser.add_argument("--weights", type=Path, help="by default those of the package")
    parser.add_argument("--stamps", type=int, default=4096)
    parser.add_argument("--method", default="laplace")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    finder = load("lens_finder" if options.weights is None else options.weights)
    survey = SURVEYS[options.survey]
    drawn = simulate_lens_stamps(survey, options.stamps, seed=SEED)
    stamps = named(drawn, survey)
    began = time.process_time()
    described = finder.describe(stamps)
    seconds = time.process_time() - began
    problem = lens_finder.problem(stamps, weights=finder)
    began = time.process_time()
    result = astrozoo.infer(problem, options.method, seed=0, compile="never", progress=False)
    fitted = time.process_time() - began
    found = probabilities(result, described.features.numpy(), 0.5)
    score, lens = found.log_ratio, drawn.truth.kind.numpy() == 0
    bright = (
        lens & (drawn.truth.snr.numpy() > 40) & (np.nan_to_num(drawn.truth.einstein_radius.numpy()) > 1.2)
    )
    clear = bright | ~lens
    threshold = np.quantile(score[~lens], 1 - FALSE_POSITIVES)
    scores: dict[str, Any] = {
        "stamps": len(stamps),
        "lenses": int(lens.sum()),
        "AUROC": [auroc(score, lens), *auroc_interval(score, lens)],
        "AUROC, lenses of theta_E > 1.2 arcsec and S/N > 40": [
            auroc(score[clear], lens[clear]), *auroc_interval(score[clear], lens[clear]),
        ],
        "TPR at 1 % FPR": true_positive_rate(score, lens),
        "calibration error": calibration_error(found.mean, lens),
        "false positives by kind at 1 % FPR": {
            name: float((score[drawn.truth.kind.numpy() == k] > threshold).mean())
            for k, name in enumerate(KINDS) if k
        },
        "CPU seconds per 1,000 stamps": 1000 * seconds / len(stamps),
        f"CPU seconds of {options.method}": fitted,
    }  # fmt: skip
    scores["completeness"] = roc_figure(score, found.mean, drawn, options.out / "roc.png")
    scores["flagged"] = flagged(finder, survey)
    scores |= real(finder, result)
    write_json(scores, options.out / "scores.json")
    false_positives(score, drawn, options.out / "false_positives.png")
    few = LensStamps(stamps.image[:64], stamps.names[:64], stamps.bands, stamps.label[:64])  # type: ignore[index]
    table = ranking(few, finder, finder.describe(few), result, 0.5)
    figure = gallery(table, prepare(cropped(few.image, finder.size)).image.numpy(), 32)
    figure.savefig(options.out / "gallery.png", dpi=60)
    for name, value in scores.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
