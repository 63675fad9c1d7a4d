"""Large galaxies, close pairs of stars, and bright stars with masked cores and a wrong PSF.

    python experiments/celeste_hard_sources.py --out hard_sources.csv --picture hard_sources.png

GalSim renders each case at SDSS depth. The fields are detected and fitted as in a survey. Three tables, one
row per case:

* galaxies: one galaxy of 2 to 15 arcsec half-light radius, of several Sersic indices, axis ratios and
  magnitudes, among a few stars;
* pairs: two stars at 1 to 4 px, flux ratios 1 to 10;
* bright: one star of 100 to 5,000 nMgy among fainter ones, with the PSF known or 2 % too wide with other
  wings, and with pixels above a limit masked (NaN), marked as saturated or not.

``extra`` is the number of catalogued sources that are not in the truth, ``missing`` the number of true ones
that are not in the catalogue. A pair that is not two sources is ``flagged`` if its source has one of the
flags ``blended``, ``maybe_double`` and ``unmodelled_light``; ``total_r`` is the largest (ln flux - ln flux of
both) / its standard deviation of such sources. ``pull_b`` is (ln flux - truth) / its standard deviation in
band b: of the galaxy, of the bright star, or the rms over the stars of pairs that were separated.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import galsim
import matplotlib
import numpy as np
from astropy.table import Table
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from astrozoo.data.images import Field, Image
from astrozoo.data.psf import PixelPsf
from astrozoo.data.simulate import simulate_field, with_holes
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.fit import FieldFit, fit_field

matplotlib.use("agg")
import matplotlib.pyplot as plt

SCALE = 0.396
"""[arcsec/px] Pixel scale of the simulated fields."""
BANDS = "gri"
COLOURS = {"u": 0.2, "g": 0.5, "r": 1.0, "i": 1.4, "z": 1.7}
"""Flux in each band, relative to r: a galaxy of average colour."""
STAR_COLOURS = {"u": 0.211, "g": 0.655, "r": 1.0, "i": 1.17, "z": 1.26}
"""Flux in each band, relative to r: a star of u-g 1.23, g-r .46, r-i .17, i-z .08, on the locus of stars."""
FLAGS = ("blended", "maybe_double", "unmodelled_light")
"""Flags that warn of two stars in one source."""
SHOWN = ("galaxy 8 4 0.7", "pair 1.5 3", "pair 2 3", "bright 5000 wrong saturated")
"""Cases in the picture: kind and settings."""
MATCH = 2.0
"""[px] Largest distance of a catalogued source from the true one that it stands for."""
SATURATION = 50_000.0
"""[electrons] Pixels above this are masked in the simulations of saturated cores."""
RADII = (2.0, 4.0, 6.0, 8.0, 10.0, 15.0)
"""[arcsec] Half-light radii of galaxies."""
GALAXIES = ((1.0, 0.8, 15.5), (4.0, 0.7, 15.5), (2.5, 0.4, 14.5), (1.0, 0.25, 14.0))
"""Sersic index, axis ratio, r magnitude."""
SEPARATIONS = (1.0, 1.5, 2.0, 3.0, 4.0)
RATIOS = (1.0, 3.0, 10.0)
PAIRS = 9
"""Pairs in each field of pairs."""
FLUXES = (100.0, 1000.0, 5000.0)
"""[nMgy] r fluxes of bright stars."""


def sources(rows: list[dict[str, Any]]) -> Table:
    """Sources of average colour; stars where no radius is given."""
    table = Table()
    table["is_star"] = ["radius" not in row for row in rows]
    for name in ("x", "y"):
        table[name] = [float(row[name]) for row in rows]
    for name in ("radius", "axis_ratio", "angle", "sersic"):
        table[name] = [float(row.get(name, np.nan)) for row in rows]
    table["dev_fraction"] = np.where(table["is_star"], np.nan, 0.5)
    for band in COLOURS:
        relative = np.where(table["is_star"], STAR_COLOURS[band], COLOURS[band])
        table[f"flux_{band}"] = relative * [row["flux"] for row in rows]
    return table


def stars_around(count: int, side: int, clear: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Stars of r = 16.5 to 20.5 that are at least ``clear`` px from the middle."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        x, y = rng.uniform(16, side - 17, 2)
        apart = [np.hypot(x - row["x"], y - row["y"]) for row in rows]
        if np.hypot(x - side / 2, y - side / 2) > clear and min(apart, default=np.inf) > 16:
            rows.append({"x": x, "y": y, "flux": 10 ** (0.4 * (22.5 - rng.uniform(16.5, 20.5)))})
    return rows


@dataclass(frozen=True)
class Case:
    """A fitted field: its catalogue with pixel positions, the truth, and the seconds of the fit."""

    name: str
    fit: FieldFit
    table: Table
    truth: Table
    seconds: float


def fitted(name: str, images: Field, truth: Table, seed: int) -> Case:
    """Detect and fit a field."""
    began = time.perf_counter()
    fit = fit_field(images, seed=seed, progress=False)
    table, seconds = catalogue(fit), time.perf_counter() - began
    reference = next(image for image in images if image.band == "r")
    table["x"], table["y"] = reference.wcs.all_world2pix(table["ra"], table["dec"], 0)
    return Case(name, fit, table, truth, seconds)


def matched(table: Table, truth: Table) -> np.ndarray:
    """For each true source its row in the catalogue, or -1; each row is used once, brightest truth first."""
    rows = np.full(len(truth), -1)
    if not len(table):
        return rows
    tree = cKDTree(np.column_stack((table["x"], table["y"])))
    used: set[int] = set()
    for i in np.argsort(-np.asarray(truth["flux_r"])):
        reach = MATCH if truth["is_star"][i] else max(MATCH, 0.2 * truth["radius"][i] / SCALE)
        distance, near = tree.query((truth["x"][i], truth["y"][i]), k=min(5, len(table)))
        for d, j in zip(np.atleast_1d(distance), np.atleast_1d(near), strict=True):
            if d < reach and int(j) not in used:
                rows[i] = j
                used.add(int(j))
                break
    return rows


def pulls(table: Table, truth: Table, rows: np.ndarray) -> dict[str, np.ndarray]:
    """(ln flux - truth) / SD of the matched sources, by band."""
    chosen, true = table[rows[rows >= 0]], truth[rows >= 0]
    return {
        band: np.asarray(
            (chosen[f"log_flux_{band}"] - np.log(true[f"flux_{band}"])) / chosen[f"log_flux_{band}_sd"]
        )
        for band in BANDS
    }


def flags_of(row: Table.Row) -> str:
    names = [n for n in row.colnames if isinstance(row[n], (bool, np.bool_)) and row[n]]
    return " ".join(names)


def one(case: Case) -> dict[str, Any]:
    """Scores of a field whose first true source is the one of interest."""
    table, truth = case.table, case.truth
    rows = matched(table, truth)
    score: dict[str, Any] = {
        "extra": len(table) - int((rows >= 0).sum()),
        "missing": int((rows < 0).sum()),
        "seconds": round(case.seconds, 1),
    }
    if rows[0] < 0:
        return score | {"flags": "MISSING"}
    row = table[rows[0]]
    z = pulls(table, truth[:1], rows[:1])
    score |= {f"pull_{band}": round(float(values[0]), 1) for band, values in z.items()}
    error = float(row["log_flux_r"] - np.log(truth["flux_r"][0]))
    return score | {
        "error_r": round(error, 4),
        "sd_r": round(float(row["log_flux_r_sd"]), 4),
        "radius": round(float(row["radius"]), 2),
        "p_star": round(float(row["p_star"]), 2),
        "chi2_r": round(float(row["chi2_r"]), 2),
        "k_hat": round(float(row["k_hat"]), 2),
        "flags": flags_of(row),
    }


def galaxies(seed: int, radii: tuple[float, ...]) -> Iterator[tuple[dict[str, Any], Case]]:
    """One galaxy per field."""
    for radius in radii:
        for k, (index, ratio, mag) in enumerate(GALAXIES):
            rng = np.random.default_rng([seed, k, int(10 * radius)])
            side = int(max(192, 2 * 5 * radius / SCALE))
            middle = side / 2 + rng.uniform(-0.5, 0.5, 2)
            galaxy = {
                "x": middle[0], "y": middle[1], "flux": 10 ** (0.4 * (22.5 - mag)), "radius": radius,
                "axis_ratio": ratio, "angle": rng.uniform(0, 180), "sersic": index,
            }  # fmt: skip
            around = stars_around(8, side, 2.0 * radius / SCALE + 12, rng)
            images, truth = simulate_field(sources=sources([galaxy, *around]), seed=seed, shape=(side, side))
            case = fitted(f"galaxy {radius:g} {index:g} {ratio:g}", images, truth, seed)
            row = {"kind": "galaxy", "radius_true": radius, "sersic": index, "axis_ratio": ratio, "r": mag}
            yield row | one(case), case


def pairs(seed: int, separations: tuple[float, ...]) -> Iterator[tuple[dict[str, Any], Case]]:
    """Nine pairs and seven single stars per field, on a grid."""
    cell, side = 42, 4 * 42 + 10
    for separation in separations:
        for ratio in RATIOS:
            rng = np.random.default_rng([seed, int(10 * separation), int(ratio)])
            rows: list[dict[str, Any]] = []
            for k in range(16):
                x, y = cell * np.array([k % 4, k // 4]) + 26 + rng.uniform(-0.5, 0.5, 2)
                turn, flux = rng.uniform(0, 2 * np.pi), 10 ** (0.4 * (22.5 - rng.uniform(17.0, 19.5)))
                rows.append({"x": x, "y": y, "flux": flux})
                if k < PAIRS:
                    x, y = x + separation * np.cos(turn), y + separation * np.sin(turn)
                    rows.append({"x": x, "y": y, "flux": flux / ratio})
            images, truth = simulate_field(sources=sources(rows), seed=seed, shape=(side, side))
            case = fitted(f"pair {separation:g} {ratio:g}", images, truth, seed)
            yield {"kind": "pair", "separation": separation, "ratio": ratio} | _score_pairs(case), case


def _score_pairs(case: Case) -> dict[str, Any]:
    table, truth = case.table, case.truth
    score = {"found_as_two": 0, "flagged": 0, "unflagged": 0, "galaxies": 0}
    z: dict[str, list[float]] = {band: [] for band in BANDS}
    totals: list[float] = []
    xy = np.column_stack((table["x"], table["y"]))
    extra = len(table) - (len(truth) - 2 * PAIRS)
    for k in range(0, 2 * PAIRS, 2):
        pair = truth[k : k + 2]
        middle = np.array([np.mean(pair["x"]), np.mean(pair["y"])])
        near = np.flatnonzero(np.hypot(*(xy - middle).T) < 6)
        flagged = any(table[name][i] for i in near for name in FLAGS)
        score["galaxies"] += int((table["p_star"][near] < 0.5).sum())
        extra -= min(len(near), 2)
        rows = matched(table, pair)
        if len(near) >= 2 and (rows >= 0).all():
            score["found_as_two"] += 1
            for band, values in pulls(table, pair, rows).items():
                z[band] += values.tolist()
        else:
            score["flagged" if flagged else "unflagged"] += 1
            totals += [
                float((table["log_flux_r"][i] - np.log(pair["flux_r"].sum())) / table["log_flux_r_sd"][i])
                for i in near[:1]
            ]
    score["extra"] = extra
    score["total_r"] = round(max(totals, key=abs), 1) if totals else np.nan
    for band, values in z.items():
        score[f"pull_{band}"] = round(float(np.sqrt(np.mean(np.square(values)))), 2) if values else np.nan
        if band == "r":
            score["worst_r"] = round(float(np.abs(values).max()), 1) if values else np.nan
    return score | {"seconds": round(case.seconds, 1)}


def wrong_psf(images: Field) -> Field:
    """The same images, described by a PSF that is 2 % too wide, sheared by 0.01, with 1 % of its light in a
    wing that the true one lacks.
    """

    def wrong(image: Image) -> Image:
        stamp = image.psf.stamp(0.0, 0.0)
        core = galsim.InterpolatedImage(galsim.Image(stamp.copy(), scale=1.0)).dilate(1.02).shear(g1=0.01)
        given = 0.99 * core.withFlux(1.0) + 0.01 * galsim.Gaussian(sigma=5.0)
        drawn = given.drawImage(nx=len(stamp), ny=len(stamp), scale=1.0, dtype=float, method="no_pixel").array
        return replace(image, psf=PixelPsf(drawn / drawn.sum()))

    return replace(images, images=tuple(wrong(image) for image in images))


def masked(images: Field, marked: bool) -> Field:
    """Pixels above :data:`SATURATION` and those next to them are NaN, and not valid."""
    cores = [binary_dilation(image.counts > SATURATION) for image in images]
    return with_holes(images, cores, saturated=marked)


def bright(seed: int, fluxes: tuple[float, ...]) -> Iterator[tuple[dict[str, Any], Case]]:
    """One bright star per field."""
    side = 160
    for flux in fluxes:
        rng = np.random.default_rng([seed, int(flux)])
        x, y = side / 2 + rng.uniform(-0.5, 0.5, 2)
        rows = [{"x": x, "y": y, "flux": flux}, *stars_around(10, side, 16, rng)]
        plain, truth = simulate_field(sources=sources(rows), seed=seed, shape=(side, side))
        for psf in ("right", "wrong"):
            for core in ("seen", "saturated", "masked"):
                images = plain if psf == "right" else wrong_psf(plain)
                if core != "seen":
                    images = masked(images, marked=core == "saturated")
                case = fitted(f"bright {flux:g} {psf} {core}", images, truth, seed)
                yield {"kind": "bright", "flux": flux, "psf": psf, "core": core} | one(case), case


def panels(axes: np.ndarray, case: Case) -> None:
    """Data, model and residuals in r, with the catalogued sources (+) and the true ones (o)."""
    fit = case.fit
    image, model = next((i, m) for i, m in zip(fit.field, fit.model, strict=True) if i.band == "r")
    sky, noise = np.median(image.sky), np.sqrt(np.median(image.sky))
    shown = ((image.counts - sky) / noise, (model - sky) / noise, (image.counts - model) / np.sqrt(model))
    for axis, values, title in zip(axes, shown, ("data", "model", "residual"), strict=True):
        if title == "residual":
            axis.imshow(values, origin="lower", cmap="RdBu_r", vmin=-5, vmax=5)
        else:
            axis.imshow(np.arcsinh(values / 3), origin="lower", cmap="gray_r", vmin=-1, vmax=6)
        axis.set(xticks=[], yticks=[], title=title)
    axes[1].plot(case.truth["x"], case.truth["y"], "o", mfc="none", color="C0", ms=7, mew=0.7)
    axes[1].plot(case.table["x"], case.table["y"], "+", color="C3", ms=5, mew=0.7)
    axes[0].set_ylabel(case.name)


def picture(cases: list[Case], path: Path) -> None:
    """A row per case."""
    figure, axes = plt.subplots(
        len(cases), 3, figsize=(9, 3 * len(cases)), layout="constrained", squeeze=False
    )
    for row, case in zip(axes, cases, strict=True):
        panels(row, case)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", default="galaxies,pairs,bright")
    parser.add_argument("--radii", default=",".join(map(str, RADII)), help="[arcsec]")
    parser.add_argument("--separations", default=",".join(map(str, SEPARATIONS)), help="[px]")
    parser.add_argument("--fluxes", default=",".join(map(str, FLUXES)), help="[nMgy]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="CSV file of all rows")
    parser.add_argument("--picture", type=Path, help=f"picture of the cases {', '.join(SHOWN)}")
    args = parser.parse_args()

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(word) for word in text.split(","))

    kinds = {
        "galaxies": lambda: galaxies(args.seed, numbers(args.radii)),
        "pairs": lambda: pairs(args.seed, numbers(args.separations)),
        "bright": lambda: bright(args.seed, numbers(args.fluxes)),
    }
    rows: list[dict[str, Any]] = []
    shown: list[Case] = []
    for kind in args.kinds.split(","):
        for row, case in kinds[kind]():
            rows.append(row)
            if case.name in SHOWN:
                shown.append(case)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if args.picture is not None and shown:
        picture(shown, args.picture)
    if args.out is not None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
