"""The prior of a field: its bands, its depth and its pixels."""

from __future__ import annotations

import math

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from astrozoo.data.images import Field, Image, reference_image
from astrozoo.models.celeste import Prior
from astrozoo.models.celeste_bands import WAVELENGTHS, prior_of_bands, widened

__all__ = ["prior_of_field"]

_SDSS_LIMIT = 0.8
"""[nMgy] Flux of a point source of 5 sigma in one SDSS field in r, for which the prior of fluxes holds."""
_SAME_DEPTH = 2.5
"""Greatest ratio of two limits, 1 mag, at which the prior of SDSS's fluxes is kept."""
_TYPICAL = 6.0
"""[limits] Typical flux of a detected source. In SDSS's prior it is 4 for galaxies and 10 for stars."""
_BROAD_FLUX_SD = 2.5
"""[ln flux] SD of fluxes where the depth is not SDSS's: 2.7 mag."""
_BROAD_RADIUS_SD = 1.0
"""[ln radius] Least SD of radii there."""
_SDSS_PIXEL = 0.396
"""[arcsec] Pixel of SDSS, about which detections scatter."""


def prior_of_field(images: Field) -> tuple[Prior, list[str]]:
    """The prior for a field, and what it assumes, in words.

    For images of SDSS's bands, depth and pixels it is the prior fitted to SDSS's catalogues. Other bands have
    interpolated or broad colours (:mod:`astrozoo.models.celeste_bands`). Images of another depth have broad
    fluxes, equal for stars and galaxies, and broad radii. The prior of positions is one pixel wide.
    """
    wavelengths = {
        key.removeprefix("wavelength "): float(value)
        for key, value in images.meta.items()
        if key.startswith("wavelength ")
    }
    prior = prior_of_bands(images.bands, wavelengths=wavelengths)
    notes = _of_colours(images, prior, wavelengths)
    reference = reference_image(images, prior.bands[prior.reference])
    scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(reference.wcs)))) * 3600
    limit = _limit(reference)
    same = 1 / _SAME_DEPTH < limit / _SDSS_LIMIT < _SAME_DEPTH
    position = prior.position_sd * scale / _SDSS_PIXEL
    if same and abs(scale / _SDSS_PIXEL - 1) < 0.1:
        return prior, notes
    flux = None if same else (math.log(_TYPICAL * limit), _BROAD_FLUX_SD)
    if not same:
        magnitude = 22.5 - 2.5 * math.log10(limit)
        notes.append(
            f"images of 5 sigma at {magnitude:.1f} mag in {reference.band}: prior of fluxes and radii "
            "is broad, that of fluxes the same for stars and galaxies"
        )
    radius = prior.log_radius_sd if same else _BROAD_RADIUS_SD
    return widened(prior, log_flux=flux, radius_sd=radius, position_sd=position), notes


def _of_colours(images: Field, prior: Prior, wavelengths: dict[str, float]) -> list[str]:
    others = [band for band in images.bands if band not in "ugriz"]
    unknown = [band for band in others if band not in WAVELENGTHS and band not in wavelengths]
    notes = []
    if others:
        notes.append(
            f"prior of colours with {', '.join(others)}: interpolated from SDSS's bands, broad beyond"
        )
    if unknown:
        notes.append(
            f"wavelength of {', '.join(unknown)} not known: the prior of its colours is flat "
            "(the key wavelength of a description)"
        )
    return notes


def _limit(image: Image) -> float:
    """Flux of a point source of 5 sigma [nMgy]."""
    ny, nx = image.shape
    stamp = image.psf.stamp((nx - 1) / 2, (ny - 1) / 2)
    pixels = 1 / float((stamp**2).sum())
    ratio = np.sqrt(image.sky[image.valid]) / image.calibration[image.valid]
    return 5 * math.sqrt(pixels) * float(np.median(ratio))
