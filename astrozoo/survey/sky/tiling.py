"""Two tilings of the sky by boxes, which are divided until each is cheap enough.

A tiling has zones of equal height in declination. A zone is divided into cells that are about as wide as
high. A cell is divided into four boxes, and these again, as long as they would take too long. Membership is
decided by integers (:meth:`Tiling.places`), so that every position is in exactly one box of a tiling.

The second tiling is shifted by a third of a cell in both directions. The sides of a box of one tiling are
then at least a third of a box's side away from the parallel sides of boxes of the same size of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from astrozoo.errors import InputError

__all__ = ["LEVELS", "Box", "Tiling", "divide"]

LEVELS = 8
"""How often a cell can be divided. Boxes of the last level are 1/256 of a cell wide."""
_SHIFT = 1 / 3
"""[cell] Shift of the second tiling: halves would put its sides on those of divided boxes of the first."""


@dataclass(frozen=True, order=True)
class Box:
    """One box of a tiling.

    Args:
        zone: number of the zone, from the south.
        cell: number of the cell in its zone.
        level: how often the cell has been divided.
        row, column: of the box among the 2**level x 2**level parts of the cell, from the south and west.
    """

    zone: int
    cell: int
    level: int = 0
    row: int = 0
    column: int = 0

    @property
    def name(self) -> str:
        """Used for files."""
        return f"{self.zone}-{self.cell}-{self.level}-{self.row}-{self.column}"

    @classmethod
    def named(cls, name: str) -> Box:
        """The box of a name."""
        return cls(*map(int, name.split("-")))

    @property
    def number(self) -> int:
        """A number of 42 bits that no other box of a division has."""
        up = LEVELS - self.level
        corner = ((self.row << up) << LEVELS) + (self.column << up)
        return (((self.zone << 14) + self.cell) << 2 * LEVELS) + corner

    @property
    def parts(self) -> tuple[Box, ...]:
        """The four boxes that it is divided into."""
        return tuple(
            Box(self.zone, self.cell, self.level + 1, 2 * self.row + i, 2 * self.column + j)
            for i in (0, 1)
            for j in (0, 1)
        )


@dataclass(frozen=True)
class Tiling:
    """A division of the whole sky into zones and cells.

    Args:
        height: of a zone [deg].
        shifted: whether it is the second tiling.
    """

    height: float
    shifted: bool = False

    def __post_init__(self) -> None:
        if not 0.05 <= self.height <= 30:  # zones and cells have 12 and 14 bits in numbers of boxes
            raise InputError("height of a tiling's zones", self.height, "0.05 to 30 deg")

    @property
    def _shift(self) -> float:
        return _SHIFT if self.shifted else 0.0

    def _cells(self, zone: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
        """Number of cells of zones."""
        middle = np.clip((zone + 0.5 - self._shift) * self.height - 90, -90, 90)
        return np.maximum(1, np.floor(360 * np.cos(np.deg2rad(middle)) / self.height)).astype(np.int64)

    def places(self, ra: Float[np.ndarray, "n"], dec: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n 4"]:
        """Zone, cell, and row and column among the parts of the last level, of positions [deg]."""
        ra, dec = np.asarray(ra, float), np.asarray(dec, float)
        height = (dec + 90) / self.height + self._shift
        zone = np.floor(height).astype(np.int64)
        cells = self._cells(zone)
        along = ra % 360 / 360 * cells - self._shift
        cell = np.floor(along).astype(np.int64)
        parts = 2**LEVELS
        row = np.minimum(((height - zone) * parts).astype(np.int64), parts - 1)
        column = np.minimum(((along - cell) * parts).astype(np.int64), parts - 1)
        return np.stack((zone, cell % cells, row, column), -1)

    def contains(
        self, box: Box, ra: Float[np.ndarray, "n"], dec: Float[np.ndarray, "n"]
    ) -> Bool[np.ndarray, "n"]:
        """Which positions [deg] are in a box."""
        zone, cell, row, column = self.places(ra, dec).T
        down = LEVELS - box.level
        inside = (zone == box.zone) & (cell == box.cell)
        return inside & (row >> down == box.row) & (column >> down == box.column)

    def bounds(self, box: Box) -> tuple[float, float, float, float]:
        """First right ascension, width in it, first and last declination of a box [deg]."""
        parts = 2**box.level
        cells = int(self._cells(np.asarray(box.zone)))
        width = 360 / cells / parts
        ra = (box.cell + self._shift) * 360 / cells + box.column * width
        dec = (box.zone - self._shift + box.row / parts) * self.height - 90
        return ra % 360, width, dec, dec + self.height / parts

    def near(
        self,
        box: Box,
        ra: Float[np.ndarray, "n"],
        dec: Float[np.ndarray, "n"],
        margin: float,
    ) -> Bool[np.ndarray, "n"]:
        """Which positions [deg] are in a box or within a margin [deg] of it."""
        ra0, width, low, high = self.bounds(box)
        sides = np.cos(np.deg2rad(np.clip(np.maximum(np.abs(low), np.abs(high)) + margin, 0, 89.9)))
        aside = min(margin / sides, 180.0)
        if width + 2 * aside >= 360:
            inside = np.ones(len(ra), bool)
        else:
            inside = (ra - ra0 + aside) % 360 <= width + 2 * aside
        return inside & (dec >= low - margin) & (dec <= high + margin)


def divide(
    places: Int[np.ndarray, "n 4"],
    cost: Callable[[Int[np.ndarray, "m"]], float],
    most: float,
    *,
    levels: int = LEVELS,
) -> list[Box]:
    """The boxes that contain all places, each divided until its cost is at most ``most``.

    Args:
        places: of :meth:`Tiling.places`.
        cost: of the rows of ``places`` that are in a box.
        levels: how often a cell may be divided at most. Boxes of that level may cost more.
    """
    order = np.lexsort((places[:, 1], places[:, 0]))
    cells = places[order, :2]
    cuts = np.flatnonzero((np.diff(cells, axis=0) != 0).any(1)) + 1
    boxes: list[Box] = []
    for rows in np.split(order, cuts) if len(order) else []:
        zone, cell = places[rows[0], :2].tolist()
        boxes += _divided(Box(zone, cell), places, rows, cost, most, levels)
    return sorted(boxes)


def _divided(
    box: Box,
    places: Int[np.ndarray, "n 4"],
    rows: Int[np.ndarray, "m"],
    cost: Callable[[Int[np.ndarray, "m"]], float],
    most: float,
    levels: int,
) -> Iterable[Box]:
    if box.level == levels or cost(rows) <= most:
        return [box]
    found: list[Box] = []
    down = LEVELS - box.level - 1
    for part in box.parts:
        inside = (places[rows, 2] >> down == part.row) & (places[rows, 3] >> down == part.column)
        if inside.any():
            found += _divided(part, places, rows[inside], cost, most, levels)
    return found
