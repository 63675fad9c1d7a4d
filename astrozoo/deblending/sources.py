"""Images, fluxes and shapes of the sources of a blend, from draws of the posterior; and the files of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from jaxtyping import Float

from astrozoo._files import replacing
from astrozoo.data.scenes import Scene
from astrozoo.data.simulate_blends import blendedness
from astrozoo.models.deblend import order
from astrozoo.physics.sersic_gaussians import sersic_index
from astrozoo.types import Problem, Result

__all__ = ["Deblended", "catalogue", "deblended", "write_scene"]

_DRAWS = 200
"""Most draws that images are made of: their SDs are then known to 5 %."""
_CHUNK = 20
"""Draws whose images are made at once. It limits memory."""
_FOOTPRINT = 0.5
"""[noise of a pixel] A pixel counts in the chi2 of a source where the source is brighter than this."""


@dataclass(frozen=True, eq=False)
class Deblended:
    """Sources in the order of the scene's table.

    Args:
        images, sd: posterior mean and SD of each source alone, through the PSF.
        model: posterior mean of the scene.
        fluxes: draws of the fluxes.
        chi2: mean of the squared residuals, in noise, of the pixels of each source.
        blendedness: 0 alone, near 1 under another source.
        bands: of these arrays: those with data.
    """

    images: Float[np.ndarray, "source band y x"]
    sd: Float[np.ndarray, "source band y x"]
    model: Float[np.ndarray, "band y x"]
    fluxes: Float[np.ndarray, "draw source band"]
    chi2: Float[np.ndarray, "source"]
    blendedness: Float[np.ndarray, "source"]
    bands: tuple[str, ...]

    @property
    def flux_covariance(self) -> Float[np.ndarray, "n n"]:
        """Covariance of all fluxes, of which the band runs fastest."""
        return np.cov(self.fluxes.reshape(len(self.fluxes), -1), rowvar=False)


def deblended(scene: Scene, problem: Problem, result: Result) -> Deblended:
    """Images of the sources from draws of the posterior."""
    model: Any = problem.model
    pixels, sources = problem.args
    back = np.argsort(order(scene.sources))
    draws = {site: _flat(values) for site, values in result.draws.items() if site in problem.start}
    count = len(next(iter(draws.values())))
    chosen = np.linspace(0, count - 1, min(count, _DRAWS)).round().astype(int)
    total: Any = 0.0
    square: Any = 0.0
    with torch.no_grad():
        for part in np.array_split(chosen, math.ceil(len(chosen) / _CHUNK)):
            values = {site: torch.as_tensor(x[part]).to(pixels.image) for site, x in draws.items()}
            images = torch.vmap(lambda v: model.source_images(v, pixels, sources))(values).cpu().numpy()
            total = total + images.sum(0)
            square = square + (images**2).sum(0)
    mean = total / len(chosen)
    sd = np.sqrt(np.maximum(square / len(chosen) - mean**2, 0.0))
    mean, sd = mean[back], sd[back]
    whole = mean.sum(0)
    used = scene.used
    noise, mask = np.where(scene.mask, scene.noise, np.inf)[used], scene.mask[used]
    residual = (scene.images[used] - whole) / noise
    chi2 = []
    for row, image in zip(scene.sources, mean, strict=True):
        inside = mask & (image > _FOOTPRINT * noise)
        if not inside.any():  # a faint source: the pixels around its centre
            y, x = np.indices(scene.shape)
            inside = mask & (np.hypot(x - row["x"], y - row["y"]) < 2.0)
        chi2.append(float((residual[inside] ** 2).mean()) if inside.any() else math.nan)
    flux = np.exp(draws["log_flux"])[:, back]
    bands = tuple(band for band, has in zip(scene.bands, used, strict=True) if has)
    weighted = np.where(mask, mean / noise, 0.0)
    return Deblended(mean, sd, whole, flux, np.array(chi2), blendedness(weighted), bands)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *values.shape[2:])


def catalogue(scene: Scene, problem: Problem, result: Result, parts: Deblended) -> Table:
    """One row per source: place, fluxes, shape, each with its SD, chi2 and blendedness.

    Fluxes are posterior medians, and their errors half the width of the interval of 68 %. A band without data
    has NaN. Radii are in pixels, angles in degrees from +x towards +y.
    """
    rank = order(scene.sources)
    back = np.argsort(rank)
    table = Table({"source": np.arange(len(rank)), "is_star": np.asarray(scene.sources["is_star"])})
    position = _flat(result.draws["position"])[:, back]
    for k, name in enumerate("xy"):
        table[name] = np.asarray(scene.sources[name]) + position[..., k].mean(0)
        table[f"{name}_err"] = position[..., k].std(0)
    if scene.wcs is not None:
        sky = scene.wcs.pixel_to_world(table["x"], table["y"])
        table["ra"], table["dec"] = sky.ra.deg, sky.dec.deg
    low, middle, high = np.quantile(parts.fluxes, (0.1587, 0.5, 0.8413), axis=0)
    for band in scene.bands:
        if band in parts.bands:
            k = parts.bands.index(band)
            table[f"flux_{band}"], table[f"fluxerr_{band}"] = middle[:, k], (high - low)[:, k] / 2
        else:
            table[f"flux_{band}"] = table[f"fluxerr_{band}"] = np.full(len(rank), np.nan)
    for name, values in _shapes(problem, result).items():
        column = np.full((2, len(rank)), np.nan)
        column[:, rank[: values.shape[1]]] = values.mean(0), values.std(0)
        table[name], table[f"{name}_err"] = column
    table["chi2"], table["blendedness"] = parts.chi2, parts.blendedness
    return table


def _shapes(problem: Problem, result: Result) -> dict[str, Float[np.ndarray, "draw galaxy"]]:
    """Draws of quantities of the galaxies, in the order of the model."""
    if "log_radius" not in result.draws:
        return {}
    s = _flat(result.draws["ellipticity"])
    shapes = {
        "half_light_radius": float(problem.args[1].fwhm) * np.exp(_flat(result.draws["log_radius"])),
        "axis_ratio": np.exp(-2 * np.hypot(s[..., 0], s[..., 1])),
        "e1": s[..., 0],
        "e2": s[..., 1],
    }
    if "index_coordinate" in result.draws:
        shapes["sersic_index"] = sersic_index(
            torch.as_tensor(_flat(result.draws["index_coordinate"]))
        ).numpy()
    return shapes


def write_scene(path: Path, scene: Scene, parts: Deblended, table: Table) -> None:
    """Write ``scene.fits``: data, model, each source with its SD, covariance of fluxes and the catalogue."""
    cards = scene.wcs.to_header() if scene.wcs is not None else fits.Header()
    cards["BANDS"] = ",".join(parts.bands)
    primary = fits.PrimaryHDU()
    primary.header["COMMENT"] = f"sources of {scene.name}"
    arrays = {
        "DATA": scene.images[scene.used],
        "MODEL": parts.model,
        "SOURCES": parts.images,
        "SOURCES_SD": parts.sd,
    }
    hdus = [primary]
    hdus += [fits.ImageHDU(np.asarray(x, np.float32), header=cards, name=name) for name, x in arrays.items()]
    hdus.append(fits.ImageHDU(parts.flux_covariance, name="FLUX_COVARIANCE"))
    hdus.append(fits.BinTableHDU(table, name="CATALOG"))
    with replacing(path) as partial:
        fits.HDUList(hdus).writeto(partial, overwrite=True)
