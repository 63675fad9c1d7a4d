"""What a run returns: :class:`Result`, its :class:`Status`, and its file format."""

from __future__ import annotations

import enum
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from astrozoo._files import replacing
from astrozoo._labels import checked_coords, decoded, encoded, file_names
from astrozoo._provenance import environment
from astrozoo.errors import DataError, InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DENSE_COVARIANCE", "Goodness", "Result", "Status", "load"]

DENSE_COVARIANCE = 2000
"""[dimensions] The most latents for which a result has a dense covariance; above, it has variances only.

At 2,000 a matrix takes 32 MB in double precision and its Cholesky factor 0.2 s; at 10,000 they take 800 MB
and 15 s, and at 130,000 the matrix alone would take 135 GB.
"""


class Status(enum.StrEnum):
    """How a run ended. A run returns it and raises an exception instead only with ``throw=True``."""

    CONVERGED = "converged"
    BUDGET_SPENT = "budget spent"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"

    @property
    def ok(self) -> bool:
        """Whether the run converged, so that the result may be used."""
        return self is Status.CONVERGED


@dataclass(frozen=True)
class Goodness:
    """How well a model explains the images to which it was fitted.

    It is separate from :class:`Status`, because a run may converge to a model that does not fit.

    Args:
        chi2: mean squared residual per pixel, over the variance of the noise: 1 if the model is right.
        limit: the largest chi2 of a model that fits.
        parts: chi2 of each part of the images, by name.
    """

    chi2: float
    limit: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the model fits."""
        return self.chi2 <= self.limit

    def __str__(self) -> str:
        return f"{'fits' if self.ok else 'does not fit'} (chi2 {self.chi2:.3g})"


_APPROXIMATION = {
    "location": ("problem", "coordinate"),
    "covariance": ("problem", "coordinate", "coordinate_"),
    "variance": ("problem", "coordinate"),
    "guide_parameters": ("problem", "parameter"),
}
"""Fields of a result that make up its group "approximation", and their axes."""


_GROUPS = {
    "posterior": "draws",
    "sample_stats": "sample_stats",
    "log_likelihood": "log_likelihood",
    "log_prior": "log_prior",
    "posterior_predictive": "predictive",
    "observed_data": "observed",
    "summaries": "summaries",
    "parameters": "parameters",
    "trace": "trace",
}
"""Groups of a saved result, and the fields of a Result that they hold."""


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a run, which every backend returns.

    Args:
        draws: constrained posterior draws, ``{site: [chain, draw, ...]}``; in a batched problem
            ``[chain, draw, problem, ...]``.
        sample_stats: statistics of each draw, ``{name: [chain, draw, ...]}``: diverging, energy,
            acceptance_rate and others.
        trace: values of each iteration, ``{name: [iteration, problem or start]}``: elbo, radius, gradient
            norm and others. They are NaN after the problem has finished.
        stats: scalars and short strings: counts of evaluations, seconds of compiling and running, notes.
        status: the status of the run. For a batch it is the worst of all problems.
        goodness: goodness of fit of the problem's images. It is None for a problem without images and for a
            batch.
        statuses: the status of each problem of a batch.
        location: mean or mode in unconstrained space, ``[problem, dim]``.
        covariance: in unconstrained space, ``[problem, dim, dim]``; None above :data:`DENSE_COVARIANCE`
            latents.
        variance: the diagonal of the covariance, ``[problem, dim]``, for any number of latents.
        guide_parameters: flat parameters of a fitted guide, ``[problem, parameter]``; those of the model are
            at the end.
        parameters: fitted, constrained values of the model's parameters, by name. In a batched problem they
            are ``[problem, ...]``, because independent problems share no parameter.
        summaries: mean, SD and quantiles of all draws, ``{site: [statistic, ...]}``, in the order of
            :data:`astrozoo.infer.recorder.STATISTICS`. They are empty unless the run had ``summaries=True``.
        observed: the data, by observed site.
        log_likelihood: log likelihood of each draw and element, by observed site.
        log_prior: log prior density of each draw and element, by latent site.
        predictive: replicated data, by observed site. :func:`astrozoo.predictive` fills in these four fields.
            They may have fewer draws than ``draws``, evenly chosen.
    """

    draws: dict[str, np.ndarray]
    status: Status
    seed: int
    model: str
    method: str
    guide: str = ""
    digest: str = ""
    sample_stats: dict[str, np.ndarray] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    statuses: tuple[Status, ...] = ()
    goodness: Goodness | None = None
    location: np.ndarray | None = None
    covariance: np.ndarray | None = None
    variance: np.ndarray | None = None
    guide_parameters: np.ndarray | None = None
    summaries: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    observed: dict[str, np.ndarray] = field(default_factory=dict)
    log_likelihood: dict[str, np.ndarray] = field(default_factory=dict)
    log_prior: dict[str, np.ndarray] = field(default_factory=dict)
    predictive: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=environment)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coords", checked_coords(self.coords))

    @property
    def ok(self) -> bool:
        """Whether the run converged and the model fits (or has no measure of fit)."""
        return self.status.ok and (self.goodness is None or self.goodness.ok)

    @property
    def verdict(self) -> str:
        """The status, and whether the model fits: "converged, does not fit (chi2 7.3)"."""
        return self.status.value if self.goodness is None else f"{self.status.value}, {self.goodness}"

    def groups(self) -> dict[str, xr.Dataset]:
        """Labelled data sets, by name of the group.

        They are ArviZ's groups, and further ones: trace, approximation, summaries and parameters.
        """
        import xarray as xr

        out = {
            group: self._dataset(getattr(self, name), _leading(group, bool(self.statuses)))
            for group, name in _GROUPS.items()
        }
        approximation = {n: (_APPROXIMATION[n], x) for n, x in self._approximation().items() if x is not None}
        out["approximation"] = xr.Dataset(approximation)
        return {name: data for name, data in out.items() if data.data_vars}

    def take(self, problem: int) -> Result:
        """The result of one problem of a batch; counts and seconds in ``stats`` stay those of the batch.

        Raises:
            InputError: if the result is not of a batch, or the batch has no such problem.
        """
        if not 0 <= problem < len(self.statuses):
            raise InputError(
                "problem", problem, f"0 to {len(self.statuses) - 1}" if self.statuses else "a batch"
            )

        def sampled(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: x[:, :, problem] if x.ndim > 2 else x for name, x in arrays.items()}

        one = slice(problem, problem + 1)
        approximation: dict[str, Any] = {
            name: None if x is None else x[one] for name, x in self._approximation().items()
        }
        return replace(
            self,
            draws=sampled(self.draws),
            status=self.statuses[problem],
            statuses=(),
            sample_stats=sampled(self.sample_stats),
            trace={name: x[:, one] if x.ndim > 1 else x for name, x in self.trace.items()},
            summaries={name: x[:, problem] for name, x in self.summaries.items()},
            parameters={name: np.asarray(x[problem]) for name, x in self.parameters.items()},
            observed={name: x[problem] for name, x in self.observed.items()},
            log_likelihood=sampled(self.log_likelihood),
            log_prior=sampled(self.log_prior),
            predictive=sampled(self.predictive),
            **approximation,
        )

    def _approximation(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _APPROXIMATION}

    def _dataset(self, arrays: Mapping[str, np.ndarray], leading: tuple[str, ...]) -> xr.Dataset:
        import xarray as xr

        variables = {}
        labels = file_names(arrays, leading)
        for name, array in arrays.items():
            lead = leading[: array.ndim]
            rest = array.ndim - len(lead)
            named = tuple(self.dims.get(name, ()))[:rest]
            named += tuple(f"{name}_dim_{i}" for i in range(len(named), rest))
            # a site may be called as its axis is; xarray would take one for the other
            named = tuple(_axis_label(axis, labels) for axis in named)
            variables[labels[name]] = (lead + named, array)
        data = xr.Dataset(variables)
        coords = {_axis_label(axis, labels): ticks for axis, ticks in self.coords.items()}
        used = {k: v for k, v in coords.items() if k in data.dims and len(v) == data.sizes[k]}
        for axis in ("chain", "draw", "problem", "iteration", "start"):
            if axis in data.dims and axis not in used:
                used[axis] = np.arange(data.sizes[axis])
        return data.assign_coords(used)

    def to_arviz(self) -> Any:
        """The result as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0, once a day
            import arviz

        groups = self.groups()
        if arviz.__version__.startswith("0."):
            own = ("trace", "approximation", "summaries", "parameters")
            known = {k: v for k, v in groups.items() if k not in own}
            return arviz.InferenceData(**known)  # type: ignore[arg-type]
        import xarray as xr

        return xr.DataTree.from_dict(groups)

    def save(self, path: str | Path) -> Path:
        """Write the result as NetCDF-4, first to a file of a temporary name.

        Raises:
            OutputError: if it cannot be written. An older file at ``path`` then remains as it was.
        """
        import xarray as xr

        path = Path(path)
        header = {
            name: getattr(self, name)
            for name in ("seed", "model", "method", "guide", "digest", "stats", "dims", "environment")
        }
        header |= {
            "status": self.status.value,
            "statuses": [s.value for s in self.statuses],
            "goodness": None if self.goodness is None else asdict(self.goodness),
            "coords": encoded(self.coords),
            "names": [list(getattr(self, group)) for group in _GROUPS.values()],
        }
        tree = xr.DataTree.from_dict(self.groups())
        tree.attrs["astrozoo"] = json.dumps(header, default=_plain)
        with replacing(path) as partial:
            tree.to_netcdf(partial, engine="h5netcdf")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result that :meth:`save` wrote.

        Raises:
            DataError: if the file is missing or is not a saved result.
        """
        import xarray as xr

        path = Path(path)
        if not path.is_file():
            raise DataError(str(path), "no such file", "a result saved by astrozoo")
        try:
            tree = xr.load_datatree(path, engine="h5netcdf")
            header = json.loads(tree.attrs["astrozoo"])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                str(path), f"an unreadable file ({error})", "a result saved by astrozoo"
            ) from error

        names = dict(zip(_GROUPS, header.pop("names"), strict=True))

        def arrays(group: str) -> dict[str, np.ndarray]:
            variables = tree[group].data_vars if group in tree.children else {}
            if group not in names:
                return {str(name): variable.to_numpy() for name, variable in variables.items()}
            labels = file_names(names[group], _leading(group, bool(header["statuses"])))
            return {name: variables[label].to_numpy() for name, label in labels.items()}

        goodness = header.pop("goodness")
        return cls(
            goodness=None if goodness is None else Goodness(**goodness),
            draws=arrays("posterior"),
            sample_stats=arrays("sample_stats"),
            summaries=arrays("summaries"),
            observed=arrays("observed_data"),
            parameters=arrays("parameters"),
            log_likelihood=arrays("log_likelihood"),
            log_prior=arrays("log_prior"),
            predictive=arrays("posterior_predictive"),
            trace=arrays("trace"),
            **cast(dict[str, Any], arrays("approximation")),
            status=Status(header.pop("status")),
            statuses=tuple(Status(s) for s in header.pop("statuses")),
            coords=decoded(header.pop("coords")),
            dims={k: tuple(v) for k, v in header.pop("dims").items()},
            **header,
        )


def load(path: str | Path) -> Result:
    """Read a saved result; see :meth:`Result.load`."""
    return Result.load(path)


def _leading(group: str, batched: bool) -> tuple[str, ...]:
    """The leading axes of the variables of a group."""
    if group == "trace":
        return "iteration", "problem" if batched else "start"
    if group == "summaries":
        return ("statistic", "problem") if batched else ("statistic",)
    sampled = () if group in ("observed_data", "parameters") else ("chain", "draw")
    return sampled + (("problem",) if batched else ())


def _axis_label(axis: str, labels: Mapping[str, str]) -> str:
    """The label of an axis in a data set: without ``/``, and with a ``_`` if a variable has the same name."""
    label = axis.replace("/", ".").replace("\0", ".")
    while label in labels.values():
        label += "_"
    return label


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored in a result's stats")
