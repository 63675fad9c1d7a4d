"""Correction of the PSFs of a scene by its bright stars, and the error that remains.

The correction is a sum of Gauss-Hermite functions, fitted to the residuals of each image. A pixel's weight is
its inverse variance times the fourth power of the fraction of light that comes from bright stars. Stars too
faint to be detected are crowded around all others: fitted with equal weights, they would broaden the PSF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from numpy.polynomial.hermite import hermval
from scipy.optimize import nnls

from astrozoo.errors import InputError
from astrozoo.survey.crowded.linear import variances
from astrozoo.survey.crowded.scene import Scene, Sources, add_stars, expected

__all__ = ["refit"]

_ORDER = 6
"""Highest total order of the Gauss-Hermite functions: 28 functions, which reach some 4 sigma."""
_WINGS = (2.5, 5.0)
"""[sigma of the PSF] Widths of two more Gaussians, for wings that the survey's PSF lacks."""
_BRIGHT_SNR = 40.0
"""Least signal to noise, in an image, of stars that constrain its PSF."""
_FEWEST = 4
"""Least number of bright stars for a correction: with fewer, the PSF stays as it is."""
_POWER = 4
"""Power of the fraction of light from bright stars in the weights."""
_TYPICAL_ERROR = 0.03
"""Relative error of a PSF by which the squared residuals are weighted when the error is estimated: between 1
and 8 %, the estimate hardly depends on it."""
_PRIOR = 0.1
"""SD of each coefficient before the fit, in fractions of the PSF's light."""


def refit(scene: Scene, sources: Sources) -> Scene:
    """The scene with corrected PSFs, and with their remaining relative errors in ``psf_error``.

    An image in which fewer than four stars are bright keeps its PSF and its error.

    Args:
        scene: the images; the planes of the sky are part of ``scene.sky``.
        sources: fitted to the scene.

    Raises:
        InputError: the sources do not match the scene's bands.
    """
    if sources.flux.shape[1] != len(scene.bands):
        raise InputError("fluxes of sources", sources.flux.shape, f"{len(scene.bands)} columns")
    tables, errors = list(scene.psf), scene.psf_error.copy()
    before = expected(scene, sources)
    bright = [_bright(scene, sources, k) for k in range(len(scene.band))]
    for k in range(len(tables)):
        if bright[k].sum() >= _FEWEST:
            tables[k] = _corrected(scene, sources, k, bright[k], before[k])
    corrected = replace(scene, psf=tuple(tables), gaussians=None)
    after = expected(corrected, sources)
    for k in range(len(tables)):
        if bright[k].sum() >= _FEWEST:
            errors[k] = _remaining_error(corrected, sources, k, bright[k], after[k])
    return replace(corrected, psf_error=errors)


def _bright(scene: Scene, sources: Sources, k: int) -> Bool[np.ndarray, "s"]:
    """Stars whose signal to noise in image k, without neighbours, is above a limit."""
    flux = sources.flux[:, scene.column[k]]
    good = scene.valid[k]
    calibration, sky = np.median(scene.calibration[k][good]), np.median(scene.sky[k][good])
    area = scene.oversampling**2 / (scene.psf[k] ** 2).sum()  # [px] of noise under a star
    light = np.maximum(calibration * flux, 0)
    return sources.is_star & (light > _BRIGHT_SNR * np.sqrt(light + area * sky))


def _fractions(
    scene: Scene, sources: Sources, k: int, bright: Bool[np.ndarray, "s"], model: Float[np.ndarray, "y x"]
) -> Float[np.ndarray, "y x"]:
    """The fraction of a pixel's light and of the sky's noise that comes from bright stars."""
    light = scene.calibration[k] * _stars(scene, sources.take(bright), k, scene.psf[k])
    return np.clip(light / (np.maximum(model - scene.sky[k], light) + np.sqrt(scene.sky[k])), 0, 1)


def _corrected(
    scene: Scene, sources: Sources, k: int, bright: Bool[np.ndarray, "s"], model: Float[np.ndarray, "y x"]
) -> Float[np.ndarray, "t t"]:
    fraction = _fractions(scene, sources, k, bright, model)
    variance = variances(scene, scene.sky, _lights(scene, model, k))[k]
    weight = scene.valid[k] * fraction**_POWER / variance
    basis = _gauss_hermite(scene.psf[k], scene.oversampling)
    stars = sources.take(bright)
    design = np.stack([scene.calibration[k] * _stars(scene, stars, k, table) for table in basis])
    residual = np.where(scene.valid[k], scene.counts[k] - model, 0.0)
    normal = np.tensordot(weight * design, design, ((1, 2), (1, 2))) + np.eye(len(basis)) / _PRIOR**2
    coefficients = np.linalg.solve(normal, np.tensordot(design, weight * residual, 2))
    table = scene.psf[k] + np.tensordot(coefficients, basis, 1)
    return table * (scene.oversampling**2 / table.sum())


def _remaining_error(
    scene: Scene, sources: Sources, k: int, bright: Bool[np.ndarray, "s"], model: Float[np.ndarray, "y x"]
) -> float:
    """The slope of the squared residuals, less the variance of the counts, on the squared light.

    The intercept is the variance of the light of stars that are not detected, which does not grow with the
    light of bright stars.
    """
    weight = scene.valid[k] * _fractions(scene, sources, k, bright, model) ** _POWER
    light = (model - scene.sky[k])[weight > 0]
    variance = np.maximum(model, 1)[weight > 0]
    excess = ((scene.counts[k] - model)[weight > 0]) ** 2 - variance
    root = np.sqrt(weight[weight > 0]) / (variance + (_TYPICAL_ERROR * light) ** 2)
    design = np.stack([np.ones_like(light), light**2], -1)
    (_, square), _ = nnls(root[:, None] * design, root * excess)
    return float(np.sqrt(square))


def _lights(scene: Scene, model: Float[np.ndarray, "y x"], k: int) -> Sequence[np.ndarray]:
    """The light of image k in its place of a list, for :func:`variances`."""
    return [model - sky if i == k else np.zeros_like(sky) for i, sky in enumerate(scene.sky)]


def _stars(
    scene: Scene, sources: Sources, k: int, table: Float[np.ndarray, "t t"]
) -> Float[np.ndarray, "y x"]:
    """Stars seen through any table [nMgy per pixel]."""
    image = np.zeros(scene.counts[k].shape)
    flux = np.ascontiguousarray(sources.flux[:, scene.column[k]])
    add_stars(image, table, scene.oversampling, scene.image_xy(k, sources.xy), flux)
    return image


def _gauss_hermite(table: Float[np.ndarray, "t t"], oversampling: int) -> Float[np.ndarray, "j t t"]:
    """Gauss-Hermite functions as wide as a PSF, each with the peak of the PSF."""
    side = len(table)
    area = (table.sum() / oversampling) ** 2 / (table**2).sum()  # 4 pi sigma^2 of a Gaussian [px]
    sigma = np.sqrt(area / (4 * np.pi))
    offset = (np.arange(side) - (side - 1) / 2) / (oversampling * sigma)
    lines = [hermval(offset, np.eye(_ORDER + 1)[n]) * np.exp(-0.5 * offset**2) for n in range(_ORDER + 1)]
    products = [np.outer(lines[i], lines[j]) for i in range(_ORDER + 1) for j in range(_ORDER + 1 - i)]
    square = offset**2 + offset[:, None] ** 2
    products += [np.exp(-0.5 * square / scale**2) for scale in _WINGS]
    peak = table.max()
    return np.stack([peak * product / np.abs(product).max() for product in products])
