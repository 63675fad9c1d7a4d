"""Models of a lens's source, from the simplest to the richest, and the evidence that chooses among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrozoo._goodness import improvable
from astrozoo.density import layout_of
from astrozoo.infer import infer
from astrozoo.lens.gauss_newton import gauss_newton, log_evidence
from astrozoo.lens.pixelated import at_location, pixelated_mode, posterior_around
from astrozoo.models.learned_source import LATENT
from astrozoo.types import Goodness, Problem, Result, Status

__all__ = ["Hypothesis", "hypotheses"]

_DRAWS = (100, 200, 400)
"""Draws of each of 48 chains after a search, unless the user sets them. The run continues to the next number
if it has not converged. With 100, easy lenses have 1,000 effective draws or more."""
_DRAWS_AROUND = (200, 400)
"""The same of the 8 chains of :func:`~.pixelated.posterior_around`."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A model of the source, fitted.

    Attributes:
        name: "sersic", "learned" or "pixelated".
        problem: with this source.
        mode: Laplace's normal at the mode.
    """

    name: str
    problem: Problem
    mode: Result

    @property
    def goodness(self) -> Goodness:
        """That of the mode."""
        goodness = at_location(self.problem, self.mode).goodness
        assert goodness is not None  # one image
        return goodness

    @property
    def log_evidence(self) -> float:
        return log_evidence(self.mode)

    def __str__(self) -> str:
        return f"source {self.name}: {self.goodness}, log evidence {self.log_evidence:.1f}"

    def posterior(self, *, seed: int, folder: Path, sampling: Mapping[str, int]) -> Result:
        """Draws by HMC, which starts from the normal at the mode.

        Args:
            folder: for the checkpoint.
            sampling: options of HMC, such as ``draws`` and ``chains``.
        """
        around = self.mode.method == "gauss_newton"
        shared: dict[str, Any] = {**sampling, "seed": seed, "checkpoint": folder / f"{self.name}.npz"}
        lengths = _DRAWS_AROUND if around else _DRAWS
        for draws in (sampling["draws"],) if "draws" in sampling else lengths:
            shared["draws"] = draws
            if around:
                result = posterior_around(self.problem, self.mode, **shared)
            else:
                result = infer(self.problem, "auto", None, start=self.mode, **shared)
            if result.status is not Status.BUDGET_SPENT:
                break
        return result


def hypotheses(
    problem: Problem, *, pixels: int, seed: int, folder: Path, pixels_only: bool = False
) -> Iterator[Hypothesis]:
    """A Sersic source; then, as long as the last one leaves more than noise, a learned one and one of pixels.

    Args:
        problem: of one image, with a Sersic source; with a learned one, that is the first.
        pixels: of the last one, along a side.
        folder: for the checkpoint of the search.
        pixels_only: the source of pixels follows on the first one, however well that fits.
    """
    mode = infer(problem, "laplace", start="search", draws=1, seed=seed, checkpoint=folder / "search.npz")
    first: Any = problem.model
    last = Hypothesis(first.source, problem, mode)
    yield last
    values = layout_of(problem).constrain(torch.as_tensor(mode.location)[0])
    if first.source == "sersic" and improvable(last.goodness) and not pixels_only:
        last = _learned(problem, values, seed)
        yield last
    if improvable(last.goodness) or pixels_only:
        print(f"fitting a source of {pixels} x {pixels} pixels")
        yield Hypothesis("pixelated", *pixelated_mode(problem, values, pixels=pixels, seed=seed))


def _learned(problem: Problem, values: dict[str, Tensor], seed: int) -> Hypothesis:
    """From a galaxy in the middle of the decoder's prior, of the size and brightness of the Sersic source."""
    start = {n: v for n, v in values.items() if n not in ("source_index", "source_ellipticity")}
    start["source_latent"] = problem.args[0].image.new_zeros(LATENT)
    sersic: Any = problem.model
    model = replace(sersic, source="learned")
    dims = {name: axes for name, axes in problem.dims.items() if name in start}
    task = replace(problem, model=model, start=start, dims=dims, proposals=None, guides={})
    z = layout_of(task).unconstrain({name: value[None] for name, value in start.items()})[0]
    return Hypothesis("learned", task, gauss_newton(task, z, tolerance=0.1, seed=seed))
