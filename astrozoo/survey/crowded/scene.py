"""A crowded field as plain arrays, and the image that a list of sources makes in it.

Positions are (x, y) in pixels of the reference image (:func:`astrozoo.data.images.reference_image`). Fluxes
are in nanomaggies, one per distinct band. A star is rendered from a table of the effective PSF at sub-pixel
steps, by bicubic interpolation. A galaxy is an exponential disc, rendered as a sum of Gaussians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float
from numba import njit
from scipy.interpolate import RectBivariateSpline

from astrozoo.data.images import Field, GaussianMixture, Image, Psf, pixel_map, reference_image, wide_stamp
from astrozoo.data.psf import fit_mixture, mixture_stamp
from astrozoo.errors import InputError
from astrozoo.physics.profiles import EXP_RINGS

__all__ = [
    "OVERSAMPLING",
    "Scene",
    "Sources",
    "expected",
    "galaxy_gaussians",
    "psf_table",
    "stamp_of_table",
    "star_stamp",
]

OVERSAMPLING = 5
"""Cells of a PSF table per pixel, odd, so that the PSF's centre is the centre of a cell. With five, bicubic
interpolation of a Gaussian of sigma 1.2 px is right to 1e-4 of the peak; the best known PSFs are right to
1e-3."""
_MIN_SIZE = 25
"""[px] Least side of a PSF table: smaller stamps are padded with zeros."""
_BEYOND = 1.0
"""[px] Distance outside the reference image to which pixels of other images are used. The light of a star
further out would have to be explained by the stars inside."""
_COMPONENTS = 4
"""Gaussians of the mixture fitted to each PSF, with which galaxies are convolved."""
_CACHED = 32
"""PSFs whose Gaussians are kept, of the last ones: those of a field and of their corrections."""
_GALAXY_REACH = 4.5
"""[sigma] Distance, in standard deviations of the widest Gaussian, to which a galaxy is rendered."""


@dataclass(frozen=True)
class Sources:
    """Stars and galaxies.

    Args:
        xy: positions [px of the reference image].
        flux: [nMgy], one column per distinct band of the scene, in the scene's order.
        shape: half-light radius [px of the reference image] and ellipticity (e1, e2) of a galaxy, NaN for a
            star. The ellipticity is ``-ln(q) (cos 2 phi, sin 2 phi)``, with axis ratio q and the major axis
            at the angle phi from +x to +y; the radius is that of the circle of equal area.
    """

    xy: Float[np.ndarray, "s 2"]
    flux: Float[np.ndarray, "s band"]
    shape: Float[np.ndarray, "s 3"]

    def __post_init__(self) -> None:
        count = len(self.xy)
        if self.xy.shape != (count, 2) or self.flux.shape[:1] != (count,) or self.flux.ndim != 2:
            got = f"xy {self.xy.shape}, flux {self.flux.shape}"
            raise InputError("sources", got, "xy [s, 2] and flux [s, band]")
        if self.shape.shape != (count, 3):
            raise InputError("shapes of sources", self.shape.shape, f"({count}, 3)")

    @classmethod
    def stars(cls, xy: Float[np.ndarray, "s 2"], flux: Float[np.ndarray, "s band"]) -> Sources:
        """Sources that are all stars."""
        return cls(np.asarray(xy, float), np.asarray(flux, float), np.full((len(xy), 3), np.nan))

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def is_star(self) -> Bool[np.ndarray, "s"]:
        """True for stars."""
        return np.isnan(self.shape[:, 0])

    def take(self, chosen: np.ndarray) -> Sources:
        """The sources at an index array or a mask."""
        return Sources(self.xy[chosen], self.flux[chosen], self.shape[chosen])


@dataclass(frozen=True)
class Scene:
    """The images of a crowded field, each with one PSF. Every tuple has one item per image.

    Args:
        band: filter names.
        counts: electrons, including the sky [y, x].
        sky: electrons expected without any source [y, x].
        calibration: electrons per nMgy [y, x].
        valid: True where a pixel may be used [y, x]: on the reference image, and not masked.
        affine: maps (x, y, 1) of the reference image to (x, y) of each image.
        psf: tables of the effective PSF, [n * oversampling, n * oversampling] with odd n. Cell ``[i, j]`` is
            the light in a pixel whose centre is ``((j - c) / oversampling, (i - c) / oversampling)`` px from
            a unit source, ``c = (side - 1) / 2``.
        psf_error: relative error of each PSF. The variance of a pixel is
            ``expected + (psf_error * light)^2``, where light is what the sources add.
        shape: (rows, columns) of the reference image.
        oversampling: cells of a table per pixel.
        pixel_scale: side of a pixel of the reference image [arcsec]; by default SDSS's.
        gaussians: of each PSF, with which galaxies are convolved; by default they are fitted to its table.
    """

    band: tuple[str, ...]
    counts: tuple[Float[np.ndarray, "y x"], ...]
    sky: tuple[Float[np.ndarray, "y x"], ...]
    calibration: tuple[Float[np.ndarray, "y x"], ...]
    valid: tuple[Bool[np.ndarray, "y x"], ...]
    affine: Float[np.ndarray, "k 2 3"]
    psf: tuple[Float[np.ndarray, "t t"], ...]
    psf_error: Float[np.ndarray, "k"]
    shape: tuple[int, int]
    oversampling: int = OVERSAMPLING
    pixel_scale: float = 0.396
    gaussians: tuple[GaussianMixture, ...] | None = None

    @classmethod
    def of(cls, field: Field, psf: Sequence[Psf] | None = None, *, psf_error: float = 0.0) -> Scene:
        """The scene of a field, or of a part of one (:func:`astrozoo.data.images.crop`).

        Args:
            field: the images.
            psf: one PSF per image, in that image's pixels; by default the images' own. Each is evaluated at
                the middle of its image.
            psf_error: relative error of every PSF.

        Raises:
            InputError: the number of PSFs is not that of images, the error is negative, or two images are
                not related by a linear map.
        """
        if psf is not None and len(psf) != len(field.images):
            raise InputError("PSFs of a scene", len(psf), f"one for each of {len(field.images)} images")
        if not psf_error >= 0:
            raise InputError("psf_error", psf_error, "at least 0")
        reference = reference_image(field)
        affine = np.stack([pixel_map(reference, image) for image in field])
        tables = []
        for k, image in enumerate(field):
            x, y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
            tables.append(psf_table(wide_stamp(image.psf if psf is None else psf[k], x, y)))
        return cls(
            band=tuple(image.band for image in field),
            counts=tuple(_usable(image.counts, image) for image in field),
            sky=tuple(_usable(image.sky, image) for image in field),
            calibration=tuple(_usable(image.calibration, image) for image in field),
            valid=tuple(
                np.ascontiguousarray(image.valid & _inside(to_image, image.shape, reference.shape))
                for image, to_image in zip(field, affine, strict=True)
            ),
            affine=affine,
            psf=tuple(tables),
            psf_error=np.full(len(field.images), float(psf_error)),
            shape=reference.shape,
            pixel_scale=3600 * float(np.sqrt(abs(np.linalg.det(reference.wcs.pixel_scale_matrix)))),
        )

    @property
    def bands(self) -> tuple[str, ...]:
        """Distinct bands in order of first appearance: the columns of ``Sources.flux``."""
        return tuple(dict.fromkeys(self.band))

    @property
    def column(self) -> tuple[int, ...]:
        """For each image, the column of its band in ``Sources.flux``."""
        return tuple(self.bands.index(band) for band in self.band)

    @cached_property
    def mixture(self) -> tuple[GaussianMixture, ...]:
        """Gaussians of each PSF: the given ones, or those fitted to its table."""
        if self.gaussians is not None:
            return self.gaussians
        return tuple(_gaussians(table.tobytes(), len(table), self.oversampling) for table in self.psf)

    def image_xy(self, k: int, xy: Float[np.ndarray, "s 2"]) -> Float[np.ndarray, "s 2"]:
        """Positions in pixels of image k."""
        return xy @ self.affine[k, :, :2].T + self.affine[k, :, 2]


@lru_cache(maxsize=_CACHED)
def _gaussians(table: bytes, side: int, oversampling: int) -> GaussianMixture:
    """Gaussians fitted to a table, once: scenes of one field share most of their PSFs."""
    cells = np.frombuffer(table).reshape(side, side)
    return fit_mixture(stamp_of_table(cells, oversampling), _COMPONENTS)


def psf_table(stamp: Float[np.ndarray, "n n"], oversampling: int = OVERSAMPLING) -> Float[np.ndarray, "t t"]:
    """The table of a PSF, from a stamp of odd side.

    A mixture of Gaussians has the sharp core, and a cubic spline interpolates what it leaves. On PSFs of
    1.15 px (sigma) that is right to 5e-4 of the peak; sinc functions ring by 6e-3, over the whole stamp. The
    cells sum to ``oversampling^2``.
    """
    size = len(stamp)
    if stamp.ndim != 2 or stamp.shape[1] != size or size % 2 == 0:
        raise InputError("PSF stamp", f"shape {stamp.shape}", "a square of odd side")
    if oversampling < 1 or oversampling % 2 == 0:
        raise InputError("oversampling", oversampling, "an odd positive number")
    stamp = stamp / stamp.sum()
    mixture = fit_mixture(stamp, _COMPONENTS)
    size = max(size, _MIN_SIZE)
    left = np.pad(stamp, (size - len(stamp)) // 2) - mixture_stamp(mixture, size)
    cell = np.arange(size) - size // 2
    side = size * oversampling
    offset = (np.arange(side) - (side - 1) / 2) / oversampling
    scaled = GaussianMixture(
        mixture.weights, mixture.means * oversampling, mixture.covariances * oversampling**2
    )
    table = mixture_stamp(scaled, side) * oversampling**2
    table += RectBivariateSpline(cell, cell, left)(offset, offset)
    return table * (oversampling**2 / table.sum())


def stamp_of_table(
    table: Float[np.ndarray, "t t"], oversampling: int = OVERSAMPLING
) -> Float[np.ndarray, "n n"]:
    """The image of a unit source at the centre of a pixel."""
    return table[oversampling // 2 :: oversampling, oversampling // 2 :: oversampling].copy()


def expected(scene: Scene, sources: Sources) -> list[Float[np.ndarray, "y x"]]:
    """Expected counts of every image [electrons]: the sky and the light of all sources."""
    if sources.flux.shape[1] != len(scene.bands):
        raise InputError(
            "fluxes of sources", sources.flux.shape, f"{len(scene.bands)} columns: {scene.bands}"
        )
    star = sources.is_star
    images = []
    for k, column in enumerate(scene.column):
        flux = np.zeros(scene.counts[k].shape)
        xy, light = scene.image_xy(k, sources.xy), np.ascontiguousarray(sources.flux[:, column])
        add_stars(flux, scene.psf[k], scene.oversampling, xy[star], light[star])
        for s in np.flatnonzero(~star):
            amplitudes, covariances, means = galaxy_gaussians(scene, k, sources.shape[s])
            _add_gaussians(flux, xy[s], light[s] * amplitudes, covariances, means, _GALAXY_REACH)
        images.append(scene.sky[k] + scene.calibration[k] * flux)
    return images


def galaxy_gaussians(
    scene: Scene, k: int, shape: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c 2 2"], Float[np.ndarray, "c 2"]]:
    """Amplitudes, covariances and means [px of image k] of a galaxy of unit flux, seen through its PSF."""
    radius, e1, e2 = shape
    modulus = float(np.hypot(e1, e2))
    turn = np.array([[e1, e2], [e2, -e1]]) * (np.sinh(modulus) / modulus if modulus > 0 else 1.0)
    affine = scene.affine[k, :, :2]
    unit = radius**2 * affine @ (np.cosh(modulus) * np.eye(2) + turn) @ affine.T
    rings, variances = (np.array(values) for values in EXP_RINGS)
    mixture = scene.mixture[k]
    amplitudes = np.multiply.outer(mixture.weights, rings / rings.sum())
    covariances = mixture.covariances[:, None] + variances[:, None, None] * unit
    means = np.repeat(mixture.means[:, None], len(rings), axis=1)
    return amplitudes.ravel(), covariances.reshape(-1, 2, 2), means.reshape(-1, 2)


def _inside(
    affine: Float[np.ndarray, "2 3"], shape: tuple[int, int], reference: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    """Pixels of an image that lie on the reference image: sources are modelled there alone."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    place = np.stack([x - affine[0, 2], y - affine[1, 2]])
    there = np.tensordot(np.linalg.inv(affine[:, :2]), place, 1)
    limits = np.array(reference[::-1])[:, None, None] - 0.5
    inside = (there > -0.5 - _BEYOND) & (there < limits + _BEYOND)
    return np.logical_and.reduce(inside, axis=0)


def _usable(array: np.ndarray, image: Image) -> Float[np.ndarray, "y x"]:
    """An array of an image, with the median of its valid pixels in place of bad invalid ones."""
    array = np.array(array, dtype=np.float64, order="C")
    bad = ~image.valid & ~(np.isfinite(array) & (array > 0))
    array[bad] = np.median(array[image.valid]) if image.valid.any() else 1.0
    return array


@njit(cache=True)
def _cubic(t, weight, slope):  # type: ignore[no-untyped-def]
    """Weights of the four cells around a point (Keys 1981, a = -1/2), and their derivatives by t."""
    weight[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    weight[1] = (1.5 * t - 2.5) * t * t + 1.0
    weight[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    weight[3] = (0.5 * t - 0.5) * t * t
    slope[0] = (-1.5 * t + 2.0) * t - 0.5
    slope[1] = (4.5 * t - 5.0) * t
    slope[2] = (-4.5 * t + 4.0) * t + 0.5
    slope[3] = (1.5 * t - 1.0) * t


@njit(cache=True)
def _span(centre, side, oversampling, reach, length):  # type: ignore[no-untyped-def]
    """First and last pixel + 1 of an axis within ``reach`` of a source, the cell of the first, its fraction.

    Cells from ``cell - 1`` to ``cell + 2`` are used for the first pixel, those ``oversampling`` further for
    the next.
    """
    middle = (side - 1) / 2
    low = max(0, int(np.ceil(centre - min(reach, (middle - 1) / oversampling))))
    high = min(length, int(np.floor(centre + min(reach, (middle - 2) / oversampling))) + 1)
    place = (low - centre) * oversampling + middle
    cell = int(np.floor(place))
    return low, high, cell, place - cell


@njit(cache=True)
def star_stamp(table, oversampling, x, y, reach, shape, out):  # type: ignore[no-untyped-def]
    """The image of a unit star and its derivatives by position, on the pixels within ``reach`` of it.

    Args:
        table: the PSF (:class:`Scene`).
        oversampling: cells of the table per pixel.
        x: column of the star [px].
        y: row of the star [px].
        reach: half the side of the square that is filled [px].
        shape: (rows, columns) of the image.
        out: [3, n, n] with ``n >= 2 reach + 1``: receives the image, d/dx and d/dy in its first rows and
            columns.

    Returns:
        (y0, y1, x0, x1), the rows and columns of the image that were filled. Empty if the star is too far
        away.
    """
    side = table.shape[0]
    x0, x1, column, u = _span(x, side, oversampling, reach, shape[1])
    y0, y1, row, v = _span(y, side, oversampling, reach, shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0, 0, 0, 0
    wx, dx, wy, dy = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    _cubic(u, wx, dx)
    _cubic(v, wy, dy)
    for i in range(y1 - y0):
        top = row - 1 + i * oversampling
        for j in range(x1 - x0):
            left = column - 1 + j * oversampling
            value, slope_x, slope_y = 0.0, 0.0, 0.0
            for a in range(4):
                across, along = 0.0, 0.0
                for b in range(4):
                    cell = table[top + a, left + b]
                    across += wx[b] * cell
                    along += dx[b] * cell
                value += wy[a] * across
                slope_x += wy[a] * along
                slope_y += dy[a] * across
            out[0, i, j] = value
            out[1, i, j] = -slope_x * oversampling
            out[2, i, j] = -slope_y * oversampling
    return y0, y1, x0, x1


@njit(cache=True)
def add_stars(image, table, oversampling, xy, light):  # type: ignore[no-untyped-def]
    """Add stars to an image, out to the edge of the table."""
    side = table.shape[0]
    reach = side / (2.0 * oversampling)
    wx, dx, wy, dy = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    for s in range(len(xy)):
        x0, x1, column, u = _span(xy[s, 0], side, oversampling, reach, image.shape[1])
        y0, y1, row, v = _span(xy[s, 1], side, oversampling, reach, image.shape[0])
        _cubic(u, wx, dx)
        _cubic(v, wy, dy)
        for i in range(y1 - y0):
            top = row - 1 + i * oversampling
            for j in range(x1 - x0):
                left = column - 1 + j * oversampling
                value = 0.0
                for a in range(4):
                    for b in range(4):
                        value += wy[a] * wx[b] * table[top + a, left + b]
                image[y0 + i, x0 + j] += light[s] * value


@njit(cache=True)
def _add_gaussians(image, xy, amplitudes, covariances, means, sigmas):  # type: ignore[no-untyped-def]
    """Add Gaussians around a position to an image, each out to ``sigmas`` of its standard deviations."""
    for c in range(len(amplitudes)):
        xx, cross, yy = covariances[c, 0, 0], covariances[c, 0, 1], covariances[c, 1, 1]
        determinant = xx * yy - cross * cross
        scale = amplitudes[c] / (2 * np.pi * np.sqrt(determinant))
        x, y = xy[0] + means[c, 0], xy[1] + means[c, 1]
        half_x, half_y = sigmas * np.sqrt(xx), sigmas * np.sqrt(yy)
        for i in range(max(0, int(np.ceil(y - half_y))), min(image.shape[0], int(y + half_y) + 1)):
            for j in range(max(0, int(np.ceil(x - half_x))), min(image.shape[1], int(x + half_x) + 1)):
                dx, dy = j - x, i - y
                distance = (yy * dx * dx - 2 * cross * dx * dy + xx * dy * dy) / determinant
                image[i, j] += scale * np.exp(-0.5 * distance)
