"""Point-spread functions: SDSS eigen-images, pixel stamps, Gaussian mixtures, and the fit between them.

A stamp is the *effective* PSF, the pixel's response included: its values at pixel centres are what an image
of a unit point source at the centre of a pixel holds. So a mixture is fitted to them as a density and is
never integrated over pixels again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from astrozoo.data.images import GaussianMixture
from astrozoo.errors import InputError

__all__ = ["EigenPsf", "MixturePsf", "PixelPsf", "fit_mixture", "mixture_stamp", "wing_of_profile"]

_SDSS_SCALE = 1e-3  # positions enter the coefficients' polynomials in thousands of pixels
_SPACING = 128  # [px] of the nodes at which mixtures are fitted
_CENTRE = (1023.5, 744.0)  # (x, y) of the middle of an SDSS frame
_NO_WING = 1e-5
_WING_RANGE = (8.0, 25.0)  # [px]
_TRUSTED, _FITTED = 10.0, 16  # [px] eigen-images fade to nothing soon after the first
_SKY = 0.01  # over a star's peak, where its PSF is to fit
_MIN_SIGMA = 0.2  # [px]; a narrower Gaussian is not constrained by pixel values


@dataclass(frozen=True)
class EigenPsf:
    """An SDSS PSF: eigen-images whose coefficients are polynomials of the position.

    Mixtures are fitted at the nodes of a 128-pixel grid and interpolated between them: on SDSS field
    2583-2-136 that is as good as a fit at each place (the worst pixel is 1.0 to 2.2 % of the peak off, which
    is what three Gaussians miss; rings out to 8 px have their light to 10 %).

    Args:
        eigenimages: the Karhunen-Loeve images, brightest first.
        coefficients: ``c[k, i, j]``, the coefficient of ``(row/1000)^i (column/1000)^j`` in image k.
        components: Gaussians per mixture, but for the wing.
        wing: light beyond the eigen-images, which fade to nothing some 12 px out: its share of all, and the
            rms width of the round Gaussian that stands for it [px] (:func:`wing_of_profile`). It is part of
            the mixtures, not of the stamps.

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
        """The mixture fitted at a node, packed; every fit begins at that of the frame's middle."""
        at = (column, row)
        if at not in self._nodes:
            if not self._start:
                self._start.append(fit_mixture(self._core(*_CENTRE), self.components))
            core = self._core(column * _SPACING, row * _SPACING)
            fitted = fit_mixture(core, start=self._start[0])
            winged = fitted if self.wing is None else _winged(fitted, float(core.sum()), *self.wing)
            self._nodes[at] = _pack(winged)
        return self._nodes[at]

    def _core(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The stamp without the wing, with nothing beyond where eigen-images are to be trusted."""
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
    """The wing of SDSS's radial profile of bright stars: share of the light, and width [px].

    The profile is two Gaussians and a power law, ``exp(-r^2/2 s1^2) + b exp(-r^2/2 s2^2) +
    p0 (1 + r^2/(beta sp^2))^(-beta/2)`` (psField's ``psf_sigma1`` ... ``psf_sigmap``). One Gaussian takes the
    place of the power law between 8 and 25 px, by least squares of the light in rings.

    Returns:
        None where the pipeline found no power law (it then writes ``p0 = 1e-7``).
    """
    if p0 < _NO_WING:
        return None

    def power_law(r: np.ndarray) -> np.ndarray:
        return p0 * (1 + r**2 / (beta * sigma_p**2)) ** (-beta / 2)

    r = np.arange(0.05, _WING_RANGE[1], 0.1)
    core = np.exp(-(r**2) / (2 * sigma1**2)) + b * np.exp(-(r**2) / (2 * sigma2**2))
    total = np.trapezoid((core + power_law(r)) * 2 * np.pi * r, r)
    out = r[r > _WING_RANGE[0]]
    light = power_law(out) * out / total

    def residual(parameters: np.ndarray) -> np.ndarray:
        share, width = np.exp(parameters)
        return (
            share * np.exp(-(out**2) / (2 * width**2)) / (2 * np.pi * width**2) * out - light
        ) / light.max()

    share, width = np.exp(least_squares(residual, np.log([0.02, 8.0])).x)
    return float(share), float(width)


@dataclass(frozen=True)
class PixelPsf:
    """A PSF given as a stamp, or as a grid of stamps of which the nearest is taken.

    Args:
        stamps: one stamp [n, n], or one per node [grid_y, grid_x, n, n]; odd n; normalised here.
        x: columns of the grid's nodes [px], with a grid only.
        y: rows of the grid's nodes [px], with a grid only.
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
    """The same Gaussian mixture all over the image.

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
    """Fit of Gaussians to a stamp: positive weights summing to 1, free means, full covariances.

    Pixels weigh as in the image of a bright star, whose peak is 100 times the sky. (With equal weights
    three Gaussians leave out up to 40 % of the light 6 to 8 px from an SDSS star, which is then taken for
    sources around it.) Components come out from the narrowest to the widest, or in the order of ``start``.
    The rms misfit over the peak, all pixels alike, is the result's ``residual``.

    Args:
        stamp: odd-sized, of any normalisation.
        components: number of Gaussians; that of ``start`` if given.
        start: where the search begins, such as the fit of a similar stamp.

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
    components, at = len(first), first.ravel()
    # from a rough start the weighted fit alone may go astray; after a similar one's, the even fit would
    for scale in (even, noise) if start is None else (noise,):
        at = least_squares(
            residual, at, jacobian, method="lm", xtol=1e-7, ftol=1e-7, max_nfev=300, args=(scale,)
        ).x
    found = _unpack(at.reshape(components, 6))
    sigma = np.sqrt(np.linalg.eigvalsh(found.covariances))
    if not (sigma.min() > _MIN_SIGMA and sigma.max() < 4 * size):
        got = f"widths from {sigma.min():.2g} to {sigma.max():.2g} px"
        raise InputError(f"fit of {components} Gaussians to a PSF", got, f"{_MIN_SIGMA} to {4 * size} px")
    order = np.arange(components) if start is not None else np.argsort(sigma.prod(axis=1))
    return GaussianMixture(
        weights=found.weights[order],
        means=found.means[order],
        covariances=found.covariances[order],
        residual=float(np.sqrt(np.mean(residual(at, even) ** 2))),
    )


def _check_stamp(stamp: np.ndarray) -> None:
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 == 0:
        raise InputError("PSF stamp", f"shape {stamp.shape}", "a square of odd side")
    if not np.isfinite(stamp).all() or stamp.sum() <= 0:
        raise InputError("PSF stamp", f"sum {stamp.sum()}", "finite values with a positive sum")


def _first_guess(components: int, width: float) -> np.ndarray:
    """Round Gaussians, each twice as wide as the last: [logit, mean x, mean y, log L11, log L22, L21]."""
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
