"""Every method that takes 130,000 latents, on images whose posteriors are known: errors, seconds, memory.

    python -m experiments.bench.large [METHOD ...] [--side Y X] [--draws N]

Each method runs in a process of its own, so that its peak memory is its own. The images:

* ``waves``: a stationary prior and constant noise, under a model in whitened coordinates. The posterior is
  diagonal in Fourier space, so that its mean and SD follow from one transform. The best mean field has the
  same mean, and SDs that are the inverse roots of the precision's diagonal.
* ``pixels``: independent pixels under noise that varies. The posterior itself is a mean field.

``z``: the largest error of a mean, or of an SD, in standard errors. Of 130,000 normal deviates the largest
is 4.6 at the median, and above 5.1 in one case of 20. The standard errors of Markov chains use the effective
number of draws (``ess``); those of an SD use that of the squared draws, whose correlations differ. The
location and the variance that a result holds are compared too, as relative errors.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import astrozoo
from astrozoo import Problem

SIDES = (325, 400)
"""Pixels of the axes of the image: 130,000 in all."""
NOISE = 1.0
"""SD of the noise of a pixel."""
SOFTEST = 10.0
"""SD of the waves of the image that vary most. It gives the posterior a condition number of about 100."""


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of an image, its own inverse."""
    waves = torch.fft.fft2(x, norm="ortho")
    return waves.real - waves.imag


def waves_model(data: Tensor, amplitude: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    image = hartley(amplitude * hartley(x))
    pyro.sample("y", dist.Normal(image, NOISE).to_event(2), obs=data)


def pixels_model(data: Tensor, noise: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(x, noise).to_event(2), obs=data)


def waves(sides: Sequence[int], seed: int = 0) -> tuple[Problem, dict[str, np.ndarray]]:
    """The problem; its mean, its SD, the SD of its best mean field and that SD's error on fixed draws."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in sides), indexing="ij"))
    amplitude = SOFTEST / (1 + (frequency / 0.02) ** 2)
    rng = np.random.default_rng(seed)

    def transformed(x: np.ndarray) -> np.ndarray:
        f = np.fft.fft2(x, norm="ortho")
        return f.real - f.imag

    image = transformed(amplitude * rng.standard_normal(sides))
    data = image + NOISE * rng.standard_normal(sides)
    precision = 1 + amplitude**2 / NOISE**2
    mean = transformed(amplitude / NOISE**2 * transformed(data) / precision)
    problem = Problem(waves_model, (torch.as_tensor(data), torch.as_tensor(amplitude)), name="waves")
    correlated = (precision**2).mean() / precision.mean() ** 2 - 1
    return problem, {
        "mean": mean,
        "sd": np.full(sides, np.sqrt((1 / precision).mean())),
        "mean-field sd": np.full(sides, precision.mean() ** -0.5),
        "correlated": np.asarray(correlated),
    }


def pixels(sides: Sequence[int], seed: int = 0) -> tuple[Problem, dict[str, np.ndarray]]:
    """The problem, and its mean and SD, which are those of its best mean field too."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.3, 1.3, sides)
    data = rng.standard_normal(sides) * np.sqrt(1 + noise**2)
    precision = 1 + noise**-2
    problem = Problem(pixels_model, (torch.as_tensor(data), torch.as_tensor(noise)), name="pixels")
    sd = precision**-0.5
    exact = {"mean": data / noise**2 / precision, "sd": sd, "mean-field sd": sd}
    return problem, exact | {"correlated": np.asarray(0.0)}


RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hmc": ("waves", "hmc", {"chains": 8, "draws": 125, "warmup": 100, "metric": {"x": "fourier"}}),
    "hmc_plain": ("waves", "hmc", {"chains": 8, "draws": 60, "warmup": 100}),
    "laplace": ("waves", "laplace", {"draws": 400, "metric": {"x": "fourier"}}),
    "laplace_plain": ("waves", "laplace", {"draws": 200}),
    "auto": ("waves", "auto", {"chains": 8, "draws": 60, "starts": 8, "metric": {"x": "fourier"}}),
    "svi": ("pixels", "svi", {"draws": 400}),
    "trust_region": ("pixels", "trust_region", {"draws": 400}),
    "svi_waves": ("waves", "svi", {"draws": 400}),
    "trust_region_waves": ("waves", "trust_region", {"draws": 400}),
}
"""By name: the image, the method and its options."""


def effective(x: np.ndarray) -> float:
    """Effective number of draws for the mean of ``x [chain, draw, pixel]``, from all pixels together.

    Autocorrelations are averaged over chains and pixels, about the mean of all draws of a pixel, and summed
    until a pair of neighbours is not positive (Geyer 1992). What is common to all draws of a pixel, such as a
    bias, is removed from them. It does not lower the result, and shows in z.
    """
    chains, draws, pixels = x.shape
    covariance = np.zeros(draws)
    for first in range(0, pixels, 2000):
        part = x[:, :, first : first + 2000]
        part = part - part.mean((0, 1))
        for lag in range(draws):
            covariance[lag] += (part[:, : draws - lag] * part[:, lag:]).sum() / draws
    correlation = covariance / covariance[0]
    tau = 1.0
    for lag in range(1, draws - 1, 2):
        pair = correlation[lag] + correlation[lag + 1]
        if lag > 1 and pair <= 0:
            break
        tau += 2 * pair
    return chains * draws / tau


def measure(name: str, sides: Sequence[int], draws: int | None, compile: str) -> dict[str, Any]:
    """Run one method and compare it with the exact answer."""
    kind, method, options = RUNS[name]
    problem, exact = (waves if kind == "waves" else pixels)(sides)
    if draws is not None:
        options = options | {"draws": draws}
    began = time.perf_counter()
    result = astrozoo.infer(problem, method, compile=compile, progress=False, seed=1, **options)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sd = exact["mean-field sd" if method in ("svi", "trust_region") else "sd"]
    x = result.draws["x"].reshape(-1, *sd.shape)
    n = len(x)
    ess_mean = ess_sd = float(n)
    if method in ("hmc", "auto"):
        chain = result.draws["x"].reshape(options["chains"], -1, sd.size)
        ess_mean = effective(chain)
        ess_sd = effective((chain - x.mean(0).ravel()) ** 2)
    mean_z = (x.mean(0) - exact["mean"]) / sd * math.sqrt(ess_mean)
    sd_z = (x.std(0, ddof=1) / sd - 1) * math.sqrt(2 * ess_sd)
    assert result.location is not None
    assert result.variance is not None
    location = (result.location[0] - exact["mean"].ravel()) / sd.ravel()
    width = np.sqrt(result.variance[0]) / sd.ravel() - 1
    row = {"run": name, "status": result.status.value, "seconds": round(seconds, 1), "GB": round(peak, 2)}
    row |= {"draws": n, "ess mean": ess_mean, "ess sd": ess_sd}
    row |= {"z mean": np.abs(mean_z).max(), "z sd": np.abs(sd_z).max()}
    row |= {"rms z mean": np.sqrt((mean_z**2).mean()), "rms z sd": np.sqrt((sd_z**2).mean())}
    row |= {"location error [sd]": np.abs(location).max(), "sd error": np.abs(width).max()}
    row |= {"rms sd error": np.sqrt((width**2).mean())}
    if "particles" in result.stats:
        pairs = result.stats["particles"] / 2
        row["sd error of fixed draws"] = math.sqrt(float(exact["correlated"]) / pairs) / 2
    row["counts"] = result.stats["counts"]
    return {k: round(float(v), 4) if isinstance(v, float | np.floating) else v for k, v in row.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="*", default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--side", nargs=2, type=int, default=SIDES, help="pixels of the two axes")
    parser.add_argument("--draws", type=int, help="per chain, in place of each run's")
    parser.add_argument("--compile", default="never", choices=("auto", "always", "never"))
    parser.add_argument("--inside", action="store_true", help="measure in this process (one run)")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.runs[0], options.side, options.draws, options.compile)))
        return
    for name in options.runs:
        command = [sys.executable, "-m", "experiments.bench.large", name, "--inside"]
        command += ["--side", *map(str, options.side), "--compile", options.compile]
        command += [] if options.draws is None else ["--draws", str(options.draws)]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            print(f"{name}: failed\n{found.stderr[-2000:]}", flush=True)
            continue
        for key, value in json.loads(found.stdout.splitlines()[-1]).items():
            print(f"{key}: {value}", end="  ")
        print(flush=True)


if __name__ == "__main__":
    main()
