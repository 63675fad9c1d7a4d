"""What one image tells about a lens before it is fitted: its position, its light, and where the arcs are.

The lens's light is fitted first, as a Sersic profile with the arcs masked. Light beyond it that stands out of
the noise is taken for the arcs. Their distances from the lens give its Einstein radius. All steps are
relative to the noise, so that a guess scales with the unit of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter, label
from scipy.optimize import least_squares
from scipy.signal import fftconvolve

from astrozoo.models.lens_exposure import Exposure
from astrozoo.models.lens_prior import Scales

__all__ = ["Guess", "coordinates", "guess", "smoothed"]

_SMOOTH = 1.0
"""[px] SD of the Gaussian that residuals are smoothed with before they are called significant."""
_SIGNIFICANT = 3.5
"""[SD] Least smoothed residual of an arc: by chance a frame of 10,000 pixels has one such pixel."""
_LEAST_PIXELS = 5
"""[px] Least size of an arc."""
_MISFIT = 0.07
"""[light of the lens] Expected error of a Sersic profile: real galaxies differ from one by up to a tenth."""
_WINDOW = (0.5, 0.1)
"""[arcsec, side of the frame] The lens is looked for in a Gaussian window around the middle of the frame. Its
SD is the greater of these."""
_TYPICAL = (1.3, 0.6)
"""Median [arcsec] and SD of the ln of Einstein radii of galaxies: arcs near it count most, so that
a neighbour at the edge of a large frame does not."""
_SECTORS = 12
"""Sectors around the lens in which the radius of the arcs is averaged. Opposite ones are averaged first: an
image outside the Einstein radius has its counterpart inside."""
_INNERMOST = 0.4
"""[arcsec] Distance from the lens within which no light is taken for arcs while the lens's light is fitted.
Without it the core is masked, and the profile follows the arcs."""
_CORE_FIT = 0.7
"""[Einstein radius] Radius within which the light of the lens is compared with a Sersic profile."""
_CORE_CHI2 = 2.5
"""Mean chi2 of a ring, one pixel wide, above which a Sersic profile does not follow the light there."""
_LARGEST_CORE = 0.5
"""[Einstein radius] Largest core that is masked by default: inner images of a source are farther out."""
_LARGE = 150
"""[px] Side of an image above which it is too slow to trace several rays per pixel for a guess."""
_SOURCE = 0.2
"""[Einstein radius] Median half-light radius of a source."""


@dataclass(frozen=True, eq=False)
class Guess:
    """What an image tells.

    Attributes:
        centre: of the lens [arcsec].
        light: of the lens: ``radius`` [arcsec], ``index``, ``ellipticity`` [2], and ``amplitude`` [band]
            [unit / arcsec^2]; empty if the lens has no light.
        residual, sigma: image less the light of the lens, and its SD, with the expected misfit of the light
            [unit], in the band with the most light.
        arcs: pixels of the arcs.
        radii: Einstein radii that the arcs allow, the likeliest first [arcsec].
        brightness: of the arcs [unit / arcsec^2].
        found: whether arcs stand out. Otherwise ``radii`` is the typical radius of a lens.
        core: radius around the lens within which no Sersic profile follows its light [arcsec].
    """

    centre: Float[np.ndarray, "2"]
    light: Mapping[str, Any]
    residual: Float[np.ndarray, "y x"]
    sigma: Float[np.ndarray, "y x"]
    arcs: Bool[np.ndarray, "y x"]
    radii: Float[np.ndarray, "n"]
    brightness: Float[np.ndarray, "band"]
    found: bool
    core: float

    def scales(self, data: Exposure) -> Scales:
        """The medians of a prior, as tensors like those of the data."""
        new, radius = data.image.new_tensor, float(self.radii[0])
        light = self.light or {"radius": radius, "amplitude": self.brightness}
        return Scales(
            position=new(self.centre),
            einstein_radius=new(radius),
            lens_radius=new(light["radius"]),
            lens_amplitude=new(light["amplitude"]),
            source_radius=new(_SOURCE * radius),
            source_amplitude=new(self.brightness),
        )


def guess(data: Exposure, lens_light: bool = True) -> Guess:
    """The guess of one image.

    Args:
        data: one lens, in one band or several.
        lens_light: whether the lens emits light. If not, its centre is taken to be that of the frame.
    """
    masks, scale = data.mask.numpy(), float(data.pixel_scale)
    variances = data.total_variance(data.image).double().numpy()
    unit = float(np.sqrt(np.median(variances[masks])))  # what follows is of order 1 in any unit
    images = np.where(masks, data.image.double().numpy() / unit, 0.0)
    variances = np.where(masks, variances / unit**2, 1.0)
    psfs = data.psf.double().numpy()
    light_of = [float((i**2 / v)[m].sum()) for i, v, m in zip(images, variances, masks, strict=True)]
    at = int(np.argmax(light_of))
    image, sigma, mask, psf = images[at], np.sqrt(variances[at]), masks[at], psfs[at]
    x, y = coordinates(image.shape, scale)
    centre, lens, p, core = np.zeros(2), np.zeros(image.shape), None, 0.0
    if lens_light:
        p = _lens_light(image, sigma, mask, psf, scale)
        centre, lens = p[:2], _sersic(p, image.shape, psf, scale)
    softened = np.hypot(sigma, _MISFIT * lens)
    residual = np.where(mask, image - lens, 0.0)
    arcs = _arcs(residual, softened, mask)
    distance = np.hypot(x - centre[0], y - centre[1])
    radii = _radii(np.where(arcs, np.clip(residual / softened, 0, 10), 0), x - centre[0], y - centre[1])
    found = len(radii) > 0
    if not found:
        radii = np.array([min(_TYPICAL[0], 0.2 * min(image.shape) * scale)])
    if p is not None:
        inner = mask & ~arcs & (distance < _CORE_FIT * radii[0])
        core = _core(image, sigma, inner, psf, scale, p, _LARGEST_CORE * float(radii[0]))
    light: dict[str, Any] = {}
    shape = np.zeros(image.shape) if p is None else _sersic([*p[:6], 0.0], image.shape, psf, scale)
    levels = [
        _levels(i, v, m, arcs, shape, lens, scale) for i, v, m in zip(images, variances, masks, strict=True)
    ]
    amplitude, brightness = unit * np.array(levels).T
    if p is not None:
        light = {"radius": float(np.exp(p[2])), "index": float(p[3]), "ellipticity": p[4:6]}
        light["amplitude"] = amplitude
    return Guess(centre, light, unit * residual, unit * softened, arcs, radii, brightness, found, core)


def _lens_light(
    image: np.ndarray, sigma: np.ndarray, mask: np.ndarray, psf: np.ndarray, scale: float
) -> Float[np.ndarray, "7"]:
    """The Sersic profile of the lens: (x, y, ln radius, index, e1, e2, ln amplitude). The arcs are masked."""
    x, y = coordinates(image.shape, scale)
    centre = _brightest(image, mask, x, y)
    p = _first_light(image, mask, x, y, centre, scale)
    arcs = np.zeros(image.shape, bool)
    outside = np.hypot(x - centre[0], y - centre[1]) > max(_INNERMOST, 2.5 * scale)
    for _ in range(4):
        p = _fit_light(image, sigma, mask & ~arcs, psf, scale, p, _MISFIT)
        lens = _sersic(p, image.shape, psf, scale)
        arcs = outside & _arcs(image - lens, np.hypot(sigma, _MISFIT * lens), mask)
    return p


def _core(
    image: np.ndarray,
    sigma: np.ndarray,
    use: np.ndarray,
    psf: np.ndarray,
    scale: float,
    p: Any,
    largest: float,
) -> float:
    """Radius of the innermost rings in which even the best Sersic profile leaves more than noise [arcsec]."""
    if use.sum() < 2 * len(p):
        return 0.0
    p = _fit_light(image, sigma, use, psf, scale, p, 0.0)
    x, y = coordinates(image.shape, scale)
    ring = (np.hypot(x - p[0], y - p[1]) / scale).astype(int)
    chi2 = ((image - _sersic(p, image.shape, psf, scale)) / sigma) ** 2
    for i in range(int(largest / scale)):
        inside = use & (ring == i)
        if inside.any() and chi2[inside].mean() < _CORE_CHI2:
            return i * scale
    return int(largest / scale) * scale


def _levels(
    image: np.ndarray,
    variance: np.ndarray,
    mask: np.ndarray,
    arcs: np.ndarray,
    shape: np.ndarray,
    lens: np.ndarray,
    scale: float,
) -> tuple[float, float]:
    """Amplitude of the lens's light in a band, and brightness of the arcs; both at least at the noise."""
    floor = float(np.sqrt(np.median(variance[mask]))) / scale**2
    weight = np.where(mask & ~arcs, 1 / (variance + (_MISFIT * lens) ** 2), 0.0)
    norm = float((weight * shape**2).sum())
    amplitude = float((weight * shape * image).sum()) / norm if norm else 0.0
    rest = (image - amplitude * shape)[arcs & mask]
    bright = float(np.quantile(rest, 0.9)) / scale**2 if rest.size else 0.0
    return max(amplitude, 0.05 * floor), max(bright, 3 * floor)


def smoothed(residual: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """White noise of SD 1, smoothed, has SD 1 again."""
    return gaussian_filter(residual, _SMOOTH) * (2 * np.sqrt(np.pi) * _SMOOTH)


def coordinates(shape: tuple[int, ...], scale: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return (x - (shape[1] - 1) / 2) * scale, (y - (shape[0] - 1) / 2) * scale


def _brightest(image: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "2"]:
    """The brightest place near the middle of the frame, of the image smoothed so that arcs are fainter."""
    window = max(_WINDOW[0], _WINDOW[1] * 2 * float(x.max()))
    blurred = gaussian_filter(np.where(mask, image, 0.0), 1.5) / np.maximum(
        gaussian_filter(mask * 1.0, 1.5), 0.1
    )
    score = np.maximum(blurred, 0) * np.exp(-0.5 * (x**2 + y**2) / window**2)
    at = np.unravel_index(score.argmax(), score.shape)
    return np.array([x[at], y[at]])


def _arcs(residual: np.ndarray, sigma: np.ndarray, mask: np.ndarray) -> Bool[np.ndarray, "y x"]:
    """Significant positive residuals, without specks."""
    bright = mask & (smoothed(np.where(mask, residual / sigma, 0.0)) > _SIGNIFICANT)
    parts, count = label(bright, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    return bright & (sizes >= _LEAST_PIXELS)[parts]


def _first_light(
    image: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, centre: np.ndarray, scale: float
) -> np.ndarray:
    """Start of the fit of the lens's light: (x, y, ln radius, index, e1, e2, ln amplitude)."""
    distance = np.hypot(x - centre[0], y - centre[1])
    reach = min(2.0, 0.4 * 2 * float(x.max()))
    inside = np.where(mask & (distance < reach), np.maximum(image, 0), 0.0)
    order = np.argsort(distance.ravel())
    growth = np.cumsum(inside.ravel()[order])
    radius = (
        float(distance.ravel()[order][np.searchsorted(growth, 0.5 * growth[-1])]) if growth[-1] > 0 else 0.5
    )
    radius = max(radius, 2 * scale)
    near = inside[(distance > 0.7 * radius) & (distance < 1.3 * radius) & mask]
    level = float(np.median(near)) if near.size else 0.0
    spread = float(np.std(image[mask])) or 1.0
    return np.array([*centre, np.log(radius), 3.0, 0.0, 0.0, np.log(max(level, 1e-3 * spread) / scale**2)])


def _fit_light(
    image: np.ndarray,
    sigma: np.ndarray,
    use: np.ndarray,
    psf: np.ndarray,
    scale: float,
    start: np.ndarray,
    misfit: float,
) -> np.ndarray:
    """Least squares, with errors that allow for a relative misfit of the profile."""
    half = 0.5 * min(image.shape) * scale
    low = np.array(
        [
            start[0] - 3 * scale - 0.1,
            start[1] - 3 * scale - 0.1,
            np.log(0.5 * scale),
            0.5,
            -0.6,
            -0.6,
            -np.inf,
        ]
    )
    high = np.array(
        [start[0] + 3 * scale + 0.1, start[1] + 3 * scale + 0.1, np.log(3 * half), 8.0, 0.6, 0.6, np.inf]
    )
    error = np.hypot(sigma, misfit * np.maximum(gaussian_filter(image, 1.0), 0))[use]

    def residual(p: np.ndarray) -> np.ndarray:
        return (_sersic(p, image.shape, psf, scale) - image)[use] / error

    start = np.clip(start, low + 1e-6, high - 1e-6)
    return least_squares(residual, start, bounds=(low, high), loss="soft_l1", max_nfev=30, x_scale="jac").x


def _sersic(p: Any, shape: tuple[int, ...], psf: np.ndarray, scale: float) -> Float[np.ndarray, "y x"]:
    """The image of a Sersic profile, with 2x2 rays per pixel (one in large images)."""
    ny, nx = shape
    rays = 2 if max(shape) <= _LARGE else 1
    y, x = np.mgrid[: rays * ny, : rays * nx].astype(float)
    x, y = ((v - (rays * n - 1) / 2) * scale / rays - c for v, n, c in ((x, nx, p[0]), (y, ny, p[1])))
    ex, ey = p[4], p[5]
    size = min(np.hypot(ex, ey), 0.9)
    # r^2 = q x'^2 + y'^2 / q with e = (1 - q) / (1 + q)
    square = ((1 + size**2) * (x**2 + y**2) - 2 * (ex * (x**2 - y**2) + 2 * ey * x * y)) / (1 - size**2)
    b = 1.9992 * p[3] - 0.3271
    power = np.maximum(square / np.exp(2 * p[2]), 1e-20) ** (0.5 / p[3])
    light = np.exp(p[6] + np.clip(b - b * power, -60, 60)) * scale**2
    return fftconvolve(light.reshape(ny, rays, nx, rays).mean((1, 3)), psf, mode="same")


def _radii(weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n"]:
    """Einstein radii that the arcs allow: the mean over directions, and quantiles of their distances."""
    distance = np.hypot(x, y)
    median, sd = _TYPICAL
    weight = weight * np.exp(-0.5 * (np.log(np.maximum(distance, 1e-3) / median) / sd) ** 2)
    if not weight.any():
        return np.zeros(0)
    sector = ((np.arctan2(y, x) / (2 * np.pi) % 1) * _SECTORS).astype(int) % _SECTORS
    total = np.bincount(sector.ravel(), weight.ravel(), _SECTORS)
    mean = np.bincount(sector.ravel(), (weight * distance).ravel(), _SECTORS) / np.maximum(total, 1e-300)
    lit = total > 0.02 * total.max()
    pairs = [
        (min(total[i], total[j]), 0.5 * (mean[i] + mean[j]))
        for i, j in ((i, i + _SECTORS // 2) for i in range(_SECTORS // 2))
        if lit[i] and lit[j]
    ]
    if pairs:
        values = np.array([r for _, r in pairs])
        likeliest = float(np.average(values, weights=np.sqrt([w for w, _ in pairs])))
    else:
        likeliest = float(mean[lit].mean())
    order = np.argsort(distance.ravel())
    growth = np.cumsum(weight.ravel()[order])
    quantiles = [
        float(distance.ravel()[order][np.searchsorted(growth, q * growth[-1])]) for q in (0.2, 0.5, 0.8)
    ]
    return np.array([likeliest, *quantiles])
