"""Mass maps of the kappaTNG mock of COSMOS: error, correlation, coverage and cost of each method.

    python -m experiments.massmap_ktng [METHOD ...] --out DIR [--data NAME ...] [--noises N] [--draws N]

Methods: ks, smoothed, wiener, lognormal and hybrid (by hmc), mclmc (log-normal prior too). Data: ``key0`` and
``keys42_43`` are the map ``ktng_kappa360v2`` with the noise of COSMOS times the published normals, for which
figures are published. ``shipped`` is the reduced shear of ``ktng_cosmos_e360`` (another map, constant noise).
``--noises N`` adds N fresh noises on ``v2``. The data are the folder ``weak_lensing`` in ASTROZOO_DATA.

``DIR/rows.jsonl`` has a row for each method and map, and ``DIR`` the mean and SD of each posterior. The same
command continues a run that was stopped, and leaves out rows that are there.

``rmse`` and ``r`` have the convention of the published figures: the mean over all pixels of mask times kappa
is subtracted from each map, the RMSE is taken in the mask, and r over the whole maps of mask times kappa.
``r in mask`` is the correlation of the pixels with data. Published, for key0 or keys42_43: KS .1425/.180,
smoothed KS .0239/.578, Wiener .0225/.636, score .02243/.652, DeepMass .0218/.677. ``coverage`` is that of
central quantile intervals in the mask.

``ESS of the median pixel`` is over 400 pixels with data. ``ESS of the slowest mode`` is the least of the real
and imaginary parts of all Fourier modes of wave number 4 or less, and of 200 random modes. CPU seconds and
gradients include the warm-up; ``sampling`` those without.
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
from astrozoo.diagnostics.arviz import ess
from astrozoo.errors import DataError
from astrozoo.massmap.maps import posterior_maps
from astrozoo.models import mass_map
from astrozoo.models.mass_map import Pixels, ShearMaps
from astrozoo.physics.shear import kaiser_squires, shear_of, smoothed

PIXEL = 0.29
"""[arcmin] Side of a pixel of the mock."""
SHIPPED_NOISE = 0.148
"""Noise SD of the mock that is shipped."""
METHODS = ("ks", "smoothed", "wiener", "lognormal", "hybrid", "mclmc")
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


def effective_sizes(draws: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Bulk effective sample sizes of the draws ``[chain, draw, y, x]`` of the convergence."""
    generator = np.random.default_rng(0)
    chosen = generator.choice(np.flatnonzero(mask), 400, replace=False)
    pixels = draws.reshape(*draws.shape[:2], -1)[..., chosen]
    waves = np.fft.rfft2(draws.astype(np.float32))
    ky, kx = (a.ravel() for a in np.indices(waves.shape[2:]))
    slow = np.flatnonzero((np.minimum(ky, len(mask) - ky) <= 4) & (kx <= 4) & (kx + ky > 0))
    modes = np.append(slow, generator.choice(len(kx), 200, replace=False))
    parts = waves.reshape(*draws.shape[:2], -1)[..., modes]
    # The modes kx = 0 come in pairs of conjugates, which does not matter for a minimum.
    of_modes = ess(np.concatenate((parts.real, parts.imag), -1), "bulk")
    return {
        "ESS of the median pixel": float(np.median(ess(pixels, "bulk"))),
        "ESS of the slowest mode": float(np.nanmin(of_modes)),
    }


def sampled(
    method: str, maps: ShearMaps, truth: np.ndarray, chosen: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a posterior gives: the row, and its maps."""
    mask = maps.pixels.mask.numpy()
    prior = {"wiener": "gaussian", "hybrid": "hybrid"}.get(method, "lognormal")
    problem = mass_map.problem(maps, prior=prior)
    options: dict[str, Any] = {"compile": "never", "keep": ["kappa"], "seed": chosen.seed}
    if method == "wiener":
        result = astrozoo.infer(problem, "wiener", draws=chosen.draws, **options)
    else:
        options |= {"checkpoint": chosen.out / f"{method}-{maps.origin}.npz", "summaries": True}
        draws = -(-chosen.draws // 4)
        name = "mclmc" if method == "mclmc" else "hmc"
        result = astrozoo.infer(problem, name, chains=4, draws=draws, warmup=chosen.warmup, **options)
    found = posterior_maps(problem, result)
    kept = result.draws["kappa"]
    row: dict[str, Any] = {"status": str(result.status)} | scores(found["MEAN"], truth, mask)
    row["rmse of a draw"] = scores(kept[-1, -1], truth, mask)["rmse"]
    for name, low, high in (("68", "Q16", "Q84"), ("95", "Q025", "Q975")):
        row[f"coverage {name}"] = float(((found[low] < truth) & (truth < found[high]))[mask].mean())
    row |= {"draws": kept.shape[0] * kept.shape[1], "gradients": result.stats["counts"]["gradient"]}
    row |= {"products": result.stats["counts"]["hvp"], "step": result.stats.get("step_size")}
    row |= {"products for the mean": result.stats.get("products for the mean")}
    if method != "wiener":
        row |= effective_sizes(kept, mask)
        row["gradients of sampling"] = 4 * (
            result.stats["gradients_per_chain"] - result.stats["warmup_gradients"]
        )
    return row, {"mean": found["MEAN"], "sd": found["SD"], "draw": kept[-1, -1]}


def estimate(method: str, maps: ShearMaps, truth: np.ndarray, chosen: argparse.Namespace) -> dict[str, Any]:
    """A row of the table; its maps are written."""
    pixels, mask = maps.pixels, maps.pixels.mask.numpy()
    began, cpu = time.perf_counter(), time.process_time()
    if method in ("ks", "smoothed"):
        kappa = kaiser_squires(pixels.shear)[0]
        if method == "smoothed":
            kappa = smoothed(kappa, 1 / PIXEL)
        row, arrays = scores(kappa.numpy(), truth, mask), {"mean": kappa.numpy()}
    else:
        row, arrays = sampled(method, maps, truth, chosen)
    np.savez(chosen.out / f"{method}-{maps.origin}-maps.npz", **arrays)
    row |= {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    return {"data": maps.origin, "method": method} | row


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
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    for name in chosen.methods:
        if name not in METHODS:
            parser.error(f"unknown method {name!r}: {', '.join(METHODS)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = chosen.out / "rows.jsonl"
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    finished = {(row["data"], row["method"]) for row in done}
    for name in [*chosen.data, *(f"noise-{i}" for i in range(chosen.noises))]:
        maps, truth = mock(name)
        for method in chosen.methods:
            if (name, method) in finished:
                continue
            row = estimate(method, maps, truth, chosen)
            line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
            print(line, flush=True)
            with rows.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
