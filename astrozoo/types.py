"""The nouns shared by every room: :class:`Problem`, :class:`Objective`, :class:`Status`, :class:`Result`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._problem import Problem, stack
from astrozoo._provenance import environment
from astrozoo._result import DENSE_COVARIANCE, Result, Status, load

__all__ = [
    "DENSE_COVARIANCE",
    "Objective",
    "Outcome",
    "Page",
    "Problem",
    "Result",
    "Status",
    "environment",
    "load",
    "stack",
]


class Objective(Protocol):
    """A scalar function of a flat vector, to be maximised: a log density, an ELBO, or a model's own.

    Every method takes a whole batch of vectors. With ``batch is None`` they are any number of vectors of
    one problem (chains, starts); otherwise row ``i`` belongs to independent problem ``i``.
    ``noise`` is ``[draws, noise_dim]`` of standard normals, shared by all rows, and None where
    ``noise_dim`` is 0; values are means over its draws.
    """

    dim: int
    noise_dim: int
    batch: int | None
    dtype: torch.dtype
    device: torch.device
    counts: dict[str, int]
    """Evaluations so far, per row and per draw: "value", "gradient", "hvp", "hessian"."""

    def values(self, w: Float[Tensor, "b p"], noise: Tensor | None = None) -> Float[Tensor, "b m"]:
        """The function for each draw (one column where there is no noise)."""
        ...

    def value_and_grad(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"]]:
        """Mean over draws, and its gradient."""
        ...

    def value_grad_hessian(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
        """Mean over draws, its gradient and its exact Hessian."""
        ...

    def hvp(
        self, w: Float[Tensor, "b p"], noise: Tensor | None, v: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b p"]:
        """The Hessian (of the mean over draws) times ``v``."""
        ...

    def take(self, rows: Tensor) -> Objective:
        """The objective of some of the independent problems; of one problem, itself."""
        ...


@dataclass(frozen=True, eq=False)
class Page:
    """A section that a model adds to a report.

    Args:
        title: its heading.
        parts: in order, each a paragraph (``str``), a table (a sequence of one mapping per row), or a figure
            with its caption (``(matplotlib Figure, str)``).
    """

    title: str
    parts: Sequence[Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an entry's own job hands back to ``astrozoo run``.

    Args:
        result: saved as ``posterior.nc``.
        pages: sections for the report, before the general ones.
        summary: scalars and short strings, added to ``summary.json`` and shown on screen.
        files: names of the files that the job wrote into the output folder, each with a line on what it is.
    """

    result: Result
    pages: Sequence[Page] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
