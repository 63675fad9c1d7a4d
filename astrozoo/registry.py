"""The zoo's lists: entries, inference methods, general guides. Listing them imports no model.

A new model is one file ``models/<name>.py``, one ``guides/<name>.py`` where it has guides of its own, and one
``astrozoo/entries/<name>.py`` with its :class:`~astrozoo.entry.Entry`. The model's file provides these names:

* ``problem(data, **settings) -> Problem``;
* ``simulate(seed=0, **settings) -> (data, truth)``, with ``truth`` a dict of site -> tensor;
* ``read(path, **settings) -> data``, unless the entry names another reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from astrozoo.entries import ENTRIES
from astrozoo.entry import Entry, Job, Option, resolve
from astrozoo.errors import UnknownNameError

__all__ = ["GUIDES", "METHODS", "Entry", "Job", "Method", "Option", "get", "guide", "list_models", "resolve"]

_ENTRIES: tuple[Entry, ...] = ENTRIES
"""All entries, in the order of the list."""


@dataclass(frozen=True)
class Method:
    """One inference method. Its code is imported when it is first used.

    Args:
        summary: one line.
        backend_address: of the function ``(problem, run, settings) -> Result``, or, of a method that takes a
            guide, ``(problem, guide, run, settings) -> Result``.
        settings_address: of the dataclass of the method's own settings (:mod:`astrozoo.infer.options`).
        defaults: of the options of every method that differ between methods: draws, chains, budget.
        takes_guide: whether it fits a guide.
        chains: what its chains are: "together" (Markov chains that advance together), "apart" (Markov chains
            one after another), or "" (only a shape of independent draws).
    """

    summary: str
    backend_address: str
    settings_address: str
    defaults: Mapping[str, int]
    takes_guide: bool = False
    chains: Literal["together", "apart", ""] = ""

    @property
    def backend(self) -> Any:
        """The function (imports it)."""
        return resolve(self.backend_address)

    @property
    def settings(self) -> Any:
        """The dataclass of the method's own settings."""
        return resolve(self.settings_address)


GUIDES: Mapping[str, str] = {
    "mean_field": "astrozoo.guides.auto:mean_field",
    "full_rank": "astrozoo.guides.auto:full_rank",
    "low_rank": "astrozoo.guides.auto:low_rank",
    "point": "astrozoo.guides.auto:point",
    "iaf": "astrozoo.guides.auto:iaf",
    "nsf": "astrozoo.guides.auto:nsf",
}
"""General guides, for any problem: name -> address of ``factory(problem) -> Pyro guide``."""

METHODS: Mapping[str, Method] = {
    "trust_region": Method(
        "second-order stochastic VI: exact Hessians in a trust region (TrustVI, DADVI)",
        backend_address="astrozoo.infer.trust_region:trust_region",
        settings_address="astrozoo.infer.options:TrustRegionSettings",
        defaults={"draws": 1000, "chains": 1, "budget": 200},
        takes_guide=True,
    ),
    "svi": Method(
        "first-order stochastic VI (Adam on the reparameterised ELBO)",
        backend_address="astrozoo.infer.svi:svi",
        settings_address="astrozoo.infer.options:SVISettings",
        defaults={"draws": 1000, "chains": 1, "budget": 20_000},
        takes_guide=True,
    ),
    "el2o": Method(
        "a Gaussian that matches the posterior's values, gradients and Hessians",
        backend_address="astrozoo.infer.el2o:el2o",
        settings_address="astrozoo.infer.options:El2oSettings",
        defaults={"draws": 1000, "chains": 1, "budget": 50},
        takes_guide=True,
    ),
    "laplace": Method(
        "mode and curvature: a Gaussian at the maximum of the density",
        backend_address="astrozoo.infer.laplace:laplace",
        settings_address="astrozoo.infer.options:LaplaceSettings",
        defaults={"draws": 1000, "chains": 1, "budget": 200},
    ),
    "wiener": Method(
        "the exact posterior of a linear model with Gaussian prior and noise (Wiener filter)",
        backend_address="astrozoo.infer.wiener:wiener",
        settings_address="astrozoo.infer.options:WienerSettings",
        defaults={"draws": 1000, "chains": 1, "budget": 1000},
    ),
    "hmc": Method(
        "many chains of jittered Hamiltonian Monte Carlo, preconditioned by the curvature",
        backend_address="astrozoo.infer.hmc:hmc",
        settings_address="astrozoo.infer.options:HMCSettings",
        defaults={"draws": 250, "chains": 32},
        chains="together",
    ),
    "mclmc": Method(
        "many chains of microcanonical Langevin dynamics, adjusted or with a limited energy error",
        backend_address="astrozoo.infer.mclmc:mclmc",
        settings_address="astrozoo.infer.options:MCLMCSettings",
        defaults={"draws": 250, "chains": 32},
        chains="together",
    ),
    "annealed": Method(
        "many chains that follow the posterior while noise that was added to the data falls to 0; then hmc",
        backend_address="astrozoo.infer.annealed:annealed",
        settings_address="astrozoo.infer.options:AnnealedSettings",
        defaults={"draws": 250, "chains": 32},
        chains="together",
    ),
    "nuts": Method(
        "the No-U-Turn sampler",
        backend_address="astrozoo.infer.nuts:nuts",
        settings_address="astrozoo.infer.options:NutsSettings",
        defaults={"draws": 500, "chains": 4},
        chains="apart",
    ),
    "nutpie": Method(
        "the No-U-Turn sampler of nutpie (an optional extra)",
        backend_address="astrozoo.infer.nutpie:nutpie",
        settings_address="astrozoo.infer.options:NutpieSettings",
        defaults={"draws": 500, "chains": 4},
        chains="apart",
    ),
    "auto": Method(
        "many starts, the curvature of the best mode, many chains of HMC preconditioned by it",
        backend_address="astrozoo.infer.auto:auto",
        settings_address="astrozoo.infer.options:AutoSettings",
        defaults={"draws": 500, "chains": 48},
        chains="together",
    ),
}
"""The inference methods by name. All else that depends on the method is derived from this table."""


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
