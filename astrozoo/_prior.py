"""Draws of a model's prior as unconstrained vectors: dispersed starts for searches."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope
from astrozoo.types import Problem

__all__ = ["prior_draws"]


def prior_draws(
    problem: Problem, layout: Any, draws: int, generator: torch.Generator
) -> Float[Tensor, "b draws dim"] | None:
    """Draws for every problem of a batch; None if a site cannot be drawn from.

    Args:
        problem: a problem, or a batch of ``b`` problems; ``b`` is 1 without a batch.
        layout: layout of the problem's continuous latents (:class:`astrozoo.density.Layout`).
        draws: number of draws per problem.
        generator: generator on the CPU, from which the seed is drawn.
    """
    names = [site.name for site in layout.sites]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    rows = []
    with Scope(problem.dtype, problem.device).drawing(seed), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Singular sample detected")  # a Wishart draws such a sample again
        for i in range(problem.batch or 1):
            args = problem.args if problem.batch is None else rows_of(problem.args, i)
            drawn: dict[str, list[Tensor]] = {name: [] for name in names}
            for _ in range(draws):
                try:
                    nodes: Any = poutine.trace(problem.model).get_trace(*args).nodes
                except NotImplementedError:  # an improper prior has no draws
                    return None
                for name in names:
                    drawn[name].append(nodes[name]["value"])
            rows.append(layout.unconstrain({name: torch.stack(values) for name, values in drawn.items()}))
    z = torch.stack(rows).to(dtype=problem.dtype)
    return torch.where(z.isfinite(), z, 0.0)  # a draw at the edge of its support is infinite here
