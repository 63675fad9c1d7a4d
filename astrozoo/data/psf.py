"""Point-spread functions: pixel stamps, Gaussian mixtures, and the fit between them.

A stamp is the *effective* PSF, which includes the pixel's response: its values are the image of a unit point
source at the centre of a pixel. A mixture is therefore fitted to them as a density, and is not integrated
over pixels again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from astrozoo.data.images import GaussianMixture
from astrozoo.errors import InputError

__all__ = [
    "GOOD_FIT",
    "MAX_COMPONENTS",
    "MixtureGrid",
    "MixturePsf",
    "PixelPsf",
    "WingedPsf",
    "fit_mixture",
    "mixture_stamp",
]

_SKY = 0.01
"""[peak of the star] Sky of the bright star whose noise weighs the pixels of a fit."""
_MIN_SIGMA = 0.2
"""[px] Least width of a fitted Gaussian: pixel values do not constrain a narrower one."""
MAX_COMPONENTS = 6
"""[1] Most Gaussians of a fit. The time of every rendered image grows with their number."""
GOOD_FIT = 0.03
"""[peak] Error of the worst pixel up to which a fit is good enough. Three Gaussians miss 1 to 2.2 % of the
peak of SDSS's PSFs, and bright pixels have a stated error of 4 %."""
_HELPS = 0.8
"""[1] One more Gaussian is kept if it lowers the error of the worst pixel by this factor or more."""


class MixtureGrid:
    """Mixtures of a PSF that varies smoothly: fitted at the nodes of a grid, interpolated between them.

    On SDSS's PSFs, with nodes every 128 px, that is as good as a fit at each place. Weights and widths are
    interpolated in their logarithms.

    Args:
        fit: the mixture at (x, y) [px]. All must have as many components, in the same order.
        spacing: of the nodes [px].
    """

    def __init__(self, fit: Callable[[float, float], GaussianMixture], spacing: float = 128.0) -> None:
        self._fit, self._spacing = fit, spacing
        self._nodes: dict[tuple[int, int], GaussianMixture] = {}

    def at(self, x: float, y: float) -> GaussianMixture:
        """The mixture at a pixel. Its misfits are the greatest of the nodes around it."""
        column, row = int(np.floor(x / self._spacing)), int(np.floor(y / self._spacing))
        u, v = x / self._spacing - column, y / self._spacing - row
        corners = [self._node(column + i, row + j) for j in (0, 1) for i in (0, 1)]
        parameters = [_pack(corner) for corner in corners]
        low = (1 - u) * parameters[0] + u * parameters[1]
        high = (1 - u) * parameters[2] + u * parameters[3]
        return replace(
            _unpack((1 - v) * low + v * high),
            residual=max(corner.residual for corner in corners),
            worst=max(corner.worst for corner in corners),
        )

    def _node(self, column: int, row: int) -> GaussianMixture:
        if (column, row) not in self._nodes:
            self._nodes[column, row] = self._fit(column * self._spacing, row * self._spacing)
        return self._nodes[column, row]


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


class WingedPsf:
    """A PSF with light beyond its stamp, which is cut where faint stars show nothing. Bright stars go on.

    Where the wing is brighter than the stamp, it takes its place.

    Args:
        stamp: of odd side; it is normalised.
        fraction: light of the wing, relative to that of the stamp.
        sigma: of the round Gaussian that represents the wing [px].
    """

    def __init__(self, stamp: Float[np.ndarray, "n n"], fraction: float, sigma: float) -> None:
        _check_stamp(stamp)
        wing = GaussianMixture(np.ones(1), np.zeros((1, 2)), sigma**2 * np.eye(2)[None])
        stamp = stamp / stamp.sum()
        inside = fraction * mixture_stamp(wing, len(stamp))
        core = np.where(stamp > inside, stamp - inside, 0.0)
        self._stamp, self._core, self._wing = core + inside, PixelPsf(core), wing
        self._share = fraction / (fraction + core.sum())

    def stamp(self, x: float, y: float) -> Float[np.ndarray, "n n"]:
        """The stamp with the wing's light, summing to 1."""
        return self._stamp / self._stamp.sum()

    def mixture(self, x: float, y: float) -> GaussianMixture:
        """The mixture of the stamp, and the wing as one more Gaussian."""
        core = self._core.mixture(x, y)
        return replace(
            core,
            weights=np.append((1 - self._share) * core.weights, self._share),
            means=np.vstack((core.means, self._wing.means)),
            covariances=np.concatenate((core.covariances, self._wing.covariances)),
        )


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
    order of ``start``.

    Without ``start``, the number of Gaussians follows the stamp. There are fewer than ``components`` where
    that many are not determined, as for a PSF that is one Gaussian. There are more, up to
    :data:`MAX_COMPONENTS`, while the worst pixel is off by more than :data:`GOOD_FIT` of the peak and one
    more Gaussian helps. Where the worst pixel is that far off, as for diffraction rings, which no sum of
    Gaussians has, the fit with equal weights is taken if it is better. The result's ``residual`` and
    ``worst`` say how good the fit is.

    Args:
        stamp: odd-sized, of any normalisation.
        components: number of Gaussians; ignored if ``start`` is given.
        start: the mixture at which the search starts, such as the fit of a similar stamp.

    Raises:
        InputError: the stamp is not square and odd, not finite or not positive in sum; or no number of
            Gaussians has a solution.
    """
    if components < 1:
        raise InputError("mixture components", components, "at least 1")
    stamp = np.asarray(stamp, dtype=float)
    _check_stamp(stamp)
    fit = _Fit(stamp / stamp.sum())
    if start is not None:
        best = fit.near(_pack(start)) or fit.of(len(start.weights))
    else:
        best = next((m for k in range(components, 0, -1) if (m := fit.of(k)) is not None), None)
        for k in range(components + 1, MAX_COMPONENTS + 1):
            if best is not None and best.worst <= GOOD_FIT:
                break
            better = fit.of(k, best)
            if better is not None and (best is None or better.worst < _HELPS * best.worst):
                best = better
    if best is None:
        got = f"no solution with widths from {_MIN_SIGMA} to {4 * len(stamp)} px"
        raise InputError(f"fit of {components} Gaussians to a PSF", got, "a stamp with a peak and wings")
    return best


class _Fit:
    """The least-squares fit of Gaussians to one normalised stamp."""

    def __init__(self, stamp: Float[np.ndarray, "n n"]) -> None:
        self.size, self.peak, self.target = len(stamp), stamp.max(), stamp.ravel()
        self.y, self.x = (
            g.ravel() - self.size // 2 for g in np.mgrid[: self.size, : self.size].astype(float)
        )
        self.even = np.full_like(self.target, self.peak)
        self.noise = np.sqrt(self.peak * (self.target.clip(0) + _SKY * self.peak))

    def of(self, components: int, fewer: GaussianMixture | None = None) -> GaussianMixture | None:
        """The fit of a number of Gaussians, from a rough start or from a fit of fewer of them."""
        width = 1 / np.sqrt(2 * np.pi * self.peak)
        starts = [_first_guess(components, width)]
        if fewer is not None and len(fewer.weights) == components - 1:
            starts += [_with_another(_pack(fewer), factor) for factor in (0.5, 2.0)]
        return min(
            (fitted for first in starts if (fitted := self._from_rough(first)) is not None),
            key=lambda fitted: fitted.worst,
            default=None,
        )

    def _from_rough(self, first: Float[np.ndarray, "component 6"]) -> GaussianMixture | None:
        """The fit from a rough start, from which the weighted fit alone may fail: equal weights first."""
        even = self.solve(first, self.even)
        weighted = None if even is None else self.solve(even, self.noise)
        ordered = [None if s is None else s[np.argsort(_widths(s).prod(1))] for s in (weighted, even)]
        return self._better(*ordered)

    def near(self, start: Float[np.ndarray, "component 6"]) -> GaussianMixture | None:
        """The fit from that of a similar stamp, in its order. Equal weights first may fail there."""
        weighted = self.solve(start, self.noise)
        good = weighted is not None and self.usable(weighted) and self.mixture(weighted).worst <= GOOD_FIT
        return self._better(weighted, None if good else self.solve(start, self.even))

    def _better(self, weighted: np.ndarray | None, even: np.ndarray | None) -> GaussianMixture | None:
        """The weighted fit, unless it is not good and that with equal weights is better or alone usable."""
        fits = [None if s is None or not self.usable(s) else self.mixture(s) for s in (weighted, even)]
        first, second = fits
        if first is None or second is None:
            return first or second
        return second if first.worst > GOOD_FIT and second.worst < _HELPS * first.worst else first

    def residual(self, parameters: np.ndarray, scale: np.ndarray) -> np.ndarray:
        weights, gaussians, _ = _gaussians(parameters.reshape(-1, 6), self.x, self.y)
        return (weights @ gaussians - self.target) / scale

    def jacobian(self, parameters: np.ndarray, scale: np.ndarray) -> np.ndarray:
        weights, gaussians, slopes = _gaussians(parameters.reshape(-1, 6), self.x, self.y)
        slopes = weights[:, None, None] * slopes
        slopes[:, 0] = weights[:, None] * (gaussians - weights @ gaussians)
        return (slopes.reshape(len(parameters), -1) / scale).T

    def solve(
        self, first: Float[np.ndarray, "component 6"], scale: np.ndarray
    ) -> Float[np.ndarray, "component 6"] | None:
        """Parameters of least squares with a scale of each pixel's error; None if the search fails."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # far steps are rejected
            try:
                fitted = least_squares(
                    self.residual, first.ravel(), self.jacobian, method="lm",
                    xtol=1e-7, ftol=1e-7, max_nfev=300, args=(scale,),
                ).x  # fmt: skip
            except ValueError:  # the search left the range of floating-point numbers
                return None
        return fitted.reshape(-1, 6)

    def usable(self, solution: Float[np.ndarray, "component 6"]) -> bool:
        """Whether every width is one that the stamp can constrain."""
        sigma = _widths(solution)
        return bool(np.isfinite(solution).all() and sigma.min() > _MIN_SIGMA and sigma.max() < 4 * self.size)

    def mixture(self, solution: Float[np.ndarray, "component 6"]) -> GaussianMixture:
        """The mixture of a solution, in its order, with its misfits."""
        misfit = self.residual(solution.ravel(), self.even)
        return replace(
            _unpack(solution),
            residual=float(np.sqrt(np.mean(misfit**2))),
            worst=float(np.abs(misfit).max()),
        )


def _widths(solution: Float[np.ndarray, "component 6"]) -> Float[np.ndarray, "component 2"]:
    """Standard deviations along the axes of each Gaussian [px]."""
    with np.errstate(over="ignore", invalid="ignore"):
        covariances = _unpack(solution).covariances
    if not np.isfinite(covariances).all():
        return np.array([[np.inf, np.inf]])
    return np.sqrt(np.linalg.eigvalsh(covariances).clip(0))


def _with_another(packed: Float[np.ndarray, "component 6"], factor: float) -> np.ndarray:
    """One more Gaussian, by a factor wider than the widest (or, below 1, narrower than the narrowest)."""
    area = packed[:, 3] + packed[:, 4]
    extra = packed[np.argmax(area) if factor > 1 else np.argmin(area)].copy()
    extra[0] -= 2.0
    extra[3:5] += np.log(factor)
    extra[5] *= factor
    return np.vstack((packed, extra))


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
