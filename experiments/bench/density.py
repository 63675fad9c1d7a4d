"""Seconds per gradient: Pyro's own potential beside the captured and the compiled log density.

    python experiments/bench/density.py [--repeats 15] [--threads 1] [--device cuda]

For each problem it prints the median over repeats with the spread (5 to 95 per cent), and the ratios to
Pyro's ``potential_fn``, with validation (the default) and without (as inside ``pyro.infer.MCMC``). Each
repeat runs all contenders in turn, so that other load affects all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.types import Problem

CHAINS = 64
"""Chains whose gradients are taken in one call."""
PYRO = ("Pyro potential_fn", "  validation off")
"""Names of the rows with Pyro's timings."""


def eight_schools(y: Tensor, s: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample(
        "beta", dist.Normal(torch.zeros(x.shape[1], dtype=x.dtype, device=x.device), 1.0).to_event(1)
    )
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def problems(device: str) -> list[Problem]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 25, generator=generator, dtype=torch.float64)
    y = (torch.rand(1000, generator=generator) < torch.sigmoid(x.sum(-1) / 5)).double()
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
    return [
        Problem(eight_schools, (effects, errors), name="eight schools").to(device=device),
        Problem(logistic, (x, y), name="logistic 1000x25").to(device=device),
    ]


def contenders(problem: Problem) -> dict[str, tuple[Callable[[], Any], int]]:
    """By name: a function that makes one call, and the number of gradients in it."""
    captured, compiled = (log_density(problem, compile=c) for c in ("never", "always"))
    potential = initialize_model(problem.model, problem.args, max_plate_nesting=1)[1]
    one = captured.initial(1, torch.Generator().manual_seed(0))
    many = captured.initial(CHAINS, torch.Generator().manual_seed(0))
    layout = captured.layout
    sites = {s.name: one[0, s.start : s.stop].reshape(s.unconstrained_shape) for s in layout.sites}

    def unchecked() -> None:
        with pyro.validation_enabled(False):
            potential_grad(potential, sites)

    found = {
        PYRO[0]: (lambda: potential_grad(potential, sites), 1),
        PYRO[1]: (unchecked, 1),
        "captured, 1 chain": (lambda: captured.value_and_grad(one), 1),
        "compiled, 1 chain": (lambda: compiled.value_and_grad(one), 1),
        f"captured, {CHAINS} chains": (lambda: captured.value_and_grad(many), CHAINS),
        f"compiled, {CHAINS} chains": (lambda: compiled.value_and_grad(many), CHAINS),
    }
    grad, value = potential_grad(potential, sites)
    expected = torch.cat([grad[s.name].reshape(-1) for s in layout.sites])
    for density in (captured, compiled):
        got = density.value_and_grad(one)
        torch.testing.assert_close(got[0][0], -value.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got[1][0], -expected, rtol=1e-10, atol=1e-10)
    compiled.value_and_grad(many)
    print(f"{problem.name}: compiled in {compiled.compile_seconds:.1f} s {compiled.notes or ''}")
    return found


def seconds(call: Callable[[], Any], device: str) -> float:
    """Seconds per call, from a run of at least 50 ms."""
    number = 1
    while True:
        start = time.perf_counter()
        for _ in range(number):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
        if spent > 0.05:
            return spent / number
        number *= 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)  # for Pyro's side: it takes Python numbers in the default dtype
    for problem in problems(options.device):
        held = contenders(problem)
        times: dict[str, list[float]] = {name: [] for name in held}
        for _ in range(options.repeats):
            for name, (call, gradients) in held.items():
                times[name].append(seconds(call, options.device) / gradients * 1e6)
        reference = [statistics.median(times[name]) for name in PYRO]
        for name, found in times.items():
            low, high = (sorted(found)[round(q * (len(found) - 1))] for q in (0.05, 0.95))
            median = statistics.median(found)
            ratios = " ".join(f"{r / median:8.1f}x" for r in reference)
            print(f"  {name:22s} {median:9.2f} us/gradient [{low:8.2f}, {high:8.2f}] {ratios}")


if __name__ == "__main__":
    main()
