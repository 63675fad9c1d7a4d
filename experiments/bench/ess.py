"""Seconds from a cold process to a minimum effective sample size: ours and NumPyro's NUTS.

    pip install 'jax[cpu]' numpyro        # the extra "bench"
    python -m experiments.bench.ess [--targets 1000 10000] [--seeds 1] [--cases eight logistic] [--quick]

A run is one new process, timed from its start to its end: imports, tracing, compiling, warm-up and
draws. For each target and package several configurations are tried, and the fastest whose smallest bulk
ESS reaches the target in every seed counts. NumPyro runs NUTS with vectorised or parallel chains, dense
and diagonal mass matrices. Ours starts with an empty cache of compiled graphs. Seeds take turns, so that
other load hits all alike. A configuration that fails or takes longer than ``--limit`` is reported and left
out. ``--quick`` runs one configuration of
ours, one of vectorized and one of parallel chains of NumPyro on eight schools, to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench._child import ChildError, run_child

__all__ = ["main"]

OURS = {
    1000: [{"chains": 64, "warmup": 100, "draws": 50}, {"chains": 32, "warmup": 100, "draws": 100}],
    10000: [{"chains": 64, "warmup": 100, "draws": 400}, {"chains": 256, "warmup": 100, "draws": 100}],
}
"""Configurations of ``method="hmc"``, by target."""

NUMPYRO = {
    target: [
        {"chains": chains, "warmup": warmup, "draws": draws // chains, "dense": dense, "method": method}
        for chains, method in ((4, "vectorized"), (2, "parallel"))
        for warmup in (200, 500)
        for dense in (True, False)
    ]
    for target, draws in ((1000, 2400), (10000, 20000))
}
"""Configurations of NumPyro's NUTS, by target; ``draws`` are of each chain. Parallel chains run on as many
XLA devices, made by ``numpyro.set_host_device_count``."""


def data(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Effects and errors of the schools, or columns and outcomes of a regression."""
    if case == "eight":
        effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        return effects, np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1000, 25))
    return x, (generator.random(1000) < 1 / (1 + np.exp(-x.sum(1) / 5))).astype(float)


def ours(case: str, seed: int, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draws of astrozoo by site, ``[chain, draw, ...]``."""
    import pyro
    import pyro.distributions as dist
    import torch

    import astrozoo

    def eight(y: torch.Tensor, error: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("school", len(y)):
            t = pyro.sample("t", dist.Normal(torch.zeros_like(y), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * t, error), obs=y)

    def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    tensors = tuple(torch.as_tensor(a) for a in data(case))
    problem = astrozoo.Problem(eight if case == "eight" else logistic, tensors, name=case)
    return astrozoo.infer(problem, "hmc", seed=seed, progress=False, **config).draws


def numpyro(case: str, seed: int, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draws of NumPyro by site, ``[chain, draw, ...]``."""
    import numpyro as npo

    npo.enable_x64()
    if config["method"] == "parallel":
        npo.set_host_device_count(config["chains"])
    import jax
    from numpyro import distributions as dist
    from numpyro.infer import MCMC, NUTS

    def eight(y: Any, error: Any) -> None:
        mu = npo.sample("mu", dist.Normal(0.0, 5.0))
        tau = npo.sample("tau", dist.HalfCauchy(5.0))
        with npo.plate("school", len(y)):
            t = npo.sample("t", dist.Normal(0.0, 1.0))
            npo.sample("y", dist.Normal(mu + tau * t, error), obs=y)

    def logistic(x: Any, y: Any) -> None:
        beta = npo.sample("beta", dist.Normal(np.zeros(x.shape[1]), 1.0).to_event(1))
        with npo.plate("data", len(y)):
            npo.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    run = MCMC(
        NUTS(eight if case == "eight" else logistic, dense_mass=config["dense"]),
        num_warmup=config["warmup"], num_samples=config["draws"], num_chains=config["chains"],
        chain_method=config["method"], progress_bar=False,
    )  # fmt: skip
    run.run(jax.random.key(seed), *data(case))
    return {name: np.asarray(x) for name, x in run.get_samples(group_by_chain=True).items()}


def timed(package: str, case: str, seed: int, config: dict[str, Any], limit: float) -> tuple[float, float]:
    """Seconds of a new process, and the smallest bulk ESS of its draws."""
    from astrozoo.diagnostics.arviz import ess

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "draws.npz")
        arguments = [
            "-m",
            "experiments.bench.ess",
            "--run",
            package,
            case,
            str(seed),
            json.dumps(config),
            path,
        ]
        seconds, _ = run_child(arguments, limit, ASTROZOO_CACHE=str(Path(folder) / "graphs"))
        with np.load(path) as draws:
            return seconds, min(float(ess(draws[name], "bulk").min()) for name in draws.files)


def fastest(
    package: str, case: str, target: int, seeds: int, limit: float, configs: list[dict[str, Any]]
) -> list[float]:
    """Seconds by seed of the fastest configuration that reaches the target in every seed."""
    best: list[float] = []
    for config in configs:
        label = f"  {package:7} " + ", ".join(f"{key} {value}" for key, value in config.items())
        try:
            runs = [timed(package, case, seed, config, limit) for seed in range(seeds)]
        except ChildError as error:
            print(f"{label}: {error}", flush=True)
            continue
        seconds, least = [s for s, _ in runs], min(e for _, e in runs)
        reached = "" if least >= target else " (target missed)"
        print(f"{label}: {statistics.median(seconds):.1f} s, least ESS {least:.0f}{reached}", flush=True)
        if least >= target and (not best or statistics.median(seconds) < statistics.median(best)):
            best = seconds
    return best


def main(cases: list[str], targets: list[int], seeds: int, limit: float, quick: bool) -> None:
    """Print the ratio of ours to NumPyro's for every case and target."""
    for case in cases:
        for target in targets:
            print(f"{case}, minimum ESS {target}, load {os.getloadavg()[0]:.1f}", flush=True)
            ours_seconds = fastest("ours", case, target, seeds, limit, OURS[target][:: 2 if quick else 1])
            theirs = fastest("numpyro", case, target, seeds, limit, NUMPYRO[target][:: 4 if quick else 1])
            if not ours_seconds or not theirs:
                missing = "NumPyro" if ours_seconds else "ours"
                print(f"  no configuration of {missing} reached the target", flush=True)
                continue
            ratios = [x / y for x, y in zip(ours_seconds, theirs, strict=True)]
            spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"  ours / NumPyro: {statistics.median(ratios):.2f} {spread} (wanted: 0.5)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=["eight", "logistic"], default=["eight", "logistic"])
    parser.add_argument("--targets", nargs="+", type=int, choices=list(OURS), default=list(OURS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one process may take")
    parser.add_argument("--quick", action="store_true", help="three configurations, on eight schools")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        package, case, seed, config, path = options.run
        np.savez(path, **(ours if package == "ours" else numpyro)(case, int(seed), json.loads(config)))
    else:
        cases, targets = (["eight"], [1000]) if options.quick else (options.cases, options.targets)
        main(cases, targets, options.seeds, options.limit, options.quick)
