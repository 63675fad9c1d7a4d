"""Mass maps of the kappaTNG mock of COSMOS: error, correlation, coverage and cost of each method.

    python -m experiments.massmap_ktng [METHOD ...] [--data NAME ...] [--noises N] [--draws N] [--out FILE]

Methods: ks, smoothed, wiener, lognormal. Data: ``key0`` and ``keys42_43`` are the map ``ktng_kappa360v2``
with the noise of COSMOS times the published normals, for which figures are published. ``shipped`` is the
reduced shear of ``ktng_cosmos_e360`` (another map, constant noise). ``--noises N`` adds N fresh noises on
``v2``. The data are the folder ``weak_lensing`` in ASTROZOO_DATA.

``rmse`` and ``r`` have the convention of the published figures: the mean over all pixels of mask times kappa
is subtracted from each map, the RMSE is taken in the mask, and r over the whole maps of mask times kappa.
``r in mask`` is the correlation of the pixels with data. Published, for key0 or keys42_43: KS .1425/.180,
smoothed KS .0239/.578, Wiener .0225/.636, score .02243/.652, DeepMass .0218/.677. ``coverage`` is that of
central quantile intervals in the mask.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits

import astrozoo
from astrozoo.data import root
from astrozoo.errors import DataError
from astrozoo.massmap.maps import posterior_maps
from astrozoo.models import mass_map
from astrozoo.models.mass_map import Pixels, ShearMaps
from astrozoo.physics.shear import kaiser_squires, shear_of, smoothed

PIXEL = 0.29
"""[arcmin] Side of a pixel of the mock."""
SHIPPED_NOISE = 0.148
"""Noise SD of the mock that is shipped."""
METHODS = ("ks", "smoothed", "wiener", "lognormal")
DATA = ("key0", "keys42_43", "shipped")


def _folder() -> Path:
    data = root()
    if data is None or not (data / "weak_lensing").is_dir():
        raise DataError("ASTROZOO_DATA", "no weak_lensing", "the kappaTNG mock of COSMOS")
    return data / "weak_lensing"


def _image(name: str) -> np.ndarray:
    return fits.getdata(_folder() / name).astype(float)


def mock(name: str) -> tuple[ShearMaps, np.ndarray]:
    """Shear and the true convergence of one of DATA, or of ``noise-N``, fresh noise of seed N."""
    mask = torch.as_tensor(_image("cosmos/cosmos_full_mask_0.29arcmin360.fits.gz") > 0)
    if name == "shipped":
        truth = _image("ktng/ktng_cosmos_kappa360.fits")
        shear = torch.as_tensor(np.moveaxis(_image("ktng/ktng_cosmos_e360.fits.gz"), 2, 0).copy())
        expected = shear_of(torch.as_tensor(truth))
        # The sign of the second component differs from ours in one of the published files.
        shear[1] *= torch.sign((shear[1] * expected[1])[mask].sum())
        noise = torch.full_like(shear, SHIPPED_NOISE)
    else:
        truth = _image("ktng/ktng_kappa360v2.fits")
        noise = torch.as_tensor(np.stack([_image(f"cosmos/std{i}.fits.gz") for i in (1, 2)]))
        if name.startswith("noise-"):
            normals = np.random.default_rng(int(name.removeprefix("noise-"))).standard_normal(noise.shape)
        else:
            normals = np.load(_folder() / "ktng" / f"noise_{name}.npy").astype(float)
        shear = shear_of(torch.as_tensor(truth)) + noise * torch.as_tensor(normals)
    pixels = Pixels(torch.where(mask, shear, 0.0), torch.where(mask, noise, 1.0), mask)
    return ShearMaps(pixels, PIXEL, origin=name), truth


def scores(estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """RMSE and r in the convention of the published figures."""
    a, b = (x - (mask * x).mean() for x in (estimate, truth))
    return {
        "rmse": float(np.sqrt(np.mean((a - b)[mask] ** 2))),
        "r": float(np.corrcoef((estimate * mask).ravel(), (truth * mask).ravel())[0, 1]),
        "r in mask": float(np.corrcoef(estimate[mask], truth[mask])[0, 1]),
    }


def estimate(
    method: str, maps: ShearMaps, truth: np.ndarray, draws: int, warmup: int, seed: int
) -> dict[str, Any]:
    """A row of the table."""
    pixels, mask = maps.pixels, maps.pixels.mask.numpy()
    began, cpu = time.perf_counter(), time.process_time()
    row: dict[str, Any] = {"data": maps.origin, "method": method}
    if method in ("ks", "smoothed"):
        kappa = kaiser_squires(pixels.shear)[0]
        if method == "smoothed":
            kappa = smoothed(kappa, 1 / PIXEL)
        row |= scores(kappa.numpy(), truth, mask)
    else:
        prior = "gaussian" if method == "wiener" else "lognormal"
        problem = mass_map.problem(maps, prior=prior)  # type: ignore[arg-type]
        options: dict[str, Any] = {"compile": "never", "keep": ["kappa"], "seed": seed}
        if method == "wiener":
            result = astrozoo.infer(problem, "wiener", draws=draws, **options)
        else:
            result = astrozoo.infer(
                problem, "hmc", chains=4, draws=-(-draws // 4), warmup=warmup, summaries=True, **options
            )
        found = posterior_maps(problem, result)
        row |= scores(found["MEAN"], truth, mask)
        kept = result.draws["kappa"].reshape(-1, *truth.shape)
        row["rmse of a draw"] = scores(kept[-1], truth, mask)["rmse"]
        for name, low, high in (("68", "Q16", "Q84"), ("95", "Q025", "Q975")):
            row[f"coverage {name}"] = float(((found[low] < truth) & (truth < found[high]))[mask].mean())
        row |= {"draws": len(kept), "gradients": result.stats["counts"]["gradient"]}
        row |= {"products": result.stats["counts"]["hvp"], "step": result.stats.get("step_size")}
        row |= {"products for the mean": result.stats.get("products for the mean")}
    row |= {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=DATA)
    parser.add_argument("--noises", type=int, default=0)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    for name in chosen.methods:
        if name not in METHODS:
            parser.error(f"unknown method {name!r}: {', '.join(METHODS)}")
    for name in [*chosen.data, *(f"noise-{i}" for i in range(chosen.noises))]:
        maps, truth = mock(name)
        for method in chosen.methods:
            row = estimate(method, maps, truth, chosen.draws, chosen.warmup, chosen.seed)
            line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
            print(line, flush=True)
            if chosen.out is not None:
                with chosen.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
