"""How well a fitted model explains the images of its problem."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import uniform_filter
from torch import Tensor

from astrozoo._capture import Model
from astrozoo._scope import Scope
from astrozoo.density import layout_of
from astrozoo.types import Goodness, Problem, Result

__all__ = ["FittedImage", "goodness_of", "improvable", "scored"]

_DRAWS = 32
"""Draws that the model's image is averaged over. Their error adds 1/32 of the posterior variance."""
_BASE = 0.1
"""Quantile of the model's image that is taken for the level without light."""
_FEW = 50
"""[px] Fewest pixels of a part whose chi2 counts."""
_BOX = 9
"""[px] Side of the box whose mean is the local level of the residual. Misfits that are broader than it do not
count as noise. Noise that resampling has correlated over a few pixels does; differences of adjacent pixels
would miss half of it."""
_TOLERANCE = 0.3
"""Part of the noise's variance that misfits may add before a model does not fit. Correct models of simulated
lenses have chi2 of 0.98 to 1.05. Sersic sources in place of clumpy galaxies have 1.09 to 1.32, with Einstein
radii within 2 SDs (on the two lenses that were sampled), and wrong solutions 2 or more."""
_SIGMAS = 4.0
"""Number of standard deviations of chi2 by chance that are added to 1, or to the tolerance. At 4 a right
model exceeds 1 by more in one of 30,000 images, so that a greater chi2 is the model's and not the noise's."""


def goodness_of(problem: Problem, result: Result) -> Goodness | None:
    """chi2 per pixel of the images of a problem (:attr:`Problem.images`), under the mean of the posterior.

    None if the problem has no images, is a batch, or the result has no draws of all latents.
    """
    draws = result.draws
    names = [site.name for site in layout_of(problem).sites] if problem.images else []
    if not names or problem.batch is not None or not set(names) <= draws.keys():
        return None
    model = Model(problem.model, [problem.args], Scope(problem.dtype, problem.device))
    names += [site.name for site in model.discrete]
    if not set(names) <= draws.keys() or not draws[names[0]].size:
        return None
    flat = {name: draws[name].reshape(-1, *draws[name].shape[2:]) for name in names}
    rows = np.linspace(0, len(flat[names[0]]) - 1, min(_DRAWS, len(flat[names[0]]))).round().astype(int)
    parameters = torch.zeros(0, dtype=problem.dtype, device=problem.device)
    if model.parameters:
        parameters = model.parameters.unconstrain(result.parameters, parameters)
    sums: dict[str, list[Any]] = {}
    with torch.no_grad(), model.parameters.given(parameters):
        for i in rows:
            values = {
                name: torch.as_tensor(x[i], dtype=problem.dtype, device=problem.device)
                for name, x in flat.items()
            }
            nodes: Any = model.run(values, problem.args).nodes
            for name in problem.images:
                site = nodes[name]
                parts = [site["fn"].mean, site["fn"].variance, (site["log_prob"] != 0).double()]
                total = sums.setdefault(name, [0.0, 0.0, 0.0, site["value"]])
                sums[name] = [*(a + b / len(rows) for a, b in zip(total, parts, strict=False)), site["value"]]
    return scored(
        *(FittedImage(_array(v), _array(m), _array(s), _array(u) > 0) for m, s, u, v in sums.values())
    )


def improvable(goodness: Goodness) -> bool:
    """Whether chi2 exceeds 1 by more than chance does, given the number of pixels.

    Such a model may fit (:attr:`Goodness.ok`): the tolerance is for what no model of a real galaxy reaches.
    But a richer model is worth trying first.
    """
    return goodness.chi2 > goodness.limit - _TOLERANCE


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()


class FittedImage(NamedTuple):
    """An image and what a model predicts for it.

    Attributes:
        data: values of the pixels; the last two axes are those of the image.
        mean, variance: those that the model predicts.
        used: True where a pixel counts.
    """

    data: Float[np.ndarray, "*shape"]
    mean: Float[np.ndarray, "*shape"]
    variance: Float[np.ndarray, "*shape"]
    used: Bool[np.ndarray, "*shape"]


def scored(*images: FittedImage) -> Goodness:
    """The goodness of fit of images.

    The pixels in which the model's light exceeds the noise are scored apart from the others: a large dark
    frame must not hide a misfit of its few bright pixels. If the noise is overestimated (noise maps of
    resampled images are), the scatter of dark pixels about their local mean says by how much, and chi2 is
    relative to it.
    """
    squares, lights, scatters = [], [], []
    for data, mean, variance, used in images:
        residual = np.where(used, data - mean, 0.0) / np.sqrt(np.where(used, variance, 1.0))
        lit = used & (mean - np.quantile(mean[used], _BASE) > np.sqrt(variance))
        squares.append(residual[used] ** 2)
        lights.append(lit[used])
        scatters.append(_scatter(residual, used & ~lit))
    square, lit, scatter = (np.concatenate(parts) for parts in (squares, lights, scatters))
    parts = {"all pixels": square}
    if lit.sum() >= _FEW:
        parts["pixels with light"] = square[lit]
    if (~lit).sum() >= _FEW:
        parts["other pixels"] = square[~lit]
    if len(scatter) >= _FEW:
        parts["other pixels, about their local mean"] = scatter
    chi2 = {name: float(values.mean()) for name, values in parts.items()}
    noise = min(1.0, chi2.get("other pixels, about their local mean", 1.0))
    worst = max(chi2.get("pixels with light", 0.0), chi2["all pixels"]) / noise
    count = len(parts.get("pixels with light", square))
    return Goodness(
        chi2=worst if np.isfinite(list(chi2.values())).all() else float("inf"),
        limit=1 + _TOLERANCE + _SIGMAS * float(np.sqrt(2 / count)),
        parts=chi2,
    )


def _scatter(
    residual: Float[np.ndarray, "*shape"], dark: Bool[np.ndarray, "*shape"]
) -> Float[np.ndarray, "n"]:
    """Squared deviations of dark pixels from their mean in a box. Their mean is 1 for white noise of SD 1."""
    box = (1,) * (dark.ndim - 2) + (_BOX,) * min(dark.ndim, 2)
    share = uniform_filter(dark.astype(float), box, mode="constant")
    level = uniform_filter(np.where(dark, residual, 0.0), box, mode="constant") / np.maximum(share, 1e-9)
    count = share * np.prod(box)
    enough = dark & (count > 1.5)
    return (residual - level)[enough] ** 2 * count[enough] / (count[enough] - 1)
