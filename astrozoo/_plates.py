"""How the data plates of a problem cut its data: which axis of which tensor belongs to which plate.

A cut takes some elements of one or several plates, and returns the arguments of the model for these. It
serves minibatches and training, and shards of the data on several devices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from astrozoo._content_hash import content_hash
from astrozoo.errors import DataError, InputError

__all__ = ["Cut", "Declaration", "check_dataset", "dataset_content", "first_item", "make_cut", "stack_items"]

Declaration = tuple[str, ...] | Mapping[str, Mapping[str, int]]
"""Names of plates; or, for each plate, the axis that it cuts of each argument (or of a part of one)."""

SAMPLED_ITEMS = 32
"""Number of items that the digest of a Dataset without a version reads. It takes much less than a second for
stamps. A data set of another survey or reduction differs in each of them. If one file among a thousand
differs, the probability that it is among them is 3 %."""
_VERSIONED = (
    "content that can be hashed and stays as it is, or an attribute `version` of the Dataset (a string that "
    "you change whenever its content changes), which then stands in for its content"
)
"""What an error asks for where the digest cannot be computed from the content."""
_EXAMPLE = 'as in data_plates={"data": {"x": 0, "y": 0}}'
"""The example at the end of errors about declarations."""


@dataclass(frozen=True)
class Cut:
    """Selects elements of data plates from a problem's arguments.

    Args:
        lengths: number of elements of each plate.
        axes: for each plate, the index of each leaf of the arguments that it cuts (in pytree order) and the
            axis, counted without the leading axis of a batched problem.
    """

    lengths: Mapping[str, int]
    axes: Mapping[str, Mapping[int, int]]

    def take(self, args: tuple[Any, ...], index: Mapping[str, Tensor], *, batched: bool = False) -> Any:
        """The arguments with only the elements ``index[plate]`` of each plate that is named.

        Args:
            args: arguments of the whole problem, or the result of a cut of other plates.
            index: indices of the elements, by plate.
            batched: True if every tensor has the leading axis of a batched problem.

        Raises:
            DataError: items of a Dataset differ in structure, shape or dtype.
        """
        leaves, tree = pytree.tree_flatten(args)
        for plate, rows in index.items():
            for at, axis in self.axes[plate].items():
                leaf = leaves[at]
                if isinstance(leaf, Dataset):
                    leaves[at] = stack_items(leaf, rows.tolist())
                else:
                    leaves[at] = leaf.index_select(axis + batched, rows.to(leaf.device))
        return pytree.tree_unflatten(leaves, tree)


def make_cut(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    declared: Declaration,
    *,
    batched: bool = False,
    lengths: Mapping[str, int] | None = None,
) -> Cut:
    """The cut that a problem declares.

    Plates that are declared by name alone cut the axis that is as long as the plate.

    Args:
        model: the model, whose signature has the names of its arguments.
        args: arguments of the model.
        declared: the declaration of the plates.
        batched: True if every tensor has the leading axis of a batched problem.
        lengths: lengths of the plates in a run of the model; needed if plates are declared by name alone.

    Raises:
        InputError: a declared argument, tensor or axis does not exist, tensors of one plate differ in length,
            or a name alone does not determine which axis a plate cuts.
    """
    leaves = pytree.tree_flatten_with_path(args)[0]
    paths = [_written(path, _argument_names(model, len(args))) for path, _ in leaves]
    axes_by_plate: dict[str, dict[int, int]] = {}
    if isinstance(declared, Mapping):
        for plate, entries in declared.items():
            axes_by_plate[plate] = _declared_axes(
                plate, entries, paths, [leaf for _, leaf in leaves], batched
            )
    else:
        axes_by_plate = _axes_by_length(declared, lengths or {}, paths, [leaf for _, leaf in leaves], batched)
    sizes = {}
    for plate, axes in axes_by_plate.items():
        by_tensor = {paths[at]: _length(leaves[at][1], axis, batched) for at, axis in axes.items()}
        if len(set(by_tensor.values())) > 1:
            raise InputError(f"data plate {plate!r}", f"lengths {by_tensor}", "tensors of one length")
        sizes[plate] = next(iter(by_tensor.values()))
    cut_by: dict[tuple[int, int], str] = {}
    for plate, axes in axes_by_plate.items():
        for at, axis in axes.items():
            if (at, axis) in cut_by:
                got = f"axis {axis} of {paths[at]!r}, which {cut_by[at, axis]!r} cuts too"
                raise InputError(f"data plate {plate!r}", got, "an axis of its own")
            cut_by[at, axis] = plate
    _check_datasets(axes_by_plate, [leaf for _, leaf in leaves], paths)
    return Cut(sizes, axes_by_plate)


def _argument_names(model: Callable[..., Any], count: int) -> list[str]:
    """Names of the positional arguments of a model, or their positions if they have no names."""
    try:
        call = model.forward if isinstance(model, torch.nn.Module) else model
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds][:count]
    return names + [str(i) for i in range(len(names), count)]


def _written(path: tuple[Any, ...], names: list[str]) -> str:
    """The path of a leaf as a user writes it, such as ``patch.counts``."""
    parts = [names[path[0].idx]]
    fields = (next(getattr(key, a) for a in ("name", "key", "idx") if hasattr(key, a)) for key in path[1:])
    parts += [str(field) for field in fields]
    return ".".join(parts)


def _declared_axes(
    plate: str, entries: Any, paths: list[str], leaves: list[Any], batched: bool
) -> dict[int, int]:
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"data plate {plate!r}", repr(entries), f"an axis of each tensor, {_EXAMPLE}")
    axes: dict[int, int] = {}
    for path, axis in entries.items():
        known = sorted(set(paths) | {path.partition(".")[0] for path in paths})
        parts = [i for i, p in enumerate(paths) if p == path or p.startswith(f"{path}.")]
        cuttable = [i for i in parts if isinstance(leaves[i], Tensor | Dataset)]
        if not cuttable:
            what = "no tensor or Dataset" if parts else "no argument of the model"
            raise InputError(f"data plate {plate!r}", f"{path!r}, {what}", f"one of {known}")
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise InputError(f"data plate {plate!r}, {path!r}", repr(axis), "the number of an axis")
        for at in cuttable:
            axes[at] = _normalised(plate, paths[at], leaves[at], axis, batched)
    return axes


def _normalised(plate: str, path: str, leaf: Any, axis: int, batched: bool) -> int:
    ndim = 1 if isinstance(leaf, Dataset) else leaf.ndim - batched
    if not -ndim <= axis < ndim:
        what = "a Dataset, whose items lie along axis 0" if isinstance(leaf, Dataset) else f"{ndim} axes"
        raise InputError(f"data plate {plate!r}", f"axis {axis} of {path!r}", f"an axis that it has: {what}")
    return axis % ndim


def _axes_by_length(
    plates: tuple[str, ...],
    lengths: Mapping[str, int],
    paths: list[str],
    leaves: list[Any],
    batched: bool,
) -> dict[str, dict[int, int]]:
    axes_by_plate: dict[str, dict[int, int]] = {}
    for plate in plates:
        length = lengths[plate]
        same = [other for other in plates if lengths[other] == length and other != plate]
        if same:
            _ambiguous(plate, f"plates {[plate, *same]} of the same length {length}")
        axes = {}
        for at, leaf in enumerate(leaves):
            if isinstance(leaf, Dataset):
                if len(plates) > 1:
                    _ambiguous(plate, f"{len(plates)} plates and the Dataset {paths[at]!r}")
                axes[at] = 0
            elif isinstance(leaf, Tensor):
                fitting = [i for i, size in enumerate(leaf.shape[batched:]) if size == length]
                if len(fitting) > 1:
                    _ambiguous(plate, f"{paths[at]!r} with {len(fitting)} axes of length {length}")
                if fitting:
                    axes[at] = fitting[0]
        if not axes:
            _ambiguous(plate, f"no tensor with an axis of its length {length}")
        axes_by_plate[plate] = axes
    return axes_by_plate


def _ambiguous(plate: str, got: str) -> NoReturn:
    raise InputError(f"data plate {plate!r}", got, f"the axis of each tensor that it cuts, {_EXAMPLE}")


def _length(leaf: Any, axis: int, batched: bool) -> int:
    return len(leaf) if isinstance(leaf, Dataset) else leaf.shape[axis + batched]  # type: ignore[arg-type]


def _check_datasets(axes: Mapping[str, Mapping[int, int]], leaves: list[Any], paths: list[str]) -> None:
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, Dataset):
            plates = [plate for plate, entries in axes.items() if at in entries]
            if len(plates) != 1:
                raise InputError(f"Dataset {paths[at]!r}", f"data plates {plates}", f"one plate, {_EXAMPLE}")


def check_dataset(data: Any, what: str) -> None:
    """Check that a Dataset has a length and items by number.

    Raises:
        InputError: it is an IterableDataset, has no length, or is empty.
    """
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise InputError(what, type(data).__name__, "a Dataset with __getitem__ and __len__")
    if len(data) == 0:
        raise InputError(what, f"an empty {type(data).__name__}", "at least one item")


def first_item(data: Dataset[Any]) -> Any:
    """The first item of a Dataset, with its arrays and numbers as tensors."""
    return _as_tensors(data[0], 0)


def dataset_content(data: Dataset[Any]) -> tuple[Any, ...]:
    """What the digest of a problem has of a Dataset.

    With an attribute ``version``, a string, these are its class, its length and its version, and no item is
    read. Otherwise they are its code and its attributes (arrays and tensors in full), its length, and
    :data:`SAMPLED_ITEMS` evenly spaced items, the first and the last among them. Files to which the
    attributes point are not hashed: a Dataset of files that may change under the same names needs a version.
    Of a TensorDataset they are its tensors.

    Raises:
        InputError: without a version, if the Dataset has content that cannot be hashed (an open file, say),
            or its attributes or its items change as they are read.
    """
    if type(data) is TensorDataset:
        return type(data), data.tensors
    n = len(data)  # type: ignore[arg-type]
    version = getattr(data, "version", None)
    if version is not None:
        return type(data).__qualname__, n, _checked_version(version)
    name = f"digest of the Dataset {type(data).__name__}"
    chosen = sorted({round(i * (n - 1) / (SAMPLED_ITEMS - 1)) for i in range(SAMPLED_ITEMS)})
    try:
        attributes = content_hash(data)
        items = [content_hash(_as_tensors(data[i], i)) for i in chosen]
        again = content_hash(_as_tensors(data[0], 0)), content_hash(data)
    except DataError:
        raise
    except InputError as error:
        raise InputError(name, error.got, _VERSIONED) from error
    for what, before, after in zip(("items", "attributes"), (items[0], attributes), again, strict=True):
        if before != after:
            raise InputError(name, f"{what} that change as they are read", _VERSIONED)
    return attributes, n, tuple(items)


def _checked_version(version: Any) -> str:
    if not (isinstance(version, str) and version):
        raise InputError("version of the Dataset", repr(version), "a string that is not empty")
    return version


def stack_items(data: Dataset[Any], index: Sequence[int]) -> Any:
    """Items of a Dataset, each of their tensors stacked along a new first axis.

    Raises:
        DataError: items differ in structure, shape or dtype, or contain NaN.
    """
    many = getattr(data, "__getitems__", None)
    items = [data[i] for i in index] if many is None else many(list(index))
    flat = [pytree.tree_flatten(_as_tensors(item, i)) for i, item in zip(index, items, strict=True)]
    leaves, tree = flat[0]
    for i, (others, other_tree) in zip(index, flat, strict=True):
        if other_tree != tree:
            raise DataError(
                f"item {i} of the Dataset", other_tree, f"the structure of item {index[0]}, {tree}"
            )
        for leaf, first in zip(others, leaves, strict=True):
            if leaf.shape != first.shape or leaf.dtype != first.dtype:
                got, expected = f"{tuple(leaf.shape)} {leaf.dtype}", f"{tuple(first.shape)} {first.dtype}"
                raise DataError(f"item {i} of the Dataset", got, f"{expected}, as item {index[0]}")
    stacked = [torch.stack(column) for column in zip(*(item_leaves for item_leaves, _ in flat), strict=True)]
    for x in stacked:
        if x.is_floating_point() and x.isnan().any():
            at = int(x.flatten(1).isnan().any(1).nonzero()[0]) if x.ndim > 1 else int(x.isnan().nonzero()[0])
            raise DataError(f"item {index[at]} of the Dataset", "NaN", "numbers (mask missing values)")
    return pytree.tree_unflatten(stacked, tree)


def _as_tensors(item: Any, index: int) -> Any:
    def convert(leaf: Any) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, np.ndarray | np.generic | int | float):
            return torch.as_tensor(leaf)
        raise DataError(f"item {index} of the Dataset", type(leaf).__name__, "tensors, arrays and numbers")

    return pytree.tree_map(convert, item)
