"""Trajectories of many chains at once: randomness, steps, the Metropolis test, Gibbs updates."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from astrozoo.density import inverted
from astrozoo.infer._chart import Chart
from astrozoo.objective import Density

__all__ = ["DIVERGED", "Chains", "Dynamics", "gibbs", "normals", "trajectory", "transition", "uniforms"]

DIVERGED = 1000.0
"""[nat] A trajectory is divergent if its energy error is larger than this, as in Stan."""
WORTHWHILE = 0.25
"""Least fraction of the gradients that must be saved before the rows of finished trajectories are dropped.
Another number of rows needs another graph."""
Dynamics = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
"""A trajectory by other dynamics: :func:`astrozoo.infer._microcanonical.microcanonical`. It returns position,
velocity, value, gradient, and minus the change of the energy."""
_MOMENTUM = 1
"""Stream of the random numbers of momenta."""
_ACCEPT = 2
"""Stream of the random numbers that decide whether a trajectory is accepted."""
_GIBBS = 3
"""Stream of the random numbers that draw discrete sites."""


class Chains:
    """The log density of every chain of every problem: ``[B, C, d] -> [B, C], [B, C, d]``."""

    def __init__(self, objective: Density, problems: int, chains: int) -> None:
        rows = torch.arange(problems, device=objective.device).repeat_interleave(chains)
        self.objective = objective.take(rows)
        self.choices, self.chains = objective.choices, chains

    def __call__(self, q: Float[Tensor, "B C d"]) -> tuple[Tensor, Tensor]:
        value, gradient = self.objective.value_and_grad(q.flatten(0, 1))
        return value.view(q.shape[:2]), gradient.view(q.shape)

    def take(self, rows: list[int]) -> Chains:
        """The density of a subset of the problems."""
        taken = copy(self)
        at = torch.tensor(rows, device=self.objective.device)[:, None] * self.chains
        taken.objective = self.objective.take((at + torch.arange(self.chains).to(at)).flatten())
        return taken

    def values(self, q: Float[Tensor, "B C d"]) -> Float[Tensor, "B C"]:
        """The log density without its gradient; minus infinity where it is undefined."""
        value = self.objective.values(q.flatten(0, 1))[:, 0].view(q.shape[:2])
        return torch.where(value.isfinite(), value, -torch.inf)


def _numpy_generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def normals(seed: int, *stream: int, like: Tensor) -> Float[Tensor, "B C d"]:
    """Standard normals, equal in all problems. Those of a chain do not depend on the number of chains."""
    drawn = _numpy_generator(seed, *stream).standard_normal(like.shape[1:])
    return torch.from_numpy(drawn).to(like).expand(like.shape)


def uniforms(seed: int, *stream: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), equal in all problems. Those of a chain do not depend on their number."""
    return torch.from_numpy(_numpy_generator(seed, *stream).random(shape)).to(like)


def trajectory(
    chains: Chains,
    q: Float[Tensor, "B C d"],
    r: Float[Tensor, "B C d"],
    value: Float[Tensor, "B C"],
    g: Float[Tensor, "B C d"],
    chart: Chart,
    step: Float[Tensor, "B C"],
    steps: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, momentum (of unit mass, in the chart's coordinates), value and gradient at the end.

    The chart's normal is followed exactly, a rotation of its coordinates and the momentum by the step; half
    before it and half after, what the gradient has beside the normal's kicks the momentum.

    Args:
        steps: of each problem's trajectories. Those that are over wait where they are; where it spares
            ``WORTHWHILE`` of all gradients, the others go on without them once half are over.

    References:
        Shahbaba, Lan, Johnson & Neal 2014, Stat. Comput. 24, 339 (section 2.1).
    """
    half = sorted(steps)[(len(steps) - 1) // 2]
    rows = [i for i, n in enumerate(steps) if n > half]
    spared = (max(steps) - half) * (len(steps) - len(rows))
    if spared > WORTHWHILE * max(steps) * len(steps):
        state = trajectory(chains, q, r, value, g, chart, step, [min(n, half) for n in steps])
        q, r, value, g = (x[rows] for x in state)
        left = [steps[i] - half for i in rows]
        ends = trajectory(chains.take(rows), q, r, value, g, chart.take(rows), step[rows], left)
        for x, y in zip(state, ends, strict=True):
            x[rows] = y
        return state
    count: Tensor = torch.tensor(steps, device=q.device)[:, None, None]
    step = step[..., None]
    u = chart.coordinates(q)
    rest = q - chart.position(u)  # coordinates that never move, and rounding
    r = torch.addcmul(r, chart.force(g, u) + u, step, value=0.5)
    for k in range(max(steps)):
        e = torch.where(k < count, step, 0.0)
        c, s = e.cos(), e.sin()
        u, r = c * u + s * r, c * r - s * u
        q = chart.position(u) + rest
        value, g = chains(q)
        r = torch.addcmul(r, chart.force(g, u) + u, torch.where(count == k + 1, e / 2, e))
    return q, r, value, g


def transition(
    chains: Chains,
    q: Float[Tensor, "B C d"],
    value: Float[Tensor, "B C"],
    g: Float[Tensor, "B C d"],
    chart: Chart,
    step: Float[Tensor, "B C"],
    steps: list[int],
    seed: int,
    iteration: int,
    dynamics: Dynamics | None = None,
    energy_error: float | None = None,
) -> dict[str, Tensor]:
    """One trajectory and its Metropolis test, with the same random numbers in every problem.

    Args:
        dynamics: None: those of :func:`trajectory`.
        energy_error: if it is given there is no test, and "acceptance_rate" is a control of the step size: a
            half where the squared change of the energy is this, per dimension.
    """
    discrete = len(chains.choices)
    r = pad(normals(seed, _MOMENTUM, iteration, like=q[..., : q.shape[2] - discrete]), (0, discrete))
    u = uniforms(seed, _ACCEPT, iteration, shape=q.shape[1:2], like=q)
    before = value - r.square().sum(-1) / 2
    if dynamics is None:
        end, r_end, end_value, end_g = trajectory(chains, q, r, value, g, chart, step, steps)
        change = end_value - r_end.square().sum(-1) / 2 - before
    else:
        end, r_end, end_value, end_g, change = dynamics(
            chains, q, r, value, g, chart, step, steps, seed, iteration
        )
    sound = change.isfinite() & end_g.isfinite().all(-1)
    change = torch.where(sound, change, -torch.inf)
    accept, rate = u.log() < change, change.exp().clamp_max(1.0)
    if energy_error is not None:
        accept = change > -DIVERGED
        rate = 1 / (1 + change.square() / (energy_error * (q.shape[2] - discrete)))
    taken = accept[..., None]
    return {
        "position": torch.where(taken, end, q),
        "gradient": torch.where(taken, end_g, g),
        "lp": torch.where(accept, end_value, value),
        "energy": -before,
        "acceptance_rate": rate,
        "diverging": change < -DIVERGED,
        "end": end,
        "momentum": r_end,
        "n_steps": torch.tensor(steps, device=q.device)[:, None].expand(q.shape[:2]),
    }


def gibbs(chains: Chains, out: dict[str, Tensor], seed: int, iteration: int) -> None:
    """Draw every discrete coordinate in turn from its exact conditional, in place."""
    choices, q, value = chains.choices, out["position"], out["lp"]
    shape = (q.shape[1], len(choices))
    uniform = uniforms(seed, _GIBBS, iteration, shape=shape, like=q).T
    for k, u, at in zip(choices, uniform, range(q.shape[2] - len(choices), q.shape[2]), strict=True):
        tried = q.repeat(k, 1, 1, 1)
        tried[..., at] = (tried[..., at] + torch.arange(k, device=q.device)[:, None, None]) % k
        log_p = torch.stack([value, *map(chains.values, tried[1:])])
        chosen = inverted(log_p, u.expand_as(value))[None]
        value = log_p.gather(0, chosen)[0]
        q = tried.gather(0, chosen[..., None].expand(1, *q.shape))[0]
    out["position"] = q
    out["lp"], out["gradient"] = chains(q)
