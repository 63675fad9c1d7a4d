"""Many-chain Hamiltonian Monte Carlo on the captured log density.

Discrete sites are summed out, and drawn from their exact conditional afterwards. If they have more than
:data:`ENUMERATED` joint assignments, they are coordinates at the end of each position instead. These have no
momentum and are constant along a trajectory. After it each is drawn given all others (Gibbs).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from astrozoo.checkpoint import Checkpoint
from astrozoo.density import log_density
from astrozoo.infer import _chart, _metric
from astrozoo.infer._adaptation import (
    LONGEST_STEP,
    begin_length,
    begin_step,
    dual_average,
    final_length,
    follow_length,
    pooled,
    rescued,
)
from astrozoo.infer._hmc_state import HMCState
from astrozoo.infer._metric import Structure
from astrozoo.infer._microcanonical import microcanonical
from astrozoo.infer._operators import Metric
from astrozoo.infer._structure import structure_for
from astrozoo.infer._trajectory import Chains, Dynamics, gibbs, normals, transition, uniforms
from astrozoo.infer.convergence import e_bfmi, ensemble_status
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.options import HMCSettings, MCLMCSettings, RunOptions
from astrozoo.infer.progress import Report, progress_bar
from astrozoo.infer.recorder import DrawsOnDisk, Recorder
from astrozoo.infer.results import by_chain, constrained, finish
from astrozoo.infer.starts import chain_starts, start_points
from astrozoo.objective import Density
from astrozoo.types import Problem, Result, Status

__all__ = ["hmc"]

WINDOWS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Fractions of the warm-up at which the mass matrix is re-estimated, each from the draws since the last."""
EARLY = WINDOWS[3]
"""Fraction of the warm-up in which each chain has its own step size. With a common step size, a chain far
from the others would be stuck there, because it needs a smaller one."""
EARLY_STEPS = 16
"""Most steps of a trajectory in that part of the warm-up. The number of steps is the same for all chains. It
is also limited to what takes half of the chains through half a period of the chart's normal."""
JITTER = 0.4
"""Largest relative deviation of a step size from its mean. Step sizes, and with them the lengths of
trajectories, are drawn uniformly, so that no trajectory returns to its start every time."""
ROWS = 8192
"""Most draws of a window from which the mass matrix is estimated. The last draws are used."""
WINDOW_ELEMENTS = 2**23
"""Most numbers in the positions of these draws: 67 MB in double precision, and as much again for the
gradients. For 130,000 dimensions these are 64 draws, which suffice for a diagonal and 16 directions."""
ENUMERATED = 64
"""Most joint assignments of discrete sites (those of six binary sites) that are summed out at every step.
With more, discrete sites are drawn by Gibbs steps."""
_START = 0
"""Stream of the random numbers of the chains' starts."""
_RESCUE = 9
"""Stream of the random numbers that choose the chain whose position a stranded chain takes."""


@dataclass(frozen=True)
class _Plan:
    """The length and the settings of a run, as the iterations need them."""

    seed: int
    draws: int
    warmup: int
    settings: HMCSettings
    structure: Structure

    @property
    def target(self) -> float:
        """Mean that the step size gives "acceptance_rate" (:func:`transition`)."""
        return self.settings.target_acceptance if self.energy_error is None else 0.5

    @property
    def dynamics(self) -> Dynamics | None:
        if not isinstance(self.settings, MCLMCSettings):
            return None
        turning = None if self.settings.adjusted else self.settings.least_length
        return partial(microcanonical, turning=turning)

    @property
    def energy_error(self) -> float | None:
        """Of draws without a Metropolis test."""
        if not isinstance(self.settings, MCLMCSettings) or self.settings.adjusted:
            return None
        return self.settings.energy_error

    def early(self, iteration: int) -> bool:
        return iteration < int(EARLY * self.warmup)


def _advance(chains: Chains, state: HMCState, plan: _Plan) -> None:
    """One iteration of warm-up or sampling."""
    n, warming = state.iteration, state.iteration < plan.warmup
    early = plan.early(n)
    step = state.log_step.exp()
    u = int(f"{n % 1024:010b}"[::-1], 2) / 1024  # van der Corput's sequence
    fraction = 1 - JITTER + 2 * JITTER * u
    if early:
        half_periods = (math.pi / step.median(1).values).tolist()
        steps = [1 + int(u * min(EARLY_STEPS, x)) for x in half_periods]
    else:
        exact = (state.length[0].exp() / step[:, 0]).clamp(1, plan.settings.max_steps)
        steps = [round(x) for x in exact.tolist()]
        step = step * fraction
    before = state.position
    out = transition(
        chains, before, state.value, state.gradient, state.chart, step, steps, plan.seed, n,
        plan.dynamics, plan.energy_error,
    )  # fmt: skip
    end, momentum = out.pop("end"), out.pop("momentum")
    state.gradients += max(steps)
    if chains.choices:
        gibbs(chains, out, plan.seed, n)
        state.gradients += 1
    state.position, state.value, state.gradient = out["position"], out["lp"], out["gradient"]
    state.iteration = n + 1
    if not warming:
        state.record(out)
        return
    acceptance = out["acceptance_rate"]
    if not early:
        travelled = step[:, 0] * step.new_tensor(steps)
        state.length = follow_length(
            state.length,
            state.chart.coordinates(before),
            state.chart.coordinates(end),
            momentum,
            acceptance,
            travelled,
            plan.settings.least_length,
        )
        acceptance = pooled(acceptance)
    state.log_step, state.averaging = dual_average(state.averaging, acceptance, plan.target)
    _learn(chains, state, plan)


def _learn(chains: Chains, state: HMCState, plan: _Plan) -> None:
    """Keep the draw for the mass matrix, and re-estimate that at the end of a window."""
    state.window.append((state.position, state.gradient))
    most = min(ROWS // state.position.shape[1], WINDOW_ELEMENTS // state.position.numel())
    del state.window[: -max(2, most)]
    ends = [int(fraction * plan.warmup) for fraction in WINDOWS]
    if state.iteration in ends and len(state.window) > 1:
        discrete = len(chains.choices)
        d = state.position.shape[2] - discrete
        x, g = (torch.stack(column, 2).flatten(1, 2)[..., :d] for column in zip(*state.window, strict=True))
        metric, early = _metric.updated(state.chart.metric, x, g, plan.structure), plan.early(state.iteration)
        state.chart = _chart.padded(_chart.flat(metric) if early else _chart.bent(metric, x, g), discrete)
        state.window = []
        if not early:
            _rescue(state, plan, d)
        _first_step(chains, state, plan)
    if state.iteration == plan.warmup:
        state.log_step, state.length, state.window = state.averaging[3], final_length(state.length), []
        state.warmup_gradients = state.gradients


def _rescue(state: HMCState, plan: _Plan, d: int) -> None:
    """Move chains that are stranded far below the others to the position of another chain."""
    u = uniforms(plan.seed, _RESCUE, state.iteration, shape=state.value.shape[1:], like=state.value)
    chosen = rescued(state.value, d, u)
    state.rescued += int((chosen != torch.arange(len(u), device=u.device)).sum())
    rows = chosen[..., None].expand_as(state.position)
    state.position, state.gradient = state.position.gather(1, rows), state.gradient.gather(1, rows)
    state.value = state.value.gather(1, chosen)


def _first_step(chains: Chains, state: HMCState, plan: _Plan) -> None:
    """Choose the first step size: halved from the longest until a single step is accepted often enough."""
    early = plan.early(state.iteration)
    step = torch.full_like(state.log_step, LONGEST_STEP)
    one = [1] * len(step)
    for _ in range(40):
        state.gradients += 1
        tried = transition(
            chains, state.position, state.value, state.gradient, state.chart, step, one,
            plan.seed, state.iteration, plan.dynamics, plan.energy_error,
        )  # fmt: skip
        acceptance = tried["acceptance_rate"]
        poor = (acceptance if early else pooled(acceptance)) < plan.target
        if not poor.any():
            break
        step = torch.where(poor, step / 2, step)
    state.log_step = step.log()
    state.averaging = begin_step(step)


def _begin(
    target: Density, chains: Chains, recorder: Recorder, run: RunOptions, plan: _Plan, first: Metric | None
) -> HMCState:
    """The state before the first step. The metric is ``first``, that of ``precondition``, or the identity."""
    problems, count, start = target.batch or 1, run.chains, run.start
    precondition: Result | None = plan.settings.precondition
    d, discrete = target.layout.dim, len(target.choices)
    like: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
    fresh = start is None and precondition is None
    defaults = chain_starts(target, count, plan.seed) if fresh or discrete else None
    if precondition is not None:
        metric: Metric = _metric.of_result(precondition, problems, d, like)
    if start is not None:
        q = start_points(start, target, problems * count, d).view(problems, count, d)
    elif precondition is not None:
        e = normals(plan.seed, _START, like=torch.empty(problems, count, d, **like))
        q = metric.centre[:, None] + metric.velocity(e)
    if defaults is not None:
        q = defaults if fresh else torch.cat((q, defaults[..., d:]), -1)
    if first is not None:
        metric = first
    elif precondition is None:
        metric = _metric.identity(q[..., :d].mean(1), plan.structure)
    value, gradient = chains(q)
    bad = ~(value.isfinite() & gradient.isfinite().all(-1))
    if bad.any():
        b, c = bad.nonzero()[0].tolist()
        raise target.undefined_at(q[0], c) if target.batch is None else target.undefined_at(q[:, c], b)
    step = torch.full((problems, count), LONGEST_STEP, **like)
    state = HMCState(
        q, value, gradient, _chart.padded(_chart.flat(metric), discrete), recorder, step.log(),
        begin_step(step), begin_length(problems, plan.settings.least_length, step),
    )  # fmt: skip
    _first_step(chains, state, plan)
    return state


def hmc(
    problem: Problem,
    run: RunOptions,
    settings: HMCSettings,
    *,
    density: Density | None = None,
    metric: Metric | None = None,
) -> Result:
    """Sample the posterior with all chains of all problems moving together.

    * Integrator: split steps. The motion in the normal of the mass matrix is exact, and only the difference
      between the gradient and that normal's changes the momentum. If the posterior is nearly normal, one or
      two steps of up to ``LONGEST_STEP`` make an independent draw.
    * Step size: by dual averaging of the harmonic mean of the acceptance rates of a problem's chains.
    * Mass matrix and centre: estimated from the draws and gradients of all chains, at ``WINDOWS`` of the
      warm-up. The matrix is dense up to ``DENSE_LIMIT`` dimensions. Above that it is a diagonal with a few
      directions corrected. Dense ones are bent along one direction (:mod:`astrozoo.infer._chart`).
    * Length of trajectories: the length with the largest rate of ChEES, but at least that of a whitened
      Gaussian. It is jittered by ``JITTER``, equally in all chains.
    * Stranded chains: during the warm-up a chain far below the others moves to the position of another chain.
      ``stats`` counts these.
    * Discrete sites: summed out and then drawn, or above ``ENUMERATED`` joint assignments drawn one by one
      after each trajectory. ``stats`` says which.

    All problems of a batch use the same random numbers, so that a problem does not depend on its neighbours.
    The random numbers of a chain do not depend on the number of chains.

    Draws may be thinned, restricted to some sites, summarised, and written to disk
    (:class:`~astrozoo.infer.options.HMCSettings`). R-hat and moments are always those of all draws.

    Above ``DENSE_LIMIT`` dimensions a covariance from ``precondition`` is not replaced. Each window then
    estimates a correction in the coordinates that this covariance and the earlier corrections whiten.

    Args:
        density: of the problem, if it has been captured before. Its graphs are used again.
        metric: the first mass matrix, of the continuous coordinates, where an earlier stage estimated one.

    Returns:
        a Result. It is converged by the rule of :mod:`astrozoo.infer.convergence`, and if fewer than 1 % of
        the trajectories diverge. ``stats`` has the smallest E-BFMI of the chains of each problem (below 0.3
        is a warning).

    Raises:
        InputError: for a start or precondition of the wrong shape, a covariance that is not positive
            definite, a metric that does not suit the problem, or a start without a finite density (naming
            the site).
        UnknownNameError: for a site of ``metric`` that the model does not have.

    References:
        Shahbaba et al. 2014 (split steps); Hoffman & Gelman 2014 (step size); Hoffman, Radul & Sountsov 2021
        (many chains); Seyboldt, Carlson & Carpenter 2026 (mass matrix); Betancourt 2016, arXiv 1604.00695
        (E-BFMI).
    """
    began = time.monotonic()
    target = density or log_density(problem, compile=run.compile, most_assignments=ENUMERATED)
    structure = structure_for(problem, settings.metric, target.layout)
    plan = _Plan(run.seed, run.draws, settings.warmup, settings, structure)
    header: dict[str, Any] = {"chains": run.chains, "warmup": settings.warmup}
    header |= {"target": settings.target_acceptance, "max_steps": settings.max_steps}
    header |= {"thin": settings.thin, "keep": run.keep, "summaries": settings.summaries}
    header |= {"metric": structure.blocks, "least_length": settings.least_length}
    content = {"precondition": settings.precondition, "metric": structure.outer}
    name = "mclmc" if plan.dynamics is not None else "hmc"
    header |= {"energy_error": plan.energy_error}
    checkpoint = run_checkpoint(run, problem, name, content=content, **header)
    saved = checkpoint.load()
    chains = Chains(target, problem.batch or 1, run.chains)
    recorder = _recorder(problem, target, run, settings)
    if saved is None:
        state = _begin(target, chains, recorder, run, plan, metric)
    else:
        state = HMCState.restored(saved, target.device, recorder, structure.outer)
    with progress_bar(name, settings.warmup + run.draws, run.progress) as report:
        early_end = _run(chains, state, plan, run.budget, checkpoint, report)
    checkpoint.save(state.arrays())
    return _result(problem, target, state, run, early_end, began, name, plan.energy_error is None)


def _run(
    chains: Chains,
    state: HMCState,
    plan: _Plan,
    budget: int | None,
    checkpoint: Checkpoint,
    report: Report,
) -> Status | None:
    """Iterate until all draws are made. Returns the status of a run that ends earlier, else None."""
    try:
        while state.iteration < plan.warmup + plan.draws:
            if budget is not None and state.gradients >= budget:
                return Status.BUDGET_SPENT
            _advance(chains, state, plan)
            phase = "warm-up" if state.iteration <= plan.warmup else "sampling"
            report(state.iteration, f"{phase}, step {state.log_step.exp().mean():.3g}")
            if checkpoint.due:
                checkpoint.save(state.arrays())
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    return None


def _result(
    problem: Problem,
    target: Density,
    state: HMCState,
    run: RunOptions,
    early_end: Status | None,
    began: float,
    name: str,
    tested: bool,
) -> Result:
    """The result of the method of that name, whose draws were ``tested`` (Metropolis) or not."""
    batched = problem.batch is not None
    count = state.recorder.count
    columns = {name: rows[:count].movedim(0, 2) for name, rows in state.drawn.items()}  # [B, C, draw, ...]
    discrete = columns.pop("discrete")
    fields = state.recorder.finished(state.position)
    if early_end is not None:
        statuses = [early_end] * len(discrete)
    else:
        unseen = None if state.recorder.keep is None else state.recorder.split_r_hat()
        statuses = ensemble_status(fields["draws"], batched, columns["diverging"], unseen)
    chains = discrete.shape[1]
    own = {"e_bfmi": e_bfmi(columns["energy"]).amin(1).tolist()}
    if name != "hmc":
        del columns["energy"]  # that of HMC, with a momentum that other dynamics do not have
        own = {}
    if not tested:
        del columns["acceptance_rate"]  # a control of the step size
    return finish(
        problem,
        target,
        method=name,
        run=run,
        statuses=statuses,
        began=began,
        sample_stats={name: by_chain(x.flatten(1, 2), chains, batched) for name, x in columns.items()},
        stats={
            "rescued_chains": state.rescued,
            **own,
            "length": state.length[0].exp().tolist(),
            "step_size": state.log_step.exp().mean(1).tolist(),
            "gradients_per_chain": state.gradients,
            "warmup_gradients": state.warmup_gradients,
            "discrete_summed_out": target.summed_out,
            "discrete_by_gibbs": target.in_vector,
        },
        **fields,
    )


def _recorder(problem: Problem, target: Density, run: RunOptions, settings: HMCSettings) -> Recorder:
    """The recorder that the settings describe."""
    disk = None
    if settings.stream is not None:
        header = {"digest": problem.digest, "seed": run.seed, "chains": run.chains, "draws": run.draws}
        disk = DrawsOnDisk(settings.stream, header | {"thin": settings.thin})
    return Recorder(
        lambda z, first: constrained(target, z, run.seed, *((first,) if first else ())),
        problem.batch or 1,
        run.chains,
        run.draws,
        target.layout.dim,
        problem.batch is not None,
        thin=settings.thin,
        keep=None if run.keep is None else tuple(run.keep),
        summarise=settings.summaries,
        disk=disk,
        dtype=target.dtype,
    )
