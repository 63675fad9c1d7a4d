"""HMC beside the No-U-Turn samplers of NumPyro and Pyro: effective draws per second, and their ratios.

    pip install 'jax[cpu]' numpyro        # not needed by astrozoo
    python -m experiments.bench.infer [--rounds 3] [--threads 2] [--chains 256] [--draws 100]
    python -m experiments.bench.infer --cases "logistic 1000x25" --chains 64 --draws 1000

In the regression each further chain costs as much as the first, so that fewer chains spend less on warm-up.
The other samplers warm up for 500 draws of a chain and keep 1,000.

Each round runs every contender once with a new seed, so that other load affects all alike. Ratios are taken
within rounds. The figure is the smallest bulk ESS of any latent, divided by the wall-clock time of the run
with tracing, compiling and warm-up. ``warm`` is a second run of the same NumPyro sampler, whose code is
compiled already; astrozoo has no such row. NumPyro's NUTS runs four chains under ``jax.vmap`` in float64,
with a dense and with a diagonal mass matrix, and the better one counts. Pyro's NUTS runs one chain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
import pyro
import pyro.distributions as dist
import torch
from numpyro import distributions as ndist
from numpyro.infer import MCMC, NUTS
from pyro.infer import mcmc as pyro_mcmc
from torch import Tensor

import astrozoo
from astrozoo.diagnostics.arviz import ess, r_hat
from astrozoo.types import Problem

__all__ = ["main"]

WANTED = {"NumPyro cold": 1.0, "Pyro": 100.0}
"""Ratios of effective draws per second that the project aims for."""


@dataclass(frozen=True)
class Case:
    """One posterior, for the three packages."""

    problem: Problem
    numpyro_model: Callable[..., None]

    @property
    def arrays(self) -> list[np.ndarray]:
        """The data as arrays, for NumPyro."""
        return [t.numpy() for t in self.problem.tensors]


def _eight_schools(y: Tensor, error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        t = pyro.sample("t", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * t, error), obs=y)


def _eight_schools_numpyro(y: Any, error: Any) -> None:
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        t = numpyro.sample("t", ndist.Normal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(mu + tau * t, error), obs=y)


def _logistic(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def _logistic_numpyro(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", ndist.Normal(np.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", ndist.Bernoulli(logits=x @ beta), obs=y)


def cases() -> list[Case]:
    """Eight schools (10 dimensions), and a logistic regression of 1,000 rows on 25 columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 25, generator=generator, dtype=torch.float64)
    y = (torch.rand(1000, generator=generator) < torch.sigmoid(x.sum(-1) / 5)).double()
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
    return [
        Case(Problem(_eight_schools, (effects, errors), name="eight schools"), _eight_schools_numpyro),
        Case(Problem(_logistic, (x, y), name="logistic 1000x25"), _logistic_numpyro),
    ]


Draws = dict[str, np.ndarray]


def run_hmc(case: Case, seed: int, chains: int, draws: int) -> dict[str, tuple[float, Draws]]:
    began = time.perf_counter()
    result = astrozoo.infer(case.problem, "hmc", seed=seed, chains=chains, draws=draws, progress=False)
    return {"hmc": (time.perf_counter() - began, result.draws)}


def run_numpyro(case: Case, seed: int, dense: bool) -> dict[str, tuple[float, Draws]]:
    sampler = MCMC(
        NUTS(case.numpyro_model, dense_mass=dense), num_warmup=500, num_samples=1000, num_chains=4,
        chain_method=jax.vmap, progress_bar=False,
    )  # fmt: skip
    found = {}
    for which in ("cold", "warm"):
        began = time.perf_counter()
        sampler.run(jax.random.PRNGKey(2 * seed + (which == "warm")), *case.arrays)
        draws = {name: np.asarray(x) for name, x in sampler.get_samples(group_by_chain=True).items()}
        found[f"NumPyro {which}, {'dense' if dense else 'diagonal'}"] = time.perf_counter() - began, draws
    return found


def run_pyro(case: Case, seed: int) -> dict[str, tuple[float, Draws]]:
    began = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sampler = pyro_mcmc.MCMC(
            pyro_mcmc.NUTS(case.problem.model), num_samples=1000, warmup_steps=500, disable_progbar=True
        )
        sampler.run(*case.problem.args)
    draws = {name: x.numpy() for name, x in sampler.get_samples(group_by_chain=True).items()}
    return {"Pyro": (time.perf_counter() - began, draws)}


def min_ess(draws: Draws) -> float:
    """The smallest bulk ESS of any scalar."""
    return min(float(ess(x, "bulk").min()) for x in draws.values())


def told(values: list[float]) -> str:
    """The text "median [minimum, maximum]"."""
    return f"{statistics.median(values):9.3g} [{min(values):8.3g}, {max(values):8.3g}]"


def compare(case: Case, rounds: int, **sizes: int) -> None:
    """Run all contenders in turn, and print the rates and ratios."""
    rates: dict[str, list[float]] = {}
    print(f"\n{case.problem.name}")
    for seed in range(rounds):
        contenders = [
            partial(run_hmc, case, seed, **sizes),
            partial(run_numpyro, case, seed, True),
            partial(run_numpyro, case, seed, False),
            partial(run_pyro, case, seed),
        ]
        for run in contenders:
            for name, (seconds, draws) in run().items():
                smallest, worst = min_ess(draws), max(float(r_hat(x).max()) for x in draws.values())
                rates.setdefault(name, []).append(smallest / seconds)
                figures = f"{seconds:7.1f} s, smallest ESS {smallest:8.0f}, R-hat {worst:.4f}"
                print(f"  round {seed}: {name:24s} {figures}", flush=True)
    for which in ("cold", "warm"):
        pair = [rates[f"NumPyro {which}, {mass}"] for mass in ("dense", "diagonal")]
        rates[f"NumPyro {which}"] = [max(both) for both in zip(*pair, strict=True)]
    for name, values in rates.items():
        print(f"  {name:24s} {told(values)} ESS/s")
    for name in ("NumPyro cold", "NumPyro warm", "Pyro"):
        ratios = [a / b for a, b in zip(rates["hmc"], rates[name], strict=True)]
        wanted = f"  (wanted: {WANTED[name]:g})" if name in WANTED else ""
        print(f"  hmc / {name:18s} {told(ratios)}{wanted}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chains", type=int, default=256, help="of ours")
    parser.add_argument("--draws", type=int, default=100, help="of each of our chains")
    parser.add_argument("--cases", nargs="+", help="names of those to run; all of them otherwise")
    options = parser.parse_args()
    numpyro.enable_x64()
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)  # for Pyro's side
    for case in cases():
        if options.cases is None or case.problem.name in options.cases:
            compare(case, options.rounds, chains=options.chains, draws=options.draws)


if __name__ == "__main__":
    main()
