"""Trajectories of microcanonical dynamics: the speed is constant, and the gradient turns its direction.

In ``D`` dimensions with the direction ``n``, ``|n| = 1``, and the log density ``l``:

    du = sqrt(D) n dt
    dn = sqrt(D) (1 - n n') grad l / (D - 1) dt

At the speed ``sqrt(D)``, times and step sizes are comparable with those of HMC. The energy is ``K - l``, K
the kinetic energy of :func:`_kick`. The discretised dynamics change it: that is the energy error. The
adjusted method removes its effect by a Metropolis test. The unadjusted one limits it by the step
size, and turns the direction a little at random after each step.

References:
    Robnik, De Luca, Silverstein & Seljak 2023, JMLR 24, 311 (the dynamics); Robnik & Seljak 2023, arXiv
    2303.18221 (Langevin); Robnik, Cohn-Gordon & Seljak 2025, arXiv 2503.01707 (the adjusted method).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer._chart import Chart
from astrozoo.infer._trajectory import Chains, normals

__all__ = ["microcanonical"]

FEWEST = 3
"""Fewest dimensions. In one dimension a direction cannot turn. Standard normal coordinates that are drawn for
each trajectory are added to a posterior of fewer."""
_EXTRA = 11
"""Stream of the random numbers of the coordinates that are added."""
_TURN = 12
"""Stream of the random numbers of turns."""


def microcanonical(
    chains: Chains,
    q: Float[Tensor, "B C d"],
    r: Float[Tensor, "B C d"],
    value: Float[Tensor, "B C"],
    g: Float[Tensor, "B C d"],
    chart: Chart,
    step: Float[Tensor, "B C"],
    steps: list[int],
    seed: int,
    iteration: int,
    turning: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Position, velocity, value and gradient at the end, and the fall of the energy.

    Args:
        r: its direction is the first one; 0 in coordinates that never move.
        turning: time after which the direction is forgotten by random turns; None: there are none.
    """
    moving = q.shape[2] - len(chains.choices)
    extra = max(0, FEWEST - moving)
    D = moving + extra
    speed = D**0.5
    v = normals(seed, _EXTRA, iteration, 0, like=q.new_empty(*q.shape[:2], extra))
    first = normals(seed, _EXTRA, iteration, 1, like=v)
    n = _unit(torch.cat((r, first), -1))
    moves = (n != 0).to(n)
    count: Tensor = torch.tensor(steps, device=q.device)[:, None, None]
    u = chart.coordinates(q)
    rest = q - chart.position(u)  # coordinates that never move, and rounding
    fall = v.square().sum(-1) / 2 - value
    for k in range(max(steps)):
        e = torch.where(k < count, step[..., None], 0.0) * speed
        n, work = _kick(n, torch.cat((chart.force(g, u), -v), -1), e / 2, D)
        u, v = u + e * n[..., : u.shape[2]], v + e * n[..., u.shape[2] :]
        q = chart.position(u) + rest
        value, g = chains(q)
        fall = fall - work
        n, work = _kick(n, torch.cat((chart.force(g, u), -v), -1), e / 2, D)
        fall = fall - work
        if turning is not None:
            noise = normals(seed, _TURN, iteration, k, like=n) * moves
            n = _unit(n + ((2 * e / speed / turning).expm1() / D).sqrt() * noise)
    fall = fall + value - v.square().sum(-1) / 2
    return q, speed * n[..., : u.shape[2]], value, g, fall


def _unit(n: Tensor) -> Tensor:
    return n / torch.linalg.vector_norm(n, dim=-1, keepdim=True)


def _kick(
    n: Float[Tensor, "B C d"], gradient: Float[Tensor, "B C d"], distance: Float[Tensor, "B 1 1"], D: int
) -> tuple[Float[Tensor, "B C d"], Float[Tensor, "B C"]]:
    """The direction after a constant gradient has turned it, and the change of the kinetic energy."""
    size = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    towards = gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
    cosine = (n * towards).sum(-1, keepdim=True).clamp(-1, 1)
    delta = distance * size / (D - 1)
    decay = (-delta).exp()
    turned = 2 * decay * n + towards * ((1 - decay**2) + cosine * (1 - decay) ** 2)
    growth = ((1 + cosine) + (1 - cosine) * decay**2) / 2
    return _unit(turned), ((D - 1) * (delta + growth.log()))[..., 0]
