"""A scene and a prior as the arrays of the sampler's compiled kernel.

A source is rendered on a square about its position that contains most of its light, the core. The rest, the
wings, is part of the background (:mod:`astrozoo.survey.crowded.sampler`). Shapes of galaxies are those of a
grid, so that a galaxy is rendered from a table like a star.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import gammaln

from astrozoo.errors import InputError
from astrozoo.survey.crowded._fluxes import PriorTables
from astrozoo.survey.crowded._pixels import Canvas
from astrozoo.survey.crowded.learning import TAIL
from astrozoo.survey.crowded.prior import FieldPrior, Population
from astrozoo.survey.crowded.scene import Scene, galaxy_gaussians

__all__ = [
    "LARGEST",
    "MARGIN",
    "Shapes",
    "canvas_of",
    "core_half",
    "prior_tables",
    "psf_width",
    "shape_grid",
    "unpad",
]

MARGIN = 3.0
"""[px] Width of the border around the reference image in which sources may lie. A star there still has some
light on the image; without it, that light would become false sources inside."""
CORE_LIGHT = 0.94
"""Least share of a star's light in the core. The rest of SDSS's PSF reaches out beyond 20 px. So little light
of a faint star is below the noise; that of a bright star is known from the burn-in. With .94 the cores of
SDSS's PSFs have 11 x 11 pixels, with .97 they have 17 x 17."""
CORE_RANGE = (4, 9)
"""[px] Least and largest half side of the core. The time of a move grows with its square."""
LARGEST = 0.7
"""[half side of the core] Largest half-light radius of a galaxy. Less than two thirds of the light of larger
ones would be in their core."""
_RADII = 5
"""Half-light radii of the grid."""
_ELONGATIONS = (0.5, 1.0)
"""Moduli of the ellipticities of the grid beside 0: axis ratios .61 and .37. More elongated galaxies are
rare, and a needle between stars is not a galaxy."""
_ANGLES = 6
"""Position angles of each modulus."""
_GALAXY_SHARE = 0.1
"""Least probability that a new source is proposed as a galaxy, where the prior allows galaxies."""


@dataclass(frozen=True)
class Shapes:
    """The shapes that a source may have. The first is a star.

    Args:
        shape: half-light radius [px] and ellipticity; NaN for the star.
        log_mass: ln prior probability of a shape among galaxies; 0 for the star.
        neighbour: for each shape those next to it; the relation is symmetric.
    """

    shape: Float[np.ndarray, "shape 3"]
    log_mass: Float[np.ndarray, "shape"]
    neighbour: Int[np.ndarray, "shape side"]

    def nearest(self, shape: Float[np.ndarray, "s 3"]) -> Int[np.ndarray, "s"]:
        """Numbers of the shapes of the grid that are nearest to given ones."""
        number = np.zeros(len(shape), np.int64)
        galaxy = ~np.isnan(shape[:, 0])
        if not galaxy.any():
            return number
        if len(self.shape) == 1:
            raise InputError("start", f"{galaxy.sum()} galaxies", "stars only, as the prior says")
        place = np.column_stack([np.log(self.shape[1:, 0]), self.shape[1:, 1:]])
        wanted = np.column_stack([np.log(shape[galaxy, 0]), shape[galaxy, 1:]])
        distance = np.linalg.norm(place[None] - wanted[:, None], axis=2)
        number[galaxy] = 1 + distance.argmin(1)
        return number


def shape_grid(prior: FieldPrior, largest: float) -> Shapes:
    """The shapes under a prior, with radii up to ``largest`` [px]; the star only if it has no galaxies."""
    if prior.galaxy.density == 0:
        return Shapes(np.full((1, 3), np.nan), np.zeros(1), np.zeros((1, 8), np.int64))
    mean, sd = prior.log_radius
    low = min(max(mean - 2 * sd, np.log(0.4)), np.log(largest) - 0.5)
    log_radius = np.linspace(low, min(max(mean + 2 * sd, low + 0.5), np.log(largest)), _RADII)
    bounds = np.array([0.0, *(np.convolve((0.0, *_ELONGATIONS), [0.5, 0.5], "valid"))])
    bounds = np.append(bounds, 2 * _ELONGATIONS[-1] - bounds[-1])
    area = np.pi * np.diff(bounds**2)
    cells = [(0.0, 0.0, area[0])]  # modulus, angle of the ellipticity, area
    for ring, modulus in enumerate(_ELONGATIONS):
        cells += [(modulus, 2 * np.pi * a / _ANGLES, area[ring + 1] / _ANGLES) for a in range(_ANGLES)]
    shapes, log_mass = [[np.nan] * 3], [0.0]
    for ln, (modulus, angle, size) in product(log_radius, cells):
        shapes.append([np.exp(ln), modulus * np.cos(angle), modulus * np.sin(angle)])
        density = -0.5 * ((ln - mean) / sd) ** 2 - 0.5 * (modulus / prior.ellipticity_sd) ** 2
        log_mass.append(density + np.log(size))
    weight = np.array(log_mass)
    weight[1:] -= np.logaddexp.reduce(weight[1:])
    return Shapes(np.array(shapes), weight, _neighbours(len(cells)))


def _neighbours(cells: int) -> Int[np.ndarray, "shape 8"]:
    """Neighbours in radius and in ellipticity; a shape at the end of the grid is its own neighbour."""
    rings = len(_ELONGATIONS)
    table = np.zeros((1 + _RADII * cells, 8), np.int64)
    for r, c in product(range(_RADII), range(cells)):
        me = 1 + r * cells + c
        side = [me if r == 0 else me - cells, me if r == _RADII - 1 else me + cells]
        if c == 0:
            side += [1 + r * cells + 1 + a for a in range(_ANGLES)]
        else:
            ring, a = divmod(c - 1, _ANGLES)
            first = 1 + r * cells + 1 + ring * _ANGLES
            side += [first + (a + 1) % _ANGLES, first + (a - 1) % _ANGLES]
            side += [1 + r * cells if ring == 0 else me - _ANGLES]
            side += [me if ring == rings - 1 else me + _ANGLES, me, me]
        table[me] = side
    return table


def canvas_of(scene: Scene, shapes: Shapes, half: int) -> Canvas:
    """The canvas of a scene, with weights of zero.

    Args:
        scene: the images.
        shapes: that sources may have.
        half: half the side of a core [px] (:func:`core_half`).
    """
    rows = 2 * half + 1
    columns = -(-rows // 4) * 4
    start, stride, origin, total = [], [], [], 0
    height, width = scene.shape
    edge = MARGIN + 0.5
    corners = np.array([(x, y) for x in (-edge, width - 1 + edge) for y in (-edge, height - 1 + edge)])
    for k, counts in enumerate(scene.counts):
        place = scene.image_xy(k, corners)
        low = np.minimum(np.floor(place.min(0)) - half - 1, 0).astype(int)
        high = np.maximum(np.ceil(place.max(0)) + half + 2, counts.shape[::-1]).astype(int)
        high[0] += columns - rows
        start.append(total)
        stride.append(high[0] - low[0])
        origin.append(-low)
        total += int((high[0] - low[0]) * (high[1] - low[1]))
    images = range(len(start))
    tables = [
        [phase_table(_table(scene, k, shape), scene.oversampling, half, columns) for k in images]
        for shape in shapes.shape
    ]
    return Canvas(
        tables=np.array(tables),
        weight=np.zeros(total),
        start=np.array(start),
        stride=np.array(stride),
        origin=np.array(origin),
        affine=np.ascontiguousarray(scene.affine),
        column=np.array(scene.column),
        rows=rows,
        columns=columns,
        oversampling=scene.oversampling,
    )


def _table(scene: Scene, k: int, shape: Float[np.ndarray, "3"]) -> Float[np.ndarray, "t t"]:
    """Light of a unit source of a shape by distance from it, as :attr:`Scene.psf`."""
    if np.isnan(shape[0]):
        return scene.psf[k]
    side = len(scene.psf[k])
    offset = (np.arange(side) - (side - 1) / 2) / scene.oversampling
    table = np.zeros((side, side))
    for amplitude, covariance, mean in zip(*galaxy_gaussians(scene, k, shape), strict=True):
        inverse = np.linalg.inv(covariance)
        x, y = offset[None] - mean[0], offset[:, None] - mean[1]
        square = inverse[0, 0] * x**2 + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y**2
        table += amplitude * np.sqrt(np.linalg.det(inverse)) / (2 * np.pi) * np.exp(-0.5 * square)
    return table


def phase_table(
    table: Float[np.ndarray, "t t"], oversampling: int, half: int, columns: int
) -> Float[np.ndarray, "phase phase pixel"]:
    """The cells of a table by sub-pixel phase: those that bicubic interpolation of a stamp uses together.

    Args:
        table: as :attr:`Scene.psf`.
        oversampling: cells per pixel, odd.
        half: half the side of the stamp [px].
        columns: of the stamp; those beyond ``2 half + 1`` are zero.
    """
    first = oversampling // 2 + 2  # cells before the centre that phase 0 stands for
    reach = half * oversampling + first
    centre = (len(table) - 1) // 2
    wide = np.pad(table, max(0, reach - centre))
    centre = (len(wide) - 1) // 2
    phases = 2 * first + 1
    part = wide[centre - reach : centre + reach + 1, centre - reach : centre + reach + 1]
    size = 2 * half * oversampling + 1
    windows = sliding_window_view(part, (size, size))[:phases, :phases, ::oversampling, ::oversampling]
    stamps = np.zeros((phases, phases, 2 * half + 1, columns))
    stamps[..., : 2 * half + 1] = windows
    return stamps.reshape(phases, phases, -1)


def core_half(scene: Scene) -> int:
    """Half the side of a core [px]: that with :data:`CORE_LIGHT` of every PSF's light."""
    least, largest = CORE_RANGE
    for half in range(least, largest):
        reach = half * scene.oversampling + scene.oversampling // 2
        shares = []
        for table in scene.psf:
            c = (len(table) - 1) // 2
            shares.append(table[c - reach : c + reach + 1, c - reach : c + reach + 1].sum() / table.sum())
        if min(shares) >= CORE_LIGHT:
            return half
    return largest


def psf_width(scene: Scene) -> float:
    """[px of the reference image] SD of a Gaussian with the effective area of the narrowest PSF."""
    widths = []
    for k, table in enumerate(scene.psf):
        area = float(table.sum() ** 2 / np.sum(table**2)) / scene.oversampling**2  # effective pixels
        scale = np.sqrt(abs(np.linalg.det(scene.affine[k, :, :2])))
        widths.append(np.sqrt(area / (4 * np.pi)) / scale)
    return min(widths)


def unpad(canvas: Canvas, k: int, flat: np.ndarray, shape: tuple[int, int]) -> Float[np.ndarray, "y x"]:
    """A view of image k in a flat array."""
    end = canvas.start[k + 1] if k + 1 < len(canvas.start) else len(flat)
    x, y = canvas.origin[k]
    padded = flat[canvas.start[k] : end].reshape(-1, canvas.stride[k])
    return padded[y : y + shape[0], x : x + shape[1]]


def prior_tables(prior: FieldPrior, shapes: Shapes) -> PriorTables:
    """The prior as arrays."""
    kinds = (prior.star, prior.galaxy)
    if len(prior.star.log_flux) != len(prior.galaxy.log_flux):
        got = f"{len(prior.star.log_flux)} and {len(prior.galaxy.log_flux)}"
        raise InputError("knots of the stars' and the galaxies' luminosity functions", got, "as many")
    others = [b for b in range(len(prior.bands)) if b != prior.reference]
    size = len(others)
    scatter = [np.asarray(kind.scatter, float).reshape(size, size) for kind in kinds]
    constant = [
        gammaln((TAIL + size) / 2)
        - gammaln(TAIL / 2)
        - 0.5 * size * np.log(TAIL * np.pi)
        - 0.5 * np.linalg.slogdet(matrix)[1]
        for matrix in scatter
    ]
    with np.errstate(divide="ignore"):
        log_density = np.log([kind.density for kind in kinds])
    galaxies = len(shapes.shape) > 1
    share = prior.galaxy.density / prior.density
    return PriorTables(
        log_density=log_density,
        knots=np.stack([kind.log_flux for kind in kinds]),
        log_number=np.stack([kind.log_number for kind in kinds]),
        cumulative=np.stack([_cumulative(kind) for kind in kinds]),
        log_ratio=np.stack([np.ascontiguousarray(kind.log_ratio[:, others]) for kind in kinds]),
        precision=np.stack([np.linalg.inv(matrix) for matrix in scatter]),
        factor=np.stack([np.linalg.cholesky(matrix) for matrix in scatter]),
        constant=np.array(constant),
        tail=float(TAIL),
        reference=int(prior.reference),
        others=np.array(others, np.int64),
        log_mass=shapes.log_mass,
        shape_cumulative=np.exp(shapes.log_mass[1:]).cumsum() if galaxies else np.ones(1),
        neighbour=shapes.neighbour,
        galaxy_share=float(min(max(share, _GALAXY_SHARE), 0.5)) if galaxies else 0.0,
    )


def _cumulative(kind: Population) -> Float[np.ndarray, "interval"]:
    """Probability of a flux below the upper end of each interval, of a density that is log-linear in each."""
    rise, width = np.diff(kind.log_number), np.diff(kind.log_flux)
    flat = np.abs(rise) < 1e-9
    safe = np.where(flat, 1.0, rise)
    mass = width * np.exp(kind.log_number[:-1]) * np.where(flat, 1.0, np.expm1(rise) / safe)
    return mass.cumsum() / mass.sum()
