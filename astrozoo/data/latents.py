"""Tables of latents: what an encoder says of each galaxy, q(z | x), with the galaxy's known properties."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError, InputError

__all__ = ["LatentTable", "read_latents"]

_EXPECTED = "columns mean [n, latents] and sd [n, latents], and a column [n] for each condition"
_READERS = ".npz, .safetensors, or a FITS table (.fits, .fit, .fits.gz)"


@dataclass(frozen=True, eq=False)
class LatentTable:
    """Normals q(z | x) with independent components, one for each galaxy, and conditions.

    Args:
        mean: means.
        sd: standard deviations, positive.
        conditions: known properties of the galaxies, in any units.
        names: of the conditions.

    Raises:
        InputError: shapes differ, there are no rows, an SD is not positive, or a value is not finite.
    """

    mean: Float[Tensor, "n latents"]
    sd: Float[Tensor, "n latents"]
    conditions: Float[Tensor, "n conditions"]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes = tuple(self.mean.shape), tuple(self.sd.shape)
        if self.mean.ndim != 2 or shapes[0] != shapes[1] or not min(shapes[0]):
            raise InputError("latents", f"mean {shapes[0]} and sd {shapes[1]}", "two of [n, latents]")
        if self.conditions.shape != (len(self.mean), len(self.names)):
            expected = f"{(len(self.mean), len(self.names))}"
            raise InputError("conditions", f"shape {tuple(self.conditions.shape)}", expected)
        for name, values in {"mean": self.mean, "sd": self.sd}.items():
            _check_finite(name, values)
        for i, name in enumerate(self.names):
            _check_finite(name, self.conditions[:, i])
        if not (self.sd > 0).all():
            bad = int((~(self.sd > 0)).any(1).sum())
            raise InputError("sd", f"values of 0 or less in {bad} rows", "positive numbers")

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: slice) -> LatentTable:
        return LatentTable(self.mean[rows], self.sd[rows], self.conditions[rows], self.names)

    def only(self, names: Sequence[str]) -> LatentTable:
        """The table with the conditions of these names alone, in this order.

        Raises:
            InputError: the table lacks one.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError("conditions", f"no {', '.join(missing)}", f"some of {self.names or 'none'}")
        columns = [self.names.index(name) for name in names]
        return LatentTable(self.mean, self.sd, self.conditions[:, columns], tuple(names))

    def to(self, dtype: torch.dtype) -> LatentTable:
        """The table in another floating dtype."""
        mean, sd, conditions = (x.to(dtype) for x in (self.mean, self.sd, self.conditions))
        return LatentTable(mean, sd, conditions, self.names)

    def draw(self, generator: torch.Generator) -> Float[Tensor, "n latents"]:
        """One draw of each q(z | x)."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.sd * noise


def read_latents(path: str | Path, conditions: Sequence[str] | None = None) -> LatentTable:
    """Read a table of latents, in float32.

    The file is ``.npz``, ``.safetensors`` or a FITS table. It has arrays (or columns) ``mean`` and ``sd``,
    ``[n, latents]``; every other numeric array ``[n]`` is a condition.

    Args:
        path: of the file.
        conditions: names of the conditions to read, in this order. None: all, in the order of the file.

    Raises:
        DataError: the file is missing, unreadable, or does not have these columns, or they are not numbers.
    """
    path = Path(path)
    columns = _columns(path)
    missing = [name for name in ("mean", "sd") if name not in columns]
    if missing:
        raise DataError(str(path), f"no {' and '.join(missing)}; there are {sorted(columns)}", _EXPECTED)
    mean = columns["mean"]
    others = {n: c for n, c in columns.items() if n not in ("mean", "sd") and c.ndim == 1 and _numeric(c)}
    names = tuple(others) if conditions is None else tuple(conditions)
    unknown = [name for name in names if name not in others]
    if unknown:
        got = f"no column {', '.join(unknown)}"
        raise DataError(str(path), got, f"conditions among {', '.join(others) or 'none'}")
    lengths = {name: len(column) for name, column in columns.items() if name in ("mean", "sd", *names)}
    if len(set(lengths.values())) > 1:
        raise DataError(str(path), f"columns of lengths {lengths}", "columns of one length")
    stacked = np.stack([others[name] for name in names], 1) if names else np.empty((len(mean), 0))
    try:
        return LatentTable(_tensor(mean), _tensor(columns["sd"]), _tensor(stacked), names)
    except (InputError, ValueError, TypeError) as error:
        raise DataError(str(path), str(error), _EXPECTED) from error


def _tensor(column: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(column, dtype=np.float32))


def _columns(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise DataError(str(path), "no such file", f"a table of latents: {_READERS}")
    try:
        if path.suffix == ".npz":
            # numpy would leave a damaged file open
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            return load_file(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(str(path), f"unreadable ({error})", _EXPECTED) from error
    if path.name.lower().endswith((".fits", ".fit", ".fits.gz")):
        with open_fits(path, _EXPECTED) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            if not tables:
                raise DataError(str(path), "no table", _EXPECTED)
            return {name: np.array(tables[0].data[name]) for name in tables[0].columns.names}
    raise DataError(str(path), f"a file {path.suffix or 'without a suffix'}", _READERS)


def _numeric(column: np.ndarray) -> bool:
    return np.issubdtype(column.dtype, np.number) and not np.issubdtype(column.dtype, np.complexfloating)


def _check_finite(name: str, values: Tensor) -> None:
    bad = int((~values.isfinite()).reshape(len(values), -1).any(1).sum())
    if bad:
        raise InputError(name, f"values that are not finite in {bad} of {len(values)} rows", "finite numbers")
