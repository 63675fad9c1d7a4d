"""Realistic galaxies with known truth, drawn by GalSim.

Sizes, magnitudes, Sersic indices, axis ratios and redshifts are those of COSMOS unless another population is
given (:mod:`astrozoo.data.galaxy_population`). Structure is that of :mod:`astrozoo.data.galaxy_morphology`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from astrozoo._files import replacing
from astrozoo.data.galaxy_population import Population, load_population
from astrozoo.data.galaxy_render import render_chunk
from astrozoo.data.galaxy_survey import KINDS, GalaxySurvey, PsfRange, noise_kernel
from astrozoo.errors import DataError, InputError
from astrozoo.infer.progress import progress_bar

__all__ = ["KINDS", "GalaxyStamps", "GalaxySurvey", "PsfRange", "noise_kernel", "simulate_galaxies"]

_CHUNK = 250
"""Galaxies of a task and of a cached file, about 2 s of work: an interrupted run loses at most that much."""
_VERSION = 1
"""Version of the galaxies of a seed. It is raised when the same settings give other galaxies."""


@dataclass(frozen=True, eq=False)
class GalaxyStamps:
    """Simulated galaxies. ``stamps[i:j]`` are some of them, and so is ``stamps[index]`` with a tensor.

    The centre of a stamp is at ``(size - 1) / 2``, in the middle of a pixel if ``size`` is odd.

    Args:
        image: with the PSF, the pixel, neighbours and noise [flux].
        noiseless: the galaxy alone with the PSF and the pixel. Its sum is the flux inside the stamp [flux].
        psf: with the pixel, of unit sum.
        noise_rms: standard deviation of the noise of a pixel [flux].
        flux: of the galaxy, to infinity.
        half_light_radius: of the circle of equal area [arcsec].
        e1, e2: reduced shear that makes a circle into an isophote of the galaxy's disc, (1 - q) / (1 + q)
            in modulus.
        x, y: the galaxy's centre, from the stamp's [px].
        kind: index into :data:`KINDS`.
        magnitude: in the survey's band.
        redshift: photometric.
        snr: root of the sum of the squares of ``noiseless``, over ``noise_rms``.
        population: what the galaxies were drawn from.
    """

    image: Float[Tensor, "n y x"]
    noiseless: Float[Tensor, "n y x"]
    psf: Float[Tensor, "n y x"]
    noise_rms: Float[Tensor, "n"]
    flux: Float[Tensor, "n"]
    half_light_radius: Float[Tensor, "n"]
    e1: Float[Tensor, "n"]
    e2: Float[Tensor, "n"]
    x: Float[Tensor, "n"]
    y: Float[Tensor, "n"]
    kind: Int[Tensor, "n"]
    magnitude: Float[Tensor, "n"]
    redshift: Float[Tensor, "n"]
    snr: Float[Tensor, "n"]
    population: str

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: slice | Tensor) -> GalaxyStamps:
        names = [field.name for field in fields(self) if field.name != "population"]
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def simulate_galaxies(
    survey: GalaxySurvey,
    count: int,
    *,
    seed: int,
    population: Population | None = None,
    workers: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> GalaxyStamps:
    """Galaxies of a survey. They depend on the settings and the seed only, and galaxy ``i`` not on ``count``.

    Args:
        survey: settings.
        count: number of galaxies.
        seed: of all random numbers.
        population: what galaxies are drawn from; by default COSMOS
            (:func:`~astrozoo.data.galaxy_population.load_population`).
        workers: processes that draw galaxies; 0 draws them in this one. A script that uses workers needs
            ``if __name__ == "__main__":``.
        cache: folder of cached galaxies, each file with a checksum. None caches nothing. An interrupted run
            continues from it, and a longer one reuses it.
        progress: whether to show a bar.

    Raises:
        InputError: ``count`` is not positive, ``seed`` or ``workers`` is negative, or the ranges of radius
            and magnitude are empty.
        DataError: a cached file is damaged.
        OutputError: the cache cannot be written.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if value < least:
            raise InputError(name, value, f"{least} or more")
    population = load_population() if population is None else population
    digest = _digest(survey, population, seed)
    paths = {
        first: None if cache is None else cache / f"{digest}-{first}.safetensors"
        for first in range(0, count, _CHUNK)
    }
    chunks: dict[int, dict[str, Tensor]] = {}
    for first, path in paths.items():
        if path is not None and path.is_file():
            chunks[first] = _read(path)
    todo = [first for first in paths if len(chunks.get(first, {}).get("flux", ())) < _size(first, count)]
    with progress_bar("galaxies", count, progress) as report:
        done = count - sum(_size(first, count) for first in todo)
        for first, chunk in _rendered(survey, population, seed, todo, count, workers):
            chunks[first] = chunk
            path = paths[first]
            if path is not None:
                _write(path, chunk)
            done += _size(first, count)
            report(done, "")
    names = chunks[0]
    joined = {name: torch.cat([chunks[first][name] for first in paths])[:count] for name in names}
    joined["kind"] = joined["kind"].long()
    return GalaxyStamps(**joined, population=population.name)


def _size(first: int, count: int) -> int:
    return min(_CHUNK, count - first)


def _rendered(
    survey: GalaxySurvey, population: Population, seed: int, todo: list[int], count: int, workers: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The chunks that are to do, with their first galaxy, in the order in which they are done."""
    tasks = [(survey, population, seed, first, _size(first, count)) for first in todo]
    if workers == 0:
        for first, task in zip(todo, tasks, strict=True):
            yield first, _tensors(render_chunk(*task))
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(workers, max(len(tasks), 1)), context) as pool:
        futures = {pool.submit(render_chunk, *task): task[3] for task in tasks}
        for future in as_completed(futures):
            yield futures[future], _tensors(future.result())


def _tensors(chunk: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in chunk.items()}


def _digest(survey: GalaxySurvey, population: Population, seed: int) -> str:
    settings = {"survey": asdict(survey), "seed": seed, "population": population.digest, "version": _VERSION}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _checksum(chunk: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(chunk):
        digest.update(name.encode() + chunk[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, chunk: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(chunk, partial, {"sha256": _checksum(chunk)})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            chunk = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise DataError(str(path), f"unreadable ({error})", "cached galaxies; delete the file") from error
    if checksum != _checksum(chunk):
        raise DataError(str(path), "a wrong checksum", "cached galaxies; delete the file")
    return chunk
