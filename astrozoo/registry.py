"""The zoo's lists: entries, inference methods, general guides. Listing them imports no model.

A new model is one file ``models/<name>.py``, one ``guides/<name>.py`` where it has guides of its own, and one
``astrozoo/entries/<name>.py`` with its :class:`~astrozoo.entry.Entry`. The model's file provides these names:

* ``problem(data, **settings) -> Problem``;
* ``simulate(seed=0, **settings) -> (data, truth)``, with ``truth`` a dict of site -> tensor;
* ``read(path, **settings) -> data``, unless the entry names another reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from astrozoo.entries import ENTRIES
from astrozoo.entry import Entry, Job, Option, resolve
from astrozoo.errors import UnknownNameError

__all__ = ["GUIDES", "METHODS", "Entry", "Job", "Option", "get", "guide", "list_models", "resolve"]

_ENTRIES: tuple[Entry, ...] = ENTRIES


GUIDES: Mapping[str, str] = {
    "mean_field": "astrozoo.guides.auto:mean_field",
    "full_rank": "astrozoo.guides.auto:full_rank",
    "low_rank": "astrozoo.guides.auto:low_rank",
    "point": "astrozoo.guides.auto:point",
    "iaf": "astrozoo.guides.auto:iaf",
    "nsf": "astrozoo.guides.auto:nsf",
}
"""General guides, for any problem: name -> address of ``factory(problem) -> Pyro guide``."""

METHODS: Mapping[str, str] = {
    "trust_region": "second-order stochastic VI: exact Hessians in a trust region (TrustVI, DADVI)",
    "svi": "first-order stochastic VI (Adam on the reparameterised ELBO)",
    "el2o": "a Gaussian that matches the posterior's values, gradients and Hessians",
    "laplace": "mode and curvature: a Gaussian at the maximum of the density",
    "hmc": "many chains of jittered Hamiltonian Monte Carlo, preconditioned by the curvature",
    "nuts": "the No-U-Turn sampler",
    "nutpie": "the No-U-Turn sampler of nutpie (an optional extra)",
    "auto": "many starts, the curvature of the best mode, many chains of HMC preconditioned by it",
}
"""Inference methods, each with a line on what it is; their code is named in ``astrozoo.infer.METHODS``."""


def list_models() -> list[Entry]:
    """All entries, by name."""
    return sorted(_ENTRIES, key=lambda entry: entry.name)


def get(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UnknownNameError: there is none; the message suggests the nearest.
    """
    for entry in _ENTRIES:
        if entry.name == name:
            return entry
    raise UnknownNameError("model", name, [entry.name for entry in _ENTRIES])


def guide(name: str) -> Any:
    """The factory ``(problem) -> Pyro guide`` of a general guide.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in GUIDES:
        raise UnknownNameError("guide", name, GUIDES)
    return resolve(GUIDES[name])
