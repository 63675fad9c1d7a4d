"""Priors of Celeste for any bands: colours where they are known, broad normals where they are not.

Colours of the five SDSS bands are known from catalogues (:func:`astrozoo.models.celeste.load_prior`). The log
flux in another band is interpolated between SDSS's bands in log wavelength, with a scatter that grows with
the distance from them, so that it is nearly flat where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models.celeste import ColourPrior, Prior, load_prior

__all__ = ["WAVELENGTHS", "prior_of_bands"]

WAVELENGTHS: Mapping[str, float] = {
    "FUV": 153, "NUV": 227, "F218W": 222, "F225W": 237, "F275W": 271, "F300W": 298, "F336W": 336, "u": 355,
    "U": 365, "F390W": 392, "F435W": 433, "F438W": 433, "B": 435, "F450W": 456, "g": 477, "F475W": 475,
    "BP": 511, "F555W": 536, "V": 551, "F606W": 592, "r": 623, "G": 622, "F062": 620, "F625W": 631,
    "R": 650, "F070W": 704, "VIS": 720, "i": 762, "F775W": 769, "RP": 777, "I": 800, "F814W": 806,
    "F087": 869, "F090W": 902, "F850LP": 905, "z": 913, "y": 976, "F098M": 986, "Y": 1020, "F105W": 1055,
    "F106": 1060, "F110W": 1153, "F115W": 1154, "J": 1250, "F125W": 1249, "F129": 1293, "F140W": 1392,
    "F146": 1464, "F150W": 1501, "F160W": 1537, "F158": 1577, "H": 1650, "F184": 1842, "F200W": 1988,
    "F213": 2125, "Ks": 2150, "K": 2200, "F277W": 2776, "W1": 3353, "F356W": 3565, "F444W": 4402, "W2": 4603,
}  # fmt: skip
"""[nm] Pivot wavelengths of common bands. For SDSS, HSC, DECam and LSST, which share letters, SDSS's."""
_SCATTER = 0.15
"""[ln flux] Scatter of a band inside SDSS's range about the interpolation: filters differ in their edges."""
_SCATTER_SLOPE = 1.5
"""[ln flux per ln wavelength] Growth of the scatter beyond SDSS's bands. H is uncertain by 0.9."""
_UNKNOWN = 2.0
"""[ln flux] Scatter of a band of unknown wavelength about the reference band: 2.2 mag."""
_COMPANION = ("r", "i")
"""Bands of which one joins a single band, so that there is a colour."""


def prior_of_bands(
    bands: Sequence[str], *, wavelengths: Mapping[str, float] | None = None, base: Prior | None = None
) -> Prior:
    """The prior for images in any bands.

    Args:
        bands: of the images. If all are SDSS's, the prior has SDSS's five bands.
        wavelengths: [nm] of bands that :data:`WAVELENGTHS` does not have, or that differ.
        base: the prior of SDSS's bands; by default the default of :func:`load_prior`.

    Returns:
        a prior of the distinct bands in the order of wavelength (those of unknown wavelength come last). Its
        reference is r, or the band nearest to it.
    """
    base = base or load_prior()
    if set(bands) <= set(base.bands):
        return base
    known = {**WAVELENGTHS, **(wavelengths or {})}
    names = list(dict.fromkeys(bands))
    if len(names) == 1:
        names.append(next(band for band in _COMPANION if band != names[0]))
    names.sort(key=lambda band: known.get(band, math.inf))
    middle = math.log(known[base.bands[base.reference]])
    distance = [abs(math.log(known[b]) - middle) if b in known else math.inf for b in names]
    reference = names.index("r") if "r" in names else distance.index(min(distance))
    weights, scatter = _weights(names, base, known)
    galaxy, star = (_colours(mixture, weights, scatter, base.reference) for mixture in base.colour)
    offset = [_offset(mixture, weights, scatter, base.reference, reference) for mixture in base.colour]
    return replace(
        base,
        bands=tuple(names),
        reference=reference,
        colour=(galaxy, star),
        log_flux_mean=(base.log_flux_mean[0] + offset[0][0], base.log_flux_mean[1] + offset[1][0]),
        log_flux_sd=(
            math.hypot(base.log_flux_sd[0], offset[0][1]),
            math.hypot(base.log_flux_sd[1], offset[1][1]),
        ),
    )


def _weights(
    names: Sequence[str], base: Prior, known: Mapping[str, float]
) -> tuple[Float[Tensor, "band sdss"], Float[Tensor, "band"]]:
    """ln flux in each band as a linear function of that in SDSS's bands, and its scatter."""
    places = [math.log(WAVELENGTHS[band]) for band in base.bands]
    weights = torch.zeros(len(names), len(places), dtype=torch.float64)
    scatter = torch.zeros(len(names), dtype=torch.float64)
    for k, band in enumerate(names):
        if band in base.bands:
            weights[k, base.bands.index(band)] = 1
        elif band not in known:
            weights[k, base.reference], scatter[k] = 1, _UNKNOWN
        else:
            place = min(max(math.log(known[band]), places[0]), places[-1])
            j = max(i for i in range(len(places) - 1) if places[i] <= place)
            share = (place - places[j]) / (places[j + 1] - places[j])
            weights[k, j], weights[k, j + 1] = 1 - share, share
            scatter[k] = math.hypot(_SCATTER, _SCATTER_SLOPE * abs(math.log(known[band]) - place))
    return weights, scatter


def _ladder(mixture: ColourPrior, reference: int) -> tuple[Tensor, Tensor]:
    """Means and covariances of ln flux in SDSS's bands relative to the reference, by component."""
    n = mixture.means.shape[-1] + 1
    steps = torch.tril(torch.ones(n, n - 1, dtype=torch.float64), -1)
    steps = steps - steps[reference]
    return mixture.means @ steps.T, steps @ mixture.covariances @ steps.T


def _colours(mixture: ColourPrior, weights: Tensor, scatter: Tensor, reference: int) -> ColourPrior:
    mean, covariance = _ladder(mixture, reference)
    difference = torch.diff(torch.eye(len(weights), dtype=torch.float64), dim=0)
    total = weights @ covariance @ weights.T + torch.diag(scatter**2)
    floor = 1e-4 * torch.eye(len(weights) - 1, dtype=torch.float64)  # bands that are one and the same
    return ColourPrior(
        mixture.weights,
        mean @ weights.T @ difference.T,
        difference @ total @ difference.T + floor,
    )


def _offset(
    mixture: ColourPrior, weights: Tensor, scatter: Tensor, reference: int, band: int
) -> tuple[float, float]:
    """Mean and SD of ln flux in a band relative to SDSS's reference band, over the mixture."""
    mean, covariance = _ladder(mixture, reference)
    at = mean @ weights[band]
    average = mixture.weights @ at
    variance = mixture.weights @ (
        (at - average) ** 2 + torch.einsum("i,mij,j->m", weights[band], covariance, weights[band])
    )
    return float(average), math.sqrt(float(variance) + float(scatter[band]) ** 2)
