"""Lensed galaxies with known truth: GalSim draws the sources, caustics traces the light rays.

Neither package uses the zoo's lens models or renderer. Conventions are those of
:mod:`astrozoo.data.lens_image`; lens parameters are in arcsec, angles in radians from +x through +y, and the
Einstein radius is that of the intermediate axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import galsim
import numpy as np
import torch
from caustics.lenses import func
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from scipy.signal import fftconvolve

from astrozoo.data.lens_image import LensImage
from astrozoo.errors import InputError

__all__ = ["SOURCES", "draw_lens", "draw_source", "render_source", "simulate_lens"]

SOURCES = ("smooth", "clumpy")
"""Kinds of source galaxies: "smooth" is a Sersic profile, "clumpy" a disc, a bulge and star-forming knots."""

_GRID = 40
"""[1/half-light radius] Pixels per half-light radius in the table of a source."""
_REACH = 8
"""[half-light radius] Half the side of the table of a source."""
_BACKGROUND = 0.01
"""[electron/s] Standard deviation of the background in a pixel."""
_SERIES = 60
"""Terms of the series for a power-law lens: exact to 1e-12 down to an axis ratio of 0.4."""

Rays = Callable[[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]], tuple[np.ndarray, np.ndarray]]
"""A deflection field: ``(x, y) -> (alpha_x, alpha_y)`` [arcsec]."""


def draw_source(
    rng: np.random.Generator, kind: str = "clumpy", index: tuple[float, float] = (0.5, 4.0)
) -> galsim.GSObject:
    """A galaxy of unit flux whose smooth part has a half-light radius of 1 (of the circle of equal area).

    Axis ratios are uniform between 0.3 and 1, and position angles over all directions. A "smooth" galaxy has
    a Sersic index that is uniform between the two values of ``index``. A "clumpy" galaxy is an exponential
    disc, with up to 40 % of its light in a bulge (Sersic index 1 to 4, of 0.15 to 0.5 the disc's size) and 5
    to 40 % in 4 to 40 knots that follow the disc.

    Raises:
        InputError: the kind is not one of :data:`SOURCES`.
    """
    if kind not in SOURCES:
        raise InputError("kind of source", repr(kind), f"one of {', '.join(SOURCES)}")
    shape = galsim.Shear(q=rng.uniform(0.3, 1.0), beta=rng.uniform(0, np.pi) * galsim.radians)
    if kind == "smooth":
        return galsim.Sersic(n=_index(rng, *index), half_light_radius=1.0).shear(shape)
    bulge, knots = rng.uniform(0, 0.4), rng.uniform(0.05, 0.4)
    points = galsim.RandomKnots(
        int(rng.integers(4, 41)),
        half_light_radius=1.0,
        flux=knots,
        rng=galsim.BaseDeviate(int(rng.integers(1, 2**31))),
    )
    size = rng.uniform(0.15, 0.5)
    parts = galsim.Add(
        galsim.Exponential(half_light_radius=1.0, flux=1 - bulge - knots).shear(shape),
        galsim.Sersic(n=_index(rng, 1.0, 4.0), half_light_radius=size, flux=bulge).shear(
            galsim.Shear(q=rng.uniform(0.6, 1.0), beta=rng.uniform(0, np.pi) * galsim.radians)
        ),
        galsim.Convolve(points.shear(shape), galsim.Gaussian(sigma=rng.uniform(0.06, 0.15))),
    )
    return parts.withFlux(1.0)


def _index(rng: np.random.Generator, low: float, high: float) -> float:
    """A Sersic index in steps of 1/8: GalSim computes and caches one table for each value."""
    return round(8 * rng.uniform(low, high)) / 8


def render_source(
    source: galsim.GSObject, size: int, pixel: float, *, blur: float = 0.0
) -> Float[np.ndarray, "size size"]:
    """Surface brightness at the pixel centres of a square image. It sums to 1 and is not negative.

    Args:
        source: the galaxy, which is placed at the centre.
        size: pixels per side.
        pixel: side of a pixel, in the source's unit of length.
        blur: sigma of a Gaussian that the galaxy is convolved with [px].
    """
    if blur:
        source = galsim.Convolve(source, galsim.Gaussian(sigma=blur * pixel))
    stamp = source.drawImage(nx=size, ny=size, scale=pixel, method="no_pixel", dtype=float).array
    stamp = np.maximum(stamp, 0.0)  # FFTs leave ringing of a millionth of the peak
    return stamp / stamp.sum()


def draw_lens(rng: np.random.Generator) -> dict[str, float]:
    """Parameters of an elliptical power law with external shear, and the position and size of the source.

    ``einstein_radius`` is log-normal around 1.2, ``slope`` N(2, 0.1), ``axis_ratio`` U(0.6, 0.95), ``angle``
    uniform. ``centre_x``, ``centre_y``, ``gamma1`` and ``gamma2`` are N(0, 0.03). ``source_x`` and
    ``source_y`` are N(0, 0.15), and ``source_radius`` (half-light) is log-normal around 0.25. Lengths are in
    arcsec.
    """
    return {
        "einstein_radius": float(1.2 * np.exp(rng.normal(0, 0.15))),
        "slope": float(rng.normal(2.0, 0.1)),
        "axis_ratio": float(rng.uniform(0.6, 0.95)),
        "angle": float(rng.uniform(0, np.pi)),
        "centre_x": float(rng.normal(0, 0.03)),
        "centre_y": float(rng.normal(0, 0.03)),
        "gamma1": float(rng.normal(0, 0.03)),
        "gamma2": float(rng.normal(0, 0.03)),
        "source_x": float(rng.normal(0, 0.15)),
        "source_y": float(rng.normal(0, 0.15)),
        "source_radius": float(0.25 * np.exp(rng.normal(0, 0.2))),
    }


def simulate_lens(
    seed: int,
    *,
    source: str | galsim.GSObject = "clumpy",
    lens: Mapping[str, float] | None = None,
    perturber: Rays | None = None,
    shape: tuple[int, int] = (64, 64),
    pixel_scale: float = 0.065,
    psf_fwhm: float = 0.1,
    peak_snr: float = 30.0,
    exposure: float = 2000.0,
    rays: int = 4,
) -> tuple[LensImage, dict[str, Any]]:
    """A lensed galaxy with Gaussian and photon noise. The lens itself emits no light.

    Light is averaged over the rays of each pixel, then convolved with the PSF at the pixel scale. A profile
    with a closed form in GalSim ("smooth") is exact at every ray; another one is a spline through a fine
    table.

    Args:
        seed: seed of the lens, the source and the noise.
        source: a kind of source, of which one is drawn, or a galaxy of unit flux and radius; see
            :func:`draw_source`.
        lens: values for parameters of :func:`draw_lens`; the others are drawn.
        perturber: reduced deflection by additional mass, ``(x, y) -> (alpha_x, alpha_y)`` [arcsec].
        shape: (rows, columns).
        pixel_scale: side of a pixel [arcsec].
        psf_fwhm: full width at half maximum of the Moffat PSF (beta 3) [arcsec].
        peak_snr: the brightest pixel of the noiseless image, over the rms of the background (0.01
            electrons/s).
        exposure: exposure time [s].
        rays: light rays per pixel and axis.

    Returns:
        The image [electron/s], and the truth: the lens's parameters, ``source`` (the galaxy without lensing,
        in square pixels of side ``source_pixel`` arcsec, summing to 1), ``flux`` (of that galaxy,
        [electron/s]) and ``model`` (the image without noise).

    Raises:
        InputError: an unknown parameter or kind of source, an Einstein radius larger than half the image, or
            fewer than one ray.
    """
    if rays < 1:
        raise InputError("rays", rays, "1 or more per pixel and axis")
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = draw_lens(rng)
    unknown = sorted(set(lens or {}) - set(truth))
    if unknown:
        raise InputError("lens", unknown, f"some of {', '.join(truth)}")
    truth |= lens or {}
    half = min(shape) * pixel_scale / 2
    if not 0 < truth["einstein_radius"] < half:
        expected = f"between 0 and half the image, {half:.3g} arcsec"
        raise InputError("einstein_radius", truth["einstein_radius"], expected)
    galaxy = draw_source(rng, source) if isinstance(source, str) else source
    pixel = truth["source_radius"] / _GRID
    table = render_source(galaxy, 2 * _REACH * _GRID + 1, 1 / _GRID)
    x, y = _rays(shape, pixel_scale, rays)
    alpha_x, alpha_y = _deflection(truth, x, y)
    if perturber is not None:
        extra_x, extra_y = perturber(x, y)
        alpha_x, alpha_y = alpha_x + extra_x, alpha_y + extra_y
    traced = (x - alpha_x - truth["source_x"]) / pixel, (y - alpha_y - truth["source_y"]) / pixel
    light = _exact(galaxy, *traced) if galaxy.is_analytic_x else _tabulated(table, *traced)
    light = light.reshape(shape[0], rays, shape[1], rays).mean((1, 3))
    psf = _psf(psf_fwhm, pixel_scale, min(shape))
    model = np.maximum(fftconvolve(light, psf, mode="same"), 0.0)
    scale = peak_snr * _BACKGROUND / model.max()
    model = model * scale
    noise = rng.normal(0, _BACKGROUND, shape) + (rng.poisson(model * exposure) / exposure - model)
    image = LensImage(
        image=model + noise,
        psf=psf,
        pixel_scale=pixel_scale,
        background_rms=_BACKGROUND,
        exposure=exposure,
        name=f"simulated-{seed}",
    )
    truth |= {"source": table, "source_pixel": pixel, "model": model}
    truth["flux"] = scale * (pixel / pixel_scale) ** 2  # of the source without lensing
    return image, truth


def _rays(shape: tuple[int, int], pixel_scale: float, rays: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = ((np.arange(n * rays) - (n * rays - 1) / 2) * pixel_scale / rays for n in shape)
    return np.meshgrid(x, y)


def _exact(galaxy: galsim.GSObject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light per pixel of the source's table, at positions in units of its pixels."""
    positions = zip(x.ravel() / _GRID, y.ravel() / _GRID, strict=True)
    return np.array([galaxy.xValue(*position) for position in positions]).reshape(x.shape) / _GRID**2


def _tabulated(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    middle = len(table) // 2
    return np.maximum(map_coordinates(table, [y + middle, x + middle], order=3, mode="constant"), 0.0)


def _deflection(lens: Mapping[str, float], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduced deflection angles [arcsec]."""
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in lens.items()}
    rays = torch.from_numpy(x), torch.from_numpy(y)
    x0, y0, q = values["centre_x"], values["centre_y"], values["axis_ratio"]
    power = func.reduced_deflection_angle_epl(
        x0, y0, q, values["angle"], values["einstein_radius"], values["slope"] - 1, *rays, n_iter=_SERIES
    )
    shear = func.reduced_deflection_angle_external_shear(x0, y0, values["gamma1"], values["gamma2"], *rays)
    alpha_x, alpha_y = ((a + b).numpy() for a, b in zip(power, shear, strict=True))
    return alpha_x, alpha_y


def _psf(fwhm: float, pixel_scale: float, limit: int) -> Float[np.ndarray, "k k"]:
    """The stamp of a Moffat profile, out to three times its full width at half maximum."""
    size = min(2 * int(np.ceil(3 * fwhm / pixel_scale)) + 1, limit - 1 + limit % 2)
    profile = galsim.Moffat(beta=3.0, fwhm=fwhm)
    stamp = profile.drawImage(nx=size, ny=size, scale=pixel_scale, method="no_pixel", dtype=float).array
    return stamp / stamp.sum()
