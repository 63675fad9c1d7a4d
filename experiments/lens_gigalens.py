"""The GIGA-Lens demo from a cold start: the whole posterior of 22 parameters by ``method="auto"``.

Prints, at 1x and 2x supersampling, seconds by stage (compilation apart), R-hat, effective sample sizes, and
where the truth lies in posterior SDs. GIGA-Lens's own figure for this image is 105 s on four A100s, with
R-hat <= 1.005 and 11,300 to 30,500 effective draws.

    python -m experiments.lens_gigalens [--supersample 1 2] [--chains 48] [--draws 480] [--out DIR]

References:
    Gu et al. 2022, ApJ 935, 49.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import astrozoo
from astrozoo.data import root
from astrozoo.data.lens_image import LensImage
from astrozoo.data.lenses import read
from astrozoo.errors import DataError
from astrozoo.types import Result

__all__ = ["TRUTH", "demo", "fit", "main", "scores", "summary"]

TRUTH: dict[str, float | tuple[float, float]] = {
    "einstein_radius": 1.1,
    "slope": 2.0,
    "ellipticity": (0.1, 0.1),
    "centre": (0.1, 0.0),
    "shear": (-0.01, 0.03),
    "lens_radius": 0.8,
    "lens_index": 2.5,
    "lens_ellipticity": (0.09534746574, 0.14849487967),
    "lens_centre": (0.1, 0.0),
    "lens_amplitude": 499.3695906504,
    "source_radius": 0.25,
    "source_index": 1.5,
    "source_ellipticity": (0.0, 0.0),
    "source_centre": (0.095666810022, -0.063962305427),
    "source_amplitude": 149.5882887709,
}


def demo() -> LensImage:
    """The image of the demo.

    Raises:
        DataError: its files are not there.
    """
    folder = root()
    if folder is None:
        raise DataError("GIGA-Lens demo", "no data", "ASTROZOO_DATA, a folder with strong_lens/gigalens_demo")
    return read(folder / "strong_lens" / "gigalens_demo")


def fit(supersample: int, **options: Any) -> tuple[Result, float]:
    """The posterior, and the seconds from reading the file to the draws."""
    began = time.monotonic()
    problem = astrozoo.get("strong_lens").problem(demo(), prior="gigalens", supersample=supersample)
    result = astrozoo.infer(problem, method="auto", **options)
    return result, time.monotonic() - began


def scores(result: Result) -> dict[str, np.ndarray]:
    """(truth - mean) / SD of every parameter."""
    out = {}
    for name, draws in result.draws.items():
        flat = draws.reshape(draws.shape[0] * draws.shape[1], -1).astype(float)
        out[name] = (np.ravel(TRUTH[name]) - flat.mean(0)) / flat.std(0, ddof=1)
    return out


def summary(result: Result) -> tuple[float, float, float]:
    """Greatest R-hat, least bulk and tail effective sample size (rank-normalised, ArviZ's)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

    posterior = result.to_arviz()

    def worst(statistic: Any, pick: Any, **settings: Any) -> float:
        values = statistic(posterior, **settings)
        values = values.posterior.to_dataset() if hasattr(values, "posterior") else values
        return float(pick([pick(values[name].to_numpy()) for name in result.draws]))

    bulk = worst(arviz.ess, np.min, method="bulk")
    return worst(arviz.rhat, np.max), bulk, worst(arviz.ess, np.min, method="tail")


def main(supersamples: list[int], out: Path | None, **options: Any) -> None:
    """Fit at each supersampling and print the table."""
    os.environ["ASTROZOO_CACHE"] = tempfile.mkdtemp()  # what another run has compiled is compiled again
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, options {options}")
    rows = []
    for supersample in supersamples:
        result, seconds = fit(supersample, **options)
        r_hat, bulk, tail = summary(result)
        z = scores(result)
        stages = result.stats["stage_seconds"]
        rows.append(
            {
                "supersample": supersample,
                "status": result.status.value,
                "seconds": f"{seconds:.1f}",
                **{f"{name} s": f"{value:.1f}" for name, value in stages.items()},
                "compiling s": f"{result.stats['compile_seconds']:.1f}",
                "gradients a chain": result.stats["gradients_per_chain"],
                "draws": result.draws["slope"].size,
                "R-hat": f"{r_hat:.4f}",
                "least ESS, bulk": f"{bulk:.0f}",
                "least ESS, tail": f"{tail:.0f}",
                "ESS / s": f"{bulk / seconds:.1f}",
                "farthest truth": f"{max(np.abs(v).max() for v in z.values()):.2f} SD",
                "starts at the best mode": result.stats["modes"]["at_best"][0],
                "load at the end": f"{os.getloadavg()[0]:.1f}",
            }
        )
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            result.save(out / f"gigalens_{supersample}x.nc")
        print(f"\n{supersample}x: (truth - mean) / SD")
        for name, value in z.items():
            print(f"  {name:20} {'  '.join(f'{v:+.2f}' for v in value)}")
    print()
    for key in rows[0]:
        print(f"{key:24}" + "".join(f"{row[key]!s:>14}" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--supersample", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chains", type=int, default=48)
    parser.add_argument("--draws", type=int, default=480)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--precision", choices=["data", "single"], default="single")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = vars(parser.parse_args())
    main(given.pop("supersample"), given.pop("out"), **given)
