"""Every backend on small posteriors whose moments are known: errors, evaluations and seconds, as CSV.

Errors are in units of the true posterior SD: of the means, and relative ones of the SDs; the worst latent.
Seconds are wall-clock from the cold start, compilation told apart.

    python -m experiments.bench.infer [--seeds 5] > infer.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import astrozoo
from astrozoo.types import Problem

__all__ = ["main"]

RUNS: dict[str, dict[str, Any]] = {
    "trust_region stochastic": {"method": "trust_region"},
    "trust_region stochastic full": {"method": "trust_region", "guide": "full_rank"},
    "trust_region fixed": {"method": "trust_region", "mode": "fixed", "particles": 30},
    "trust_region fixed LRVB": {
        "method": "trust_region", "mode": "fixed", "particles": 30, "covariance": "linear_response",
    },
    "svi": {"method": "svi"},
    "svi full": {"method": "svi", "guide": "full_rank"},
    "laplace": {"method": "laplace"},
    "hmc": {"method": "hmc"},
    "nuts": {"method": "nuts"},
}  # fmt: skip


def _gaussian(mean: torch.Tensor, root: torch.Tensor) -> None:
    pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=root))


def _regression(x: torch.Tensor, y: torch.Tensor) -> None:
    zero = x.new_zeros(x.shape[1])
    slope = pyro.sample("slope", dist.Normal(zero, 10.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def _poisson(counts: torch.Tensor) -> None:
    with pyro.plate("pixel", counts.shape[0]):
        log_rate = pyro.sample("z", dist.Normal(counts.new_tensor(1.0), 1.0))
        pyro.sample("y", dist.Poisson(log_rate.exp()), obs=counts)


def problems() -> Iterator[tuple[Problem, np.ndarray, np.ndarray]]:
    """Problems with the exact means and SDs of their unconstrained latents."""
    generator = torch.Generator().manual_seed(0)
    f64 = torch.float64
    Q, _ = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=f64))
    covariance = Q @ torch.diag(torch.logspace(-4, 0, 10, dtype=f64)) @ Q.T
    mean = torch.arange(10, dtype=f64)
    problem = Problem(_gaussian, (mean, torch.linalg.cholesky(covariance)), name="gaussian, condition 1e4")
    yield problem, mean.numpy(), covariance.diagonal().sqrt().numpy()

    x = torch.randn(200, 8, generator=generator, dtype=f64)
    x[:, 1] += 2 * x[:, 0]
    y = x @ torch.linspace(-1, 1, 8, dtype=f64) + 0.5 * torch.randn(200, generator=generator, dtype=f64)
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(8, dtype=f64) / 100)
    mean = covariance @ (x.T @ y) / 0.25
    yield (
        Problem(_regression, (x, y), name="regression 200x8"),
        mean.numpy(),
        covariance.diagonal().sqrt().numpy(),
    )

    counts = torch.poisson(torch.full((30,), 3.0, dtype=f64), generator=generator)
    grid = torch.linspace(-6, 6, 20001, dtype=f64)
    log_p = counts[:, None] * grid - grid.exp() - (grid - 1) ** 2 / 2
    p = torch.softmax(log_p, 1)
    mean = (p * grid).sum(1)
    sd = ((p * grid**2).sum(1) - mean**2).sqrt()
    yield Problem(_poisson, (counts,), name="30 log-normal Poisson rates"), mean.numpy(), sd.numpy()


def main(seeds: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Run all, telling each row as it comes. A run that fails is a row with its error, never left out."""
    for problem, mean, sd in problems():
        for name, options in RUNS.items():
            for seed in range(seeds):
                began = time.monotonic()
                row = {"problem": problem.name, "run": name, "seed": seed}
                try:
                    result = astrozoo.infer(problem, seed=seed, progress=False, **options)
                except astrozoo.AstrozooError as error:
                    report(row | {"status": f"{type(error).__name__}: {error}"})
                    continue
                found = np.sqrt(np.diagonal(result.covariance[0]))
                counts = result.stats["counts"]
                report(
                    row
                    | {
                        "status": result.status.value,
                        "mean_error": round(float(np.abs((result.location[0] - mean) / sd).max()), 4),
                        "sd_error": round(float(np.abs(found / sd - 1).max()), 4),
                        "seconds": round(time.monotonic() - began, 2),
                        "compile_seconds": round(result.stats["compile_seconds"], 2),
                        **{key: counts[key] for key in ("value", "gradient", "hvp", "hessian")},
                    }
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    columns = ["problem", "run", "seed", "status", "mean_error", "sd_error", "seconds", "compile_seconds"]
    writer = csv.DictWriter(sys.stdout, [*columns, "value", "gradient", "hvp", "hessian"])
    writer.writeheader()

    def tell(row: dict[str, Any]) -> None:
        writer.writerow(row)
        sys.stdout.flush()

    main(seeds, tell)
