"""Variational inference beside Pyro's own: to within 0.1 nat of the best ELBO; steps; thousands at once.

    python -m experiments.bench.vi accuracy [--seeds 3]   # trust region with linear response
    python -m experiments.bench.vi race [--seeds 3]       # against Pyro's SVI with Adam, best of three rates
    python -m experiments.bench.vi step                   # one SVI step, captured, against Pyro's
    python -m experiments.bench.vi batch                  # independent problems in one trust-region call

Each command prints a CSV table, row by row. Costs are in gradient-equivalents per draw:

* a value counts 1/3, because a reverse sweep costs about two forward ones;
* a gradient counts 1;
* a Hessian-vector product counts 2 (a gradient and its reverse sweep);
* a Hessian of p parameters counts p + 1 (a gradient and p reverse sweeps).

Evaluations of the log density, which the trust region's start uses, count as one draw. Seconds are wall-clock
of one thread. "Cold" seconds of the trust region include capturing the model and making its graphs. "Warm"
seconds are those of later runs with the same graphs.
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
from astrozoo.density import Elbo, LogDensity, elbo, log_density
from astrozoo.diagnostics.metrics import diagnose
from astrozoo.diagnostics.runs import gradient_equivalents
from astrozoo.guides.auto import mean_field
from astrozoo.infer.adam import AdamState, adam_step
from astrozoo.infer.linear_response import Response
from astrozoo.infer.maximise import TrustRegionState, maximise
from astrozoo.infer.mode_start import mode_start
from astrozoo.infer.randomness import noise_for
from astrozoo.infer.trust_region import FEW
from astrozoo.types import Problem, Status
from experiments.reference_problems import SAMPLED, Reference, sampled

__all__ = ["accuracy", "batch", "race", "step"]

WITHIN = 0.1
"""[nat] A run has arrived once its ELBO is at most this much below the best."""
MEASURED = 2000
"""Draws on which every ELBO is measured, the same for all runs."""
RATES = (0.03, 0.1, 0.01)
"""Learning rates of Adam. The first is tried first, because it is the best most often."""
WARM = 30
"""Timed runs of the trust region. The first is cold; the median of the last five is the warm time."""
STEPS = 10_000
"""Most steps of one run of Adam."""
Row = dict[str, Any]


def _references(names: str = "") -> list[Reference]:
    folder = root()
    if folder is None:
        raise SystemExit("no reference posteriors: set ASTROZOO_DATA")
    return [sampled(name, folder) for name in (names.split(",") if names else SAMPLED)]


def accuracy(seeds: int, names: str = "") -> Iterator[Row]:
    """Errors of means [SD] and relative errors of SDs: medians over the scalars of each posterior.

    "sd": by the linear response of each scalar's own mean; "draws' sd": of the normal with the
    linear-response covariance in unconstrained space; "guide's sd": of the mean field.
    """
    for reference in _references(names):
        for seed in range(seeds):
            began = time.monotonic()
            target = elbo(reference.problem, mean_field)
            options: Row = {"seed": seed, "draws": 4000, "progress": False, "mode": "fixed"}
            fitted = astrozoo.infer(reference.problem, **options)
            w = torch.as_tensor(fitted.guide_parameters, dtype=target.dtype)
            used = fitted.stats["particles"]
            noise = noise_for(seed, 0, draws=used, like=target, matched=True)
            response = Response(target, w, target.value_grad_hessian(w, noise)[2], noise)

            def scalars(sites: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {
                    name: torch.as_tensor(x)
                    for name, x in reference.scalars({k: v.numpy() for k, v in sites.items()}).items()  # noqa: B023
                }

            sd = response.sd(scalars)
            seconds = time.monotonic() - began
            corrected = astrozoo.infer(reference.problem, **options, covariance="linear_response")
            own, normal = reference.scalars(fitted.draws), reference.scalars(corrected.draws)
            exact = reference.exact.items()
            yield {
                "problem": reference.name,
                "seed": seed,
                "status": fitted.status.value,
                "mean error": np.median([abs(own[name].mean() - t.mean) / t.sd for name, t in exact]),
                "sd error": np.median([abs(float(sd[name][0]) / t.sd - 1) for name, t in exact]),
                "draws' sd error": np.median([abs(normal[name].std() / t.sd - 1) for name, t in exact]),
                "guide's sd error": np.median([abs(own[name].std() / t.sd - 1) for name, t in exact]),
                "k-hat": diagnose(fitted)["largest k-hat"],
                "draws": used,
                "seconds": seconds,
            }


Look = Callable[[torch.Tensor], float]
"""From parameters [1, p] to their ELBO on common draws, minus the best ELBO [nat]."""


def _adam(problem: Problem, rate: float, seed: int, most: int, look: Look | None = None) -> tuple[int, float]:
    """Pyro's SVI with one particle: the number of steps, and the last ELBO that was measured.

    The ELBO is measured after each of the first hundred steps, then each time the number of steps has grown
    by 2 %, until it is within the goal.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(problem.dtype)
    try:
        guide = mean_field(problem)
        guide(*problem.args)
        svi = pyro.infer.SVI(problem.model, guide, pyro.optim.Adam({"lr": rate}), pyro.infer.Trace_ELBO())
        steps, value = 0, -np.inf
        while steps < most and value <= -WITHIN:
            for _ in range(min(max(1, steps // 50), most - steps)):
                svi.step(*problem.args)
                steps += 1
            if look is not None:
                value = look(torch.cat([p.detach().reshape(-1) for p in guide.parameters()])[None])
        return steps, value
    finally:
        torch.set_default_dtype(before)


def _best_adam(problem: Problem, seed: int, look: Look) -> tuple[int, float, str]:
    """The fewest steps over all rates (``STEPS`` if none arrives), their rate, and the end of each run."""
    least, best, told = STEPS, RATES[0], []
    for rate in RATES:
        steps, value = _adam(problem, rate, seed, least, look)  # none needs longer than the best so far
        if value > -WITHIN:
            least, best = steps, rate
        told.append(f"{rate}: {value:.3g} at {steps}")
    return least, best, "; ".join(told)


class _Arrived(KeyboardInterrupt):
    """The goal was reached."""


def _captured(problem: Problem) -> tuple[Elbo, LogDensity]:
    return elbo(problem, mean_field, compile="never"), log_density(problem, compile="never")


def _fit(
    target: Elbo, density: LogDensity, seed: int, most: int = 200, look: Look | None = None
) -> int | None:
    """Run the trust region as its method does. Returns the iterations to the goal, or None.

    The ELBO is measured at the start and after each iteration.
    """

    def after(state: TrustRegionState) -> None:
        if look is not None and look(state.w) > -WITHIN:
            raise _Arrived

    w, curvature = mode_start(target, density, target.initial(None), seed=seed, draws=FEW)
    if most == 0 or (look is not None and look(w) > -WITHIN):
        return 0
    options: Row = {"mode": "fixed", "draws": min(max(2 * target.noise_dim, 16), 64), "coarse": FEW}
    options |= {"max_iterations": most, "curvature": curvature, "dense_limit": 0}
    found = maximise(target, w, seed=seed, callback=after, **options)
    return found.iterations if Status.INTERRUPTED in found.statuses else None


def _ours(problem: Problem, seed: int, look: Look) -> tuple[float, float, float]:
    """Gradient-equivalents, cold and warm seconds of the trust region; infinite if it does not arrive."""
    functions = _captured(problem)
    iterations = _fit(*functions, seed, look=look)
    if iterations is None:
        return np.inf, np.inf, np.inf
    work = sum(gradient_equivalents(f.counts, f.dim) for f in functions)
    seconds = []
    began = time.monotonic()
    functions = _captured(problem)
    for _ in range(WARM):
        _fit(*functions, seed, iterations)
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
    return work, seconds[0], float(np.median(seconds[-5:]))


def race(seeds: int, names: str = "") -> Iterator[Row]:
    """The best ELBO is that of 500 fixed draws, maximised to the end; all are measured on 2,000 other draws.

    The ratios take the best of Adam's rates: a lower bound where none arrived within ``STEPS``. Once it is
    known how long each takes to arrive, it runs so long again, unwatched, for the seconds.
    """
    for reference in _references(names):
        problem = reference.problem
        measured = elbo(problem, mean_field, compile="never")
        optimum = maximise(
            measured, measured.initial(None), mode="fixed", draws=500, coarse=20, dense_limit=0
        ).w
        noise = noise_for(99, draws=MEASURED, like=measured)
        best = float(measured.values(optimum, noise).mean())

        def look(w: torch.Tensor) -> float:
            return float(measured.values(w, noise).mean()) - best  # noqa: B023

        for seed in range(seeds):
            steps, rate, how = _best_adam(problem, seed, look)
            began = time.monotonic()
            _adam(problem, rate, seed, steps)
            theirs = time.monotonic() - began
            work, cold, warm = _ours(problem, seed, look)
            yield {
                "problem": reference.name, "seed": seed, "best": best, "gradients": work, "cold s": cold,
                "warm s": warm, "pyro gradients": steps, "pyro s": theirs, "fewer": steps / work,
                "faster cold": theirs / cold, "faster warm": theirs / warm, "pyro": how,
            }  # fmt: skip


def _timed(step: Callable[[], Any], repeats: int = 400) -> float:
    """Median time of a call [us]."""
    for _ in range(20):
        step()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return float(np.median(found)) * 1e6


def step(seeds: int, names: str = "") -> Iterator[Row]:
    """Time one step of Adam with one particle and a mean field."""
    for reference in _references(names):
        problem = reference.problem
        target = elbo(problem, mean_field, compile="always")
        state = AdamState.at(target.initial(None), 0.01)
        rows = torch.zeros(1, dtype=torch.int64)
        e = torch.randn(1, target.noise_dim, dtype=problem.dtype)
        ours = _timed(lambda: adam_step(target, state, rows, e))  # noqa: B023
        drawn = _timed(
            lambda: adam_step(target, state, rows, noise_for(0, state.iteration, draws=1, like=target))  # noqa: B023
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
    """Fit Poisson regressions of 40 dimensions and 100 data each, by mean fields with fixed draws."""
    generator = torch.Generator().manual_seed(0)
    for n in (1, 10, 100, 1000, 4000):
        design = torch.randn(n, 100, 40, generator=generator, dtype=torch.float64) / 40**0.5
        z = torch.randn(n, 40, 1, generator=generator, dtype=torch.float64)
        y = torch.poisson((design @ z)[..., 0].exp(), generator=generator)
        problem = Problem(_counts_model, (design, y), name=f"{n} Poisson regressions", batch=n)
        began = time.monotonic()
        target, density = _captured(problem)
        w, curvature = mode_start(target, density, target.initial(None), seed=0, draws=FEW)
        options: Row = {"draws": 16, "coarse": FEW, "tolerance": 1e-2, "curvature": curvature}
        found = maximise(target, w, mode="fixed", dense_limit=0, **options)
        seconds = time.monotonic() - began
        yield {
            "problems": n,
            "seconds": seconds,
            "ms per problem": seconds / n * 1e3,
            "converged": sum(s.ok for s in found.statuses),
            "iterations": found.iterations,
            "gradients per problem": sum(gradient_equivalents(f.counts, f.dim) for f in (target, density))
            / n,
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
