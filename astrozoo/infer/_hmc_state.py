"""The state of an ensemble of Hamiltonian chains between two iterations, and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer import _chart
from astrozoo.infer._chart import Chart
from astrozoo.infer._operators import Preconditioner
from astrozoo.infer.recorder import Recorder

__all__ = ["HMCState"]


@dataclass
class HMCState:
    """The state of ``B`` problems of ``C`` chains in ``d`` dimensions.

    Args:
        log_step, averaging: of each chain (the same in all chains of a problem, once the early warm-up is
            over), and the state of dual averaging.
        window: positions and gradients since the mass matrix was last estimated.
        recorder: records the continuous coordinates of the draws.

    Attributes:
        drawn: statistics of the draws and their discrete coordinates, ``[draw, B, C, ...]`` on the CPU. The
            first ``recorder.count`` rows are filled. They are allocated once, because small arrays that are
            allocated at every draw between large ones fragment the heap.
    """

    position: Float[Tensor, "B C d"]
    value: Float[Tensor, "B C"]
    gradient: Float[Tensor, "B C d"]
    chart: Chart
    recorder: Recorder
    log_step: Float[Tensor, "B C"]
    averaging: Float[Tensor, "4 B C"]
    length: Float[Tensor, "4 B"]
    iteration: int = 0
    gradients: int = 0
    warmup_gradients: int = 0
    rescued: int = 0
    window: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    drawn: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        draws, (problems, chains, coordinates) = self.recorder.draws, self.position.shape
        kinds = dict.fromkeys(("energy", "acceptance_rate", "lp"), self.value.dtype)
        kinds |= {"diverging": torch.bool, "n_steps": torch.int64}
        self.drawn = {name: torch.empty(draws, problems, chains, dtype=kind) for name, kind in kinds.items()}
        discrete = coordinates - self.recorder.dim
        self.drawn["discrete"] = torch.empty(draws, problems, chains, discrete, dtype=self.position.dtype)

    def record(self, statistics: Mapping[str, Float[Tensor, "B C"]]) -> None:
        """Record the position as the next draw.

        Args:
            statistics: of the transition to it, by the names in ``drawn``.
        """
        row = self.recorder.count
        for name, column in self.drawn.items():
            discrete = name == "discrete"
            column[row] = self.position[..., self.recorder.dim :] if discrete else statistics[name]
        self.recorder.add(self.position)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint."""
        held = {n: getattr(self, n).cpu().numpy() for n in _TENSORS} | _chart.arrays(self.chart)
        held |= {n: np.asarray(getattr(self, n)) for n in _COUNTS}
        held |= {f"drawn_{name}": rows[: self.recorder.count].numpy() for name, rows in self.drawn.items()}
        held |= self.recorder.arrays()
        for name, column in zip(("window_x", "window_g"), zip(*self.window, strict=True), strict=False):
            held[name] = torch.stack(column).cpu().numpy()
        return held

    @classmethod
    def restored(
        cls,
        arrays: Mapping[str, np.ndarray],
        device: torch.device,
        recorder: Recorder,
        outer: Preconditioner | None = None,
    ) -> HMCState:
        """The state that a checkpoint contains.

        Args:
            recorder: a new one, which is restored from the checkpoint.
            outer: the preconditioner of the run, which a checkpoint does not contain.
        """
        recorder.restore(arrays)
        held: dict[str, Any] = {n: torch.as_tensor(arrays[n], device=device) for n in _TENSORS}
        held |= {n: int(arrays[n]) for n in _COUNTS}
        columns = [torch.as_tensor(arrays.get(name, ()), device=device) for name in ("window_x", "window_g")]
        state = cls(
            **held,
            chart=_chart.restored(arrays, device, outer),
            recorder=recorder,
            window=list(zip(*columns, strict=True)),
        )
        for name, column in state.drawn.items():
            column[: recorder.count] = torch.as_tensor(arrays[f"drawn_{name}"])
        return state


_TENSORS = ("position", "value", "gradient", "log_step", "averaging", "length")
"""Fields of :class:`HMCState` that are tensors and that a checkpoint contains."""
_COUNTS = ("iteration", "gradients", "warmup_gradients", "rescued")
"""Fields of :class:`HMCState` that are whole numbers and that a checkpoint contains."""
