"""How well a fitted field's model explains its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from astropy.table import Table
from jaxtyping import Bool, Int

from astrozoo.data.images import Image
from astrozoo.survey.celeste.canvas import dispersion
from astrozoo.survey.celeste.catalogue import measured_bands
from astrozoo.survey.fields import good_pixels

if TYPE_CHECKING:
    from astrozoo.survey.celeste.fit import FieldFit

__all__ = ["chi2_by_band", "nearest_pixels", "patches"]


def patches(fit: FieldFit) -> list[Bool[np.ndarray, "y x"]]:
    """For each image, the pixels inside any source's patch."""
    out = []
    for image in fit.field:
        inside = np.zeros(image.shape, bool)
        for (x, y), half in zip(nearest_pixels(image, fit.detections), fit.half, strict=True):
            inside[max(y - half, 0) : max(y + half + 1, 0), max(x - half, 0) : max(x + half + 1, 0)] = True
        out.append(inside)
    return out


def nearest_pixels(image: Image, table: Table) -> Int[np.ndarray, "s 2"]:
    """Nearest pixel (x, y) of each source."""
    if not len(table):
        return np.zeros((0, 2), int)
    xy = image.wcs.all_world2pix(np.asarray(table["ra"], float), np.asarray(table["dec"], float), 0)
    return np.rint(np.stack(xy, -1)).astype(int)


def chi2_by_band(fit: FieldFit) -> list[dict[str, object]]:
    """Mean squared residual, in sigma, of valid pixels outside saturated cores: near 1 if the model is right.

    The variance of a pixel is that of the model: Poisson noise, and the error of the light due to the PSF
    (:func:`astrozoo.survey.celeste.canvas.dispersion`).

    Returns:
        A row per band: the mean over all these pixels, over those inside the sources' patches, over the other
        pixels (sky only), over all pixels with Poisson noise only, and the number of residuals above 5 sigma.
    """
    good, inside = good_pixels(fit.field), patches(fit)
    rows: list[dict[str, object]] = []
    for band in measured_bands(fit):
        square, poisson, near = [], [], []
        for image, model, usable, patch in zip(fit.field, fit.model, good, inside, strict=True):
            if image.band == band:
                alone = ((image.counts - model)[usable] ** 2) / model[usable]
                counts, sky = (torch.from_numpy(a[usable]) for a in (image.counts, image.sky))
                poisson.append(alone)
                square.append(alone / dispersion(counts, sky).numpy())
                near.append(patch[usable])
        z2, close = np.concatenate(square), np.concatenate(near)

        def mean(values: np.ndarray) -> float:
            return float(values.mean()) if len(values) else float("nan")

        rows.append(
            {
                "band": band,
                "pixels": len(z2),
                "chi2 per pixel": mean(z2),
                "in patches": mean(z2[close]),
                "elsewhere": mean(z2[~close]),
                "Poisson alone": mean(np.concatenate(poisson)),
                "pixels beyond 5 sigma": int((z2 > 25).sum()),
            }
        )
    return rows
