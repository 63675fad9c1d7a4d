"""Lenses whose source is an image of pixels: a Gaussian random field.

The source's brightness is a Matern field of index 3/2 (a power spectrum ``(1 + (k length)^2)^(-5/2)``) on a
square grid. It is white noise, coloured by a filter. Given the mass, the image is linear in the white noise,
so the derivatives by it are exact, and :func:`regularised` can choose the field's spread and length by
evidence.

The source can be negative. The posterior has a thousand dimensions or more: start HMC at a mode, with the
curvature there as the mass matrix (:mod:`astrozoo.lens.pixelated`).

References:
    Warren & Dye 2003, ApJ 590, 673 (the linear inversion); Suyu et al. 2006, MNRAS 371, 983 (its evidence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from astrozoo.models.lens_exposure import Exposure
from astrozoo.models.lens_prior import Scales, log_normal
from astrozoo.models.strong_lens import StrongLens
from astrozoo.physics import imaging, light

__all__ = ["PixelatedLens", "regularised"]

_CHUNK = 32
"""Images that are rendered at once by :meth:`PixelatedLens.response`: it limits memory."""
_SHAPE = 1.5
"""Index of the Matern covariance."""
_FINE = 2
"""Points per axis of the interpolation grid, for each pixel of the source."""


@dataclass(frozen=True, eq=False)
class PixelatedLens(StrongLens):
    """A lens in one band whose source is a field on a grid. The site ``source_field`` is its white noise.

    Args:
        middle: centre of the grid in the source plane [arcsec].
        side: side of the grid [arcsec].
        pixels: pixels along a side; even.
        spread: prior SD of the brightness [unit / arcsec^2].
        length: correlation length of the field [arcsec].
        anchors: points of the image plane, (x, y) [arcsec]. If there are any, the grid moves with the mass,
            by the affine map that keeps the mean and covariance of the anchors in the source plane constant.
            Mass and source are then far less correlated. Without anchors the grid is fixed.
        moments: that mean, and the Cholesky factor of that covariance; :meth:`anchored` sets them.
        halo: whether the lens's light also has an exponential disc with the same centre. Its sites are
            ``halo_radius`` [arcsec], ``halo_ellipticity`` and ``halo_amplitude`` [unit / arcsec^2]. Their
            prior is that of the lens's light, with twice the median radius.
    """

    middle: tuple[float, float] = (0.0, 0.0)
    side: float = 2.0
    pixels: int = 32
    spread: float = 1.0
    length: float = 0.1
    anchors: tuple[tuple[float, float], ...] = ()
    moments: tuple[float, ...] = ()
    halo: bool = False

    def sites(self, data: Exposure, scales: Scales | None = None) -> dict[str, Any]:
        """The prior of each site: those of the lens, and the field."""
        every = super().sites(data, scales)
        lens = {name: prior for name, prior in every.items() if not name.startswith("source")}
        if self.halo:
            median = 2 * self.median("lens_radius", data, scales)
            lens["halo_radius"] = log_normal(torch.ones_like(median), median, self.prior.lens_radius[1])
            lens["halo_ellipticity"] = lens["lens_ellipticity"]
            lens["halo_amplitude"] = lens["lens_amplitude"]
        blank = data.image.new_zeros(self.pixels, self.pixels)
        return lens | {"source_field": dist.Normal(blank, 1.0).to_event(2)}

    def render(
        self,
        values: Mapping[str, Tensor],
        data: Exposure,
        parts: tuple[Literal["lens", "source"], ...] = ("lens", "source"),
    ) -> Float[Tensor, "band y x"]:
        """See :meth:`StrongLens.render`."""
        image = super().render({**values, "source_amplitude": torch.ones_like(data.gain)}, data, parts)
        if not self.halo or "lens" not in parts:
            return image
        x, y = imaging.pixel_grid((image.shape[-2], image.shape[-1]), data.pixel_scale)
        like, amplitude = values["halo_radius"], values["halo_amplitude"] * data.pixel_scale**2
        shape = like, torch.ones_like(like), values["halo_ellipticity"], values["lens_centre"]
        disc = light.sersic(x, y, torch.ones_like(like), *shape)
        return image + imaging.convolve(amplitude[:, None, None] * disc, data.psf)

    def source_light(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Float[Tensor, "*grid"]:
        """Surface brightness [unit / arcsec^2] at points of the source plane [arcsec]."""
        return self._at(self.coloured(values["source_field"]), *self.placed(values, x, y))

    def anchored(self, values: Mapping[str, Tensor], anchors: Float[np.ndarray, "n 2"]) -> PixelatedLens:
        """The model whose grid is the current one at these values, and otherwise moves with the mass."""
        points = tuple((float(x), float(y)) for x, y in anchors)
        model = replace(self, anchors=points)
        return replace(model, moments=tuple(float(m) for m in model._moments(values)))

    def placed(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates on the grid of points of the source plane [arcsec]."""
        if not self.anchors:
            return x, y
        mx, my, a, b, c = self._moments(values)
        u = (x - mx) / a
        v = (y - my - b * u) / c
        mx0, my0, a0, b0, c0 = x.new_tensor(self.moments).unbind()
        return mx0 + a0 * u, my0 + b0 * u + c0 * v

    def _moments(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Mean, and Cholesky factor of the covariance, of the anchors in the source plane."""
        x, y = values["einstein_radius"].new_tensor(self.anchors).T
        ax, ay = self.deflection(values, x, y)
        x, y = x - ax, y - ay
        mx, my = x.mean(), y.mean()
        x, y = x - mx, y - my
        a = x.square().mean().sqrt()
        b = (x * y).mean() / a
        return mx, my, a, b, (y.square().mean() - b**2).sqrt()

    def coloured(self, field: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
        """The brightness for given white noise. The map is symmetric."""
        waves = field.new_tensor(_waves(self.pixels, 1))
        filtered = field.new_tensor(self._filter()) * (waves @ field @ waves.T)
        return waves.T @ filtered @ waves

    def _filter(self) -> Float[np.ndarray, "m m"]:
        """Amplitudes of the field at the frequencies of :func:`_waves`."""
        n = self.pixels

        def power(k: np.ndarray) -> np.ndarray:
            scaled = (2 * np.pi * self.length / self.side * k) ** 2
            return (1 + scaled[:, None] + scaled) ** (-1 - _SHAPE)

        every = power(np.fft.fftfreq(n) * n)
        return self.spread * np.sqrt(power(_frequencies(n)) / every.mean())

    def response(
        self, values: Mapping[str, Tensor], data: Exposure, basis: Float[Tensor, "m n n"]
    ) -> Float[Tensor, "m pixels"]:
        """Images of given fields of brightness, in single precision, which suffices for derivatives."""
        shape = (int(data.image.shape[-2]), int(data.image.shape[-1]))
        x, y = imaging.pixel_grid(shape, data.pixel_scale, self.supersample)
        ax, ay = self.deflection(values, x, y)
        bx, by = (b.float() for b in self.placed(values, x - ax, y - ay))
        psf = data.psf[0].float()
        area = data.pixel_scale.float() ** 2

        def seen(image: Tensor) -> Tensor:
            rays = imaging.downsample(self._at(image, bx, by), self.supersample)
            return imaging.convolve(rays * area, psf).flatten()

        with torch.no_grad():
            return torch.cat([torch.vmap(seen)(part) for part in basis.float().split(_CHUNK)])

    def slopes(self, values: Mapping[str, Tensor], data: Exposure) -> dict[str, Float[Tensor, "n2 pixels"]]:
        """Derivatives of the image by the white noise, which do not depend on the white noise."""
        return {"source_field": self.response(values, data, self.coloured(self._unit_images()))}

    def _unit_images(self) -> Float[Tensor, "n2 n n"]:
        """For each pixel of the grid, the image that is 1 there and 0 elsewhere."""
        n = self.pixels
        return torch.eye(n * n, dtype=torch.float64).view(-1, n, n)

    def _at(self, image: Float[Tensor, "n n"], x: Tensor, y: Tensor) -> Float[Tensor, "*grid"]:
        """The field between the grid's points: bilinear on a finer grid of values of its Fourier series."""
        n, step = self.pixels, self.side / self.pixels
        finer = image.new_tensor(_waves(n, _FINE).T @ _waves(n, 1))
        shift = (1 - 1 / _FINE) / 2 * step  # the first points of both grids coincide
        middle = x.new_tensor([m + shift for m in self.middle])
        return light.interpolate(x, y, finer @ image @ finer.T, x.new_tensor(step / _FINE), middle)


def _frequencies(n: int) -> Float[np.ndarray, "m"]:
    """Those of :func:`_waves`: 0, 1, 1, 2, 2, ... The highest of an even side has no phase and is omitted."""
    return (np.arange(n - 1) + 1) // 2


@cache
def _waves(n: int, fine: int) -> Float[np.ndarray, "m points"]:
    """The real Fourier series: cosines and sines, orthonormal on ``n`` points, at ``fine`` times as many.

    Products with this matrix take the place of FFTs, of whose derivatives inductor (torch 2.13) makes wrong
    code.
    """
    k = _frequencies(n)[:, None]
    phase = 2 * np.pi * k * np.arange(fine * n) / (fine * n)
    waves = np.where(np.arange(n - 1)[:, None] % 2, np.cos(phase), np.sin(phase)) * np.sqrt(2 / n)
    waves[0] = np.sqrt(1 / n)
    return waves


def regularised(
    model: PixelatedLens, values: Mapping[str, Tensor], data: Exposure
) -> tuple[PixelatedLens, Float[Tensor, "n n"]]:
    """Choose the spread and length of the field by evidence.

    All latents except the source have the given ``values``.

    Returns:
        The model with the spread and length of greatest evidence, and the white noise at its mode.
    """
    use, n = data.mask.flatten(), model.pixels
    lens_image = model.render(values, data, ("lens",))
    weight = 1 / data.total_variance(model.render(values, data)).flatten()[use]
    rows = model.response(values, data, model._unit_images())[:, use] * weight.sqrt().float()
    residual = ((data.image - lens_image).flatten()[use] * weight.sqrt()).float()
    waves = torch.as_tensor(_waves(n, 1))

    def spectral(x: Float[Tensor, "n2 m"]) -> Float[Tensor, "m2 m"]:
        """By frequencies, in which the filter is a factor."""
        return (waves @ x.T.reshape(-1, n, n) @ waves.T).flatten(1).T

    gram = spectral(spectral((rows @ rows.T).double()).T)
    pull = spectral((rows @ residual).double()[:, None])
    eye = torch.eye(len(gram), dtype=gram.dtype)

    def trial(log: np.ndarray) -> PixelatedLens:
        return replace(model, spread=float(np.exp(log[0])), length=float(np.exp(log[1])))

    def solved(candidate: PixelatedLens) -> tuple[Tensor, Tensor]:
        """For the white noise: the Cholesky factor L of the curvature, and L^-1 times the gradient at 0."""
        factor = torch.as_tensor(candidate._filter()).flatten()[:, None]
        root = torch.linalg.cholesky(eye + factor * gram * factor.T)
        return root, torch.linalg.solve_triangular(root, factor * pull, upper=False)

    def loss(log: np.ndarray) -> float:
        """Minus the log evidence, up to a constant."""
        root, b = solved(trial(log))
        return float(root.diagonal().log().sum() - b.square().sum() / 2)

    start = np.log([model.spread, model.length])
    simplex = start + np.array([[0.0, 0.0], [0.7, 0.0], [0.0, 0.7]])
    optimum = minimize(
        loss, start, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 0.05, "fatol": 0.3}
    )
    best = trial(optimum.x)
    root, b = solved(best)
    field = torch.linalg.solve_triangular(root.T, b, upper=True).view(n - 1, n - 1)
    return best, waves.T @ field @ waves
