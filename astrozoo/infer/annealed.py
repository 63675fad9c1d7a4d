"""Annealing: chains follow the posterior while noise that was added to the data falls to 0.

At the noise level ``sigma``, in units of the noise of the data, the log density is

    log prior + beta log likelihood,    beta = 1 / (1 + sigma^2)

For normal data that is the posterior of data whose noise variance is larger by ``1 + sigma^2``, up to a
constant. At large ``sigma`` it is nearly the prior, from which chains start. Where the posterior has several
modes, chains reach them in proportion to their weights at the levels at which they still communicate.

Discrete sites that are summed out are in the prior and in the likelihood, so that the levels are a
geometric path between the two densities of the continuous latents.

References:
    Neal 2001, Stat. Comput. 11, 125 (the path); Song & Ermon 2019, arXiv 1907.05600 (levels of noise);
    Remy et al. 2022, A&A 672, A51 (annealed Hamiltonian chains of mass maps).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._prior import prior_density, prior_draws
from astrozoo.checkpoint import Checkpoint
from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.infer import _chart, _metric
from astrozoo.infer._adaptation import LONGEST_STEP, pooled
from astrozoo.infer._chart import Chart
from astrozoo.infer._metric import Structure
from astrozoo.infer._search import beside
from astrozoo.infer._structure import structure_for
from astrozoo.infer._trajectory import Chains, gibbs, transition
from astrozoo.infer.hmc import ENUMERATED, JITTER, hmc
from astrozoo.infer.identity import StagedRun, run_checkpoint
from astrozoo.infer.options import AnnealedSettings, HMCSettings, RunOptions
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.starts import chain_starts, start_points
from astrozoo.objective import Density
from astrozoo.types import Problem, Result

__all__ = ["annealed"]

FIRST_DRAWS = 24
"""Fewest draws of the prior from which the first mass matrix is estimated: two groups of chains or more. A
diagonal is then known to 15 %."""
POOR = 0.3
"""The step size of a level is halved when the control of the energy error (:func:`transition`) falls below
this. It is a half where the squared error is at its limit. At 0.3 the error is over twice the limit."""
_STREAM = 10**6
"""First iteration number of the annealing. Those of the stage at level 0 are below."""
_START = 60
"""Stream of the random numbers of the draws of the prior."""


class _Tempered:
    """``prior + beta (posterior - prior)``, as far as chains use a density."""

    def __init__(self, prior: Density, target: Density, beta: float) -> None:
        self.prior, self.target, self.beta = prior, target, beta
        self.device, self.choices = target.device, target.choices

    def take(self, rows: Tensor) -> _Tempered:
        taken = copy(self)
        taken.prior, taken.target = self.prior.take(rows), self.target.take(rows)
        return taken

    def value_and_grad(self, z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        whole, prior = self.target.value_and_grad(z), self.prior.value_and_grad(z)
        value, gradient = (x + self.beta * (y - x) for x, y in zip(prior, whole, strict=True))
        return value, gradient

    def values(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 1"]:
        prior = self.prior.values(z)
        return prior + self.beta * (self.target.values(z) - prior)


@dataclass
class _State:
    """Chains between two levels.

    Args:
        window: positions from which the next mass matrix is estimated.
        chart: None before the first level.
        gradients: of each chain so far.
    """

    level: int
    position: Float[Tensor, "B C d"]
    window: list[Float[Tensor, "B C d"]]
    chart: Chart | None = None
    gradients: int = 0


def annealed(problem: Problem, run: RunOptions, settings: AnnealedSettings) -> Result:
    """Sample the posterior with chains that come from the prior through levels of noise.

    1. Chains start from draws of the prior (of a model that has none, from the problem's start).
    2. At each level above 0 they make ``trajectories`` Hamiltonian trajectories without a Metropolis test:
       of many dimensions a test would accept none until a chain is in the typical set. The step size has a
       squared energy error of ``energy_error`` per dimension.
    3. Between levels the mass matrix is estimated from positions of the last level and gradients of the next,
       and the whitened coordinates of the chains are kept. Of a normal posterior that is an exact transport.
    4. At level 0 chains are those of :func:`astrozoo.infer.hmc.hmc`, with its test. The draws have no bias.

    Args:
        run: ``draws``, ``chains``, ``budget`` and ``keep`` are those of HMC. Each stage keeps a checkpoint of
            its own beside ``checkpoint``: ``NAME.levels.npz`` and ``NAME.hmc.npz``.

    Returns:
        the Result of the last stage. ``stats["levels"]`` has the noise levels, and the step size and the
        gradients of a chain at each.

    Raises:
        InputError: for a ``precondition``, which the levels have no use for; and as
            :func:`~astrozoo.infer.hmc.hmc`.
        UnknownNameError: as :func:`~astrozoo.infer.hmc.hmc`.
    """
    if settings.precondition is not None:
        raise InputError(
            "precondition", "a Result", "none with method 'annealed', which estimates its metric"
        )
    began = time.monotonic()
    options: dict[str, Any] = {"compile": run.compile, "most_assignments": ENUMERATED}
    target = log_density(problem, **options)
    structure = structure_for(problem, settings.metric, target.layout)
    states, levels = _levels(problem, target, prior_density(problem, **options), structure, run, settings)
    last = time.monotonic()
    budget = None if run.budget is None else max(1, run.budget - states.gradients)
    assert states.chart is not None
    d = target.layout.dim
    hmc_run = StagedRun.of(
        run,
        start=states.position[..., :d].flatten(0, 1),
        budget=budget,
        checkpoint=beside(run.checkpoint, "hmc"),
    )
    names = HMCSettings.__dataclass_fields__
    result = hmc(
        problem,
        hmc_run,
        HMCSettings(**{name: getattr(settings, name) for name in names}),
        density=target,
        metric=_continuous(states.chart, d),
    )
    stats = {
        "levels": levels,
        "annealing_seconds": last - began,
        "gradients_per_chain": result.stats["gradients_per_chain"] + states.gradients,
        "warmup_gradients": result.stats["warmup_gradients"] + states.gradients,
    }
    return replace(result, method="annealed", stats={**result.stats, **stats})


def _levels(
    problem: Problem,
    target: Density,
    prior: Density,
    structure: Structure,
    run: RunOptions,
    settings: AnnealedSettings,
) -> tuple[_State, list[dict[str, float]]]:
    """The chains after the last level above 0, and a row for each level."""
    header = {name: getattr(settings, name) for name in ("noise", "levels", "trajectories", "energy_error")}
    header |= {"chains": run.chains, "max_steps": settings.max_steps, "least_length": settings.least_length}
    header |= {"metric": structure.blocks}
    checkpoint = run_checkpoint(
        replace(run, checkpoint=beside(run.checkpoint, "levels")),
        problem,
        "annealed",
        content={"metric": structure.outer},
        **header,
    )
    sigmas = [settings.noise / 2**i for i in range(settings.levels)]
    state, rows = _restored(checkpoint, target, structure) or (None, [])
    if state is None:
        state = _first(problem, target, prior, run, 1 / (1 + sigmas[0] ** 2))
    with progress_bar("annealed", settings.levels * settings.trajectories, run.progress) as report:

        def step_done(k: int) -> None:
            report(state.level * settings.trajectories + k + 1, f"noise {sigmas[state.level]:.3g}")

        while state.level <= settings.levels:
            sigma = sigmas[state.level] if state.level < settings.levels else 0.0
            density: Any = _Tempered(prior, target, 1 / (1 + sigma**2))
            chains = Chains(density, *state.position.shape[:2])
            before = state.gradients
            _enter(chains, state, structure)
            if sigma > 0:
                step = _sample(chains, state, run.seed, settings, step_done)
                rows.append({"noise": sigma, "step_size": step, "gradients": state.gradients - before})
            state.level += 1
            _save(checkpoint, state, rows)
    return state, rows


def _first(problem: Problem, target: Density, prior: Density, run: RunOptions, beta: float) -> _State:
    """Chains at draws of the prior, and further draws for the mass matrix."""
    problems, count, d = problem.batch or 1, run.chains, target.layout.dim
    discrete = len(target.choices)
    if run.start is not None:
        q = start_points(run.start, target, problems * count, d).view(problems, count, d)
        if discrete:
            q = torch.cat((q, chain_starts(target, count, run.seed)[..., d:]), -1)
        return _State(0, q, [q])
    groups = max(2, -(-FIRST_DRAWS // count))
    drawn = prior_draws(problem, target.layout, groups * count, generator_for(run.seed, _START))
    own = chain_starts(target, count, run.seed)
    if drawn is None:
        return _State(0, own, [own])
    tempered: Any = _Tempered(prior, target, beta)
    chains = Chains(tempered, problems, count)
    window = []
    for z in drawn.to(own).split(count, 1):
        q = torch.cat((z, own[..., d:]), -1)
        value, gradient = chains(q)
        sound = value.isfinite() & gradient.isfinite().all(-1)
        window.append(torch.where(sound[..., None], q, own))
    return _State(0, window[0], window, gradients=groups)


def _enter(chains: Chains, state: _State, structure: Structure) -> None:
    """Estimate the mass matrix of a level, and move the chains there with their whitened coordinates."""
    discrete = len(chains.choices)
    d = state.position.shape[2] - discrete
    old, rows = state.chart, state.window
    if len(rows) * rows[0].shape[1] > 1 and len(rows) > 1:
        gradients = [chains(q)[1] for q in rows]
        state.gradients += len(rows)
        x, g = (torch.stack(part, 2).flatten(1, 2)[..., :d] for part in (rows, gradients))
        metric = _metric.estimated(x, g, structure)
    else:
        metric = _metric.identity(state.position[..., :d].mean(1), structure)
    state.chart = _chart.padded(_chart.flat(metric), discrete)
    state.window = []
    if old is None:
        return
    u = old.coordinates(state.position)
    rest = state.position - old.position(u)  # coordinates that never move
    moved = state.chart.position(u) + rest
    state.gradients += 2
    there, here = chains(moved), chains(state.position)
    better = there[0].isfinite() & there[1].isfinite().all(-1) & ~(there[0] < here[0])
    state.position = torch.where(better[..., None], moved, state.position)


def _sample(
    chains: Chains,
    state: _State,
    seed: int,
    settings: AnnealedSettings,
    step_done: Callable[[int], None],
) -> float:
    """The trajectories of a level. Returns the mean step size."""
    chart, q = state.chart, state.position
    assert chart is not None
    value, g = chains(q)
    first = _STREAM + state.level * (settings.trajectories + 1)

    def tried(step: Tensor, fraction: float, iteration: int) -> dict[str, Tensor]:
        exact = (settings.least_length / step[:, 0]).clamp(1, settings.max_steps)
        steps = [round(x) for x in exact.tolist()]
        state.gradients += max(steps)
        return transition(
            chains, q, value, g, chart, fraction * step, steps, seed, iteration, None, settings.energy_error
        )

    step = torch.full_like(value, LONGEST_STEP)
    for _ in range(40):
        control = pooled(tried(step, 1.0, first)["acceptance_rate"])
        if not (control < 0.5).any():
            break
        step = torch.where(control < 0.5, step / 2, step)
    for k in range(settings.trajectories):
        fraction = 1 - JITTER + 2 * JITTER * (k + 0.5) / settings.trajectories
        out = tried(step, fraction, first + 1 + k)
        if chains.choices:
            gibbs(chains, out, seed, first + 1 + k)
            state.gradients += 1
        q, value, g = out["position"], out["lp"], out["gradient"]
        poor = pooled(out["acceptance_rate"]) < POOR
        step = torch.where(poor, step / 2, step)
        state.window.append(q)
        step_done(k)
    state.position = q
    return float(step.mean())


def _continuous(chart: Chart, d: int) -> _metric.Metric:
    """The metric of the continuous coordinates."""
    metric: Any = chart.metric
    if metric.centre.shape[1] == d:
        return metric
    if isinstance(metric, _metric.Dense):
        return _metric.Dense(metric.centre[:, :d], metric.root[:, :d, :d], metric.inverse[:, :d, :d])
    return metric.parts[0]


def _save(checkpoint: Checkpoint, state: _State, rows: list[dict[str, float]]) -> None:
    assert state.chart is not None
    arrays: dict[str, Any] = {"position": state.position.cpu().numpy(), **_chart.arrays(state.chart)}
    arrays |= {"window": torch.stack(state.window).cpu().numpy()} if state.window else {}
    counts = {"level": state.level, "gradients": state.gradients}
    arrays |= {name: torch.tensor(n).numpy() for name, n in counts.items()}
    table = [[row["noise"], row["step_size"], row["gradients"]] for row in rows]
    checkpoint.save(arrays | {"rows": torch.tensor(table, dtype=torch.float64).numpy()})


def _restored(
    checkpoint: Checkpoint, target: Density, structure: Structure
) -> tuple[_State, list[dict[str, float]]] | None:
    saved = checkpoint.load()
    if saved is None:
        return None
    device = target.device
    window = [torch.as_tensor(x, device=device) for x in saved.get("window", ())]
    state = _State(
        int(saved["level"]),
        torch.as_tensor(saved["position"], device=device),
        window,
        _chart.restored(saved, device, structure.outer),
        int(saved["gradients"]),
    )
    columns = ("noise", "step_size", "gradients")
    return state, [dict(zip(columns, row, strict=True)) for row in saved["rows"].tolist()]
