"""Summaries of the posterior of an image, and their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from astrozoo.diagnostics.images import coverage, image_summaries
from astrozoo.types import Problem, Result

__all__ = ["against_truth", "posterior_images"]


def posterior_images(problem: Problem, result: Result) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Summaries of the site ``image``: see :func:`astrozoo.diagnostics.images.image_summaries`."""
    model: Any = problem.model
    return image_summaries(problem, result, "image", lambda white, field: model.prior.image(white, field))


def against_truth(
    truth: Float[np.ndarray, "*shape"],
    images: dict[str, Float[np.ndarray, "*shape"]],
    chosen: Bool[np.ndarray, "*shape"],
) -> dict[str, float]:
    """Error of the mean, and coverage of quantile intervals, of the pixels chosen."""
    row = {"rms error": float(np.sqrt(np.mean((images["MEAN"] - truth)[chosen] ** 2)))}
    return {name: round(value, 4) for name, value in (row | coverage(truth, images, chosen)).items()}
