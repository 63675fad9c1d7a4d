"""Draws of whole catalogues, and whether their chains agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from astrozoo.infer.convergence import Mixing, mixing
from astrozoo.survey.crowded.scene import Sources

__all__ = ["Samples", "magnitude"]

ZERO_POINT = 22.5
"""Magnitude of 1 nMgy."""


def magnitude(flux: np.ndarray) -> np.ndarray:
    """AB magnitudes of fluxes in nanomaggies."""
    return ZERO_POINT - 2.5 * np.log10(flux)


@dataclass(frozen=True)
class Samples:
    """Catalogues drawn by several chains, row by row.

    Args:
        chain: of each row.
        sample: number of the catalogue within its chain.
        xy: [px of the reference image].
        flux: [nMgy].
        shape: half-light radius [px] and ellipticity (e1, e2); NaN for a star.
        bands: of the columns of ``flux``.
        reference: number of the band of magnitudes and bins.
        sky: of every kept catalogue and image, the level and two slopes of the sky that the chain added,
            relative to the image's median sky ([chain, sample, image, 3]).
        tally: of each move, how often it was tried and accepted after the burn-in.
    """

    chain: Int[np.ndarray, "row"]
    sample: Int[np.ndarray, "row"]
    xy: Float[np.ndarray, "row 2"]
    flux: Float[np.ndarray, "row band"]
    shape: Float[np.ndarray, "row 3"]
    bands: tuple[str, ...]
    reference: int
    sky: Float[np.ndarray, "chain sample k 3"]
    tally: dict[str, tuple[int, int]]

    @property
    def chains(self) -> int:
        """Number of chains."""
        return self.sky.shape[0]

    @property
    def length(self) -> int:
        """Kept catalogues of each chain."""
        return self.sky.shape[1]

    @property
    def is_star(self) -> Bool[np.ndarray, "row"]:
        """True for stars."""
        return np.isnan(self.shape[:, 0])

    @property
    def catalogue(self) -> Int[np.ndarray, "row"]:
        """Number of each row's catalogue among those of all chains."""
        return self.chain * self.length + self.sample

    @property
    def acceptance(self) -> dict[str, float]:
        """Accepted share of the tries of each move; NaN for a move that was never tried."""
        return {name: done / tried if tried else np.nan for name, (tried, done) in self.tally.items()}

    def sources(self, chain: int, sample: int) -> Sources:
        """One catalogue."""
        rows = (self.chain == chain) & (self.sample == sample)
        return Sources(self.xy[rows], self.flux[rows], self.shape[rows])

    def totals(self) -> dict[str, Float[np.ndarray, "chain sample"]]:
        """What convergence is judged by: counts of sources, of all and by magnitude, and total fluxes."""
        size = self.chains * self.length

        def summed(weights: np.ndarray | None = None) -> Float[np.ndarray, "chain sample"]:
            return np.bincount(self.catalogue, weights, size).astype(float).reshape(self.chains, self.length)

        result = {"sources": summed()}
        result["galaxies"] = summed((~self.is_star).astype(float))
        m = magnitude(self.flux[:, self.reference])
        band = self.bands[self.reference]
        if len(m):
            for low in range(int(np.floor(m.min())), int(np.floor(m.max())) + 1):
                result[f"{low} <= {band} < {low + 1}"] = summed(((m >= low) & (m < low + 1)).astype(float))
        for b, name in enumerate(self.bands):
            result[f"flux {name}"] = summed(self.flux[:, b])
        return result

    def mixing(self) -> tuple[list[str], Mixing]:
        """R-hat and effective sample sizes of :meth:`totals`, with their names.

        Of a number that no catalogue changes they are NaN.
        """
        totals = self.totals()
        draws = np.stack(list(totals.values()), -1)  # [chain, sample, total]
        return list(totals), mixing(torch.as_tensor(draws)[None])
