"""Likelihood of stamps whose noise is correlated between pixels.

The noise of a stamp is ``sd * u``: ``sd`` is a map of standard deviations, and ``u`` is stationary with unit
variance and a known correlation function. A stamp is cut from a larger image, so the correlation matrix of
``u`` is Toeplitz: it depends only on the difference of two positions, and does not wrap around the edges.

Up to :data:`EXACT_PIXELS` pixels, the whitening is a product with the inverse of the Cholesky factor, and the
likelihood is exact. Above, it is a filter in Fourier space, as if the noise were periodic, and the
likelihood is approximate: in a stamp of 48 x 48 pixels of HST noise it is off by about 30 nats.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.errors import InputError
from astrozoo.physics.imaging import circular_convolve

__all__ = ["EXACT_PIXELS", "Whitening", "log_density", "toeplitz", "whitening"]

EXACT_PIXELS = 64 * 64
"""[px] Largest stamp whose likelihood is exact. Its factor takes 134 MB in float64 and a few seconds."""
_SYMMETRY = 1e-3
"""Largest difference between a correlation function and its point reflection. Measured ones are symmetric up
to rounding; a larger difference means that the array is not centred."""


def toeplitz(correlation: Float[Tensor, "k l"], shape: tuple[int, int]) -> Float[Tensor, "y*x y*x"]:
    """Matrix of the correlations between all pixels of a stamp, row after row.

    Args:
        correlation: correlation function, with odd sides and lag 0 in the middle. It is 0 at larger lags.
        shape: rows and columns of the stamp.
    """
    (ny, nx), (ky, kx) = shape, (side // 2 for side in correlation.shape)
    lags = correlation.new_zeros(2 * ny - 1, 2 * nx - 1)
    my, mx = min(ky, ny - 1), min(kx, nx - 1)
    part = correlation[ky - my : ky + my + 1, kx - mx : kx + mx + 1]
    lags[ny - 1 - my : ny + my, nx - 1 - mx : nx + mx] = part
    y, x = torch.arange(ny), torch.arange(nx)
    dy = (y[:, None] - y + ny - 1)[:, None, :, None]
    dx = (x[:, None] - x + nx - 1)[None, :, None, :]
    return lags[dy, dx].reshape(ny * nx, ny * nx)


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map from noise with a correlation function to independent noise of unit variance.

    Args:
        operator: if ``exact``, the inverse of the lower Cholesky factor of the correlation matrix,
            ``[y*x, y*x]``; otherwise the kernel of a circular convolution, ``[y, x]``.
        log_slopes: logarithm of the derivative of each whitened pixel by its own pixel. Their sum is minus
            half the log determinant of the correlation matrix, or of its periodic approximation.
        exact: whether the noise of a stamp that is cut from a larger image becomes exactly independent.
    """

    operator: Tensor
    log_slopes: Float[Tensor, "y x"]
    exact: bool

    @property
    def label(self) -> str:
        """A line for reports."""
        if self.exact:
            return "correlated noise, exact likelihood (Cholesky factor of the Toeplitz matrix)"
        return "correlated noise, approximate likelihood (Fourier whitening, as if the noise were periodic)"

    @property
    def log_determinant(self) -> Tensor:
        """Logarithm of the determinant of the correlation matrix."""
        return -2 * self.log_slopes.sum()

    def to(self, like: Tensor) -> Whitening:
        """The same map with the dtype and the device of a tensor."""
        return Whitening(self.operator.to(like), self.log_slopes.to(like), self.exact)

    def __call__(self, noise: Float[Tensor, "*b y x"]) -> Float[Tensor, "*b y x"]:
        """Independent noise from correlated noise."""
        if not self.exact:
            return circular_convolve(noise, self.operator)
        return (noise.flatten(-2) @ self.operator.mT).reshape(noise.shape)

    def inverse(self, white: Float[Tensor, "*b y x"]) -> Float[Tensor, "*b y x"]:
        """Correlated noise from independent noise."""
        if not self.exact:
            kernel = torch.fft.rfft2(self.operator)
            return torch.fft.irfft2(torch.fft.rfft2(white) / kernel, s=white.shape[-2:])
        flat = white.flatten(-2)[..., None]
        return torch.linalg.solve_triangular(self.operator, flat, upper=False).reshape(white.shape)


def whitening(correlation: Float[Tensor, "k l"], shape: tuple[int, int]) -> Whitening:
    """The whitening of a stamp; it warns if the likelihood that it gives is approximate.

    Args:
        correlation: correlation function, with odd sides and lag 0 in the middle. A covariance function is
            divided by its value at lag 0.
        shape: rows and columns of the stamp.

    Raises:
        InputError: the function is not symmetric or not finite, has an even side, or is of no noise: its
            matrix is not positive definite.
    """
    correlation = _checked(correlation)
    if shape[0] * shape[1] <= EXACT_PIXELS:
        return _exact(correlation, shape)
    warnings.warn(
        f"stamps of {shape[0]}x{shape[1]} pixels: the likelihood of correlated noise is approximate "
        f"(periodic noise). It is exact up to {EXACT_PIXELS} pixels.",
        stacklevel=2,
    )
    return _periodic(correlation, shape)


def _checked(correlation: Tensor) -> Tensor:
    expected = "a symmetric correlation function with odd sides, positive at lag 0 in the middle"
    if correlation.ndim != 2 or not all(side % 2 for side in correlation.shape):
        raise InputError("noise correlation", f"shape {tuple(correlation.shape)}", expected)
    middle = correlation[correlation.shape[0] // 2, correlation.shape[1] // 2]
    if not correlation.isfinite().all() or not middle > 0:
        raise InputError("noise correlation", f"values with {float(middle):.4g} in the middle", expected)
    correlation = correlation / middle
    reflected = correlation.flip(0, 1)
    asymmetry = float((correlation - reflected).abs().max())
    if asymmetry > _SYMMETRY:
        raise InputError("noise correlation", f"an asymmetry of {asymmetry:.3g}", expected)
    return (correlation + reflected) / 2


_NOT_DEFINITE = "a correlation function of noise, which has a positive definite matrix"


def _exact(correlation: Tensor, shape: tuple[int, int]) -> Whitening:
    factor, failed = torch.linalg.cholesky_ex(toeplitz(correlation.double(), shape))
    if failed:
        raise InputError("noise correlation", f"a matrix that is not positive for {shape} px", _NOT_DEFINITE)
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    operator = torch.linalg.solve_triangular(factor, unit, upper=False)
    slopes = -factor.diagonal().log().reshape(shape)
    return Whitening(operator, slopes, exact=True).to(correlation)


def _periodic(correlation: Tensor, shape: tuple[int, int]) -> Whitening:
    ky, kx = (side // 2 for side in correlation.shape)
    my, mx = min(ky, (shape[0] - 1) // 2), min(kx, (shape[1] - 1) // 2)
    lags = correlation.double().new_zeros(shape)
    lags[: 2 * my + 1, : 2 * mx + 1] = correlation[ky - my : ky + my + 1, kx - mx : kx + mx + 1].double()
    power = torch.fft.fft2(torch.roll(lags, (-my, -mx), (0, 1))).real
    if not power.min() > 0:
        raise InputError(
            "noise correlation", f"a power spectrum down to {float(power.min()):.3g}", _NOT_DEFINITE
        )
    kernel = torch.fft.ifft2(power.rsqrt()).real
    slopes = (-0.5 * power.log().mean()).expand(shape)
    return Whitening(kernel, slopes, exact=False).to(correlation)


def log_density(
    residual: Float[Tensor, "*b y x"], sd: Float[Tensor, "*b y x"], white: Whitening | None = None
) -> Float[Tensor, "*b y x"]:
    """Log density of noise, as one term per pixel; their sum is that of the stamp.

    If the whitening is exact, a term is the log density of a pixel given all pixels before it.

    Args:
        residual: image minus model.
        sd: standard deviation of each pixel, in the unit of the image.
        white: whitening of correlated noise. None: the pixels are independent.
    """
    scaled = residual / sd
    constant = -0.5 * math.log(2 * math.pi) - sd.log()
    if white is None:
        return constant - 0.5 * scaled.square()
    return constant + white.log_slopes - 0.5 * white(scaled).square()
