"""Where a maximisation by a trust region stands, row by row: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.types import Status

__all__ = ["CONVERGED", "DIVERGED", "INTERRUPTED", "SPENT", "TRACED", "TrustRegionState", "stacked"]

STATUSES = {1: Status.CONVERGED, 2: Status.DIVERGED, 3: Status.BUDGET_SPENT, 4: Status.INTERRUPTED}
"""Meaning of the values of ``TrustRegionState.end``, besides 0: the row still runs."""
CONVERGED, DIVERGED, SPENT, INTERRUPTED = STATUSES
"""Values of ``TrustRegionState.end``."""
TRACED = (
    "value", "radius", "step", "predicted", "gain", "draws", "hessian draws", "test draws", "seconds",
)  # fmt: skip
"""Columns of the trace, with a value for each iteration and row."""


@dataclass
class TrustRegionState:
    """Where every row stands: what a checkpoint holds.

    Args:
        end: 0 while a row runs, otherwise why it ended.
        levels: of gradient, Hessian and test: each is of ``draws * 2**level`` draws next. Fixed mode: 0 on
            its coarse draws, 1 on all.
        unresolved: steps in a row whose observed gain was lost in its own noise.
        curvature: the model of each row's Hessian that gradients keep up to date; of no size where Hessians,
            or their products, are evaluated.
        moved: how far a row has come since that model was an evaluated Hessian [posterior SDs].
    """

    w: Float[Tensor, "b p"]
    value: Float[Tensor, "b"]
    radius: Float[Tensor, "b"]
    levels: Int[Tensor, "b 3"]
    unresolved: Int[Tensor, "b"]
    end: Int[Tensor, "b"]
    curvature: Float[Tensor, "b q q"]
    moved: Float[Tensor, "b"]
    iteration: int = 0
    trace: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in TRACED})

    @property
    def active(self) -> Int[Tensor, "a"]:
        """Indices of the rows still running."""
        return torch.nonzero(self.end == 0)[:, 0]

    @property
    def statuses(self) -> tuple[Status, ...]:
        """Of each row; all must have ended."""
        return tuple(STATUSES[int(end)] for end in self.end)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        held = {
            name: getattr(self, name).cpu().numpy() for name in self.__dataclass_fields__ if name in _ROWS
        }
        return held | {"iteration": np.asarray(self.iteration)} | stacked(self.trace)

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> TrustRegionState:
        """From a checkpoint."""
        rows = {name: torch.as_tensor(arrays[name], device=device) for name in _ROWS}
        trace = {name: list(arrays[name + "_trace"]) for name in TRACED}
        return cls(**rows, iteration=int(arrays["iteration"]), trace=trace)


_ROWS = ("w", "value", "radius", "levels", "unresolved", "end", "curvature", "moved")
"""Fields of :class:`TrustRegionState` that a checkpoint has, besides the trace."""


def stacked(trace: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """A trace as arrays, named ``NAME_trace``."""
    return {name + "_trace": np.stack(rows) if rows else np.zeros((0, 0)) for name, rows in trace.items()}
