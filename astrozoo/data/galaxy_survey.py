"""How simulated galaxies are observed: stamps, PSF, noise, and which kinds of galaxies there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from astrozoo.errors import InputError

__all__ = ["BANDS", "KINDS", "PSF_PROFILES", "GalaxySurvey", "PsfRange", "noise_kernel"]

KINDS = ("smooth", "knots", "spiral", "barred", "irregular")
"""Kinds of galaxies. "smooth" is one Sersic profile. The others are a bulge, a disc, and knots, spiral arms,
a bar (with or without arms), or irregular clumps."""
BANDS = {
    "u": 0.36,
    "g": 0.48,
    "r": 0.62,
    "i": 0.76,
    "z": 0.91,
    "F606W": 0.60,
    "VIS": 0.71,
    "F814W": 0.81,
    "Y": 1.09,
    "J": 1.37,
    "H": 1.77,
}
"""Names of bands and their mean wavelengths [um]."""
PSF_PROFILES = ("moffat", "gaussian", "kolmogorov", "airy")
"""Profiles of the PSF. "moffat" has beta 3, and "airy" a central obscuration of a third of the diameter."""
MAX_CORRELATION = 0.9
"""[1] Limit of the correlation of neighbouring pixels: the noise of a larger one is as smooth as a galaxy."""


@dataclass(frozen=True)
class PsfRange:
    """PSFs that are drawn at random, one for each galaxy.

    Args:
        profile: one of :data:`PSF_PROFILES`.
        fwhm: range of the full width at half maximum, before the pixel [arcsec]; its logarithm is uniform.
        ellipticity: standard deviation of each component of the PSF's reduced shear.
        shape: mean (g1, g2) of that shear.
    """

    profile: str = "moffat"
    fwhm: tuple[float, float] = (0.15, 0.3)
    ellipticity: float = 0.02
    shape: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.profile not in PSF_PROFILES:
            raise InputError("PSF profile", repr(self.profile), f"one of {', '.join(PSF_PROFILES)}")
        _check_range("PSF fwhm [arcsec]", self.fwhm)
        if not 0 <= self.ellipticity <= 0.2:
            raise InputError("PSF ellipticity", self.ellipticity, "0 to 0.2")
        if not math.hypot(*self.shape) < 0.5:
            raise InputError("PSF shape", self.shape, "(g1, g2) with a modulus below 0.5")


@dataclass(frozen=True)
class GalaxySurvey:
    """Settings of :func:`astrozoo.data.simulate_galaxies.simulate_galaxies`.

    Galaxy ``i`` of a seed is the same under any settings of the stamps, the PSF, the noise and the band, so
    that one galaxy can be seen by several instruments.

    Args:
        size: side of a stamp [px].
        pixel_scale: [arcsec].
        psf: the PSFs.
        band: one of :data:`BANDS`. A bulge is brighter in red bands, knots and arms in blue ones.
        zero_point: AB magnitude of a flux of 1.
        snr: range of the S/N, whose logarithm is uniform; it sets the noise of each stamp. The S/N is the
            root of the sum of the squares of the noiseless pixels, over the rms of the noise.
        noise_rms: rms of the noise of every stamp, in place of ``snr`` [flux].
        noise_correlation: correlation of the noise of neighbouring pixels; 0 is white noise. See
            :func:`noise_kernel`.
        kinds: fractions of :data:`KINDS`; they need not sum to 1.
        radius: range of half-light radii [arcsec].
        magnitude: range of F814W magnitudes.
        centre_scatter: standard deviation of a galaxy's centre about the stamp's, in each coordinate [px].
        neighbours: mean number of other, smooth galaxies in a stamp.
        shear: (g1, g2) by which all galaxies are sheared, about the stamp's centre of each.
        rotation: angle by which every galaxy is turned before the shear [deg]. Pairs at 0 and 90 cancel
            shape noise.
    """

    size: int = 64
    pixel_scale: float = 0.1
    psf: PsfRange = field(default_factory=PsfRange)
    band: str = "F814W"
    zero_point: float = 25.0
    snr: tuple[float, float] | None = (10.0, 200.0)
    noise_rms: float | None = None
    noise_correlation: float = 0.0
    kinds: tuple[float, float, float, float, float] = (0.4, 0.15, 0.2, 0.1, 0.15)
    radius: tuple[float, float] = (0.1, 0.8)
    magnitude: tuple[float, float] = (17.0, 23.5)
    centre_scatter: float = 0.3
    neighbours: float = 0.0
    shear: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int) and 8 <= self.size <= 1024):
            raise InputError("size of stamps [px]", self.size, "a whole number of 8 to 1024")
        if not 0 < self.pixel_scale < math.inf:
            raise InputError("pixel_scale [arcsec]", self.pixel_scale, "a positive number")
        if not self.psf.fwhm[1] < self.size * self.pixel_scale / 4:
            limit = self.size * self.pixel_scale / 4
            raise InputError(
                "PSF fwhm [arcsec]", self.psf.fwhm, f"less than a quarter of a stamp, {limit:.3g}"
            )
        if self.band not in BANDS:
            raise InputError("band", repr(self.band), f"one of {', '.join(BANDS)}")
        if (self.snr is None) == (self.noise_rms is None):
            raise InputError("noise", f"snr={self.snr}, noise_rms={self.noise_rms}", "one of them, and None")
        if self.snr is not None:
            _check_range("snr", self.snr)
        if self.noise_rms is not None and not 0 < self.noise_rms < math.inf:
            raise InputError("noise_rms", self.noise_rms, "a positive number")
        if not 0 <= self.noise_correlation <= MAX_CORRELATION:
            raise InputError("noise_correlation", self.noise_correlation, f"0 to {MAX_CORRELATION}")
        if len(self.kinds) != len(KINDS) or min(self.kinds) < 0 or not 0 < sum(self.kinds) < math.inf:
            raise InputError("kinds", self.kinds, f"{len(KINDS)} fractions, of {', '.join(KINDS)}")
        _check_range("radius [arcsec]", self.radius)
        if not self.magnitude[0] < self.magnitude[1]:
            raise InputError("magnitude", self.magnitude, "(low, high)")
        for name in ("centre_scatter", "neighbours"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(name, getattr(self, name), "0 or more")
        if not math.hypot(*self.shear) < 1:
            raise InputError("shear", self.shear, "(g1, g2) with a modulus below 1")


def noise_kernel(correlation: float) -> Float[np.ndarray, "k"]:
    """The 1-d kernel of correlated noise, which has unit variance.

    Noise is white noise convolved with this kernel along both axes. The kernel is a Gaussian. Its
    autocorrelation along an axis, ``np.correlate(kernel, kernel, "full")``, is that of the noise; the
    covariance of two pixels is the product of those at their two lags.

    Args:
        correlation: of the noise of neighbouring pixels. That of drizzled HST images is 0.48.
    """
    if correlation == 0:
        return np.ones(1)

    def kernel(sigma: float) -> np.ndarray:
        half = math.ceil(5 * sigma)
        values = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
        return values / np.sqrt((values**2).sum())

    def lag_one(sigma: float) -> float:
        values = kernel(sigma)
        return float(values[1:] @ values[:-1])

    return kernel(brentq(lambda sigma: lag_one(sigma) - correlation, 0.1, 5.0))


def _check_range(name: str, value: tuple[float, float]) -> None:
    if not (len(value) == 2 and 0 < value[0] <= value[1] < math.inf):
        raise InputError(name, value, "(low, high) with 0 < low <= high")
