"""The compiled loop of moves on one tile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from astrozoo.survey.crowded._fluxes import PriorTables
from astrozoo.survey.crowded._moves import (
    Tile,
    Work,
    birth,
    death,
    exchange,
    merge,
    move_source,
    rescale,
    retype,
    split,
)
from astrozoo.survey.crowded._pixels import Canvas, add, render

__all__ = ["MOVES", "run_tile", "subtract", "work_for"]

MOVES = ("move", "rescale", "exchange", "birth", "death", "split", "merge", "retype")
"""Names of the moves, in the order of the rows of ``tally``."""
_SHARES = (0.32, 0.10, 0.18, 0.08, 0.08, 0.09, 0.09, 0.06)
"""Share of each move. Birth and death must have the same, and split and merge. A prior without galaxies has
no changes of type: their share goes to the first move."""


@njit(nogil=True)
def _run(rng, canvas, prior, residual, tile, work, width, steps, cumulative, tally):  # type: ignore[no-untyped-def]
    galaxies = prior.galaxy_share > 0.0
    for _ in range(steps):
        kind = np.searchsorted(cumulative, rng.random())
        if kind == 7 and not galaxies:
            kind = 0
        accepted = 0
        if kind == 0:
            accepted = move_source(rng, canvas, prior, residual, tile, work, width)
        elif kind == 1:
            accepted = rescale(rng, canvas, prior, residual, tile, work)
        elif kind == 2:
            accepted = exchange(rng, canvas, prior, residual, tile, work)
        elif kind == 3:
            accepted = birth(rng, canvas, prior, residual, tile, work)
        elif kind == 4:
            accepted = death(rng, canvas, prior, residual, tile, work)
        elif kind == 5:
            accepted = split(rng, canvas, prior, residual, tile, work, width)
        elif kind == 6:
            accepted = merge(rng, canvas, prior, residual, tile, work, width)
        else:
            accepted = retype(rng, canvas, prior, residual, tile, work)
        tally[kind, 0] += 1
        tally[kind, 1] += accepted


@njit(nogil=True)
def _subtract(canvas, residual, x, y, shape, flux, stamps, corner):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        render(canvas, shape[i], x[i], y[i], stamps, corner)
        add(canvas, residual, stamps, corner, flux[i], -1.0)


def _compiled(version: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two entries to the kernel, whose machine code is cached on disk for one version of its files.

    Numba looks at the file of the cached function only. The closures over ``version`` are part of its key.
    """

    @njit(nogil=True, cache=True)
    def run(rng, canvas, prior, residual, tile, work, width, steps, cumulative, tally):  # type: ignore[no-untyped-def]
        _ = version
        _run(rng, canvas, prior, residual, tile, work, width, steps, cumulative, tally)

    @njit(nogil=True, cache=True)
    def subtract(canvas, residual, x, y, shape, flux, stamps, corner):  # type: ignore[no-untyped-def]
        _ = version
        _subtract(canvas, residual, x, y, shape, flux, stamps, corner)

    return run, subtract


def _version() -> str:
    room = Path(__file__).parent
    content = b"".join((room / name).read_bytes() for name in ("_pixels.py", "_fluxes.py", "_moves.py"))
    return hashlib.sha256(content).hexdigest()


_loop, _subtract_all = _compiled(_version())


def run_tile(
    rng: np.random.Generator,
    canvas: Canvas,
    prior: PriorTables,
    residual: np.ndarray,
    tile: Tile,
    work: Work,
    width: float,
    steps: int,
    tally: np.ndarray,
) -> None:
    """Do ``steps`` moves on the sources of a tile. Releases the interpreter's lock.

    Args:
        rng: the random numbers of this visit to the tile.
        canvas: the images.
        prior: of sources.
        residual: of the chain; changed near the tile only.
        tile: changed.
        work: scratch (:func:`work_for`).
        width: SD of the PSF [px of the reference image].
        steps: moves that are tried.
        tally: [move, 2]: counts moves that were tried, and accepted.
    """
    _loop(rng, canvas, prior, residual, tile, work, width, steps, np.cumsum(_SHARES), tally)


def work_for(images: int, bands: int, pixels: int) -> Work:
    """Scratch for :func:`run_tile`: of stamps of so many pixels."""
    return Work(
        stamps=np.zeros((2, 2, images, pixels)),
        corner=np.zeros((2, 2, images, 2), np.int64),
        xy=np.zeros((2, 2, 2)),
        shape=np.zeros((2, 2), np.int64),
        flux=np.ones((2, 2, bands)),
        precision=np.zeros((2, 2, bands)),
        score=np.zeros((2, 2, bands)),
        cross=np.zeros((2, bands)),
        factor=np.zeros((2, 2 * bands, 2 * bands)),
        mean=np.zeros((2, 2 * bands)),
    )


def subtract(
    canvas: Canvas,
    residual: Float[np.ndarray, "flat"],
    x: Float[np.ndarray, "s"],
    y: Float[np.ndarray, "s"],
    shape: Int[np.ndarray, "s"],
    flux: Float[np.ndarray, "s band"],
) -> None:
    """Subtract the cores of sources from a residual, in place."""
    images = len(canvas.start)
    stamps, corner = np.zeros((images, canvas.rows * canvas.columns)), np.zeros((images, 2), np.int64)
    _subtract_all(canvas, residual, x, y, shape, np.ascontiguousarray(flux), stamps, corner)
