"""Weights with the record of their training: :class:`Trained`, a result without chains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from astrozoo._files import replacing
from astrozoo._provenance import environment
from astrozoo._result import Status
from astrozoo.errors import DataError

__all__ = ["FORMAT", "Trained"]

FORMAT = 1
"""Version of the file that :meth:`Trained.save` writes. A file of another version is refused."""

_HEADER = "astrozoo"
"""Key of the metadata of a safetensors file under which the JSON is."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What training returns: the weights, and how they came about.

    Args:
        weights: of the model (``model.*``) and of the guide (``guide.*``), by name.
        status: BUDGET_SPENT where all steps were made (training has no test of convergence), DIVERGED where
            the loss was not finite (the weights are then finite ones from shortly before), INTERRUPTED.
        seed: of the run.
        model: name of the problem.
        guide: name of the guide.
        digest: of the problem; see :attr:`astrozoo.Problem.digest`.
        data: the data set, in words.
        curve: by name, one value at each look: "step", "elbo" (nats per element, mean since the last look),
            "rate" (of learning), "seconds"; "held_out_step" and "held_out_elbo" of data not trained on.
        settings: options of the run.
        stats: scalars: steps, seconds, elements.
        environment: versions and machine.
    """

    weights: dict[str, Tensor]
    status: Status
    seed: int
    model: str
    guide: str = ""
    digest: str = ""
    data: str = ""
    curve: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=environment)

    def part(self, name: str) -> dict[str, Tensor]:
        """The weights below a name, such as ``model.decoder``, by the rest of their names."""
        return {n.removeprefix(f"{name}."): w for n, w in self.weights.items() if n.startswith(f"{name}.")}

    def load_into(self, module: nn.Module, name: str) -> None:
        """Set the parameters of a module to the weights below a name, and the buffers that are among them.

        Raises:
            DataError: if names or shapes differ.
        """
        weights, own = self.part(name), module.state_dict()
        needed = dict(module.named_parameters()).keys()
        missing, extra = sorted(needed - weights.keys()), sorted(weights.keys() - own.keys())
        if missing or extra:
            expected = f"those of {type(module).__name__}"
            raise DataError(f"weights {name!r}", f"missing {missing}, unknown {extra}", expected)
        for n, w in weights.items():
            if w.shape != own[n].shape:
                got, expected = tuple(w.shape), f"shape {tuple(own[n].shape)}"
                raise DataError(f"weights {name}.{n}", f"shape {got}", expected)
        module.load_state_dict(own | weights)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, with the record as JSON in its header, to a temporary name first.

        Raises:
            OutputError: if it cannot be written; what stood at ``path`` is then untouched.
        """
        path = Path(path)
        names = ("status", "seed", "model", "guide", "digest", "data", "settings", "stats", "environment")
        record: dict[str, Any] = {"format": FORMAT} | {name: getattr(self, name) for name in names}
        record["curve"] = {name: np.asarray(values).tolist() for name, values in self.curve.items()}
        tensors = {name: w.detach().cpu().contiguous() for name, w in self.weights.items()}
        with replacing(path) as partial:
            try:
                save_file(tensors, partial, {_HEADER: json.dumps(record)})
            except SafetensorError as error:
                raise OSError(str(error)) from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trained:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: if the file is missing, corrupt, or of another version of the format.
        """
        path = Path(path)
        expected = "weights saved by astrozoo"
        if not path.is_file():
            raise DataError(str(path), "no such file", expected)
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get(_HEADER)
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(str(path), f"an unreadable file ({error})", expected) from error
        if header is None:
            raise DataError(str(path), "a safetensors file without a record of training", expected)
        record: Mapping[str, Any] = json.loads(header)
        if record.get("format") != FORMAT:
            raise DataError(str(path), f"format {record.get('format')}", f"format {FORMAT}")
        fields = {name: value for name, value in record.items() if name != "format"}
        fields["status"] = Status(record["status"])
        fields["curve"] = {
            name: np.asarray([np.nan if v is None else v for v in values], dtype=float)
            for name, values in record["curve"].items()
        }
        return cls(weights=weights, **fields)
