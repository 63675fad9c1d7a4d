"""SDSS's point-spread functions: eigen-images whose coefficients depend on the position, with a wing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from astrozoo.data.images import GaussianMixture
from astrozoo.data.psf import MixtureGrid, fit_mixture, mixture_stamp
from astrozoo.errors import InputError

__all__ = ["EigenPsf", "wing_of_profile"]

_SDSS_SCALE = 1e-3
"""[1/px] Unit of positions in the polynomials of psField files, which count in thousands of pixels."""
_CENTRE = (1023.5, 744.0)
"""[px] (x, y) of the middle of an SDSS frame, where the first mixture is fitted: the start of all others."""
_NO_WING = 1e-5
"""[1] Least ``p0`` of a power law. The pipeline writes 1e-7 if it could not fit one."""
_WING_RANGE = (8.0, 25.0)
"""[px] Distances from a star between which a Gaussian approximates the power law."""
_TRUSTED = 10.0
"""[px] Eigen-images are used out to this radius: they fall to zero some 12 px from the centre."""
_FITTED = 16
"""[px] Half the side of the stamp that a PSF with a wing is fitted to."""


@dataclass(frozen=True)
class EigenPsf:
    """An SDSS PSF: eigen-images whose coefficients are polynomials of the position.

    Mixtures are fitted at the nodes of a 128-pixel grid and interpolated between them. On SDSS field
    2583-2-136 that is as good as a fit at each place: the error of the worst pixel is 1.0 to 2.2 % of the
    peak, which is the error of three Gaussians, and the light of rings out to 8 px is right to 10 %.

    Args:
        eigenimages: the Karhunen-Loeve images, brightest first.
        coefficients: ``c[k, i, j]``, the coefficient of ``(row/1000)^i (column/1000)^j`` in image k.
        components: Gaussians per mixture, not counting the wing.
        wing: the light beyond the eigen-images, which fall to zero some 12 px from the centre: its fraction
            of all light, and the width (sigma) of the round Gaussian that represents it [px]
            (:func:`wing_of_profile`). The mixtures include it, the stamps do not.

    References:
        Lupton et al. 2001, "The SDSS Imaging Pipelines"; SDSS ``read_PSF``, which counts positions from the
        *corner* of the first pixel (half a pixel more than here).
    """

    eigenimages: Float[np.ndarray, "k n n"]
    coefficients: Float[np.ndarray, "k i j"]
    components: int = 3
    wing: tuple[float, float] | None = None
    _grid: MixtureGrid = field(init=False, repr=False, compare=False)
    _start: list[GaussianMixture] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        images, coefficients = self.eigenimages, self.coefficients
        if images.ndim != 3 or images.shape[1] != images.shape[2] or images.shape[1] % 2 == 0:
            raise InputError("eigenimages", f"shape {images.shape}", "[k, n, n] with odd n")
        if coefficients.ndim != 3 or len(coefficients) != len(images):
            raise InputError("coefficients", f"shape {coefficients.shape}", f"[{len(images)}, i, j]")
        if self.wing is not None and not (0 <= self.wing[0] < 1 and self.wing[1] > 0):
            raise InputError("wing", self.wing, "a share between 0 and 1 and a width above 0")
        object.__setattr__(self, "_grid", MixtureGrid(self._fitted))

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The PSF at pixel (x, y), summing to 1."""
        rows = (_SDSS_SCALE * (y + 0.5)) ** np.arange(self.coefficients.shape[1])
        columns = (_SDSS_SCALE * (x + 0.5)) ** np.arange(self.coefficients.shape[2])
        stamp = np.tensordot(self.coefficients @ columns @ rows, self.eigenimages, axes=1)
        return stamp / stamp.sum()

    def wide_stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The stamp with the wing in place of the eigen-images where they fall to zero, summing to 1."""
        stamp = self.stamp(x, y)
        if self.wing is None:
            return stamp
        offset = np.hypot(*(np.mgrid[: len(stamp), : len(stamp)] - len(stamp) // 2))
        stamp = np.where(offset < _TRUSTED, stamp, mixture_stamp(_round(*self.wing), len(stamp)))
        return stamp / stamp.sum()

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture at pixel (x, y), interpolated in its logarithms between the nodes around it."""
        return self._grid.at(x, y)

    def _fitted(self, x: float, y: float) -> GaussianMixture:
        """The mixture fitted at a place. Every fit starts from the mixture at the frame's middle."""
        if not self._start:
            self._start.append(fit_mixture(self._core(*_CENTRE), self.components))
        core = self._core(x, y)
        fitted = fit_mixture(core, start=self._start[0])
        return fitted if self.wing is None else _winged(fitted, float(core.sum()), *self.wing)

    def _core(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The stamp minus the wing, and 0 outside the radius to which eigen-images are used."""
        stamp = self.stamp(x, y)
        if self.wing is None:
            return stamp
        middle = len(stamp) // 2
        half = min(middle, _FITTED)
        stamp = stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]
        offset = np.hypot(*(np.mgrid[: len(stamp), : len(stamp)] - half))
        wing = mixture_stamp(_round(*self.wing), len(stamp))
        return np.where(offset < _TRUSTED, stamp - wing, 0.0)


def _round(share: float, width: float) -> GaussianMixture:
    return GaussianMixture(np.array([share]), np.zeros((1, 2)), width**2 * np.eye(2)[None])


def _winged(core: GaussianMixture, light: float, share: float, width: float) -> GaussianMixture:
    wing = _round(share, width)
    return GaussianMixture(
        weights=np.append(light * core.weights, share) / (light + share),
        means=np.vstack((core.means, wing.means)),
        covariances=np.concatenate((core.covariances, wing.covariances)),
        residual=core.residual,
        worst=core.worst,
    )


def wing_of_profile(
    sigma1: float, sigma2: float, b: float, p0: float, beta: float, sigma_p: float
) -> tuple[float, float] | None:
    """The wing of SDSS's radial profile of bright stars: its fraction of the light, and its width [px].

    The profile is two Gaussians and a power law, ``exp(-r^2/2 s1^2) + b exp(-r^2/2 s2^2) +
    p0 (1 + r^2/(beta sp^2))^(-beta/2)`` (psField's ``psf_sigma1`` ... ``psf_sigmap``). One Gaussian
    approximates the power law between 8 and 25 px, by least squares of the light in rings.

    Returns:
        None if the pipeline did not fit a power law (it then writes ``p0 = 1e-7``).
    """
    if p0 < _NO_WING:
        return None

    def power_law(r: np.ndarray) -> np.ndarray:
        return p0 * (1 + r**2 / (beta * sigma_p**2)) ** (-beta / 2)

    r = np.arange(0.05, _WING_RANGE[1], 0.1)
    core = np.exp(-(r**2) / (2 * sigma1**2)) + b * np.exp(-(r**2) / (2 * sigma2**2))
    total = np.trapezoid((core + power_law(r)) * 2 * np.pi * r, r)
    outer = r[r > _WING_RANGE[0]]
    light = power_law(outer) * outer / total

    def residual(parameters: np.ndarray) -> np.ndarray:
        share, width = np.exp(parameters)
        return (
            share * np.exp(-(outer**2) / (2 * width**2)) / (2 * np.pi * width**2) * outer - light
        ) / light.max()

    share, width = np.exp(least_squares(residual, np.log([0.02, 8.0])).x)
    return float(share), float(width)
