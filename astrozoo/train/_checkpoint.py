"""Lightning's checkpoints as safetensors with JSON: no pickles, and whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from astrozoo._files import replacing
from astrozoo.errors import DataError

__all__ = ["SafeCheckpoints", "read_checkpoint"]

_HEADER = "astrozoo"
"""Key of the metadata of a safetensors file under which the JSON is."""


class SafeCheckpoints(CheckpointIO):
    """Writes the tensors of a checkpoint as safetensors, and all else as JSON in the header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary name first."""
        tensors: dict[str, Tensor] = {}
        tree = _packed(checkpoint, tensors)
        with replacing(path) as partial:
            try:
                save_file(tensors, partial, {_HEADER: json.dumps(tree)})
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what :meth:`save_checkpoint` wrote."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint as Lightning takes it.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        expected = "a checkpoint of astrozoo; remove it to begin anew"
        raise DataError(str(path), f"an unreadable file ({error})", expected) from error
    return _unpacked(tree, tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of a tree, its tensors moved to a table. Mappings become lists of pairs: keys may be numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[_packed(k, tensors), _packed(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored in a checkpoint")


def _unpacked(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(_unpacked(item, tensors) for item in tree["tuple"])
    return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in tree["pairs"]}
