"""Adaptation of an ensemble of chains in the warm-up: step size, length of trajectories, stranded chains."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "LONGEST_STEP",
    "begin_length",
    "begin_step",
    "dual_average",
    "final_length",
    "follow_length",
    "pooled",
    "rescued",
]

LONGEST_STEP = math.pi / 2
"""Largest step size: a quarter of the period of the mass matrix's normal, so that one step makes an
independent draw of that normal. Larger steps are stable only where the posterior is wider than the normal."""
_FLOOR = 0.2
"""Least acceptance rate that a chain contributes to the adaptation of the step size. Without this limit a
chain that is stuck would shrink the step size without end."""
_MOST = 8 * math.pi
"""Longest trajectory, in units in which the mass matrix's normal has SD 1: four of its periods."""
_RATE = 0.05
"""Change of the logarithm of a trajectory's length in one iteration, for a typical slope."""
_DECAY = 0.95
"""Decay, in one iteration, of the mean of the squared slopes by which they are scaled: it remembers 20."""
_STRANDED = 20.0
"""[nat per dimension] A chain is stranded if its log density is lower than the median of the chains by more
than this. A region there with as much mass would have to be wider by ``e^20`` in each dimension."""


def begin_step(step: Float[Tensor, "B C"]) -> Float[Tensor, "4 B C"]:
    """The first state of dual averaging: centre, time, error, and averaged log step size."""
    zeros = torch.zeros_like(step)
    return torch.stack(((2 * step).log(), zeros, zeros, step.log()))


def dual_average(
    averaging: Float[Tensor, "4 B C"], acceptance: Float[Tensor, "B C"], target: float
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "4 B C"]]:
    """One iteration of dual averaging: the next log step size, and the new state.

    References:
        Hoffman & Gelman 2014, section 3.2.
    """
    centre, t, error, mean = averaging
    t = t + 1
    error = (1 - 1 / (t + 10)) * error + (target - acceptance) / (t + 10)
    log_step = (centre - t.sqrt() / 0.05 * error).clamp_max(math.log(LONGEST_STEP))
    mean = t**-0.75 * log_step + (1 - t**-0.75) * mean
    return log_step, torch.stack((centre, t, error, mean))


def pooled(acceptance: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """The harmonic mean of acceptance rates over a problem's chains, in which stuck chains weigh most.

    References:
        Hoffman, Radul & Sountsov 2021, AISTATS (ChEES), section 3.
    """
    return (1 / (1 / acceptance.clamp_min(_FLOOR)).mean(1, keepdim=True)).expand_as(acceptance)


def begin_length(problems: int, least: float, like: Tensor) -> Float[Tensor, "4 B"]:
    """The first state of the length, at its minimum: log length, squared gradient, time, averaged log."""
    start = like.new_full((problems,), math.log(least))
    zeros = torch.zeros_like(start)
    return torch.stack((start, zeros, zeros, start))


def follow_length(
    length: Float[Tensor, "4 B"],
    before: Float[Tensor, "B C d"],
    end: Float[Tensor, "B C d"],
    momentum: Float[Tensor, "B C d"],
    acceptance: Float[Tensor, "B C"],
    travelled: Float[Tensor, "B"],
    least: float,
) -> Float[Tensor, "4 B"]:
    """One step of Adam up the rate of ChEES.

    ChEES is the expected square of the change in a chain's squared distance from the mean, over four. Its
    rate is per unit of length, which is what gradients are spent on.

    Args:
        before, end: of the trajectories, in the coordinates of the chart.
        momentum: at their ends.
        travelled: their lengths.
        least: the length is never shorter.

    References:
        Hoffman, Radul & Sountsov 2021, AISTATS (ChEES). Sountsov & Hoffman 2021, arXiv 2110.11576 (its rate).
    """
    log_length, square, t, mean = length
    sound = acceptance > 0
    weight = torch.where(sound, acceptance, 0.0)
    share = (weight / weight.sum(1, keepdim=True).clamp_min(1e-12))[..., None]
    end, momentum = (torch.where(sound[..., None], x, 0.0) for x in (end, momentum))
    first = before - before.mean(1, keepdim=True)
    last = end - (share * end).sum(1, keepdim=True)
    growth = last.square().sum(-1) - first.square().sum(-1)
    slope = travelled[:, None] * growth * (last * momentum).sum(-1) - growth.square() / 4
    slope = (share[..., 0] * slope).sum(1)
    t = t + 1
    square = _DECAY * square + (1 - _DECAY) * slope.square()
    move = _RATE * slope / (square / (1 - _DECAY**t)).sqrt().clamp_min(1e-12)
    log_length = (log_length + move).clamp(math.log(least), math.log(_MOST))
    mean = t**-0.5 * log_length + (1 - t**-0.5) * mean
    return torch.stack((log_length, square, t, mean))


def final_length(length: Float[Tensor, "4 B"]) -> Float[Tensor, "4 B"]:
    """The state with the averaged length in place of the last one."""
    return torch.cat((length[3:], length[1:]))


def rescued(value: Float[Tensor, "B C"], d: int, u: Float[Tensor, "C"]) -> Int[Tensor, "B C"]:
    """For each chain the index of the chain whose position it takes: itself, or another if it is stranded.

    A chain is stranded if its log density is lower than the median of the chains by ``_STRANDED (d + 1)``.

    Args:
        d: dimensions.
        u: uniform over [0, 1).
    """
    sound = value >= value.median(1, keepdim=True).values - _STRANDED * (d + 1)
    first_sound = (~sound).to(torch.int8).argsort(dim=1, stable=True)
    other = first_sound.gather(1, (u * sound.sum(1, keepdim=True)).long())
    return torch.where(sound, torch.arange(value.shape[1], device=value.device), other)
