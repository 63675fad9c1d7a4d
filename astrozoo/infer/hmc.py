"""Many-chain Hamiltonian Monte Carlo on the captured log density.

Discrete sites are summed out, and recovered from their exact conditional. Beyond :data:`ENUMERATED` joint
assignments they are coordinates at the end of each position instead: they have no momentum and stay where
they are along a trajectory, after which each is drawn in turn given all else (Gibbs).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import LogDensity, inverted, log_density
from astrozoo.errors import InputError
from astrozoo.infer._common import (
    Checkpoint,
    by_chain,
    chain_starts,
    ensemble_status,
    finish,
    generator_for,
    progress_bar,
    start_points,
    typed,
)
from astrozoo.types import Problem, Result, Status

__all__ = ["HMCState", "hmc"]

WINDOWS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Fractions of the warm-up at which the mass matrix is re-estimated, each from the draws since the last."""
EARLY, EARLY_STEPS = WINDOWS[2], 32
"""Until this fraction of the warm-up each chain has a step size of its own, so that none is left stuck far
out by a step that suits the others, and trajectories have at most this many steps."""
DIVERGED = 1000.0
"""Energy error of a divergent trajectory."""
DENSE_LIMIT = 200
"""Dimensions up to which the mass matrix is dense."""
ENUMERATED = 64
"""Joint assignments of discrete sites (six binary ones) up to which they are summed out at every step."""
_START, _MASS, _MOMENTUM, _ACCEPT, _GIBBS = range(5)
_DRAWN = ("position", "energy", "acceptance_rate", "diverging", "n_steps", "lp")


@dataclass
class HMCState:
    """Where the ensemble stands: ``B`` problems of ``C`` chains in ``d`` dimensions.

    Args:
        root: ``root root'`` is the inverse mass matrix (a covariance of the posterior).
        log_step, averaging: of each chain (the same in all chains of a problem, once the early warm-up is
            over), and the state of dual averaging.
        window: positions since the mass matrix was last estimated.
        drawn: what has been sampled, per draw.
    """

    position: Float[Tensor, "B C d"]
    root: Float[Tensor, "B d d"]
    log_step: Float[Tensor, "B C"]
    averaging: Float[Tensor, "4 B C"]
    iteration: int = 0
    gradients: int = 0
    window: list[Tensor] = field(default_factory=list)
    drawn: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in _DRAWN})
    value: Tensor | None = None
    gradient: Tensor | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        held = {n: getattr(self, n).cpu().numpy() for n in ("position", "root", "log_step", "averaging")}
        held |= {"iteration": np.asarray(self.iteration), "gradients": np.asarray(self.gradients)}
        held |= {f"drawn_{name}": np.asarray(rows) for name, rows in self.drawn.items()}
        if self.window:
            held["window"] = torch.stack(self.window).cpu().numpy()
        return held

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> HMCState:
        """From a checkpoint."""
        held = {
            n: torch.as_tensor(arrays[n], device=device)
            for n in ("position", "root", "log_step", "averaging")
        }
        window = [torch.as_tensor(row, device=device) for row in arrays.get("window", ())]
        drawn = {name: list(arrays[f"drawn_{name}"]) for name in _DRAWN}
        return cls(
            **held,
            iteration=int(arrays["iteration"]),
            gradients=int(arrays["gradients"]),
            window=window,
            drawn=drawn,
        )


class _Density:
    """The log density of every chain of every problem: ``[B, C, d] -> [B, C], [B, C, d]``."""

    def __init__(self, objective: LogDensity, problems: int, chains: int) -> None:
        rows = torch.arange(problems, device=objective.device).repeat_interleave(chains)
        self.objective = objective.take(rows)
        self.choices = objective.choices

    def __call__(self, q: Float[Tensor, "B C d"]) -> tuple[Tensor, Tensor]:
        value, gradient = self.objective.value_and_grad(q.flatten(0, 1))
        good = value.isfinite() & gradient.isfinite().all(1)
        value = torch.where(good, value, -torch.inf)
        return value.view(q.shape[:2]), torch.where(good[:, None], gradient, 0.0).view(q.shape)

    def values(self, q: Float[Tensor, "B C d"]) -> Float[Tensor, "B C"]:
        """Without the gradient; no density where it is undefined."""
        value = self.objective.values(q.flatten(0, 1))[:, 0].view(q.shape[:2])
        return torch.where(value.isfinite(), value, -torch.inf)


@dataclass(frozen=True)
class _Settings:
    seed: int
    warmup: int
    draws: int
    target: float
    max_steps: int


def _leapfrog(
    density: _Density, state: HMCState, r: Tensor, step: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``steps`` steps of length ``step``, both ``[B, C]``: position, momentum, value, gradient."""
    q, value, g = state.position, state.value, state.gradient
    assert value is not None  # set before the first transition
    assert g is not None
    for k in range(int(steps.max())):
        e = torch.where(k < steps, step, 0.0)[..., None]
        r = r + e / 2 * (g @ state.root)
        q = q + e * (r @ state.root.mT)
        value, g = density(q)
        r = r + e / 2 * (g @ state.root)
    return q, r, value, g


def _transition(
    density: _Density, state: HMCState, step: Tensor, steps: Tensor, seed: int
) -> dict[str, Tensor]:
    """One trajectory and its Metropolis test, the same random numbers in every problem."""
    B, C, d = state.position.shape
    like: dict[str, Any] = {"dtype": state.position.dtype, "device": "cpu"}
    r = torch.stack(
        [
            torch.randn(d, generator=generator_for(seed, _MOMENTUM, c, state.iteration), **like)
            for c in range(C)
        ]
    ).to(state.position.device)
    u = torch.rand(C, generator=generator_for(seed, _ACCEPT, state.iteration), **like).to(r.device)
    r = r.expand(B, C, d)
    q, r_new, value, g = _leapfrog(density, state, r, step, steps)
    assert state.value is not None
    assert state.gradient is not None
    before = state.value - r.square().sum(-1) / 2
    change = (value - r_new.square().sum(-1) / 2) - before
    change = torch.where(change.isnan(), -torch.inf, change)
    accept = u.log() < change
    return {
        "position": torch.where(accept[..., None], q, state.position),
        "gradient": torch.where(accept[..., None], g, state.gradient),
        "lp": torch.where(accept, value, state.value),
        "energy": -before,
        "acceptance_rate": change.exp().clamp_max(1.0),
        "diverging": change < -DIVERGED,
        "n_steps": steps,
    }


def _gibbs(density: _Density, out: dict[str, Tensor], seed: int, iteration: int) -> None:
    """Every discrete coordinate in turn from its exact conditional, in place."""
    choices, q, value = density.choices, out["position"], out["lp"]
    uniform = torch.rand(
        len(choices), q.shape[1], generator=generator_for(seed, _GIBBS, iteration), dtype=q.dtype
    ).to(q.device)
    for k, u, at in zip(choices, uniform, range(q.shape[2] - len(choices), q.shape[2]), strict=True):
        tried = q.repeat(k, 1, 1, 1)
        tried[..., at] = (tried[..., at] + torch.arange(k, device=q.device)[:, None, None]) % k
        log_p = torch.stack([value, *map(density.values, tried[1:])])
        chosen = inverted(log_p, u.expand_as(value))[None]
        value = log_p.gather(0, chosen)[0]
        q = tried.gather(0, chosen[..., None].expand(1, *q.shape))[0]
    out["position"] = q
    out["lp"], out["gradient"] = density(q)


def _advance(density: _Density, state: HMCState, settings: _Settings) -> None:
    """One iteration of warm-up or sampling."""
    n, warming = state.iteration, state.iteration < settings.warmup
    step = state.log_step.exp()
    # Half to one and a half quarter periods of a whitened Gaussian, by van der Corput's sequence.
    length = math.pi / 2 * (0.5 + int(f"{n % 1024:010b}"[::-1], 2) / 1024)
    early = warming and n < int(EARLY * settings.warmup)
    steps = (length / step).ceil().clamp(1, EARLY_STEPS if early else settings.max_steps)
    out = _transition(density, state, step, steps, settings.seed)
    gradients = int(steps.max())
    if density.choices:
        _gibbs(density, out, settings.seed, n)
        gradients += 1
    if warming:
        acceptance = _per_problem(out["acceptance_rate"], early)
        log_step, averaging = _dual_average(state.averaging, acceptance, settings.target)
        window = [*state.window, out["position"]]
    else:
        log_step, averaging, window = state.log_step, state.averaging, []
        for name in _DRAWN:
            state.drawn[name].append(out[name].cpu().numpy())
    state.position, state.value, state.gradient = out["position"], out["lp"], out["gradient"]
    state.log_step, state.averaging, state.window = log_step, averaging, window
    state.gradients, state.iteration = state.gradients + gradients, n + 1
    ends = [int(fraction * settings.warmup) for fraction in WINDOWS]
    if warming and state.iteration in ends and len(state.window) > 1:
        discrete = len(density.choices)
        moving = slice(0, state.position.shape[2] - discrete)
        root = _root_of_covariance(torch.stack(state.window, 2).flatten(1, 2)[..., moving])
        state.root = torch.nn.functional.pad(root, (0, discrete, 0, discrete))
        state.window = []
        _first_step(density, state, settings, state.iteration < int(EARLY * settings.warmup))
    if warming and state.iteration == settings.warmup:
        state.log_step, state.window = state.averaging[3], []


def _dual_average(averaging: Tensor, acceptance: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Nesterov's scheme (Hoffman & Gelman 2014, section 3.2): the next log step, and the new state."""
    centre, t, error, mean = averaging
    t = t + 1
    error = (1 - 1 / (t + 10)) * error + (target - acceptance) / (t + 10)
    log_step = centre - t.sqrt() / 0.05 * error
    mean = t**-0.75 * log_step + (1 - t**-0.75) * mean
    return log_step, torch.stack((centre, t, error, mean))


def _per_problem(acceptance: Float[Tensor, "B C"], early: bool) -> Float[Tensor, "B C"]:
    return acceptance if early else acceptance.mean(1, keepdim=True).expand_as(acceptance)


def _first_step(density: _Density, state: HMCState, settings: _Settings, early: bool) -> None:
    """The greatest power of a half whose single leapfrog step is accepted as often as wished."""
    step = torch.ones_like(state.log_step)
    one = torch.ones_like(step, dtype=torch.int64)
    for _ in range(40):
        state.gradients += 1
        tried = _transition(density, state, step, one, settings.seed)
        poor = _per_problem(tried["acceptance_rate"], early) < settings.target
        if not poor.any():
            break
        step = torch.where(poor, step / 2, step)
    state.log_step = step.log()
    zeros = torch.zeros_like(step)
    state.averaging = torch.stack(((2 * step).log(), zeros, zeros, step.log()))


def _root_of_covariance(x: Float[Tensor, "B n d"]) -> Float[Tensor, "B d d"]:
    """Cholesky factor of the covariance, its correlations shrunk where ``n`` is not many times ``d``."""
    n, d = x.shape[1:]
    x = x - x.mean(1, keepdim=True)
    covariance = x.mT @ x / (n - 1)
    diagonal = covariance.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    shrink = 1.0 if d > DENSE_LIMIT else min(1.0, 10 * d / n) ** 4  # of note for short windows only
    correlation = covariance / (diagonal[:, :, None] * diagonal[:, None, :]).sqrt()
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    factor, failed = torch.linalg.cholesky_ex((1 - shrink) * correlation + (shrink + 1e-9) * eye)
    factor = torch.where((failed > 0)[:, None, None], eye, factor)
    return diagonal.sqrt()[..., None] * factor


def _begin(
    density: Any, problems: int, chains: int, start: Any, precondition: Result | None, seed: int
) -> HMCState:
    """Starts, and the mass matrix of ``precondition`` or else the identity."""
    d, discrete = density.layout.dim, len(density.choices)
    like: dict[str, Any] = {"dtype": density.dtype, "device": density.device}
    root = torch.eye(d, **like).expand(problems, d, d)
    if precondition is not None:
        if precondition.covariance is None or precondition.covariance.shape != (problems, d, d):
            got = None if precondition.covariance is None else precondition.covariance.shape
            raise InputError(
                "precondition", f"a result with covariance {got}", f"one of shape {(problems, d, d)}"
            )
        root, failed = torch.linalg.cholesky_ex(torch.as_tensor(precondition.covariance, **like))
        if failed.any():
            raise InputError("precondition", "a covariance that is not positive definite", "one that is")
    fresh = start is None and precondition is None
    own = chain_starts(density, chains, seed) if fresh or discrete else None
    if start is not None:
        q = start_points(start, density, problems * chains, seed, d).view(problems, chains, d)
    elif precondition is not None:
        e = torch.randn(chains, d, generator=generator_for(seed, _START), dtype=density.dtype).to(
            density.device
        )
        q = start_points(precondition, density, problems, seed, d)[:, None] + e @ root.mT
    if own is not None:
        q = own if fresh else torch.cat((q, own[..., d:]), -1)
    zeros = torch.zeros(problems, chains, **like)
    root = torch.nn.functional.pad(root, (0, discrete, 0, discrete))
    return HMCState(q, root, zeros, zeros.expand(4, problems, chains))


def hmc(
    problem: Problem,
    guide: None = None,
    *,
    seed: int = 0,
    draws: int = 250,
    chains: int = 32,
    budget: int | None = None,
    start: Any = None,
    precondition: Result | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    warmup: int = 300,
    target_acceptance: float = 0.8,
    max_steps: int = 256,
) -> Result:
    """Sample the posterior with all chains of all problems moving together.

    Step size: dual averaging of the mean acceptance over a problem's chains. Mass matrix: the covariance of
    the whole ensemble, dense up to ``DENSE_LIMIT`` dimensions, re-estimated at ``WINDOWS`` of the warm-up.
    Length of a trajectory: a quarter period of the whitened posterior, ``pi / 2``, times a factor that runs
    over [0.5, 1.5). Discrete sites: summed out and recovered, or beyond ``ENUMERATED`` joint assignments
    drawn one by one after each trajectory; ``stats`` says which. Every problem sees the same random numbers,
    so it does not depend on its neighbours.

    Args:
        guide: none; here so that all backends are called alike.
        draws: per chain, after the warm-up.
        budget: the most gradients per chain, or None; what was drawn until then is returned.
        start: unconstrained ``[dim]`` or ``[problem, dim]``, or a Result (its location).
        precondition: a Result whose covariance is the first mass matrix; chains then start from
            its Gaussian (unless ``start`` is given).
        target_acceptance: mean acceptance that the step size is adapted to.
        max_steps: leapfrog steps that a trajectory may have.

    Returns:
        a Result; converged where every split R-hat is below 1.05 and fewer than 1 % of trajectories diverge.

    Raises:
        InputError: for a start or precondition of the wrong shape, or no start of finite density.

    References:
        Hoffman & Gelman 2014 (step size); Sountsov & Hoffman 2021 (many chains); Gu et al. 2022 (GIGA-Lens).
    """
    began = time.monotonic()
    target = log_density(problem, compile=compile, most_assignments=ENUMERATED)
    problems = problem.batch or 1
    settings = _Settings(seed, warmup, draws, target_acceptance, max_steps)
    told: dict[str, Any] = {
        "chains": chains,
        "warmup": warmup,
        "target": target_acceptance,
        "max_steps": max_steps,
    }
    saved = Checkpoint(checkpoint, problem, "hmc", seed, **told)
    held = saved.load()
    density = _Density(target, problems, chains)
    if held is None:
        state = _begin(target, problems, chains, start, precondition, seed)
    else:
        state = HMCState.restored(held, target.device)
    with progress_bar("hmc", warmup + draws, progress) as report:
        why = _run(density, state, settings, budget, held is None, lambda: saved.save(state.arrays), report)
    saved.save(state.arrays, now=True)
    return _result(problem, target, state, settings, why, began, throw)


def _run(
    density: _Density,
    state: HMCState,
    settings: _Settings,
    budget: int | None,
    fresh: bool,
    save: Callable[[], None],
    report: Callable[[int, str], None],
) -> Status | None:
    """Until the draws are made; why it ended before, else None."""
    try:
        state.value, state.gradient = density(state.position)
        if not state.value.isfinite().all():
            raise InputError(
                "start", "points of zero or undefined density", "a finite log density at every start"
            )
        if fresh:
            _first_step(density, state, settings, early=True)
        while state.iteration < settings.warmup + settings.draws:
            if budget is not None and state.gradients >= budget:
                return Status.BUDGET_SPENT
            _advance(density, state, settings)
            phase = "warm-up" if state.iteration <= settings.warmup else "sampling"
            report(state.iteration, f"{phase}, step {state.log_step.exp().mean():.3g}")
            save()
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    return None


def _result(
    problem: Problem,
    target: Any,
    state: HMCState,
    settings: _Settings,
    why: Status | None,
    began: float,
    throw: bool,
) -> Result:
    batched = problem.batch is not None
    columns = {}
    for name, rows in state.drawn.items():
        B, C, *rest = state.position.shape if name == "position" else state.position.shape[:2]
        column = np.asarray(rows[: settings.draws]).reshape(-1, B, C, *rest)
        columns[name] = torch.as_tensor(column).movedim(0, 2)  # [B, C, draw, ...]
    z = columns.pop("position")
    d = target.layout.dim
    statuses = [why] * len(z) if why else ensemble_status(z[..., :d], columns["diverging"], z[..., d:])
    flat = (z.flatten(1, 2) if z.shape[2] else state.position.cpu())[..., :d]
    centred = flat - flat.mean(1, keepdim=True)
    chains = z.shape[1]
    sites = typed(target, z.flatten(1, 2), settings.seed)
    return finish(
        problem,
        target,
        method="hmc",
        seed=settings.seed,
        statuses=statuses,
        began=began,
        throw=throw,
        draws={name: by_chain(x, chains, batched) for name, x in sites.items()},
        sample_stats={name: by_chain(x.flatten(1, 2), chains, batched) for name, x in columns.items()},
        stats={
            "step_size": state.log_step.exp().mean(1).tolist(),
            "gradients_per_chain": state.gradients,
            "discrete_summed_out": [s.name for s in (*target.model.plan.joint, *target.model.plan.local)],
            "discrete_by_gibbs": [s.name for s in target.model.plan.given],
        },
        location=flat.mean(1),
        covariance=centred.mT @ centred / max(1, flat.shape[1] - 1),
    )
