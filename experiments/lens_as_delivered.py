"""Lenses as archives deliver them, fitted by the command line alone: is the Einstein radius right?

    python experiments/lens_as_delivered.py --out runs/delivered --lenses 12

Each lens is simulated by GalSim and caustics: an elliptical power law with shear, the Sersic light of the
lens, a source that is a Sersic profile or a clumpy galaxy, a neighbour in the frame, and the noise of photons
and background. The lenses differ in unit (electrons per second, detector counts, microjansky), pixel scale,
names of files and extensions, and in how noise and masks are given. The lens is not in the middle of the
frame. ``astrozoo run strong_lens --data FILES --out FOLDER`` fits each with its defaults.

The table gives the Einstein radius, its distance from the truth in SDs, and the verdict. A radius that is off
by more than 2 SDs though the verdict is "converged, fits" is wrong and silent. Finished lenses are kept in
``--out``: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.io import fits
from scipy.signal import fftconvolve

from astrozoo._files import write_json
from astrozoo.data.simulate_lens import draw_source, simulate_lens

UNITS = (("ELECTRONS/S", 1.0), ("COUNTS", 900.0), ("uJy", 0.014))
"""BUNIT, and its value of 1 electron/s: a rate, counts of 1,800 s at a gain of 2, a flux."""
SCALES = ((0.05, 0.1), (0.075, 0.12), (0.1, 0.17))
"""[arcsec] Side of a pixel, and FWHM of the PSF."""
FRAME = 9.6
"""[arcsec] Side of the frame."""
BACKGROUND, EXPOSURE = 0.01, 2000.0
"""Noise of the background [electron/s] in pixels of .075 arcsec, and exposure time [s]."""


def simulated(i: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Image, noise map, PSF and mask [electron/s], and the truth, of one lens."""
    rng = np.random.default_rng((17, i))
    scale, fwhm = SCALES[(i // 3) % 3]
    side = 2 * round(FRAME / scale / 2)
    galaxy = draw_source(rng, "smooth", (0.5, 2.5)) if i % 2 else draw_source(rng, "clumpy")
    lens, truth = simulate_lens(
        1000 + i, source=galaxy, shape=(side, side), pixel_scale=scale, psf_fwhm=fwhm, peak_snr=25.0
    )
    light = galsim.Sersic(n=round(8 * rng.uniform(2, 4.5)) / 8, half_light_radius=rng.uniform(0.6, 1.4))
    light = light.shear(g=rng.uniform(0, 0.15), beta=truth["angle"] * galsim.radians)
    light = light.withFlux(rng.uniform(4, 10) * truth["model"].sum())
    neighbour = galsim.Exponential(half_light_radius=0.4, flux=0.5 * truth["model"].sum())
    away = 3.7 * np.array([np.cos(i), np.sin(i)])
    fine = 4
    stamp = galsim.ImageD(side * fine, side * fine, scale=scale / fine)
    blur = galsim.Gaussian(fwhm=0.02)  # GalSim refuses the bare cusp on this grid
    for part, (x, y) in ((light, (truth["centre_x"], truth["centre_y"])), (neighbour, away)):
        shifted = galsim.Convolve(part.shift(x, y), blur)
        shifted.drawImage(stamp, method="no_pixel", add_to_image=True)
    smooth = stamp.array.reshape(side, fine, side, fine).sum((1, 3))
    clean = truth["model"] + np.maximum(fftconvolve(smooth, lens.psf, mode="same"), 0)
    sd = np.sqrt((BACKGROUND * scale / 0.075) ** 2 + clean / EXPOSURE)
    image = clean + sd * rng.normal(size=clean.shape)
    y, x = np.mgrid[:side, :side]
    bad = (y == side // 5) | (rng.random(image.shape) < 0.002)  # a row, and cosmic rays
    image[bad] = 50.0
    shift = tuple(int(n) for n in rng.integers(-8, 9, 2))  # the lens is off the middle
    rows, columns = (slice(8 + s, side - 8 + s) for s in shift)
    planes = {
        name: plane[rows, columns] for name, plane in {"image": image, "noise": sd, "mask": bad}.items()
    }
    return {**planes, "psf": lens.psf}, truth


def written(i: int, folder: Path) -> tuple[Path, list[str], dict[str, Any]]:
    """Files of a lens, the flags that a user needs for them, and the truth."""
    planes, truth = simulated(i)
    unit, factor = UNITS[i % 3]
    scale = SCALES[(i // 3) % 3][0]
    folder.mkdir(parents=True, exist_ok=True)
    header = fits.Header({"BUNIT": unit, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "EXPTIME": EXPOSURE})
    header.update({"CD1_1": -scale / 3600, "CD2_2": scale / 3600, "CD1_2": 0.0, "CD2_1": 0.0})
    image, noise = (factor * planes[name] for name in ("image", "noise"))
    if i % 4 == 0:  # one file, as of a drizzle
        path = folder / "lens.fits"
        parts = {"SCI": image, "ERR": noise, "DQ": planes["mask"].astype(np.int16), "PSF": planes["psf"]}
        hdus = [fits.ImageHDU(v, header if n == "SCI" else None, name=n) for n, v in parts.items()]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)
        return path, [], truth
    names = {
        1: ("F814W_sci", "F814W_rms", "F814W_psf"),
        2: ("data_scaled", "noise_map_scaled", "psf"),
        3: ("VIS_BGSUB", "VIS_WHT", "VIS_PSF"),
    }[i % 4]
    if i % 4 == 3:
        noise = 1 / noise**2
    for name, plane in zip(names, (image, noise, planes["psf"]), strict=True):
        card = header if plane is image else None
        fits.writeto(folder / f"{name}.fits", plane, card, overwrite=True)
    good = i % 2 == 1  # in half of the masks 1 marks pixels to use
    fits.writeto(folder / "mask.fits", (planes["mask"] != good).astype(np.uint8), overwrite=True)
    return folder, [], truth


def fit(i: int, out: Path) -> dict[str, Any]:
    """The row of a lens; of a finished one, from its file."""
    row_file = out / f"{i:02d}.json"
    if row_file.is_file():
        return json.loads(row_file.read_text())
    path, flags, truth = written(i, out / f"{i:02d}" / "data")
    command = [sys.executable, "-m", "astrozoo", "run", "strong_lens", "--data", str(path), *flags]
    began = time.monotonic()
    with (out / f"{i:02d}" / "log.txt").open("w") as log:
        code = subprocess.run(
            [*command, "--out", str(out / f"{i:02d}" / "fit")], stdout=log, stderr=log
        ).returncode
    row: dict[str, Any] = {
        "lens": i, "unit": UNITS[i % 3][0], "scale": SCALES[(i // 3) % 3][0],
        "true source": "smooth" if i % 2 else "clumpy", "truth": truth["einstein_radius"],
        "exit code": code, "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    if code == 0:
        summary = json.loads((out / f"{i:02d}" / "fit" / "summary.json").read_text())
        radius = summary["einstein_radius"]
        z = (radius["mean"] - row["truth"]) / radius["sd"]
        row |= {
            "source": summary["source"], "radius": radius["mean"], "sd": radius["sd"], "z": round(z, 2),
            "status": summary["status"], "fits": summary["fits"], "chi2": round(summary["chi2"]["value"], 3),
        }  # fmt: skip
        row["silent"] = bool(abs(z) > 2 and summary["fits"] and summary["status"] == "converged")
    write_json(row, row_file)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lenses", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="The first lens.")
    parser.add_argument("--step", type=int, default=1, help="2 takes every second one: halves can run apart.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(options.first, options.lenses, options.step):
        rows.append(fit(i, options.out))
        print(json.dumps(rows[-1]), flush=True)
    within = sum("z" in row and abs(row["z"]) <= 2 for row in rows)
    silent = sum(row.get("silent", False) for row in rows)
    print(f"within 2 SDs: {within} of {len(rows)}; wrong and silent: {silent}")


if __name__ == "__main__":
    main()
