"""Celeste: the trust region beside Pyro's SVI on the same objective, and seconds per gradient.

    python -m experiments.bench.celeste gradients
    python -m experiments.bench.celeste fits --sources 1 --seeds 5 --out one.csv
    python -m experiments.bench.celeste fits --sources 5 --seeds 5 --size 31 --out blend.csv

``fits`` maximises the delta-method ELBO of simulated patches with the structured guide, from the default
start. The trust region runs with the hand-written dense Hessian (and with Hessian-vector products if
requested). Adam runs at each learning rate on the captured and compiled function. Pyro's SVI takes the same
steps on the uncaptured function. Its first ``--watched`` steps at the best rate are compared with ours and
timed, and its seconds are extrapolated to the same number of iterations. A run has arrived at the first
iteration whose value is within 0.1 nat of the best value of all runs of that seed. Seconds exclude tracing
and compiling.

``gradients`` times the gradient of one galaxy by Pyro's ``potential_fn``, by the captured density and by the
hand-written one. Each repeat runs all contenders in turn, so that other load affects all alike.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from rich.console import Console
from rich.table import Table
from torch import Tensor

from astrozoo.density import Elbo, elbo, log_density
from astrozoo.infer.adam import AdamState, adam_step
from astrozoo.infer.maximise import maximise
from astrozoo.models.celeste import Celeste, Patch, load_prior, problem, simulate
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.objective import Objective
from astrozoo.types import Problem

GOAL = 0.1
"""[nat] A run has arrived when it is this near the best."""
CHAINS = 64
"""Chains whose gradients are taken in one call."""

Course = list[tuple[float, float]]
"""(seconds since the start, value) after each iteration."""


def by_trust_region(target: Objective, w: Tensor, budget: int, *, dense: bool) -> Course:
    """The trust region. Its first calls, which trace and compile, are not counted."""
    if dense:
        target.value_grad_hessian(w)
    else:
        target.value_and_grad(w), target.hvp(w, None, w)
    target.values(w)
    course, began = [], time.perf_counter()
    maximise(
        target,
        w,
        max_iterations=budget,
        tolerance=1e-2,
        dense_limit=target.dim if dense else 0,
        callback=lambda state: course.append((time.perf_counter() - began, float(state.value[0]))),
    )
    return course


def by_pyro(target: Elbo, patch: Patch, w: Tensor, rate: float, steps: int) -> Course:
    """Pyro's SVI with Adam on the same function of the same parameters, without capture."""
    pyro.clear_param_store()
    f = target.f

    def loss(model: Any, guide: Any, patch: Patch) -> Tensor:
        return -f(pyro.param("w", w[0].clone()), patch)

    adam: Any = pyro.optim  # its members are made at run time, unknown to type checkers
    run = SVI(lambda patch: None, lambda patch: None, adam.Adam({"lr": rate}), loss)
    course, began = [], time.perf_counter()
    for _ in range(steps):
        value = -float(run.step(patch))
        course.append((time.perf_counter() - began, value))
    return course


def by_captured_adam(target: Elbo, w: Tensor, rate: float, budget: int, goal: float) -> Course:
    """The captured SVI of astrozoo."""
    target.value_and_grad(w)
    state, rows, before = AdamState.at(w, rate), torch.arange(len(w)), 0.0
    course: Course = []
    began = time.perf_counter()
    while len(course) < budget and not (course and course[-1][1] >= goal):
        adam_step(target, state, rows, None)
        now = float(state.total[0])
        course.append((time.perf_counter() - began, now - before))
        before = now
    return course


def fits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each run of each seed."""
    rows = []
    for seed in range(1, options.seeds + 1):
        patch, _ = simulate(seed, sources=options.sources, size=options.size)
        given = problem(patch)
        target = elbo(
            given, given.factory("guides", "structured"), objective="delta", compile=options.compile
        )
        w = target.initial()
        compiled = elbo(given, given.factory("guides", "structured"), objective="delta", compile="always")
        courses: dict[str, Course] = {
            "trust region": by_trust_region(target, w, options.iterations, dense=True)
        }
        if options.krylov:
            courses["trust region, Krylov"] = by_trust_region(target, w, options.iterations, dense=False)
        goal = max(v for course in courses.values() for _, v in course) - GOAL / 2
        adams = {f"Adam {rate:g}": rate for rate in options.rates}
        for name, rate in adams.items():
            courses[name] = by_captured_adam(compiled, w, rate, options.budget, goal)
        top = max(v for course in courses.values() for _, v in course if math.isfinite(v))
        best = min(adams, key=lambda name: arrival(courses[name], top)[0])
        watched = by_pyro(target, patch, w, adams[best], min(options.watched, len(courses[best])))
        ours, theirs = ([v for _, v in course[: len(watched)]] for course in (courses[best], watched))
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-8, atol=1e-6)
        each = watched[-1][0] / len(watched)
        courses["Pyro SVI"] = [(each * (i + 1), v) for i, (_, v) in enumerate(courses[best])]
        for name, course in courses.items():
            iterations, seconds = arrival(course, top)
            row = {"seed": seed, "sources": options.sources, "parameters": target.dim, "run": name}
            row |= {
                "iterations": iterations,
                "seconds": round(seconds, 3),
                "seconds_per_iteration": round(course[-1][0] / len(course), 4),
                "short_by": round(top - max(v for _, v in course if math.isfinite(v)), 3),
                "best_adam": name == best,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def arrival(course: Course, top: float) -> tuple[float, float]:
    """Iterations and seconds until the value is within the goal of the best; infinite if it never is."""
    for i, (seconds, value) in enumerate(course):
        if value >= top - GOAL:
            return i + 1, seconds
    return math.inf, math.inf


def show_fits(rows: list[dict[str, Any]], console: Console) -> None:
    """Print medians over seeds with ranges. Adam has the best learning rate of each seed."""

    def kind(row: dict[str, Any]) -> str:
        return "captured SVI, best rate" if row["best_adam"] else str(row["run"])

    table = Table("run", "iterations", "seconds", "seconds each", "ratio of iterations", "ratio of seconds")
    seeds = {row["seed"] for row in rows}
    kinds = list(dict.fromkeys(kind(row) for row in rows if not kind(row).startswith("Adam")))
    held = {k: {row["seed"]: row for row in rows if kind(row) == k} for k in kinds}
    ours = held["trust region"]
    for k in kinds:
        cells = [[held[k][s][c] for s in seeds] for c in ("iterations", "seconds", "seconds_per_iteration")]
        ratios = [[held[k][s][c] / ours[s][c] for s in seeds] for c in ("iterations", "seconds")]
        table.add_row(k, *(spread(c) for c in cells + ratios))
    console.print(table)


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def gradients(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per gradient of one galaxy's log density, [us]."""
    patch, _ = simulate(1, size=options.size)
    given = Problem(poutine.condition(Celeste(load_prior()), {"is_star": torch.zeros(1)}), (patch,))
    density = log_density(given, compile="never")
    layout = density.layout
    one = layout.unconstrain(problem(patch).start)[None]
    many = one + 0.01 * torch.randn(CHAINS, density.dim, generator=torch.Generator().manual_seed(0)).to(one)
    potential = initialize_model(given.model, given.args, max_plate_nesting=2)[1]
    sites = {s.name: one[0, s.start : s.stop].reshape(s.unconstrained_shape) for s in layout.sites}
    expected = torch.cat([potential_grad(potential, sites)[0][s.name].reshape(-1) for s in layout.sites])
    torch.testing.assert_close(density.value_and_grad(one)[1][0], -expected, rtol=1e-9, atol=1e-9)

    def repeated(n: int) -> TypedDensity:
        return TypedDensity(Patch(*(t.expand(n, *t.shape) for t in patch)), load_prior(), star=False)

    order = ("offset", "log_radius", "ellipticity", "dev_logit", "log_flux", "colour")

    def by_hand(z: Tensor) -> Tensor:
        values = layout.constrain(z)
        return torch.cat([values[name].reshape(len(z), -1) for name in order], -1)

    typed, typed_many, u, u_many = repeated(1), repeated(CHAINS), by_hand(one), by_hand(many)

    def unchecked() -> None:
        with pyro.validation_enabled(False):
            potential_grad(potential, sites)

    contenders: dict[str, tuple[Callable[[], Any], int]] = {
        "Pyro potential_fn": (lambda: potential_grad(potential, sites), 1),
        "Pyro, validation off": (unchecked, 1),
        "captured, 1 chain": (lambda: density.value_and_grad(one), 1),
        f"captured, {CHAINS} chains": (lambda: density.value_and_grad(many), CHAINS),
        "by hand, 1 chain": (lambda: typed.value_and_grad(u), 1),
        f"by hand, {CHAINS} chains": (lambda: typed_many.value_and_grad(u_many), CHAINS),
        f"by hand, {CHAINS} chains, Hessian too": (lambda: typed_many.value_grad_hessian(u_many), CHAINS),
    }
    if options.compile == "always":
        compiled = log_density(given, compile="always")
        compiled.value_and_grad(one), compiled.value_and_grad(many)
        print(f"compiled in {compiled.compile_seconds:.1f} s {compiled.notes or ''}")
        contenders["compiled, 1 chain"] = (lambda: compiled.value_and_grad(one), 1)
        contenders[f"compiled, {CHAINS} chains"] = (lambda: compiled.value_and_grad(many), CHAINS)
    rows = []
    for call, _ in contenders.values():
        call()
    for repeat in range(options.repeats):
        for name, (call, number) in contenders.items():
            began = time.perf_counter()
            call()
            each = (time.perf_counter() - began) / number
            rows.append({"repeat": repeat, "run": name, "microseconds": round(each * 1e6, 1)})
    return rows


def show_gradients(rows: list[dict[str, Any]], console: Console) -> None:
    """Print medians over repeats with ranges."""
    table = Table("one galaxy", "microseconds per gradient", "times faster than Pyro")
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["run"], []).append(row["microseconds"])
    reference = statistics.median(times["Pyro potential_fn"])
    for name, found in times.items():
        table.add_row(name, spread(found), f"{reference / statistics.median(found):.1f}")
    console.print(table)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a CSV table, first under a temporary name."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fits", "gradients"))
    parser.add_argument("--sources", type=int, default=1, help="in one patch (fits)")
    parser.add_argument("--seeds", type=int, default=5, help="of patches (fits)")
    parser.add_argument("--size", type=int, default=21, help="of a patch [px]")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.03, 0.01], help="of Adam")
    parser.add_argument("--budget", type=int, default=3000, help="iterations of Adam")
    parser.add_argument("--watched", type=int, default=50, help="iterations of Pyro's SVI that are run")
    parser.add_argument("--iterations", type=int, default=100, help="of the trust region")
    parser.add_argument("--krylov", action="store_true", help="Hessian-vector products too (slow)")
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="never")
    parser.add_argument("--repeats", type=int, default=15, help="(gradients)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV of every run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)  # for Pyro's side: it takes Python numbers in the default dtype
    run, show = (fits, show_fits) if options.what == "fits" else (gradients, show_gradients)
    rows = run(options)
    show(rows, Console(width=150))
    if options.out is not None:
        write(rows, options.out)


if __name__ == "__main__":
    main()
