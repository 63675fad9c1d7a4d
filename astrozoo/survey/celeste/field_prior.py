"""The prior of a field: its bands, its depth and its pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from astrozoo.data.images import Field, Image, reference_image
from astrozoo.data.psf import GOOD_FIT
from astrozoo.models.celeste import Prior
from astrozoo.models.celeste_bands import WAVELENGTHS, prior_of_bands

__all__ = ["field_notes", "prior_of_field"]

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


def prior_of_field(images: Field) -> Prior:
    """The prior for a field.

    For images of SDSS's bands, depth and pixels it is the prior fitted to SDSS's catalogues. Other bands have
    interpolated or broad colours (:mod:`astrozoo.models.celeste_bands`). Images of another depth have broad
    fluxes, equal for stars and galaxies, and broad radii. The prior of positions is one pixel wide.
    """
    prior = prior_of_bands(images.bands, wavelengths=_wavelengths(images))
    reference = reference_image(images, prior.bands[prior.reference])
    limit = _limit(reference)
    scale = _pixel(reference) / _SDSS_PIXEL
    if _as_deep(limit) and abs(scale - 1) < 0.1:
        return prior
    position = prior.position_sd * scale
    if _as_deep(limit):
        return replace(prior, position_sd=position)
    flux = math.log(_TYPICAL * limit)
    return replace(
        prior,
        position_sd=position,
        log_flux_mean=(flux, flux),
        log_flux_sd=(_BROAD_FLUX_SD, _BROAD_FLUX_SD),
        log_radius_sd=max(prior.log_radius_sd, _BROAD_RADIUS_SD),
    )


def field_notes(images: Field) -> list[str]:
    """What was measured or assumed when a field was read, what its prior assumes, and PSFs that fit badly."""
    notes = images.meta.get("notes", "").splitlines()
    for image in images:
        ny, nx = image.shape
        worst = image.psf.mixture((nx - 1) / 2, (ny - 1) / 2).worst
        if worst > GOOD_FIT:
            notes.append(
                f"{image.name or image.band}: the sum of Gaussians misses up to {worst:.0%} of the PSF's "
                "peak, so that bright stars leave residuals"
            )
    others = [band for band in images.bands if band not in "ugriz"]
    known = {**WAVELENGTHS, **_wavelengths(images)}
    unknown = [band for band in others if band not in known]
    if others:
        notes.append(
            f"prior of colours with {', '.join(others)}: interpolated from SDSS's bands, broad beyond"
        )
    if unknown:
        notes.append(
            f"wavelength of {', '.join(unknown)} not known: the prior of its colours is flat "
            "(the key wavelength of a description)"
        )
    prior = prior_of_bands(images.bands, wavelengths=_wavelengths(images))
    reference = reference_image(images, prior.bands[prior.reference])
    limit = _limit(reference)
    if not _as_deep(limit):
        notes.append(
            f"5 sigma at {22.5 - 2.5 * math.log10(limit):.1f} mag in {reference.band}: the prior of fluxes "
            "and radii is broad, and that of fluxes the same for stars and galaxies"
        )
    return notes


def _wavelengths(images: Field) -> dict[str, float]:
    """[nm] of bands whose description gives it."""
    prefix = "wavelength "
    return {k.removeprefix(prefix): float(v) for k, v in images.meta.items() if k.startswith(prefix)}


def _as_deep(limit: float) -> bool:
    """Whether a limit [nMgy] is near SDSS's."""
    return 1 / _SAME_DEPTH < limit / _SDSS_LIMIT < _SAME_DEPTH


def _pixel(image: Image) -> float:
    """Side of a pixel [arcsec]."""
    return float(np.sqrt(np.prod(proj_plane_pixel_scales(image.wcs)))) * 3600


def _limit(image: Image) -> float:
    """Flux of a point source of 5 sigma [nMgy]."""
    ny, nx = image.shape
    stamp = image.psf.stamp((nx - 1) / 2, (ny - 1) / 2)
    pixels = 1 / float((stamp**2).sum())
    ratio = np.sqrt(image.sky[image.valid]) / image.calibration[image.valid]
    return 5 * math.sqrt(pixels) * float(np.median(ratio))
