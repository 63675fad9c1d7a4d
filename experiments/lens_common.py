"""What the lens experiments share: starts, and an ascent to a mode."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import log_density
from astrozoo.infer.adam import AdamDirection
from astrozoo.objective import Objective
from astrozoo.types import Problem

__all__ = ["ascend", "prior_starts"]


def ascend(
    target: Objective, z: Float[Tensor, "b dim"], steps: int, *, rate: float | Tensor = 0.05, label: str = ""
) -> tuple[Float[Tensor, "b dim"], Float[Tensor, "b"]]:
    """Ascend a log density by Adam from many starts at once, with a learning rate that falls to zero.

    Progress is printed every 100 steps.

    Args:
        rate: the first learning rate, of all coordinates or of each.

    Returns:
        The points that are reached, and their values.
    """
    direction = AdamDirection(beta2=0.99)
    for step in range(1, steps + 1):
        value, gradient = target.value_and_grad(z)
        now = rate * 0.5 * (1 + math.cos(math.pi * step / (steps + 1)))
        z = z + now * direction(gradient.nan_to_num())
        if step % 100 == 0:
            best = np.round(np.sort(value.numpy())[::-1][:4], 1)
            print(f"{label} step {step}: log density {best}", flush=True)
    return z, target.value_and_grad(z)[0].nan_to_num(nan=-math.inf)


def prior_starts(task: Problem, n: int, seed: int) -> Float[Tensor, "n dim"]:
    """Draws of a problem's prior, unconstrained."""
    layout = log_density(task, compile="never").layout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [task.model.draw(*task.args) for _ in range(n)]
    return layout.unconstrain({name: torch.stack([d[name] for d in drawn]) for name in drawn[0]})
