"""Means, variances and (of few dimensions) covariances of draws that come in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.types import DENSE_COVARIANCE

__all__ = ["Moments"]


class Moments:
    """Mean and covariance of all vectors that were added, in one pass.

    Up to ``DENSE_COVARIANCE`` dimensions the covariance is dense; above, only its diagonal is accumulated.

    Args:
        problems: number of independent problems, ``b``.
        dim: number of dimensions, ``d``.
        dense: whether the covariance is dense; None: by the number of dimensions.

    References:
        Chan, Golub & LeVeque 1983, American Statistician 37, 242 (parts are combined without cancellation).
    """

    def __init__(
        self, problems: int, dim: int, dense: bool | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        self.dense = dim <= DENSE_COVARIANCE if dense is None else dense
        self.count = 0
        self.mean = torch.zeros(problems, dim, dtype=dtype)
        self._squares = torch.zeros(problems, dim, *(dim,) * self.dense, dtype=dtype)

    def add(self, z: Float[Tensor, "b m d"]) -> None:
        """Add ``m`` vectors of each problem."""
        m = z.shape[1]
        if m == 0:
            return
        z = z.to(self.mean)
        part_mean = z.mean(1)
        centred = z - part_mean[:, None]
        shift, weight = part_mean - self.mean, self.count * m / (self.count + m)
        if self.dense:
            self._squares += centred.mT @ centred + weight * shift[:, :, None] * shift[:, None]
        else:
            self._squares += centred.square_().sum(1) + weight * shift.square()
        self.count += m
        self.mean += shift * (m / self.count)

    @property
    def covariance(self) -> Float[Tensor, "b d d"] | None:
        """The unbiased covariance; None if only its diagonal is known."""
        return self._squares / max(1, self.count - 1) if self.dense else None

    @property
    def variance(self) -> Float[Tensor, "b d"]:
        """The diagonal of the covariance."""
        squares = self._squares.diagonal(dim1=1, dim2=2) if self.dense else self._squares
        return squares / max(1, self.count - 1)

    def fields(self) -> dict[str, Any]:
        """The moments as fields of a Result."""
        return {"location": self.mean, "covariance": self.covariance, "variance": self.variance}

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint."""
        found = {
            "count": np.asarray(self.count),
            "mean": self.mean.clone().numpy(),
            "squares": self._squares.clone().numpy(),
        }
        return {f"{prefix}_{name}": array for name, array in found.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Continue from a checkpoint."""
        self.count = int(arrays[f"{prefix}_count"])
        self.mean, self._squares = (torch.as_tensor(arrays[f"{prefix}_{n}"]) for n in ("mean", "squares"))
