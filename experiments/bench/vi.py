"""Variational inference beside Pyro's own: to within 0.1 nat of the best ELBO; steps; thousands at once.

    python -m experiments.bench.vi accuracy [--seeds 3]   # trust region with linear response
    python -m experiments.bench.vi race [--seeds 3]       # against Pyro's SVI with Adam, best of three rates
    python -m experiments.bench.vi step                   # one SVI step, captured, against Pyro's
    python -m experiments.bench.vi batch                  # independent problems in one trust-region call

Each prints a CSV table. Gradient-equivalents: a value counts 1/3, a gradient 1, a Hessian-vector product 2, a
Hessian of p parameters p (its backward passes); per draw. Seconds are wall-clock, of one thread.
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
from astrozoo.data import root
from astrozoo.density import Elbo, elbo
from astrozoo.diagnostics.metrics import diagnose
from astrozoo.guides.auto import mean_field
from astrozoo.infer._common import noise_for
from astrozoo.infer._maximise import maximise
from astrozoo.infer.svi import AdamState, _step
from astrozoo.types import Problem
from experiments.reference_problems import SAMPLED, Reference, sampled

__all__ = ["accuracy", "batch", "race", "step"]

WITHIN = 0.1
"""Nats below the best ELBO at which a run has arrived."""
RATES = (0.1, 0.03, 0.01)
STEPS = 4_000
Row = dict[str, Any]


def _references(names: str = "") -> list[Reference]:
    folder = root()
    if folder is None:
        raise SystemExit("no reference posteriors: set ASTROZOO_DATA")
    return [sampled(name, folder) for name in (names.split(",") if names else SAMPLED)]


def accuracy(seeds: int, names: str = "") -> Iterator[Row]:
    """Errors of means [SD] and relative errors of SDs: medians over the scalars of each posterior."""
    for reference in _references(names):
        for seed in range(seeds):
            began = time.monotonic()
            result = astrozoo.infer(
                reference.problem, seed=seed, draws=4000, progress=False, mode="fixed", particles=30,
                covariance="linear_response",
            )  # fmt: skip
            seconds = time.monotonic() - began
            draws = reference.scalars(result.draws)
            pairs = [(draws[name], true) for name, true in reference.exact.items()]
            yield {
                "problem": reference.name,
                "seed": seed,
                "status": result.status.value,
                "mean error": np.median([abs(x.mean() - true.mean) / true.sd for x, true in pairs]),
                "sd error": np.median([abs(x.std() / true.sd - 1) for x, true in pairs]),
                "k-hat": diagnose(result)["largest k-hat"],
                "draws": result.stats["particles"],
                "seconds": seconds,
            }


def _work(counts: dict[str, int], dim: int) -> float:
    return counts["value"] / 3 + counts["gradient"] + 2 * counts["hvp"] + dim * counts["hessian"]


class _Arrival:
    """The first moment at which an ELBO, measured on common draws, is within reach of the best."""

    def __init__(self, measured: Elbo, best: float) -> None:
        self.measured, self.best, self.paused = measured, best, 0.0
        self.noise = noise_for(99, draws=2000, like=measured)
        self.began = time.monotonic()

    def __call__(self, w: torch.Tensor) -> float | None:
        """Seconds since the beginning, those of measuring left out, if it has arrived."""
        now = time.monotonic()
        value = float(self.measured.values(w, self.noise).mean())
        self.paused += time.monotonic() - now
        return (
            now - self.began - (self.paused - (time.monotonic() - now))
            if value > self.best - WITHIN
            else None
        )


def _pyro(problem: Problem, measured: Elbo, best: float, rate: float, seed: int) -> tuple[float, float]:
    """Gradients and seconds that Pyro's SVI takes, one particle; infinite if it does not arrive."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(problem.dtype)
    try:
        guide = mean_field(problem)
        guide(*problem.args)
        svi = pyro.infer.SVI(problem.model, guide, pyro.optim.Adam({"lr": rate}), pyro.infer.Trace_ELBO())
        arrival = _Arrival(measured, best)
        for i in range(1, STEPS + 1):
            svi.step(*problem.args)
            if i % 20 == 0:
                w = torch.cat([p.detach().reshape(-1) for p in guide.parameters()])[None]
                seconds = arrival(w)
                if seconds is not None:
                    return i, seconds
        return np.inf, np.inf
    finally:
        torch.set_default_dtype(before)


class _Arrived(KeyboardInterrupt):
    pass


def _ours(problem: Problem, measured: Elbo, best: float, seed: int, **options: Any) -> tuple[float, float]:
    """Gradient-equivalents and seconds of the trust region, from the capture on."""
    arrival = _Arrival(measured, best)
    target = elbo(problem, mean_field, compile="never")
    found: list[float] = []

    def look(state: Any) -> None:
        seconds = arrival(state.w)
        if seconds is not None:
            found.append(seconds)
            raise _Arrived

    maximise(target, target.initial(None), seed=seed, callback=look, dense_limit=0, **options)
    return (_work(target.counts, target.dim), found[0]) if found else (np.inf, np.inf)


def race(seeds: int, names: str = "") -> Iterator[Row]:
    """The best ELBO is that of 500 fixed draws, maximised to the end, measured on 2,000 others."""
    for reference in _references(names):
        problem = reference.problem
        measured = elbo(problem, mean_field, compile="never")
        optimum = maximise(measured, measured.initial(None), mode="fixed", draws=500).w
        best = float(measured.values(optimum, noise_for(99, draws=2000, like=measured)).mean())
        measured.values(optimum, noise_for(99, draws=2000, like=measured))
        for seed in range(seeds):
            row: Row = {"problem": reference.name, "seed": seed, "best": best}
            theirs = [_pyro(problem, measured, best, rate, seed) for rate in RATES]
            row["pyro gradients"], row["pyro seconds"] = min(theirs)
            runs = {
                "fixed": {"mode": "fixed", "draws": 30},
                "stochastic": {"draws": 16},
            }
            for name, options in runs.items():
                work, seconds = _ours(problem, measured, best, seed, **options)
                row |= {f"{name} gradients": work, f"{name} seconds": seconds}
                row |= {f"{name} fewer": row["pyro gradients"] / work}
                row |= {f"{name} faster": row["pyro seconds"] / seconds}
            yield row


def _timed(step: Callable[[], Any], repeats: int = 400) -> float:
    """Median microseconds."""
    for _ in range(20):
        step()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return float(np.median(found)) * 1e6


def step(seeds: int, names: str = "") -> Iterator[Row]:
    """One step of Adam, one particle, mean field."""
    for reference in _references(names):
        problem = reference.problem
        target = elbo(problem, mean_field, compile="always")
        state = AdamState.at(target.initial(None), 0.01)
        rows = torch.zeros(1, dtype=torch.int64)
        e = torch.randn(1, target.noise_dim, dtype=problem.dtype)
        ours = _timed(lambda: _step(target, state, rows, e))  # noqa: B023
        drawn = _timed(
            lambda: _step(target, state, rows, noise_for(0, state.iteration, draws=1, like=target))  # noqa: B023
        )
        pyro.clear_param_store()  # the next guide's parameters have the same names
        before = torch.get_default_dtype()
        torch.set_default_dtype(problem.dtype)
        guide = mean_field(problem)
        guide(*problem.args)
        adam = pyro.optim.Adam({"lr": 0.01})
        svi = pyro.infer.SVI(problem.model, guide, adam, pyro.infer.Trace_ELBO())
        theirs = _timed(lambda: svi.step(*problem.args), 100)  # noqa: B023
        torch.set_default_dtype(before)
        yield {
            "problem": reference.name, "pyro us": theirs, "step us": ours, "step with noise us": drawn,
            "times": theirs / drawn,
        }  # fmt: skip


def _counts_model(design: torch.Tensor, y: torch.Tensor) -> None:
    z = pyro.sample("z", dist.Normal(design.new_zeros(design.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((design @ z).exp()), obs=y)


def batch(seeds: int, names: str = "") -> Iterator[Row]:
    """Poisson regressions of 40 dimensions and 100 data each, mean field, fixed draws."""
    generator = torch.Generator().manual_seed(0)
    for n in (1, 10, 100, 1000, 4000):
        design = torch.randn(n, 100, 40, generator=generator, dtype=torch.float64) / 40**0.5
        z = torch.randn(n, 40, 1, generator=generator, dtype=torch.float64)
        y = torch.poisson((design @ z)[..., 0].exp(), generator=generator)
        problem = Problem(_counts_model, (design, y), name=f"{n} Poisson regressions", batch=n)
        began = time.monotonic()
        target = elbo(problem, mean_field, compile="never")
        found = maximise(target, target.initial(None), mode="fixed", draws=16, dense_limit=0, tolerance=1e-2)
        seconds = time.monotonic() - began
        yield {
            "problems": n,
            "seconds": seconds,
            "ms per problem": seconds / n * 1e3,
            "converged": sum(s.ok for s in found.statuses),
            "iterations": found.iterations,
            "hvp per problem": target.counts["hvp"] / n,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = {"accuracy": accuracy, "race": race, "step": step, "batch": batch}
    parser.add_argument("table", choices=tables)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", default="", help="names with commas between; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    writer = None
    for row in tables[given.table](given.seeds, given.problems):
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row))
            writer.writeheader()
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
        sys.stdout.flush()
