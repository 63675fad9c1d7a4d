"""The zoo's list. Entries name their code as ``"module:attribute"``, so that listing imports no model.

A new model is one file ``models/<name>.py``, one ``guides/<name>.py`` where it has guides of its own, and one
:class:`Entry` here. The file provides, by these names:

* ``problem(data, **settings) -> Problem``;
* ``simulate(seed=0, **settings) -> (data, truth)``, with ``truth`` a dict of site -> tensor;
* ``read(path, **settings) -> data``, unless the entry has a job that reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from astrozoo.errors import InputError, UnknownNameError

__all__ = ["GUIDES", "METHODS", "Entry", "get", "guide", "list_models", "resolve"]


def resolve(address: str) -> Any:
    """What ``"module:attribute"`` names.

    Raises:
        InputError: the address is malformed, or there is no such module or attribute.
    """
    module, colon, attribute = address.partition(":")
    if not (module and colon and attribute):
        raise InputError("address", repr(address), "'module:attribute'")
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", None)
        if missing not in (module, attribute) and not module.startswith(f"{missing}."):
            raise  # the module is there, but something that it needs is not
        raise InputError("address", repr(address), f"something that exists ({error})") from error


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name: of the entry, and the stem of its module.
        summary: one line.
        citation: where it was published.
        model: address of the model's class.
        keywords: for search.
        guides: names that ``infer(..., guide=)`` takes for it; its own, and general ones of :data:`GUIDES`.
        methods: names that ``infer(..., method=)`` takes for it.
        default_guide, default_method: what ``astrozoo run`` uses when told nothing.
        options: method -> options of ``infer`` that suit this model.
        dimensions: what the latent dimension is, in words.
        units: latent site -> unit.
        data_sets: names that ``astrozoo data fetch`` takes, of data that :meth:`read` reads.
        job: address of a function that stands in for the plain read, infer, save of ``astrozoo run``: called
            as ``job(out=Path, path=Path | None, demo=bool, method=str, guide=str, seed=int, device=str)``,
            it returns an :class:`astrozoo.types.Outcome` and may write files of its own into ``out``.
    """

    name: str
    summary: str
    citation: str
    model: str
    keywords: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    default_guide: str = ""
    default_method: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dimensions: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    data_sets: tuple[str, ...] = ()
    job: str | None = None

    @property
    def module(self) -> str:
        """Name of the model's module."""
        return self.model.partition(":")[0]

    @property
    def model_class(self) -> Any:
        """The model's class (imports it)."""
        return resolve(self.model)

    def simulate(self, seed: int = 0, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Data drawn from the model's own story, and the truth behind them: site -> tensor."""
        return resolve(f"{self.module}:simulate")(seed=seed, **settings)

    def read(self, path: str | Path, **settings: Any) -> Any:
        """Real data, ready for :meth:`problem`.

        Raises:
            DataError: if the files are missing or are not what the model reads.
            InputError: if the entry's job reads its own data.
        """
        if self.job:
            raise InputError(f"read of {self.name!r}", "an entry with a job that reads", "`astrozoo run`")
        return resolve(f"{self.module}:read")(Path(path), **settings)

    def problem(self, data: Any, **settings: Any) -> Any:
        """The :class:`astrozoo.types.Problem` of these data."""
        return resolve(f"{self.module}:problem")(data, **settings)


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

_ENTRIES = (
    Entry(
        name="celeste",
        summary="Stars and galaxies from multi-band survey images: type, flux, colours, position, shape, "
        "each with its uncertainty",
        citation="Regier et al. 2019, Annals of Applied Statistics 13, 1884",
        keywords=("catalogue", "photometry", "star-galaxy separation", "SDSS", "Poisson"),
        model="astrozoo.models.celeste:Celeste",
        guides=("structured", "mean_field", "point"),
        methods=("trust_region", "svi", "hmc"),
        default_guide="structured",
        default_method="trust_region",
        options={"trust_region": {"objective": "delta"}, "svi": {"objective": "delta", "tolerance": 0.01}},
        dimensions="a type and 11 continuous dimensions per source; a field holds hundreds of sources",
        units={
            "is_star": "1 or 0",
            "log_flux": "ln nMgy",
            "colour": "ln ratio of adjacent bands",
            "offset": "arcsec (east, north)",
            "log_radius": "ln arcsec",
            "ellipticity": "1",
            "dev_logit": "logit of the de Vaucouleurs fraction",
        },
        data_sets=("sdss-2583-2-136",),
        job="astrozoo.survey.celeste.job:run",
    ),
    Entry(
        name="strong_lens",
        summary="Strong gravitational lenses: mass, lens light, source and subhalos from one image, together",
        citation="Gu et al. 2022, ApJ 935, 49; Chianese, Coogan et al. 2020, MNRAS 496, 381",
        keywords=("gravitational lensing", "substructure", "Sersic", "HST", "Euclid"),
        model="astrozoo.models.strong_lens:StrongLens",
        guides=("mean_field", "full_rank", "iaf", "structured"),
        methods=("auto", "laplace", "hmc", "trust_region", "svi"),
        default_guide="full_rank",
        default_method="auto",
        options={
            "laplace": {"start": "search"},
            "hmc": {"start": "search"},
            "trust_region": {"start": "search", "particles": 8, "tolerance": 1e-2},
            "svi": {"start": "search", "particles": 4, "tolerance": 5e-2},
        },
        dimensions="22 with Sersic light; 32 for the latents of a learned source; 3 per subhalo",
        units={
            "einstein_radius": "arcsec",
            "slope": "1",
            "ellipticity": "1",
            "centre": "arcsec",
            "shear": "1",
            "lens_radius": "arcsec",
            "source_radius": "arcsec",
            "lens_amplitude": "image unit / arcsec^2",
            "source_amplitude": "image unit / arcsec^2",
            "subhalo_log_mass": "log10 solar mass",
            "subhalo_position": "arcsec",
        },
    ),
)


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
