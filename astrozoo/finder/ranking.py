"""Probabilities of stamps from posterior draws of the finder's weights, and the ranked table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float

from astrozoo.data.finder_files import LensStamps
from astrozoo.models.lens_finder import log_odds
from astrozoo.models.lens_reference import Described, Finder
from astrozoo.types import Result

__all__ = ["INTERVAL", "Probabilities", "probabilities", "ranking"]

INTERVAL = 0.9
"""Probability of the intervals."""


class Probabilities(NamedTuple):
    """Of each stamp.

    Attributes:
        mean: posterior mean of the probability that it is a lens.
        low, high: ends of the central interval of probability :data:`INTERVAL`.
        log_ratio: posterior mean of the log likelihood ratio of lens to no lens [nat].
    """

    mean: Float[np.ndarray, "n"]
    low: Float[np.ndarray, "n"]
    high: Float[np.ndarray, "n"]
    log_ratio: Float[np.ndarray, "n"]


def probabilities(
    result: Result, features: Float[np.ndarray, "n f"], prevalence: float, trained_on: float = 0.5
) -> Probabilities:
    """Probabilities of stamps, given draws of the weights.

    Args:
        result: of the problem of :mod:`astrozoo.models.lens_finder`.
        features: of the stamps, standardised.
        prevalence: fraction of lenses among such stamps: the prior odds.
        trained_on: fraction of lenses among the labelled stamps.

    Raises:
        InputError: a prevalence is not between 0 and 1.
    """
    weight = result.draws["weight"].reshape(-1, features.shape[1]).astype(float)
    offset = result.draws["offset"].reshape(-1, 1).astype(float)
    ratio = offset + weight @ features.T.astype(float) - log_odds(trained_on)
    drawn = 1 / (1 + np.exp(-np.clip(ratio + log_odds(prevalence), -700, 700)))
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], axis=0)
    return Probabilities(drawn.mean(0), low, high, ratio.mean(0))


def ranking(
    stamps: LensStamps, finder: Finder, described: Described, result: Result, prevalence: float
) -> Table:
    """One row per stamp, best first; stamps unlike those of the training come after all others.

    Columns: ``rank``, ``name``, ``probability`` with ``low`` and ``high``, ``log_ratio``, ``distance`` from
        the
    stamps of the training, ``unlike_training``, ``missing`` (fraction of pixels without data), ``label`` if
    it is known, and ``index``, the position of the stamp in the data.
    """
    of_reference = float(finder.reference.label.mean())
    found = probabilities(result, described.features.numpy(), prevalence, of_reference)
    distance, unlike = (x.numpy() for x in finder.unlike(described))
    table = Table(
        {"name": list(stamps.names), "probability": found.mean, "low": found.low, "high": found.high}
    )
    table["log_ratio"], table["distance"], table["unlike_training"] = found.log_ratio, distance, unlike
    table["missing"] = stamps.image.isnan().float().mean((1, 2, 3)).numpy()
    if stamps.label is not None:
        table["label"] = stamps.label.numpy()
    table["index"] = np.arange(len(table))
    order: Bool[np.ndarray, "n"] = np.lexsort((-found.log_ratio, unlike))
    table = table[order]
    table.add_column(np.arange(1, len(table) + 1), 0, "rank")
    return table
