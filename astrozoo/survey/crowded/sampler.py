"""Samples of whole catalogues of a crowded field: trans-dimensional Markov chains over tiles.

The likelihood is Gaussian. Three maps are the same for all chains, and are updated during the burn-in from
the mean of the chains' catalogues. They are fixed afterwards, so that the kept catalogues are draws from one
posterior:

* the variance of a pixel, which is the expected counts plus ``(psf_error * light)^2``. It is Poisson's where
  the model is right. Unlike the Poisson distribution it can take the error of the PSF into account, and it
  makes the likelihood of fluxes Gaussian, which the moves use;
* the wings, which are the light of sources outside their cores;
* nothing else: the level and the slopes of the sky in each image are drawn from their exact conditional
  distribution after each sweep.

A sweep visits all tiles of a tiling whose offset is random, in four groups. No source of a tile has a pixel
in common with a source of another tile of its group, so that tiles of a group, and chains, run in parallel.
All chains and tiles read the whole residual, so that a tile needs no border. A source near a tile's edge is
near no edge in most other sweeps. Each visit to a tile has random numbers of its seed, sweep, chain and
tile, so that a run does not depend on the number of threads.

The moves are compiled by numba on first use, which takes about 45 CPU seconds, and are cached on disk beside
their source. A move then takes some 11 microseconds with three images, and 16 to 29 with five.

References:
    Brewer, Foreman-Mackey & Hogg 2013, AJ 146, 7; Portillo et al. 2017, AJ 154, 132 (PCAT).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from astrozoo._content_hash import content_hash
from astrozoo._openmp import available_cores
from astrozoo.checkpoint import Checkpoint
from astrozoo.errors import InputError
from astrozoo.infer.progress import progress_bar
from astrozoo.survey.crowded._moves import Tile
from astrozoo.survey.crowded._tile import MOVES, run_tile, subtract, work_for
from astrozoo.survey.crowded.prior import FieldPrior
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.crowded.scene import Scene, Sources, expected
from astrozoo.survey.crowded.tables import (
    LARGEST,
    MARGIN,
    canvas_of,
    core_half,
    prior_tables,
    psf_width,
    shape_grid,
    unpad,
)

__all__ = ["STEPS", "sample"]

STEPS = 4000
"""Default number of moves per source and chain, with the burn-in. Four chains of this length and their pilot
runs take about .25 CPU seconds per source of the catalogues with three images, and .3 to .6 with five. It is
a compromise: R-hat of the numbers of sources by magnitude is up to 1.2 in simulated clusters, and up to 2.8
in M2. On a simulated field of 36 px with M2's density and stars to r = 25, 68 % intervals of fluxes in the
consensus contain 59 to 71 % of the true ones, and 95 % intervals 92 to 95 %."""
TILE = 30.0
"""[px] Side of a tile, unless cores are so large that tiles of a group would touch."""
SWEEP_STEPS = 20
"""Moves per source and sweep: a visit to a tile then takes some 20 ms, which hides the cost of the visit."""
BURN_IN = 0.4
"""Share of the sweeps that are not kept."""
REFRESH = 5
"""Sweeps between two updates of the maps during the burn-in."""
SKY_SD = (0.05, 0.02, 0.02)
"""Prior SDs of the level and slopes of the sky, relative to the image's median sky. A survey's sky of a
crowded field is a few per cent too high."""
SPREAD = 0.2
"""Sources that are left out of the start of every chain but the first, at random: chains start too far apart
for agreement by chance."""


@dataclass
class _Catalogue:
    """The state of a chain."""

    x: Float[np.ndarray, "s"]
    y: Float[np.ndarray, "s"]
    shape: Int[np.ndarray, "s"]
    flux: Float[np.ndarray, "s band"]
    sky: Float[np.ndarray, "k 3"]


def sample(
    scene: Scene,
    start: Sources,
    prior: FieldPrior,
    *,
    seed: int = 0,
    chains: int = 4,
    steps: int = STEPS,
    keep: int = 100,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Samples:
    """Draw catalogues from their posterior.

    Args:
        scene: images, PSFs and their errors.
        start: of the chains, e.g. the joint mode. Sources outside the limits of the prior are moved to them.
        prior: of the sources; its bands must be the scene's.
        seed: of all random numbers.
        chains: number of chains.
        steps: moves per source and chain, with the burn-in. The number of sources is that of the start, or
            that expected by the prior if it is larger.
        keep: catalogues kept per chain, evenly after the burn-in.
        progress: whether to show a bar.
        checkpoint: ``NAME.npz``, from which a killed run continues exactly as if it had not been killed.

    Raises:
        InputError: the bands of scene, start and prior differ, or a number is out of range.
    """
    _check(scene, start, prior, chains, steps, keep)
    sweeps = max(keep * 2, -(-steps // SWEEP_STEPS))
    header = {
        "scene": content_hash(scene),
        "start": content_hash(start),
        "prior": content_hash(prior),
        "settings": f"{seed} {chains} {steps} {keep}",
    }
    saved = Checkpoint(checkpoint, header)
    run = _Run(scene, start, prior, seed, chains)
    kept = run.load(saved.load())
    burn_in = int(BURN_IN * sweeps)
    at = set(np.linspace(burn_in, sweeps - 1, keep).round().astype(int).tolist())
    with (
        progress_bar("catalogues", sweeps, progress) as report,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        for sweep in range(run.sweep, sweeps):
            if sweep <= burn_in and sweep % REFRESH == 0:
                run.refresh()
            if sweep == burn_in:
                run.tally[:] = 0
            run.advance(pool)
            if sweep in at:
                kept += [run.record(c) for c in range(chains)]
            report(sweep + 1, f"{np.mean([len(c.x) for c in run.catalogues]):.0f} sources")
            if saved.due:
                saved.save(run.arrays(kept))
    saved.save(run.arrays(kept))
    return run.samples(kept)


def _check(scene: Scene, start: Sources, prior: FieldPrior, chains: int, steps: int, keep: int) -> None:
    if tuple(prior.bands) != scene.bands or start.flux.shape[1] != len(scene.bands):
        got = f"{scene.bands}, {start.flux.shape[1]} and {prior.bands}"
        raise InputError("bands of scene, start and prior", got, "the same")
    for name, value, least in (("chains", chains, 1), ("steps", steps, 1), ("keep", keep, 1)):
        if value < least:
            raise InputError(name, value, f"at least {least}")
    if not (np.isfinite(start.xy).all() and (start.flux > 0).all() and np.isfinite(start.flux).all()):
        raise InputError("start", "positions or fluxes that are not finite and positive", "positive fluxes")


class _Run:
    """All chains, their common maps, and the number of sweeps done."""

    def __init__(self, scene: Scene, start: Sources, prior: FieldPrior, seed: int, chains: int) -> None:
        self.scene, self.prior, self.seed = scene, prior, seed
        half = core_half(scene)
        self.shapes = shape_grid(prior, LARGEST * half)
        self.canvas = canvas_of(scene, self.shapes, half)
        self.tables = prior_tables(prior, self.shapes)
        self.width = psf_width(scene)
        scale = min(np.linalg.svd(affine[:, :2], compute_uv=False).min() for affine in scene.affine)
        self.side = max(TILE, (2 * half + 4) / scale)
        height, width = scene.shape
        edge = MARGIN + 0.5
        self.box = (-edge, width - 1 + edge, -edge, height - 1 + edge)
        self.catalogues = [self._start(start, c) for c in range(chains)]
        x0, x1, y0, y1 = self.box
        self.count = max(len(start), int(prior.density * (x1 - x0) * (y1 - y0)), 1)
        self.start_xy = start.xy
        self.wing = [np.zeros(counts.shape) for counts in scene.counts]
        self.light: list[np.ndarray] = []
        self.tally = np.zeros((len(MOVES), 2), np.int64)
        self.sweep = 0

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def _start(self, start: Sources, chain: int) -> _Catalogue:
        """The start of a chain, within the limits of the prior."""
        x0, x1, y0, y1 = self.box
        x, y = np.clip(start.xy[:, 0], x0, x1 - 1e-6), np.clip(start.xy[:, 1], y0, y1 - 1e-6)
        flux = start.flux.copy()
        reference = self.prior.reference
        limits = np.exp(self.prior.star.log_flux[[0, -1]]) * (1 + 1e-9, 1 - 1e-9)
        flux *= (np.clip(flux[:, reference], *limits) / flux[:, reference])[:, None]
        stay = self._rng(0, chain).random(len(x)) >= (SPREAD if chain else 0.0)
        sky = np.zeros((len(self.scene.counts), 3))
        shape = self.shapes.nearest(start.shape)
        return _Catalogue(x[stay], y[stay], shape[stay], flux[stay], sky)

    # The maps

    def refresh(self) -> None:
        """Update variance and wings from the mean of the chains."""
        lights = [self._light(c) for c in self.catalogues]
        mean = [np.mean([light[k] for light in lights], 0) for k in range(len(self.scene.counts))]
        before = self.light or mean
        self.light = [0.5 * (a + b) for a, b in zip(before, mean, strict=True)]
        core = [self._core(c) for c in self.catalogues]
        for k, calibration in enumerate(self.scene.calibration):
            inside = np.mean([image[k] for image in core], 0)
            self.wing[k] = mean[k] / calibration - inside
        self._weigh()

    def _weigh(self) -> None:
        """Write the inverse variances to the canvas."""
        for k, light in enumerate(self.light):
            scene = self.scene
            variance = np.maximum(scene.sky[k] + light, 1.0) + (scene.psf_error[k] * light) ** 2
            weight = np.where(scene.valid[k], scene.calibration[k] ** 2 / variance, 0.0)
            unpad(self.canvas, k, self.canvas.weight, light.shape)[:] = weight

    def _light(self, catalogue: _Catalogue) -> list[Float[np.ndarray, "y x"]]:
        """What the sources of a catalogue add to the counts [electrons]."""
        xy = np.column_stack([catalogue.x, catalogue.y])
        sources = Sources(xy, catalogue.flux, self.shapes.shape[catalogue.shape])
        pairs = zip(expected(self.scene, sources), self.scene.sky, strict=True)
        return [total - sky for total, sky in pairs]

    def _core(self, catalogue: _Catalogue) -> list[Float[np.ndarray, "y x"]]:
        """The cores of a catalogue's sources [nMgy]."""
        flat = np.zeros(len(self.canvas.weight))
        subtract(self.canvas, flat, catalogue.x, catalogue.y, catalogue.shape, catalogue.flux)
        images = enumerate(self.scene.counts)
        return [-unpad(self.canvas, k, flat, counts.shape) for k, counts in images]

    def _sky_terms(self, k: int) -> Float[np.ndarray, "3 y x"]:
        """Level and slopes of the sky of an image [nMgy per relative unit]."""
        height, width = self.scene.counts[k].shape
        x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
        level = np.median(self.scene.sky[k]) / self.scene.calibration[k]
        return np.stack([level, level * x, level * y[:, None]])

    def _residual(self, catalogue: _Catalogue) -> Float[np.ndarray, "flat"]:
        """Data minus model of a chain [nMgy], from the beginning."""
        flat = np.zeros(len(self.canvas.weight))
        for k, counts in enumerate(self.scene.counts):
            residual = (counts - self.scene.sky[k]) / self.scene.calibration[k] - self.wing[k]
            residual -= np.tensordot(catalogue.sky[k], self._sky_terms(k), 1)
            unpad(self.canvas, k, flat, counts.shape)[:] = np.where(self.scene.valid[k], residual, 0.0)
        subtract(self.canvas, flat, catalogue.x, catalogue.y, catalogue.shape, catalogue.flux)
        return flat

    def _draw_sky(self, chain: int, residual: Float[np.ndarray, "flat"]) -> None:
        """Draw the sky of a chain given its sources: a Gaussian."""
        rng = self._rng(1, self.sweep, chain)
        catalogue = self.catalogues[chain]
        for k, counts in enumerate(self.scene.counts):
            terms = self._sky_terms(k).reshape(3, -1)
            weight = unpad(self.canvas, k, self.canvas.weight, counts.shape).ravel()
            rest = unpad(self.canvas, k, residual, counts.shape).ravel() + catalogue.sky[k] @ terms
            precision = (terms * weight) @ terms.T + np.diag(1 / np.square(SKY_SD))
            factor = np.linalg.cholesky(precision)
            mean = np.linalg.solve(precision, terms @ (weight * rest))
            catalogue.sky[k] = mean + np.linalg.solve(factor.T, rng.standard_normal(3))

    # A sweep

    def advance(self, pool: ThreadPoolExecutor) -> None:
        """One sweep of all chains."""
        residuals = [self._residual(c) for c in self.catalogues]
        offset = self._rng(2, self.sweep).random(2) * self.side
        for colour in range(4):
            tiles = [(n, *tile) for n, tile in enumerate(self._tiles(offset)) if tile[2] == colour]
            jobs = []
            for chain, catalogue in enumerate(self.catalogues):
                free = np.ones(len(catalogue.x), bool)
                for number, box, steps, _ in tiles:
                    tile, rows = self._take(catalogue, box)
                    free[rows] = False
                    rng = self._rng(3, self.sweep, chain, number)
                    job = pool.submit(self._visit, rng, residuals[chain], tile, steps)
                    jobs.append((chain, tile, job))
                for name in ("x", "y", "shape", "flux"):
                    setattr(catalogue, name, getattr(catalogue, name)[free])
            for chain, tile, job in jobs:
                self.tally += job.result()
                _append(self.catalogues[chain], tile)
        for chain, residual in enumerate(residuals):
            self._draw_sky(chain, residual)
        self.sweep += 1

    def _visit(
        self, rng: np.random.Generator, residual: np.ndarray, tile: Tile, steps: int
    ) -> Int[np.ndarray, "move 2"]:
        """Moves on one tile; returns how many were tried and accepted."""
        tally = np.zeros_like(self.tally)
        images, pixels = len(self.scene.counts), self.canvas.rows * self.canvas.columns
        work = work_for(images, len(self.scene.bands), pixels)
        run_tile(rng, self.canvas, self.tables, residual, tile, work, self.width, steps, tally)
        return tally

    def _tiles(self, offset: Float[np.ndarray, "2"]) -> Iterator[tuple[np.ndarray, int, int]]:
        """Box, steps and group of each tile of a tiling.

        Steps are shared by area and by the sources of the start. They do not depend on the present sources,
        which would disturb the posterior.
        """
        x0, x1, y0, y1 = self.box
        area = (x1 - x0) * (y1 - y0)
        columns, rows = (int(np.ceil((b - a) / self.side)) + 1 for a, b in ((x0, x1), (y0, y1)))
        x, y = self.start_xy.T
        for j in range(rows):
            for i in range(columns):
                left, low = x0 - offset[0] + i * self.side, y0 - offset[1] + j * self.side
                box = np.array(
                    [max(left, x0), min(left + self.side, x1), max(low, y0), min(low + self.side, y1)]
                )
                if box[1] <= box[0] or box[3] <= box[2]:
                    continue
                inside = (x >= box[0]) & (x < box[1]) & (y >= box[2]) & (y < box[3])
                share = 0.5 * (box[1] - box[0]) * (box[3] - box[2]) / area + 0.5 * inside.sum() / max(
                    len(x), 1
                )
                yield box, int(np.ceil(SWEEP_STEPS * self.count * share)), 2 * (j % 2) + i % 2

    def _take(self, catalogue: _Catalogue, box: Float[np.ndarray, "4"]) -> tuple[Tile, np.ndarray]:
        """Copies of a tile's sources, with room for one per pixel, and their rows."""
        inside = (catalogue.x >= box[0]) & (catalogue.x < box[1])
        rows = np.flatnonzero(inside & (catalogue.y >= box[2]) & (catalogue.y < box[3]))
        room = max(len(rows), int((box[1] - box[0]) * (box[3] - box[2]))) + 16

        def copy(array: np.ndarray) -> np.ndarray:
            wide = np.zeros((room, *array.shape[1:]), array.dtype)
            wide[: len(rows)] = array[rows]
            return wide

        tile = Tile(
            x=copy(catalogue.x),
            y=copy(catalogue.y),
            shape=copy(catalogue.shape),
            flux=copy(catalogue.flux),
            number=np.array([len(rows)]),
            box=box,
        )
        return tile, rows

    # Results and checkpoints

    def record(self, chain: int) -> dict[str, np.ndarray]:
        """A copy of a chain's catalogue."""
        catalogue = self.catalogues[chain]
        return {name: np.array(getattr(catalogue, name)) for name in ("x", "y", "shape", "flux", "sky")}

    def samples(self, kept: list[dict[str, np.ndarray]]) -> Samples:
        """Kept catalogues, which are in the order of samples, then chains."""
        chains = len(self.catalogues)
        length = len(kept) // chains
        order = [kept[s * chains + c] for c in range(chains) for s in range(length)]
        counts = [len(item["x"]) for item in order]
        number = np.repeat(np.arange(len(order)), counts)
        return Samples(
            chain=number // length,
            sample=number % length,
            xy=np.column_stack([np.concatenate([item[name] for item in order]) for name in ("x", "y")]),
            flux=np.concatenate([item["flux"] for item in order]),
            shape=self.shapes.shape[np.concatenate([item["shape"] for item in order])],
            bands=self.scene.bands,
            reference=self.prior.reference,
            sky=np.stack([item["sky"] for item in order]).reshape(chains, length, -1, 3),
            tally={name: (int(a), int(b)) for name, (a, b) in zip(MOVES, self.tally, strict=True)},
        )

    def arrays(self, kept: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What a checkpoint needs: the state, and the kept catalogues."""
        present = [self.record(c) for c in range(len(self.catalogues))]
        result = {"sweep": np.array(self.sweep), "tally": self.tally, "kept": np.array(len(kept))}
        items = present + kept
        result["count"] = np.array([len(item["x"]) for item in items])
        for name in ("x", "y", "shape", "flux"):
            result[name] = np.concatenate([item[name] for item in items])
        result["sky"] = np.stack([item["sky"] for item in items])
        for k, (light, wing) in enumerate(zip(self.light, self.wing, strict=True)):
            result[f"light{k}"], result[f"wing{k}"] = light, wing
        return result

    def load(self, arrays: dict[str, np.ndarray] | None) -> list[dict[str, np.ndarray]]:
        """Take the state of a checkpoint, and return the kept catalogues."""
        if arrays is None:
            return []
        self.sweep, self.tally = int(arrays["sweep"]), arrays["tally"]
        images = range(len(self.scene.counts))
        self.light, self.wing = [[arrays[f"{name}{k}"] for k in images] for name in ("light", "wing")]
        self._weigh()
        ends = arrays["count"].cumsum()[:-1]
        parts = {name: np.split(arrays[name], ends) for name in ("x", "y", "shape", "flux")}
        items = [
            {name: parts[name][i] for name in parts} | {"sky": arrays["sky"][i]}
            for i in range(len(arrays["count"]))
        ]
        chains = len(self.catalogues)
        self.catalogues = [_Catalogue(**item) for item in items[:chains]]
        return items[chains:]


def _append(catalogue: _Catalogue, tile: Tile) -> None:
    """Put the sources of a tile back."""
    n = int(tile.number[0])
    catalogue.x = np.concatenate([catalogue.x, tile.x[:n]])
    catalogue.y = np.concatenate([catalogue.y, tile.y[:n]])
    catalogue.shape = np.concatenate([catalogue.shape, tile.shape[:n]])
    catalogue.flux = np.concatenate([catalogue.flux, tile.flux[:n]])
