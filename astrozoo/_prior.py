"""A model's prior: draws of it as unconstrained vectors, and its log density."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from astrozoo._pure_function import rows_of
from astrozoo._scope import Scope
from astrozoo.density import LogDensity, log_density
from astrozoo.types import Problem

__all__ = ["prior_density", "prior_draws"]


class _Silence(Messenger):
    """Observed sites have the log probability 0. Those of ``pyro.factor`` keep theirs."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not isinstance(msg["fn"], dist.Unit):
            msg["mask"] = False


@dataclass(frozen=True, eq=False)
class _WithoutData:
    """A model without its likelihood."""

    model: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.model

    def __call__(self, *args: Any) -> Any:
        with _Silence():
            return self.model(*args)


def prior_density(
    problem: Problem, *, compile: str = "auto", most_assignments: int | None = None
) -> LogDensity:
    """The log density of a problem without the log probabilities of its data.

    Factors of ``pyro.factor`` are part of the prior.

    Args:
        compile, most_assignments: as :func:`astrozoo.density.log_density`.

    Raises:
        CaptureError: as :func:`astrozoo.density.log_density`.
    """
    without = replace(problem, model=_WithoutData(problem.model))
    return log_density(without, compile=compile, most_assignments=most_assignments)


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
