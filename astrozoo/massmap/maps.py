"""Maps of a posterior of the convergence."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from astrozoo.diagnostics.images import image_summaries
from astrozoo.types import Problem, Result

__all__ = ["posterior_maps"]


def posterior_maps(problem: Problem, result: Result) -> dict[str, Float[np.ndarray, "y x"]]:
    """Summaries of the convergence, by name: see :func:`astrozoo.diagnostics.images.image_summaries`."""
    model: Any = problem.model
    return image_summaries(problem, result, "kappa", model.convergence)
