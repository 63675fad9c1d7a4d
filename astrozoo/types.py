"""The nouns shared by every room: :class:`Problem`, :class:`Objective`, :class:`Status`, :class:`Result`."""

from __future__ import annotations

import enum
import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from astrozoo._files import replacing
from astrozoo._provenance import environment, hash_into
from astrozoo.errors import DataError, InputError, UnknownNameError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Objective", "Outcome", "Page", "Problem", "Result", "Status", "environment", "load", "stack"]


class Status(enum.StrEnum):
    """How a run ended. A value, never an exception (unless the caller asks for ``throw=True``)."""

    CONVERGED = "converged"
    BUDGET_SPENT = "budget spent"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"

    @property
    def ok(self) -> bool:
        """True where the result may be used as it is."""
        return self is Status.CONVERGED


class Objective(Protocol):
    """A scalar function of a flat vector, to be maximised: a log density, an ELBO, or a model's own.

    Every method takes a whole batch of vectors. With ``batch is None`` they are any number of vectors of
    one problem (chains, starts); otherwise row ``i`` belongs to independent problem ``i``.
    ``noise`` is ``[draws, noise_dim]`` of standard normals, shared by all rows, and None where
    ``noise_dim`` is 0; values are means over its draws.
    """

    dim: int
    noise_dim: int
    batch: int | None
    dtype: torch.dtype
    device: torch.device
    counts: dict[str, int]
    """Evaluations so far, per row and per draw: "value", "gradient", "hvp", "hessian"."""

    def values(self, w: Float[Tensor, "b p"], noise: Tensor | None = None) -> Float[Tensor, "b m"]:
        """The function for each draw (one column where there is no noise)."""
        ...

    def value_and_grad(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"]]:
        """Mean over draws, and its gradient."""
        ...

    def value_grad_hessian(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
        """Mean over draws, its gradient and its exact Hessian."""
        ...

    def hvp(
        self, w: Float[Tensor, "b p"], noise: Tensor | None, v: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b p"]:
        """The Hessian (of the mean over draws) times ``v``."""
        ...

    def take(self, rows: Tensor) -> Objective:
        """The objective of some of the independent problems; of one problem, itself."""
        ...


@dataclass(frozen=True, eq=False)
class Problem:
    """A Pyro model with its data: all that a backend needs to know.

    Args:
        model: a Pyro model, called as ``model(*args)``. Data come in as arguments, never by closure.
        args: its arguments; tensors, or (named) tuples, lists and dicts of them.
        name: shown in reports.
        batch: None, or the number of independent problems that every tensor of ``args`` holds along
            its leading axis. The model is written for one of them.
        data_plates: plates over conditionally independent data (what may be minibatched or sharded).
        start: constrained starting values of some or all latent sites (with the leading axis if batched).
        dims: names of the axes of each site, for labelled results (an axis called as a site is gets a ``_``).
        coords: values along those named axes.
        guides: guides made for this model: name -> factory(problem) -> Pyro guide module.
        objectives: objectives in place of the Monte-Carlo ELBO: name -> factory(problem, guide) -> pure
            function of (flat guide parameters, ``*args``) returning a scalar to be maximised. It may carry
            an attribute ``derivatives``, a function of the same arguments returning that scalar, its
            gradient and its Hessian, which then takes the place of automatic second derivatives.
            Factories may be given as "module:attribute", imported when asked for.

    Raises:
        InputError: if tensors are of several floating dtypes or devices, or not ``batch`` long.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    name: str = "model"
    batch: int | None = None
    data_plates: tuple[str, ...] = ()
    start: Mapping[str, Tensor] = field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)
    guides: Mapping[str, Callable[[Problem], Any] | str] = field(default_factory=dict)
    objectives: Mapping[str, Callable[..., Callable[..., Tensor]] | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise InputError("model", type(self.model).__name__, "a Pyro model (a callable)")
        floats = {t.dtype for t in self.tensors if t.is_floating_point()}
        if len(floats) > 1:
            raise InputError("args", f"dtypes {sorted(map(str, floats))}", "one floating dtype")
        devices = {t.device for t in self.tensors}
        if len(devices) > 1:
            raise InputError("args", f"devices {sorted(map(str, devices))}", "one device")
        if self.batch is not None:
            for t in self.tensors:
                if t.ndim == 0 or t.shape[0] != self.batch:
                    raise InputError(
                        "args", f"a tensor of shape {tuple(t.shape)}", f"a leading axis of {self.batch}"
                    )

    def factory(self, kind: str, name: str) -> Callable[..., Any]:
        """The factory of one of this problem's "guides" or "objectives".

        Raises:
            UnknownNameError: if it has none of that name.
        """
        known = getattr(self, kind)
        if name not in known:
            raise UnknownNameError(kind.removesuffix("s"), name, known)
        found = known[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of ``args``, in pytree order."""
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor)]

    @property
    def dtype(self) -> torch.dtype:
        """That of the data; float64 where there are none."""
        return next((t.dtype for t in self.tensors if t.is_floating_point()), torch.float64)

    @property
    def device(self) -> torch.device:
        """That of the data; the CPU where there are none."""
        return next((t.device for t in self.tensors), torch.device("cpu"))

    @property
    def digest(self) -> str:
        """A hash of the model, its settings and all data: what a checkpoint is checked against."""
        h = hashlib.sha256()
        for value in (self.name, self.batch, self.data_plates, self.model, self.args):
            hash_into(h, value)
        return h.hexdigest()[:16]

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Problem:
        """The same problem with its data in another floating dtype or on another device."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        start = {name: move(value) for name, value in self.start.items()}
        return replace(self, args=pytree.tree_map(move, self.args), start=start)


def stack(problems: Sequence[Problem]) -> Problem:
    """Independent problems of one model as one batched problem, which a single call infers.

    Args:
        problems: with the same model and settings, and data of the same shapes; names of axes, coordinates,
            guides and objectives are those of the first.

    Raises:
        InputError: if there are none, if one is a batch already, or if they are not alike.
    """
    if not problems:
        raise InputError("problems", "none", "at least one")
    if any(problem.batch is not None for problem in problems):
        raise InputError("problems", "one that is a batch", "problems with batch=None")

    def kind(problem: Problem) -> tuple[Any, ...]:
        leaves, tree = pytree.tree_flatten((problem.args, dict(problem.start)))
        model = hashlib.sha256()
        hash_into(model, (problem.name, problem.model))
        told = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
        return told, str(tree), model.hexdigest()

    first = kind(problems[0])
    for i, problem in enumerate(problems):
        here = kind(problem)
        if here != first:
            names = ("data", "tree of data", "model or its settings")
            at = next(k for k in range(3) if here[k] != first[k])
            raise InputError(f"problems[{i}]", f"{names[at]} {here[at]}", f"those of the first, {first[at]}")

    def join(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    args = pytree.tree_map(join, *(problem.args for problem in problems))
    start = {name: torch.stack([problem.start[name] for problem in problems]) for name in problems[0].start}
    return replace(problems[0], args=args, start=start, batch=len(problems))


@dataclass(frozen=True, eq=False)
class Result:
    """What every backend returns.

    Args:
        draws: posterior draws, constrained: ``{site: [chain, draw, ...]}``; in a batched problem
            ``[chain, draw, problem, ...]``.
        sample_stats: per draw: ``{name: [chain, draw, ...]}`` (diverging, energy, acceptance_rate ...).
        trace: per iteration: ``{name: [iteration, problem or start]}`` (elbo, radius, gradient norm ...);
            NaN where that problem had already finished.
        stats: scalars and short strings: counts of evaluations, compile and run seconds, notes.
        status: of the run; of a batched run, the worst.
        statuses: one status per independent problem.
        location: mean or mode in unconstrained space, ``[problem, dim]``.
        covariance: in unconstrained space, ``[problem, dim, dim]``, or None.
        observed: the data, by observed site.
        log_likelihood, log_prior: per draw, of the elements of observed and of latent sites.
        predictive: replicated data, by observed site. These, and ``observed``, are filled in by
            :func:`astrozoo.predictive`; their draws may be fewer (evenly chosen).
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
    location: np.ndarray | None = None
    covariance: np.ndarray | None = None
    observed: dict[str, np.ndarray] = field(default_factory=dict)
    log_likelihood: dict[str, np.ndarray] = field(default_factory=dict)
    log_prior: dict[str, np.ndarray] = field(default_factory=dict)
    predictive: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=environment)

    def groups(self) -> dict[str, xr.Dataset]:
        """The result as labelled data sets by ArviZ group name, plus ``trace`` and ``approximation``."""
        import xarray as xr

        sampled = ("chain", "draw") if not self.statuses else ("chain", "draw", "problem")
        out = {
            "posterior": self._dataset(self.draws, sampled),
            "sample_stats": self._dataset(self.sample_stats, sampled),
            "log_likelihood": self._dataset(self.log_likelihood, sampled),
            "log_prior": self._dataset(self.log_prior, sampled),
            "posterior_predictive": self._dataset(self.predictive, sampled),
            "observed_data": self._dataset(self.observed, sampled[2:]),
            "trace": self._dataset(self.trace, ("iteration", "problem" if self.statuses else "start")),
        }
        if self.location is not None:
            held: dict[str, Any] = {"location": (("problem", "coordinate"), self.location)}
            if self.covariance is not None:
                held["covariance"] = (("problem", "coordinate", "coordinate_"), self.covariance)
            out["approximation"] = xr.Dataset(held)
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
        return replace(
            self,
            draws=sampled(self.draws),
            status=self.statuses[problem],
            statuses=(),
            sample_stats=sampled(self.sample_stats),
            trace={name: x[:, one] if x.ndim > 1 else x for name, x in self.trace.items()},
            location=None if self.location is None else self.location[one],
            covariance=None if self.covariance is None else self.covariance[one],
            observed={name: x[problem] for name, x in self.observed.items()},
            log_likelihood=sampled(self.log_likelihood),
            log_prior=sampled(self.log_prior),
            predictive=sampled(self.predictive),
        )

    def _dataset(self, arrays: Mapping[str, np.ndarray], leading: tuple[str, ...]) -> xr.Dataset:
        import xarray as xr

        held = {}
        for name, array in arrays.items():
            lead = leading[: array.ndim]
            rest = array.ndim - len(lead)
            named = tuple(self.dims.get(name, ()))[:rest]
            named += tuple(f"{name}_dim_{i}" for i in range(len(named), rest))
            # a site may be called as its axis is; xarray would take one for the other
            named = tuple(f"{axis}_" if axis in arrays else axis for axis in named)
            held[name] = (lead + named, array)
        data = xr.Dataset(held)
        coords = {f"{axis}_" if axis in arrays else axis: ticks for axis, ticks in self.coords.items()}
        used = {k: v for k, v in coords.items() if k in data.dims and len(v) == data.sizes[k]}
        for axis in ("chain", "draw", "problem", "iteration", "start"):
            if axis in data.dims and axis not in used:
                used[axis] = np.arange(data.sizes[axis])
        return data.assign_coords(used)

    def to_arviz(self) -> Any:
        """As ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0, once a day
            import arviz

        groups = self.groups()
        if arviz.__version__.startswith("0."):
            known = {k: v for k, v in groups.items() if k not in ("trace", "approximation")}
            return arviz.InferenceData(**known)  # type: ignore[arg-type]
        import xarray as xr

        return xr.DataTree.from_dict(groups)

    def save(self, path: str | Path) -> Path:
        """Write NetCDF-4, to a temporary name first.

        Raises:
            OutputError: if it cannot be written; what stood at ``path`` is then untouched.
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
            "coords": {k: np.asarray(v).tolist() for k, v in self.coords.items()},
        }
        tree = xr.DataTree.from_dict(self.groups())
        tree.attrs["astrozoo"] = json.dumps(header, default=_plain)
        with replacing(path) as partial:
            tree.to_netcdf(partial, engine="h5netcdf")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what :meth:`save` wrote.

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

        def arrays(group: str) -> dict[str, np.ndarray]:
            held = tree[group].data_vars if group in tree.children else {}
            return {str(name): variable.to_numpy() for name, variable in held.items()}

        held = arrays("approximation")
        return cls(
            draws=arrays("posterior"),
            sample_stats=arrays("sample_stats"),
            observed=arrays("observed_data"),
            log_likelihood=arrays("log_likelihood"),
            log_prior=arrays("log_prior"),
            predictive=arrays("posterior_predictive"),
            trace=arrays("trace"),
            location=held.get("location"),
            covariance=held.get("covariance"),
            status=Status(header.pop("status")),
            statuses=tuple(Status(s) for s in header.pop("statuses")),
            dims={k: tuple(v) for k, v in header.pop("dims").items()},
            **header,
        )


def load(path: str | Path) -> Result:
    """Read a saved result; see :meth:`Result.load`."""
    return Result.load(path)


@dataclass(frozen=True, eq=False)
class Page:
    """A section that a model adds to a report.

    Args:
        title: its heading.
        parts: in order, each a paragraph (``str``), a table (a sequence of one mapping per row), or a figure
            with its caption (``(matplotlib Figure, str)``).
    """

    title: str
    parts: Sequence[Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an entry's own job hands back to ``astrozoo run``.

    Args:
        result: saved as ``posterior.nc``.
        pages: sections for the report, before the general ones.
        summary: scalars and short strings, added to ``summary.json`` and shown on screen.
        files: names of the files that the job wrote into the output folder, each with a line on what it is.
    """

    result: Result
    pages: Sequence[Page] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored in a result's stats")
