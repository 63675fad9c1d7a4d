"""Point-spread functions: SDSS eigen-images, pixel stamps, Gaussian mixtures, and the fit between them.

A stamp is the *effective* PSF, which includes the pixel's response: its values are the image of a unit point
source at the centre of a pixel. A mixture is therefore fitted to them as a density, and is not integrated
over pixels again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from astrozoo.data.images import GaussianMixture
from astrozoo.errors import InputError

__all__ = ["EigenPsf", "MixturePsf", "PixelPsf", "fit_mixture", "mixture_stamp", "wing_of_profile"]

_SDSS_SCALE = 1e-3
"""[1/px] Unit of positions in the polynomials of psField files, which count in thousands of pixels."""
_SPACING = 128
"""[px] Distance of the nodes at which mixtures are fitted. Interpolation between them is as good as a fit at
each place (:class:`EigenPsf`)."""
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
_SKY = 0.01
"""[peak of the star] Sky of the bright star whose noise weighs the pixels of a fit."""
_MIN_SIGMA = 0.2
"""[px] Least width of a fitted Gaussian: pixel values do not constrain a narrower one."""


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
    _nodes: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _start: list[GaussianMixture] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        images, coefficients = self.eigenimages, self.coefficients
        if images.ndim != 3 or images.shape[1] != images.shape[2] or images.shape[1] % 2 == 0:
            raise InputError("eigenimages", f"shape {images.shape}", "[k, n, n] with odd n")
        if coefficients.ndim != 3 or len(coefficients) != len(images):
            raise InputError("coefficients", f"shape {coefficients.shape}", f"[{len(images)}, i, j]")
        if self.wing is not None and not (0 <= self.wing[0] < 1 and self.wing[1] > 0):
            raise InputError("wing", self.wing, "a share between 0 and 1 and a width above 0")

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The PSF at pixel (x, y), summing to 1."""
        rows = (_SDSS_SCALE * (y + 0.5)) ** np.arange(self.coefficients.shape[1])
        columns = (_SDSS_SCALE * (x + 0.5)) ** np.arange(self.coefficients.shape[2])
        stamp = np.tensordot(self.coefficients @ columns @ rows, self.eigenimages, axes=1)
        return stamp / stamp.sum()

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture at pixel (x, y), interpolated in its logarithms between the nodes around it."""
        column, row = int(np.floor(x / _SPACING)), int(np.floor(y / _SPACING))
        u, v = x / _SPACING - column, y / _SPACING - row
        low = (1 - u) * self._node(column, row) + u * self._node(column + 1, row)
        high = (1 - u) * self._node(column, row + 1) + u * self._node(column + 1, row + 1)
        return _unpack((1 - v) * low + v * high)

    def _node(self, column: int, row: int) -> Float[np.ndarray, "component 6"]:
        """The mixture fitted at a node, packed. Every fit starts from the mixture at the frame's middle."""
        node = (column, row)
        if node not in self._nodes:
            if not self._start:
                self._start.append(fit_mixture(self._core(*_CENTRE), self.components))
            core = self._core(column * _SPACING, row * _SPACING)
            fitted = fit_mixture(core, start=self._start[0])
            full = fitted if self.wing is None else _winged(fitted, float(core.sum()), *self.wing)
            self._nodes[node] = _pack(full)
        return self._nodes[node]

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


@dataclass(frozen=True)
class PixelPsf:
    """A PSF given as a stamp, or as a grid of stamps. At a position, the nearest stamp of the grid is used.

    Args:
        stamps: one stamp [n, n], or one per node [grid_y, grid_x, n, n]; n is odd. They are normalised.
        x: columns of the grid's nodes [px]; only for a grid.
        y: rows of the grid's nodes [px]; only for a grid.
        components: Gaussians per mixture.
    """

    stamps: Float[np.ndarray, "..."]
    x: Float[np.ndarray, "grid_x"] = field(default_factory=lambda: np.zeros(1))
    y: Float[np.ndarray, "grid_y"] = field(default_factory=lambda: np.zeros(1))
    components: int = 3
    _fits: dict[tuple[int, int], GaussianMixture] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        stamps = np.asarray(self.stamps, dtype=float)
        if stamps.ndim == 2:
            stamps = stamps[None, None]
        if stamps.ndim != 4 or stamps.shape[:2] != (len(self.y), len(self.x)):
            expected = f"[n, n], or [{len(self.y)}, {len(self.x)}, n, n] for the nodes given"
            raise InputError("PSF stamps", f"shape {np.shape(self.stamps)}", expected)
        for stamp in stamps.reshape(-1, *stamps.shape[2:]):
            _check_stamp(stamp)
        object.__setattr__(self, "stamps", stamps / stamps.sum(axis=(2, 3), keepdims=True))

    def _node(self, x: float, y: float) -> tuple[int, int]:
        return int(np.abs(self.y - y).argmin()), int(np.abs(self.x - x).argmin())

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The stamp of the node nearest to pixel (x, y), summing to 1."""
        return self.stamps[self._node(x, y)]

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture fitted to the stamp of the node nearest to pixel (x, y)."""
        node = self._node(x, y)
        if node not in self._fits:
            self._fits[node] = fit_mixture(self.stamps[node], self.components)
        return self._fits[node]


@dataclass(frozen=True)
class MixturePsf:
    """The same Gaussian mixture everywhere in the image.

    Args:
        gaussians: the PSF.
        size: side of its stamps [px], odd.
    """

    gaussians: GaussianMixture
    size: int = 51

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The mixture at pixel centres, summing to 1."""
        stamp = mixture_stamp(self.gaussians, self.size)
        return stamp / stamp.sum()

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture itself."""
        return self.gaussians


def mixture_stamp(mixture: GaussianMixture, size: int) -> Float[np.ndarray, "n n"]:
    """A mixture's density at the pixel centres of a stamp of odd side ``size`` [1/px^2]."""
    if size < 1 or size % 2 == 0:
        raise InputError("stamp size", size, "an odd positive number")
    y, x = np.mgrid[:size, :size] - size // 2
    offset = np.stack([x, y], axis=-1).reshape(-1, 1, 2) - mixture.means  # [P, C, 2]
    inverse = np.linalg.inv(mixture.covariances)
    exponent = -0.5 * np.einsum("pci,cij,pcj->pc", offset, inverse, offset)
    amplitude = mixture.weights / (2 * np.pi * np.sqrt(np.linalg.det(mixture.covariances)))
    return (np.exp(exponent) @ amplitude).reshape(size, size)


def fit_mixture(
    stamp: Float[np.ndarray, "n n"], components: int = 3, start: GaussianMixture | None = None
) -> GaussianMixture:
    """Fit Gaussians to a stamp: positive weights that sum to 1, free means, full covariances.

    Pixels have the weights of a bright star's image, whose peak is 100 times the sky. With equal weights,
    three Gaussians would miss up to 40 % of the light 6 to 8 px from an SDSS star, and a survey would model
    that light as sources around the star. Components are sorted from the narrowest to the widest, or keep the
    order of ``start``. The ``residual`` of the result is the rms misfit over all pixels, divided by the peak.

    Args:
        stamp: odd-sized, of any normalisation.
        components: number of Gaussians; ignored if ``start`` is given.
        start: the mixture at which the search starts, such as the fit of a similar stamp.

    Raises:
        InputError: the stamp is not square and odd, not finite or not positive in sum; or the fit has no
            solution (a stamp far from any sum of that many Gaussians).
    """
    if components < 1:
        raise InputError("mixture components", components, "at least 1")
    stamp = np.asarray(stamp, dtype=float)
    _check_stamp(stamp)
    stamp = stamp / stamp.sum()
    size, peak = len(stamp), stamp.max()
    y, x = (grid.ravel() - size // 2 for grid in np.mgrid[:size, :size].astype(float))
    target = stamp.ravel()
    even, noise = np.full_like(target, peak), np.sqrt(peak * (target.clip(0) + _SKY * peak))

    def residual(parameters: np.ndarray, scale: np.ndarray) -> np.ndarray:
        weights, gaussians, _ = _gaussians(parameters.reshape(components, 6), x, y)
        return (weights @ gaussians - target) / scale

    def jacobian(parameters: np.ndarray, scale: np.ndarray) -> np.ndarray:
        weights, gaussians, slopes = _gaussians(parameters.reshape(components, 6), x, y)
        slopes = weights[:, None, None] * slopes
        slopes[:, 0] = weights[:, None] * (gaussians - weights @ gaussians)
        return (slopes.reshape(components * 6, -1) / scale).T

    first = _first_guess(components, 1 / np.sqrt(2 * np.pi * peak)) if start is None else _pack(start)
    components, packed = len(first), first.ravel()
    # From a rough start the weighted fit alone may fail, so a fit with even weights precedes it. From the fit
    # of a similar stamp, the fit with even weights may fail, so it is left out.
    for scale in (even, noise) if start is None else (noise,):
        packed = least_squares(
            residual, packed, jacobian, method="lm", xtol=1e-7, ftol=1e-7, max_nfev=300, args=(scale,)
        ).x
    fitted = _unpack(packed.reshape(components, 6))
    sigma = np.sqrt(np.linalg.eigvalsh(fitted.covariances))
    if not (sigma.min() > _MIN_SIGMA and sigma.max() < 4 * size):
        got = f"widths from {sigma.min():.2g} to {sigma.max():.2g} px"
        raise InputError(f"fit of {components} Gaussians to a PSF", got, f"{_MIN_SIGMA} to {4 * size} px")
    order = np.arange(components) if start is not None else np.argsort(sigma.prod(axis=1))
    return GaussianMixture(
        weights=fitted.weights[order],
        means=fitted.means[order],
        covariances=fitted.covariances[order],
        residual=float(np.sqrt(np.mean(residual(packed, even) ** 2))),
    )


def _check_stamp(stamp: np.ndarray) -> None:
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 == 0:
        raise InputError("PSF stamp", f"shape {stamp.shape}", "a square of odd side")
    if not np.isfinite(stamp).all() or stamp.sum() <= 0:
        raise InputError("PSF stamp", f"sum {stamp.sum()}", "finite values with a positive sum")


def _first_guess(components: int, width: float) -> np.ndarray:
    """Round Gaussians, each twice as wide as the last one: [logit, mean x, y, log L11, log L22, L21]."""
    guess = np.zeros((components, 6))
    guess[:, 0] = -1.2 * np.arange(components)
    guess[:, 3:5] = np.log(0.85 * width * 2.0 ** np.arange(components))[:, None]
    return guess


def _pack(mixture: GaussianMixture) -> Float[np.ndarray, "component 6"]:
    """[log weight, mean x, mean y, log L11, log L22, L21] with covariances L L'."""
    chol = np.linalg.cholesky(mixture.covariances)
    logs = np.log([mixture.weights, chol[:, 0, 0], chol[:, 1, 1]])
    return np.column_stack([logs[0], mixture.means, logs[1], logs[2], chol[:, 1, 0]])


def _unpack(parameters: Float[np.ndarray, "component 6"]) -> GaussianMixture:
    chol = np.zeros((len(parameters), 2, 2))
    chol[:, 0, 0], chol[:, 1, 1] = np.exp(parameters[:, 3:5]).T
    chol[:, 1, 0] = parameters[:, 5]
    return GaussianMixture(_softmax(parameters[:, 0]), parameters[:, 1:3], chol @ chol.transpose(0, 2, 1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _gaussians(
    parameters: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [C], unit Gaussians [C, P], their slopes [C, 6, P] in (0, mean x, y, log L11, log L22, L21)."""
    logit, mean_x, mean_y, log11, log22, l21 = parameters.T[:, :, None]  # each [C, 1]
    l11, l22 = np.exp(log11), np.exp(log22)
    z1 = (x - mean_x) / l11
    z2 = (y - mean_y - l21 * z1) / l22
    g = np.exp(-0.5 * (z1**2 + z2**2)) / (2 * np.pi * l11 * l22)
    tilt = l21 / l22
    slopes = np.zeros((len(parameters), 6, len(x)))
    slopes[:, 1] = g * (z1 - z2 * tilt) / l11
    slopes[:, 2] = g * z2 / l22
    slopes[:, 3] = g * (z1**2 - 1 - tilt * z1 * z2)
    slopes[:, 4] = g * (z2**2 - 1)
    slopes[:, 5] = g * z1 * z2 / l22
    return _softmax(logit[:, 0]), g, slopes
