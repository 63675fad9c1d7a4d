"""Pictures of a mass map, and its tables: peaks, E and B modes, power."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.wcs import WCS
from jaxtyping import Float
from matplotlib.figure import Figure

from astrozoo.physics.fourier import binned_power
from astrozoo.physics.shear import aperture_mass, kaiser_squires, peaks, smoothed

__all__ = ["MAPS", "POWER", "map_figure", "mode_rows", "peak_rows", "power_figure"]

MAPS = (
    "Top: Kaiser-Squires, smoothed; the posterior mean of the convergence; its SD. Bottom: mean over SD; one "
    "draw; the smoothed B modes of the data, which are noise if the data are good. Crosses are peaks of the "
    "aperture mass. Where there are no data the picture is pale."
)
POWER = (
    "Power of draws of the posterior (mean and the range of 68 %), of the posterior mean, and of the prior. "
    "Draws have the power of the prior where the data say little. The mean has less, because it is smooth "
    "where the data are noisy."
)
SMOOTHING = 1.0
"""[arcmin] SD of the Gaussian that Kaiser-Squires maps are smoothed with: the width that is usual for maps of
COSMOS."""
APERTURE = 4.0
"""[arcmin] Radius of the aperture mass, in which clusters at redshifts of 0.2 to 0.7 are found best."""
PEAK = 3.0
"""Least signal-to-noise ratio of peaks."""
_LISTED = 20
"""Most peaks in the table."""
_RINGS = 16
"""Rings of the power spectrum."""
_REPEATS = 30
"""Maps of noise that the variance of B modes is compared with. Its scatter is known to 13 %."""


def map_figure(
    pixels: Any, pixel: float, maps: Mapping[str, np.ndarray], draw: Float[np.ndarray, "y x"], found: Any
) -> Figure:
    """Six maps of the same field."""
    weight = pixels.mask / pixels.noise.square().mean(0)
    e, b = kaiser_squires(torch.where(pixels.mask, pixels.shear, 0.0))
    width = SMOOTHING / pixel
    direct, wrong = (smoothed(x, width, weight).numpy() for x in (e, b))
    mask = pixels.mask.numpy()
    top = float(np.quantile(maps["MEAN"][mask], 0.999))
    scale = {"vmin": -top / 2, "vmax": top, "cmap": "inferno"}
    panels: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
        (f"Kaiser-Squires, {SMOOTHING:g}'", direct, scale),
        ("posterior mean", maps["MEAN"], scale),
        ("posterior SD", maps["SD"], {"vmin": 0, "cmap": "viridis"}),
        ("mean / SD", maps["MEAN"] / maps["SD"], {"vmin": -5, "vmax": 5, "cmap": "RdBu_r"}),
        ("one draw", draw, scale),
        (f"B modes, {SMOOTHING:g}'", wrong, scale),
    )
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.2), layout="constrained")
    ny, nx = mask.shape
    extent = (0.0, nx * pixel, 0.0, ny * pixel)
    for axis, (title, values, kind) in zip(axes.flat, panels, strict=True):
        shown = axis.imshow(values, origin="lower", extent=extent, **kind)
        veil = np.where(mask, np.nan, 1.0)
        axis.imshow(veil, origin="lower", extent=extent, cmap="gray", vmin=0, vmax=1, alpha=0.45)
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel="arcmin")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.plot((found.x.numpy() + 0.5) * pixel, (found.y.numpy() + 0.5) * pixel, "c+", ms=7)
    return figure


def peak_rows(
    pixels: Any, pixel: float, maps: Mapping[str, np.ndarray], wcs: WCS | None
) -> tuple[Any, list[dict[str, Any]]]:
    """Peaks of the aperture mass inside the data, and a table of the highest."""
    ratio = aperture_mass(pixels.shear, APERTURE / pixel, pixels.noise, pixels.mask)[1]
    found = peaks(ratio, PEAK, pixels.mask)
    rows = []
    for y, x, height in list(zip(found.y.tolist(), found.x.tolist(), found.height.tolist(), strict=True))[
        :_LISTED
    ]:
        at: dict[str, Any] = {"x": x, "y": y}
        if wcs is not None:
            sky = wcs.pixel_to_world(x, y)
            at = {"ra": round(float(sky.ra.deg), 5), "dec": round(float(sky.dec.deg), 5)}
        rows.append(
            {
                **at,
                "aperture mass / noise": round(height, 2),
                "kappa": round(float(maps["MEAN"][y, x]), 4),
                "SD": round(float(maps["SD"][y, x]), 4),
            }
        )
    return found, rows


def mode_rows(pixels: Any, pixel: float, seed: int) -> list[dict[str, Any]]:
    """Variances of the smoothed E and B modes of the data, and of those of noise alone, inside the data."""
    weight = pixels.mask / pixels.noise.square().mean(0)
    width = SMOOTHING / pixel

    def variances(shear: torch.Tensor) -> list[float]:
        data = torch.where(pixels.mask, shear, 0.0)
        return [float(smoothed(x, width, weight)[pixels.mask].var()) for x in kaiser_squires(data)]

    generator = torch.Generator().manual_seed(seed)
    noise = pixels.noise
    repeats = [
        variances(noise * torch.randn(noise.shape, generator=generator, dtype=noise.dtype))
        for _ in range(_REPEATS)
    ]
    of_noise, scatter = np.mean(repeats, 0), np.std(repeats, 0)
    return [
        {
            "modes": name,
            "variance / that of noise": round(value / mean, 3),
            "scatter of noise": round(sd / mean, 3),
        }
        for name, value, mean, sd in zip("EB", variances(pixels.shear), of_noise, scatter, strict=True)
    ]


def power_figure(
    pixel: float, mean: np.ndarray, draws: Float[np.ndarray, "n y x"], prior: torch.Tensor
) -> Figure:
    """Power spectra of draws and of the mean, beside that of the prior.

    Args:
        prior: draws of the prior.
    """
    side = math.radians(pixel / 60)
    fields = (torch.as_tensor(np.asarray(x, float)) for x in (draws, mean, prior))
    spectra = [binned_power(field, _RINGS) for field in fields]
    k = spectra[0][0].numpy()
    of_draws, of_mean, of_prior = (power.numpy() for _, power in spectra)
    of_prior = of_prior.mean(0)
    ell = 2 * math.pi * k / side
    norm = ell**2 / (2 * math.pi) * side**2
    low, high = norm * np.quantile(of_draws, (0.16, 0.84), axis=0)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.fill_between(ell, low, high, alpha=0.3, color="C0")
    axis.loglog(ell, norm * of_draws.mean(0), color="C0", label="draws")
    axis.loglog(ell, norm * of_mean, color="C1", label="posterior mean")
    axis.loglog(ell, norm * of_prior, "k--", label="prior")
    axis.set(xlabel="multipole", ylabel=r"$\ell^2 C_\ell / 2\pi$")
    axis.legend()
    return figure
