"""Draws of Markov chains as they come: kept, thinned, summarised, or written to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo._files import replacing
from astrozoo.errors import DataError, InputError
from astrozoo.infer._moments import Moments

__all__ = ["STATISTICS", "DrawsOnDisk", "Recorder", "Summary", "open_draws"]

STATISTICS = ("mean", "sd", "5%", "50%", "95%")
"""What a summary holds of each latent, in this order."""
BINS = 128
"""Bins of the histogram from which quantiles are read: an even number. They span at most about twice the
range of the draws, so that a bin is at most 1/64 of the range: about 0.12 SD of 1,000 normal draws.
"""
AT_ONCE = 2**22
"""Numbers in the draws that are constrained and stored in one go: 32 MiB in double precision."""


class Summary:
    """Mean, SD and quantiles of every latent, in one pass and bounded memory.

    Mean and SD are exact. Quantiles are interpolated in a histogram of ``BINS`` bins for each latent, whose
    bins are merged in pairs when a draw lies outside: they are within a bin of the quantile of all draws.
    """

    def __init__(self, size: int) -> None:
        self.moments = Moments(1, size, dense=False)
        self.low = torch.zeros(size, dtype=torch.float64)
        self.width = torch.zeros(size, dtype=torch.float64)
        self.counts = torch.zeros(size, BINS, dtype=torch.int32)

    def add(self, x: Float[Tensor, "m size"]) -> None:
        """Add draws, a few dozen of them at first, from which the first bins are laid out."""
        x = x.to(torch.float64)
        self.moments.add(x[None].clone())
        if self.moments.count == len(x):
            low, high = x.amin(0), x.amax(0)
            span = (high - low).clamp_min(1e-12 * (1 + low.abs()))
            self.low, self.width = low - span / 2, 2 * span / BINS
        for row in x:
            self._widen(row)
            place = ((row - self.low) / self.width).long().clamp(0, BINS - 1)
            self.counts.scatter_add_(1, place[:, None], torch.ones_like(place, dtype=torch.int32)[:, None])

    def _widen(self, row: Float[Tensor, "size"]) -> None:
        """Merge bins in pairs, towards the side where the draw lies outside."""
        while True:
            below, above = row < self.low, row >= self.low + BINS * self.width
            outside = below | above
            if not outside.any():
                return
            merged = self.counts[outside].unflatten(1, (-1, 2)).sum(2, dtype=torch.int32)
            empty = torch.zeros_like(merged)
            first = torch.where(below[outside, None], empty, merged)
            last = torch.where(below[outside, None], merged, empty)
            self.counts[outside] = torch.cat((first, last), 1)
            self.low = torch.where(below, self.low - BINS * self.width, self.low)
            self.width = torch.where(outside, 2 * self.width, self.width)

    def quantile(self, q: float) -> Float[Tensor, "size"]:
        """Interpolated in the histogram."""
        reached = self.counts.cumsum(1, dtype=torch.int64).to(torch.float64)
        wanted = q * self.moments.count
        bin = (reached < wanted).sum(1).clamp_max(BINS - 1)[:, None]
        inside = self.counts.gather(1, bin)[:, 0].clamp_min(1)
        part = (wanted - (reached.gather(1, bin)[:, 0] - inside)) / inside
        return self.low + (bin[:, 0] + part.clamp(0, 1)) * self.width

    def values(self) -> Float[np.ndarray, "statistic size"]:
        """In the order of :data:`STATISTICS`."""
        quantiles = [self.quantile(float(name[:-1]) / 100) for name in STATISTICS[2:]]
        return torch.stack([self.moments.mean[0], self.moments.variance[0].sqrt(), *quantiles]).numpy()

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        own = {f"{prefix}_{name}": getattr(self, name).clone().numpy() for name in ("low", "width", "counts")}
        return own | self.moments.arrays(prefix)

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Continue from a checkpoint."""
        self.low, self.width, self.counts = (
            torch.as_tensor(arrays[f"{prefix}_{name}"]) for name in ("low", "width", "counts")
        )
        self.moments.restore(arrays, prefix)


class DrawsOnDisk:
    """A folder of draws, one memory-mapped ``.npy`` file a site, ``[chain, draw, ...]``.

    ``draws.json`` says how many draws have been written. It is replaced after the draws are on disk, so that
    a killed run leaves all draws that it counted.

    Args:
        folder: made if it is missing.
        header: of the run; a folder of another run is refused.

    Raises:
        InputError: if the folder holds draws of another run.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any]) -> None:
        self.folder, self.header = Path(folder), dict(header)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _INDEX).exists():
            found = _read_index(self.folder)
            for name, value in self.header.items():
                if found.get(name) != value:
                    raise InputError(f"stream {self.folder}", f"{name} {found.get(name)}", f"{name} {value}")
        self.maps: dict[str, np.memmap] = {}

    def write(self, first: int, total: int, sites: Mapping[str, np.ndarray]) -> None:
        """Write ``{site: [chain, m, ...]}`` at draws ``first`` and after, of ``total``."""
        for name, x in sites.items():
            if name not in self.maps:
                self.maps[name] = self._map(name, (x.shape[0], total, *x.shape[2:]), x.dtype)
            self.maps[name][:, first : first + x.shape[1]] = x
            self.maps[name].flush()
        count = first + next(iter(sites.values())).shape[1] if sites else first
        with replacing(self.folder / _INDEX) as partial:
            partial.write_text(json.dumps(self.header | {"count": count}))

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        path = self.folder / f"{quote(name, safe='')}.npy"
        if path.exists():
            found = np.lib.format.open_memmap(path, mode="r+")
            if found.shape == shape and found.dtype == dtype:
                return found
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


_INDEX = "draws.json"
"""File in the folder of streamed draws that lists its arrays."""


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            str(folder), f"no readable {_INDEX} ({error})", "draws that a run streamed"
        ) from error


def open_draws(folder: str | Path) -> dict[str, np.ndarray]:
    """Draws that a run has streamed so far, ``{site: [chain, draw, ...]}``, memory-mapped and read-only.

    Raises:
        DataError: if the folder has none.
    """
    folder = Path(folder)
    count = int(_read_index(folder)["count"])
    files = sorted(folder.glob("*.npy"))
    return {unquote(f.stem): np.load(f, mmap_mode="r", allow_pickle=False)[:, :count] for f in files}


class Recorder:
    """What is kept of the draws of ``C`` chains of ``B`` problems.

    Draws are collected in a buffer until they are ``AT_ONCE`` numbers, then constrained and stored. The
    buffer and the arrays of kept draws are allocated once. Moments, and summaries if they are wanted, are of
    all draws; those that are kept may be fewer.

    Args:
        constrain: from ``z [B, m, d]`` and the index of the first draw to ``{site: [B, m, *shape]}``.
        draws: of each chain, in all.
        dim: continuous latents, the first coordinates of a position.
        thin: every how many draws one is kept.
        keep: names of the sites that are kept; None: all.
        summarise: whether :class:`Summary` is made of every site.
        disk: where kept draws are written; None: they stay in memory.

    Raises:
        InputError: when the first draws are stored, if ``keep`` names a site that the model has not.
    """

    def __init__(
        self,
        constrain: Callable[[Tensor, int], dict[str, Tensor]],
        problems: int,
        chains: int,
        draws: int,
        dim: int,
        batched: bool,
        *,
        thin: int = 1,
        keep: tuple[str, ...] | None = None,
        summarise: bool = False,
        disk: DrawsOnDisk | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.constrain, self.draws, self.dim, self.batched = constrain, draws, dim, batched
        self.problems, self.chains = problems, chains
        self.thin, self.keep, self.summarise, self.disk = thin, keep, summarise, disk
        self.moments = Moments(problems, dim, dtype=dtype)
        self.halves = [Moments(problems * chains, dim, dense=False, dtype=dtype) for _ in range(2)]
        self.buffer: Tensor | None = None  # [B, C, m, d], made by the first draw
        self.waiting = 0  # draws in the buffer
        self.stored = 0
        self.kept: dict[str, np.ndarray] = {}  # of all draws to come; the first ``kept_count`` are filled
        self.summaries: dict[str, Summary] = {}
        self.shapes: dict[str, torch.Size] = {}

    def add(self, position: Float[Tensor, "B C d"]) -> None:
        """The next draw of every chain."""
        if self.buffer is None:
            most = min(self.draws, -(-AT_ONCE // position.numel()))
            self.buffer = position.new_empty(*position.shape[:2], most, position.shape[2])
        self.buffer[:, :, self.waiting] = position.detach()
        self.waiting += 1
        if self.waiting * position.numel() >= AT_ONCE:
            self.store()

    def store(self) -> None:
        """Constrain and store the draws in the buffer."""
        if self.buffer is None or not self.waiting:
            return
        first, m = self.stored, self.waiting
        z = self.buffer[:, :, :m]
        self.waiting = 0
        inner = z[..., : self.dim]
        self.moments.add(inner.flatten(1, 2))
        half = self.draws // 2
        for side, moments in enumerate(self.halves):
            start, stop = (0, half) if side == 0 else (self.draws - half, self.draws)
            part = inner[:, :, max(0, start - first) : max(0, stop - first)]
            moments.add(part.flatten(0, 1))
        sites = self.constrain(z.flatten(1, 2), first)
        if self.keep is not None:
            unknown = sorted(set(self.keep) - sites.keys())
            if unknown:
                raise InputError("keep", f"sites {unknown}", f"names among {sorted(sites)}")
        self.stored += m
        if self.summarise:
            self._summarise(sites)
        first_kept, total_kept = -(-first // self.thin), -(-self.draws // self.thin)
        # Draws 0, thin, 2 thin ... are kept.
        rows = list(range(-first % self.thin, m, self.thin))
        kept = {
            name: self._by_chain(x.unflatten(1, (self.chains, m))[:, :, rows])
            for name, x in sites.items()
            if self.keep is None or name in self.keep
        }
        if self.disk is not None:
            self.disk.write(first_kept, total_kept, kept)
            return
        for name, x in kept.items():
            if name not in self.kept:
                self.kept[name] = np.empty((x.shape[0], total_kept, *x.shape[2:]), x.dtype)
            self.kept[name][:, first_kept : first_kept + x.shape[1]] = x

    @property
    def count(self) -> int:
        """How many draws of each chain were added."""
        return self.stored + self.waiting

    @property
    def kept_count(self) -> int:
        """How many draws of each chain have been kept."""
        return -(-self.stored // self.thin)

    def _summarise(self, sites: Mapping[str, Tensor]) -> None:
        for name, x in sites.items():
            self.shapes[name] = x.shape[2:]
            rows = x.movedim(0, 1).flatten(1)  # [draw, problem * element]
            if name not in self.summaries:
                self.summaries[name] = Summary(rows.shape[1])
            self.summaries[name].add(rows.cpu())

    def _by_chain(self, x: Float[Tensor, "B C m ..."]) -> np.ndarray:
        return (x.movedim(0, 2) if self.batched else x[0]).cpu().numpy()

    def finished(self, position: Float[Tensor, "B C d"]) -> dict[str, Any]:
        """Draws, summaries and moments, as fields of a Result.

        Args:
            position: the last one, which stands for the moments of a run without draws.
        """
        self.store()
        if not self.stored:
            self.moments.add(position[..., : self.dim])
            empty = self.constrain(position[:, :, None].flatten(1, 2), 0)
            draws = {
                name: self._by_chain(x.unflatten(1, (self.chains, 1))[:, :, :0]) for name, x in empty.items()
            }
        elif self.disk is not None:
            draws = {name: x[:, : self.kept_count] for name, x in self.disk.maps.items()}
        else:
            draws = {name: x[:, : self.kept_count] for name, x in self.kept.items()}
        summaries = {}
        for name, summary in self.summaries.items():
            lead = (self.problems,) if self.batched else ()
            summaries[name] = summary.values().reshape(len(STATISTICS), *lead, *self.shapes[name])
        return {"draws": draws, "summaries": summaries} | self.moments.fields()

    def split_r_hat(self) -> Float[Tensor, "B d"]:
        """Split R-hat of every latent over all draws, also of those that were not kept; of a complete run.

        Of one draw of each chain, which has no halves, it is infinite.
        """
        if self.draws < 2:
            return torch.full((self.problems, self.dim), torch.inf)
        halves = [(h.mean, h.variance) for h in self.halves]
        mean, variance = (torch.stack([h[i] for h in halves]) for i in range(2))
        shape = (2, self.problems, self.chains, self.dim)
        mean, variance = (x.view(shape).movedim(0, 1).flatten(1, 2) for x in (mean, variance))
        n = self.draws // 2
        return (1 - 1 / n + mean.var(1) / variance.mean(1)).sqrt()

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint. Draws on disk are not in it."""
        found = {"recorder_stored": np.asarray(self.stored), "recorder_draws": np.asarray(self.draws)}
        found |= self.moments.arrays("recorder_moments")
        for i, half in enumerate(self.halves):
            found |= half.arrays(f"recorder_half{i}")
        if self.buffer is not None and self.waiting:
            found["recorder_waiting"] = self.buffer[:, :, : self.waiting].movedim(2, 0).clone().cpu().numpy()
        for name, x in self.kept.items():
            found[f"recorder_kept_{name}"] = x[:, : self.kept_count]
        for name, summary in self.summaries.items():
            found |= summary.arrays(f"recorder_summary_{name}")
            found[f"recorder_shape_{name}"] = np.asarray(self.shapes[name], dtype=np.int64)
        return found

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a checkpoint, which may be of a run that was to make another number of draws.

        Raises:
            InputError: if it has more draws than this run is to make, or if the R-hat of draws that are not
                kept, which needs both halves of the run, would change its halves.
        """
        waiting = torch.as_tensor(arrays.get("recorder_waiting", ()))
        count, planned = int(arrays["recorder_stored"]) + len(waiting), int(arrays["recorder_draws"])
        if count > self.draws:
            raise InputError("draws", self.draws, f"at least the {count} of each chain in the checkpoint")
        if planned != self.draws and self.keep is not None:
            raise InputError("draws", self.draws, f"{planned}, as in the checkpoint, because of keep")
        self.stored = int(arrays["recorder_stored"])
        self.moments.restore(arrays, "recorder_moments")
        for i, half in enumerate(self.halves):
            half.restore(arrays, f"recorder_half{i}")
        for key in arrays:
            if key.startswith("recorder_kept_"):
                part = arrays[key]
                whole = np.empty((part.shape[0], -(-self.draws // self.thin), *part.shape[2:]), part.dtype)
                whole[:, : part.shape[1]] = part
                self.kept[key.removeprefix("recorder_kept_")] = whole
            if key.startswith("recorder_shape_"):
                name = key.removeprefix("recorder_shape_")
                self.shapes[name] = torch.Size(arrays[key].tolist())
                summary = Summary(self.problems * self.shapes[name].numel())
                summary.restore(arrays, f"recorder_summary_{name}")
                self.summaries[name] = summary
        for position in waiting:
            self.add(position)
