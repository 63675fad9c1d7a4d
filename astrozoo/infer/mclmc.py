"""Microcanonical Langevin Monte Carlo, adjusted or with a limited energy error."""

from __future__ import annotations

from astrozoo.infer.hmc import hmc
from astrozoo.infer.options import MCLMCSettings, RunOptions
from astrozoo.types import Problem, Result

__all__ = ["mclmc"]


def mclmc(problem: Problem, run: RunOptions, settings: MCLMCSettings) -> Result:
    """Sample the posterior with microcanonical dynamics (:mod:`astrozoo.infer._microcanonical`).

    Everything else is that of :func:`astrozoo.infer.hmc.hmc`: chains move together, and the warm-up estimates
    the mass matrix, the length of trajectories and the step size.

    * ``adjusted=True``: each trajectory begins in a random direction and ends in a Metropolis test, so that
      the draws have no bias. The step size has the acceptance rate ``target_acceptance``.
    * ``adjusted=False``: no test. The step size has a median squared energy error of a trajectory of
      ``energy_error`` per dimension. The bias of the draws is of the order of that error.

    Returns:
        a Result, converged by the rule of :mod:`astrozoo.infer.convergence`. That rule does not see the bias
        of the unadjusted method.

    Raises:
        InputError, UnknownNameError: as :func:`~astrozoo.infer.hmc.hmc`.

    References:
        Robnik et al. 2023, JMLR 24, 311; Robnik, Cohn-Gordon & Seljak 2025, arXiv 2503.01707.
    """
    return hmc(problem, run, settings)
