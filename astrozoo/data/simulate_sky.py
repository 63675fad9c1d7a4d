"""A simulated sky of any size, field by field: neighbouring fields overlap and show the same sources.

The sources of a part of the sky follow from the seed and the number of the part, so that a process that
simulates one field needs nothing from those that simulate the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from astropy.table import Table, vstack

from astrozoo.data.images import Field
from astrozoo.data.simulate import draw_sources, simulate_field
from astrozoo.data.wcs import tangent_wcs
from astrozoo.errors import InputError

__all__ = ["SimulatedSky"]

_SCALE = 0.396
"""[arcsec/px] Pixel scale, that of SDSS."""
_SHIFTS = 12
"""[px] Width of the rim of a field that not all bands show."""
_ROTATION = 20.0
"""[deg] Position angle of the y axis of every field."""


@dataclass(frozen=True)
class SimulatedSky:
    """Fields on a grid, which overlap.

    Args:
        rows, columns: number of fields.
        side: of a field [px].
        overlap: width of the strip that two neighbours share [px].
        density: sources per square arcminute.
        bright, faint: range of the r magnitudes.
        ra, dec: of the middle of the first field [deg].
        seed: of sources and noise.
        bands: of the images.
    """

    rows: int = 2
    columns: int = 2
    side: int = 256
    overlap: int = 64
    density: float = 12.0
    bright: float = 15.5
    faint: float = 22.0
    ra: float = 10.0
    dec: float = 0.5
    seed: int = 0
    bands: str = "ugriz"

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "side"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more")
        if not 0 <= self.overlap < self.side:
            raise InputError("overlap", self.overlap, f"less than the side of a field, {self.side} px")
        if not (self.density > 0 and self.bright < self.faint):
            raise InputError("density and magnitudes", (self.density, self.bright, self.faint), "a range")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make it."""
        return asdict(self)

    @property
    def _step(self) -> int:
        return self.side - self.overlap

    def truth(self) -> Table:
        """The sources of the sky: :func:`~.simulate.draw_sources`'s columns, ``ra`` and ``dec`` [deg].

        ``inside`` is True where all bands are seen: images of some bands are shifted by a few pixels, and
        show sources outside the others.
        """
        cells = [self._cell(i, j) for i in range(-1, self.rows + 1) for j in range(-1, self.columns + 1)]
        table = vstack(cells, metadata_conflicts="silent")
        edge = self.side / 2 - _SHIFTS
        x, y = np.asarray(table["sky_x"]), np.asarray(table["sky_y"])
        inside = (x > -edge) & (x < (self.columns - 1) * self._step + edge)
        inside &= (y > -edge) & (y < (self.rows - 1) * self._step + edge)
        table["inside"] = inside
        return table

    def field(self, row: int, column: int) -> Field:
        """The images of one field."""
        reach = 1 + self.side // (2 * self._step)
        around = range(-reach, reach + 1)
        sources = vstack([self._cell(row + i, column + j) for i in around for j in around])
        x, y = np.asarray(sources["sky_x"]), np.asarray(sources["sky_y"])
        beyond = self.side / 2 + 60  # px: what lies farther out leaves no light in the field
        seen = (np.abs(x - column * self._step) < beyond) & (np.abs(y - row * self._step) < beyond)
        centre = self._wcs.pixel_to_world_values(column * self._step, row * self._step)
        seed = int(np.random.SeedSequence((self.seed, row, column, 1)).generate_state(1)[0])
        images, _ = simulate_field(
            seed=seed,
            shape=(self.side, self.side),
            bands=self.bands,
            sources=sources[seen],
            centre=(float(centre[0]), float(centre[1])),
        )
        return Field(images.images, name=f"simulated-{row}-{column}", meta=images.meta)

    @property
    def _wcs(self) -> Any:
        """Pixels of the whole sky; (0, 0) is the middle of the first field."""
        return tangent_wcs((1, 1), _SCALE, ra=self.ra, dec=self.dec, rotation=_ROTATION)

    def _cell(self, row: int, column: int) -> Table:
        """The sources of the square of one step about the middle of a field, which may be off the grid."""
        rng = np.random.default_rng((self.seed, row + 10**6, column + 10**6))
        n = rng.poisson(self.density * (self._step * _SCALE / 60) ** 2)
        sources = draw_sources(n, rng, r_range=(self.bright, self.faint))
        sources["sky_x"] = (column - 0.5 + rng.random(n)) * self._step
        sources["sky_y"] = (row - 0.5 + rng.random(n)) * self._step
        ra, dec = self._wcs.pixel_to_world_values(sources["sky_x"], sources["sky_y"])
        sources["ra"], sources["dec"] = ra, dec
        return sources
