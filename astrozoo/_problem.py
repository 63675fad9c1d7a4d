"""A model with its data: :class:`Problem`, and :func:`stack`, which joins several into a batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from astrozoo._content_hash import content_hash
from astrozoo._labels import checked_coords, checked_dims, checked_start
from astrozoo._plates import Cut, Declaration, check_dataset, dataset_content, first_item, make_cut
from astrozoo.errors import InputError, UnknownNameError

__all__ = ["Problem", "stack"]


@dataclass(frozen=True, eq=False)
class Problem:
    """A Pyro model with its data, which is all that a backend needs.

    Args:
        model: a Pyro model, called as ``model(*args)``. Data are arguments, never closed over.
        args: its arguments: tensors, or (named) tuples, lists and dicts of them. An argument may also be a
            ``torch.utils.data.Dataset``, for training and for ``svi`` with minibatches. Its items are stacked
            along axis 0 as they are read. For its ``version`` see :attr:`digest`.
        name: the name of the problem in reports.
        batch: None, or the number of independent problems that every tensor of ``args`` holds along
            its leading axis. The model is written for one of them.
        data_plates: plates over conditionally independent data, which may be cut into minibatches or
            shards, with the axis that each plate cuts of each argument:
            ``{"data": {"x": 0, "catalogue.flux": 1}}``. A dotted path names a part of an argument; the path
            of a tuple or dict stands for all tensors in it. Plates may be nested or crossed. Names alone,
            ``("data",)``, stand for the axes that are as long as the plate, if no tensor has two of these.
        start: constrained starting values of some or all latent sites (with the leading axis if batched).
        dims: names of the axes of each site, for labelled results (an axis called as a site is gets a ``_``).
        coords: values along the axes that ``dims`` names.
        guides: guides made for this model: name -> factory(problem) -> Pyro guide module.
        objectives: objectives in place of the Monte-Carlo ELBO: name -> factory(problem, guide) -> pure
            function of (flat guide parameters, ``*args``) returning a scalar to be maximised. It may carry
            an attribute ``derivatives``, a function of the same arguments returning that scalar, its
            gradient and its Hessian, which then takes the place of automatic second derivatives.
            A factory may be written as "module:attribute", which is imported at its first use.
        preconditioner: the default ``metric`` of ``hmc``, ``laplace`` and ``auto``: the kind of a mass matrix
            for each site, ``{"x": "fourier"}``, for all latents, or an operator near a root of the
            posterior's covariance (:class:`astrozoo.infer.options.HMCSettings`).
        images: observed sites that are images, whose goodness of fit results report
            (:func:`astrozoo.goodness_of`).
        proposals: a function that makes starts of a search, which replace three quarters of the draws of the
            prior: ``(count, generator) -> {site: [(problem,) count, ...]}``, constrained values of all
            latents.
        version: a string that replaces the model, its code and its settings in the digest. It is needed for a
            model that cannot be hashed by content, for example one that uses a compiled extension. Change it
            whenever the model changes.

    Raises:
        InputError: if tensors are of several floating dtypes or devices, or not ``batch`` long; if a data
            plate cuts an axis that does not exist, or a Dataset has no items; if ``start`` is not finite
            numbers, or ``dims`` or ``coords`` cannot label a result.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    name: str = "model"
    batch: int | None = None
    data_plates: Declaration = ()
    start: Mapping[str, Tensor] = field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)
    guides: Mapping[str, Callable[[Problem], Any] | str] = field(default_factory=dict)
    objectives: Mapping[str, Callable[..., Callable[..., Tensor]] | str] = field(default_factory=dict)
    preconditioner: Any = None
    images: tuple[str, ...] = ()
    proposals: Callable[[int, torch.Generator], Mapping[str, Tensor]] | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise InputError("model", type(self.model).__name__, "a Pyro model (a callable)")
        if self.version is not None and not (isinstance(self.version, str) and self.version):
            raise InputError("version", repr(self.version), "a string that is not empty")
        for data in self.datasets:
            check_dataset(data, "args")
            if self.batch is not None:
                raise InputError("args", "a Dataset in a batch of problems", "tensors, or batch=None")
        checked = {
            "dims": checked_dims(self.dims),
            "coords": checked_coords(self.coords),
            "start": checked_start(self.start, self.dtype, self.device),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_preconditioner(self.preconditioner)
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
        if isinstance(self.data_plates, str):
            raise InputError("data_plates", repr(self.data_plates), f"a tuple, ({self.data_plates!r},)")
        if isinstance(self.data_plates, Mapping):
            self.cut()

    def factory(self, kind: str, name: str) -> Callable[..., Any]:
        """The factory of one of this problem's "guides" or "objectives".

        Raises:
            UnknownNameError: if the problem has no factory of that name.
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
    def datasets(self) -> list[Dataset[Any]]:
        """All Datasets of ``args``, in pytree order."""
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Dataset)]

    def cut(self, lengths: Mapping[str, int] | None = None) -> Cut:
        """How the data plates cut ``args``.

        Args:
            lengths: lengths of the plates. They are needed if the plates are declared by name alone.

        Raises:
            InputError: if the declaration does not fit ``args``, or leaves open which axes are cut.
        """
        batched = self.batch is not None
        return make_cut(self.model, self.args, self.data_plates, batched=batched, lengths=lengths)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the data; float64 if there are no data."""
        items = pytree.tree_leaves([first_item(data) for data in self.datasets])
        floats = [t.dtype for t in (*self.tensors, *items) if t.is_floating_point()]
        return floats[0] if floats else torch.float64

    @property
    def device(self) -> torch.device:
        """The device of the data; the CPU if there are no data."""
        return next((t.device for t in self.tensors), torch.device("cpu"))

    @property
    def digest(self) -> str:
        """A hash of the posterior: of the model's code and settings, and of all data.

        It changes with the code of the model and of the functions that it calls, those of the user and of
        astrozoo, and with the versions of installed packages. It does not depend on ``name``, ``dims``,
        ``coords``, ``start``, ``guides``, ``objectives``, ``preconditioner``, ``images`` and ``proposals``,
        because they do not change the posterior. It is computed at its first use, and again after torch has
        changed a tensor of ``args`` in place. A Dataset is hashed by its ``version``, a string, if it has
        one; otherwise by its code, its attributes and a sample of its items
        (:func:`astrozoo._plates.dataset_content`). A Dataset of files that may change under the same names
        needs a version.

        Raises:
            InputError: if the model or its data have content that cannot be hashed, or a Dataset without a
                version changes as it is read.
        """
        versions = tuple(0 if t.is_inference() else t._version for t in self.tensors)
        known = self.__dict__.get("_digest")
        if known is None or known[0] != versions:
            known = versions, content_hash(*self._identity())[:16]
            object.__setattr__(self, "_digest", known)
        return known[1]

    def _identity(self) -> tuple[Any, ...]:
        """All values that determine the posterior."""
        model = self.model if self.version is None else ("version", self.version)
        return model, pytree.tree_map(_readable, self.args), self.batch, self.data_plates

    def fix(self, values: Mapping[str, Any] | Any = None) -> Problem:
        """The same problem with parameters of its model made constants.

        Args:
            values: constrained values by name (of some or all parameters), a Result that has them, or None:
                the current (initial) values of all. In a batch they may have the axis of the problems: the
                model of the problem returned, and its guides and objectives, then take one more argument.

        Raises:
            InputError: if the model has no such parameter, or a value is of a wrong shape or out of range.
        """
        from astrozoo._capture import Model
        from astrozoo._parameters import Fixed
        from astrozoo._scope import Scope

        def row(i: int) -> tuple[Any, ...]:
            if self.batch is None:
                return self.args
            return pytree.tree_map(lambda leaf: leaf[i] if isinstance(leaf, Tensor) else leaf, self.args)

        model = Model(self.model, [row(0)], Scope(self.dtype, self.device))
        found = model.parameters
        values = getattr(values, "parameters", values)
        if values is None:
            flat = torch.stack([model.initial_parameters(row(i)) for i in range(self.batch or 1)])
            flat = flat[0] if (flat == flat[0]).all() else flat
        else:
            unknown = sorted(set(values) - set(found.names))
            if unknown or not values:
                raise InputError("values", unknown or "none", f"the model's parameters: {found.names}")
            found = found.only(list(values))
            flat = found.unconstrain(values, torch.zeros((), dtype=self.dtype, device=self.device))
        if not found:
            return self
        if flat.ndim == 1:
            return replace(self, model=Fixed(self.model, found, flat))
        if self.batch is None or flat.shape[0] != self.batch:
            raise InputError("values", f"of {flat.shape[0]} problems", f"those of {self.batch or 'one'}")
        return replace(self, model=Fixed(self.model, found), args=(*self.args, flat))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Problem:
        """The same problem with its data in another floating dtype or on another device.

        A preconditioner that is an operator is converted by its own method ``to(dtype=, device=)``.

        Raises:
            InputError: if that operator has no such method.
        """

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        start = {name: move(value) for name, value in self.start.items()}
        moved = self.preconditioner
        if _is_operator(moved):
            if not hasattr(moved, "to"):
                raise InputError(
                    "preconditioner", f"{type(moved).__name__} without `to`", "one with to(dtype=, device=)"
                )
            moved = moved.to(dtype=dtype, device=device)
        return replace(self, args=pytree.tree_map(move, self.args), start=start, preconditioner=moved)


def stack(problems: Sequence[Problem]) -> Problem:
    """Join independent problems of one model into one batched problem, which a single call infers.

    Args:
        problems: problems with the same model and settings, and with data of the same shapes. Names of axes,
            coordinates, guides and objectives are taken from the first.

    Raises:
        InputError: if there are none, if one is a batch already, or if they are not alike.
    """
    if not problems:
        raise InputError("problems", "none", "at least one")
    if any(problem.batch is not None for problem in problems):
        raise InputError("problems", "one that is a batch", "problems with batch=None")

    first = _kind(problems[0])
    for i, problem in enumerate(problems):
        for what, value in _kind(problem).items():
            if value != first[what]:
                raise InputError(f"problems[{i}]", f"{what} {value}", f"those of the first, {first[what]}")

    def join(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    args = pytree.tree_map(join, *(problem.args for problem in problems))
    start = {name: torch.stack([problem.start[name] for problem in problems]) for name in problems[0].start}
    made = [problem.proposals for problem in problems if problem.proposals is not None]
    proposals = _joined(made) if len(made) == len(problems) else None
    return replace(problems[0], args=args, start=start, batch=len(problems), proposals=proposals)


def _joined(
    proposals: Sequence[Callable[[int, torch.Generator], Mapping[str, Tensor]]],
) -> Callable[[int, torch.Generator], Mapping[str, Tensor]]:
    """The proposals of a batch, from the proposals of each problem."""

    def joined(count: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        each = [propose(count, generator) for propose in proposals]
        return {name: torch.stack([values[name] for values in each]) for name in each[0]}

    return joined


def _is_operator(preconditioner: Any) -> bool:
    return preconditioner is not None and not isinstance(preconditioner, str | Mapping)


def _check_preconditioner(value: Any) -> None:
    """Check the type of a preconditioner. Methods check whether it fits the model, since they know the sites.

    Raises:
        InputError: if the value is neither a kind, nor a mapping of sites to kinds, nor an operator.
    """
    if isinstance(value, Mapping):
        good = all(isinstance(x, str) for pair in value.items() for x in pair)
    else:
        good = not _is_operator(value) or hasattr(value, "velocity")
    if not good:
        raise InputError("preconditioner", repr(value), "a kind, a mapping of sites to kinds, or an operator")


def _readable(leaf: Any) -> Any:
    """The value of an argument in the digest: the content of a Dataset, and any other argument itself."""
    return dataset_content(leaf) if isinstance(leaf, Dataset) else leaf


def _comparable(preconditioner: Any) -> Any:
    """A value that is equal for equal preconditioners. Operators are equal if they are one object."""
    if _is_operator(preconditioner):
        return type(preconditioner).__name__, id(preconditioner)
    return dict(preconditioner) if isinstance(preconditioner, Mapping) else preconditioner


def _kind(problem: Problem) -> dict[str, Any]:
    """Values that all problems of a batch must share, by the names that messages give them."""
    leaves, tree = pytree.tree_flatten((problem.args, dict(problem.start)))
    constants = [_readable(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]
    return {
        "a tree of data": str(tree),
        "data": [(tuple(x.shape), x.dtype, str(x.device)) for x in leaves if isinstance(x, Tensor)],
        "a model or its settings": content_hash(
            problem.model if problem.version is None else problem.version, problem.data_plates
        )[:16],
        "data that are not tensors (digest)": content_hash(constants)[:16],
        "dims": dict(problem.dims),
        "preconditioner": _comparable(problem.preconditioner),
        "coords (digest)": content_hash(dict(problem.coords))[:16],
    }
