"""Gradients of a particle-mesh simulation by its reversible adjoint, in memory that steps do not add to.

Automatic differentiation keeps what each step computed. The adjoint keeps only the final particles: a
kick-drift-kick step is its own inverse with the signs changed, so the backward pass runs the simulation
backwards and takes the derivative of one force at a time. It costs one more force per step.

References:
    Li et al. 2022, arXiv 2211.09815 (pmwd).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.physics.pm import Force, Particles, Schedule

__all__ = ["evolve_reversible"]


def evolve_reversible(particles: Particles, factors: Schedule, force: Force) -> Particles:
    """:func:`astrozoo.physics.pm.evolve`, with first derivatives by the reversible adjoint.

    Derivatives are those of the particles and of the factors. The force has no parameters with derivatives.
    """
    x, p = particles
    kicks, drifts = factors.kicks.to(x.dtype), factors.drifts.to(x.dtype)
    return Particles(*_Reversible.apply(x, p, kicks, drifts, force))


class _Reversible(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: Tensor, kicks: Tensor, drifts: Tensor, force: Force) -> tuple[Tensor, Tensor]:
        for i in range(len(drifts)):
            p = p + kicks[i] * force(x)
            x = x + drifts[i] * p
        return x, p + kicks[-1] * force(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, kicks, drifts, ctx.force = inputs
        ctx.save_for_backward(*output, kicks, drifts)

    @staticmethod
    def backward(
        ctx: Any, *gradient: Float[Tensor, "3 x y z"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, p, kicks, drifts = ctx.saved_tensors
        pull: Any
        to_x, to_p = gradient
        of_kicks, of_drifts = [], []
        for i in range(len(drifts), -1, -1):
            if i < len(drifts):
                of_drifts.append((to_x * p).sum())
                x = x - drifts[i] * p
                to_p = to_p + drifts[i] * to_x
            pushed, pull = torch.func.vjp(ctx.force, x)[:2]
            of_kicks.append((to_p * pushed).sum())
            p = p - kicks[i] * pushed
            to_x = to_x + pull(kicks[i] * to_p)[0]
        return to_x, to_p, torch.stack(of_kicks[::-1]), torch.stack(of_drifts[::-1]), None
