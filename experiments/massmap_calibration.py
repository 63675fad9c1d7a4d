"""Calibration of mass maps: coverage of intervals, and ranks of the truth, over maps that the prior draws.

    python -m experiments.massmap_calibration --out FILE.json [--maps 24] [--size 48] [--draws 150]

Each map is drawn from the log-normal prior, with noise and a mask. All are fitted at once (a batch) by
``hmc`` with four chains. Reported are

* the fraction of pixels with data whose truth is inside the central quantile intervals of 68 and 95 per cent,
  and its standard error, from the scatter between maps;
* the ranks of the truth among the draws, of pixels far apart, of long waves, and of the power of the map. If
  the posterior is right they are uniform. The p-value of a chi-squared test of ten bins is given. Draws are
  thinned, so that those of a chain are nearly independent.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import chisquare

import astrozoo
from astrozoo._files import write_json
from astrozoo.models import mass_map

THIN = 6
"""Every how many draws one enters the ranks."""
BINS = 10
"""Bins of ranks."""


def statistics(kappa: Float[np.ndarray, "*b y x"], pixels: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Numbers of a map whose ranks are taken; each has a last axis."""
    waves = np.fft.rfft2(kappa)
    low = np.stack([waves[..., 0, 1], waves[..., 1, 0], waves[..., 1, 1], waves[..., 2, 1]], -1)
    return {
        "pixels": np.stack([kappa[..., y, x] for y, x in pixels], -1),
        "long waves": np.concatenate((low.real, low.imag), -1),
        "power": (kappa**2).mean((-2, -1))[..., None],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--maps", type=int, default=24)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--draws", type=int, default=150, help="of each of 4 chains")
    parser.add_argument("--warmup", type=int, default=80)
    parser.add_argument("--method", default="hmc")
    chosen = parser.parse_args()
    made = [mass_map.simulate(1000 + seed, size=chosen.size) for seed in range(chosen.maps)]
    problem = astrozoo.stack([mass_map.problem(maps) for maps, _ in made])
    began, cpu = time.perf_counter(), time.process_time()
    result = astrozoo.infer(
        problem,
        chosen.method,
        chains=4,
        draws=chosen.draws,
        warmup=chosen.warmup,
        keep=["kappa"],
        compile="never",
    )
    cost = {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    draws = result.draws["kappa"].reshape(-1, *result.draws["kappa"].shape[2:])  # [draw, map, y, x]
    truth = np.stack([true["kappa"].numpy() for _, true in made])
    mask = np.stack([maps.pixels.mask.numpy() for maps, _ in made])
    row: dict[str, object] = {"status": str(result.status), "maps": chosen.maps, "draws": len(draws)}
    for name, low, high in (("68", 0.16, 0.84), ("95", 0.025, 0.975)):
        ends = np.quantile(draws, (low, high), axis=0)
        inside = (ends[0] < truth) & (truth < ends[1])
        each = np.array([i[m].mean() for i, m in zip(inside, mask, strict=True)])
        row[f"coverage {name}"] = float(each.mean())
        row[f"error of coverage {name}"] = float(each.std(ddof=1) / len(each) ** 0.5)
    quarter = chosen.size // 4
    pixels = [(a * quarter + quarter // 2, b * quarter + quarter // 2) for a in range(4) for b in range(4)]
    thinned = result.draws["kappa"][:, ::THIN]
    thinned = thinned.reshape(-1, *thinned.shape[2:])
    found, true = statistics(thinned, pixels), statistics(truth, pixels)
    for name in found:
        rank = (found[name] < true[name]).mean(0).ravel()
        counts = np.bincount((rank * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
        row[f"ranks of {name}"] = counts.tolist()
        row[f"p of {name}"] = float(chisquare(counts).pvalue)
    write_json(row | cost | {"size": chosen.size, "method": chosen.method}, chosen.out)
    print(row | cost)


if __name__ == "__main__":
    main()
