"""Errors of fluxes that no draw of the model has: of the models' profiles, and of the sky.

Profiles are wrong for PSFs in their wings, and for galaxies that are no sum of the two profiles.

Statistical errors of bright sources are a few parts in a thousand, while a mixture of Gaussians misses the
wings of a PSF by several per cent. Each ring of pixels around a source measures its flux. Where the rings
disagree by clearly more than their noise, the profile is wrong, and the flux is as uncertain as the scatter
of the rings. A profile that is wrong in one band is so in others, which have at least the mean error of all.

The level of the sky has an error that is small in a pixel, but is common to all pixels of a source. It
matters for large galaxies.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models.celeste import Patch

__all__ = ["profile_error", "sky_error", "with_flux_error"]

_RINGS = (0.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0, 64.0, 128.0)
"""Inner radii of the rings [px]. Within a ring, a profile is wrong by about the same fraction."""
_SIGNIFICANCE = 4.0
"""Excess of the rings' chi2 above which a profile is wrong, in standard deviations of chi2.

Of right profiles, a few in ten thousand exceed it."""
_SKY_ERROR = 0.02
"""Error of the sky's level around a source [sigma of a pixel].

The statistical error of a cell of the sky's mesh is 0.01. In simulations with a large galaxy the corrected
sky differs from the true one by 0.005 to 0.025."""


def profile_error(patch: Patch, light: Float[Tensor, "b image p"], n_bands: int) -> Float[Tensor, "b band"]:
    """Standard deviation of ln flux in each band by the disagreement of rings; zero where they agree.

    Args:
        patch: patches whose background contains all light but that of their sources.
        light: the modelled light of the sources [electron].
        n_bands: number of bands of the prior.
    """
    rate = patch.background + light
    residual = patch.counts - rate
    scaled = light * patch.mask / rate
    distance = torch.hypot(patch.pixels[:, :, 0], patch.pixels[:, :, 1]).double()
    ring = torch.bucketize(distance, torch.tensor(_RINGS[1:], dtype=torch.float64), right=True)
    n, n_rings = len(light), len(_RINGS)
    score, information = torch.zeros(2, n, n_bands, n_rings, dtype=torch.float64)
    at = patch.band[:, :, None] * n_rings + ring
    for total, values in ((score, scaled * residual), (information, scaled * light)):
        total.view(n, -1).scatter_add_(1, at.flatten(1), values.double().flatten(1))
    used = information > 0
    chi2 = torch.where(used, score**2 / torch.where(used, information, 1.0), 0.0).sum(-1)
    number = used.sum(-1).double()
    excess = (chi2 - number).clamp(min=0)
    whole = information.sum(-1)
    wrong = (chi2 - number).sum(-1) > _SIGNIFICANCE * (2 * number.sum(-1)).sqrt()
    variance = torch.where(whole > 0, excess / torch.where(whole > 0, whole, 1.0), 0.0)
    shared = excess.sum(-1) / whole.sum(-1).clamp_min(torch.finfo(whole.dtype).tiny)
    return torch.where(wrong[:, None], torch.maximum(variance, shared[:, None]), 0.0).sqrt()


def sky_error(patch: Patch, light: Float[Tensor, "b image p"], n_bands: int) -> Float[Tensor, "b band"]:
    """Standard deviation of ln flux in each band by the error of the sky's level.

    Arguments are those of :func:`profile_error`.
    """
    rate = patch.background + light
    scaled = light * patch.mask / rate
    level = _SKY_ERROR * patch.background.median(-1).values.sqrt()
    variance, information = torch.zeros(2, len(light), n_bands, dtype=torch.float64)
    variance.scatter_add_(1, patch.band, (level * scaled.sum(-1)).double() ** 2)
    information.scatter_add_(1, patch.band, (scaled * light).sum(-1).double())
    return torch.where(information > 0, variance.sqrt() / information, 0.0)


def with_flux_error(
    u: Float[np.ndarray, "s draw d"], error: Float[np.ndarray, "s band"], reference: int, seed: int
) -> Float[np.ndarray, "s draw d"]:
    """Draws with errors added to their fluxes, independently in each band.

    Args:
        u: draws, whose last values are ln flux in the reference band and the colours of successive bands.
        error: standard deviation of ln flux.
        reference: number of the reference band.
    """
    n_bands = error.shape[1]
    noise = np.random.default_rng(seed).standard_normal((*u.shape[:2], n_bands))
    change = error[:, None] * noise
    added = np.concatenate((change[..., reference, None], np.diff(change, axis=-1)), -1)
    return np.concatenate((u[..., :-n_bands], u[..., -n_bands:] + added), -1).astype(u.dtype)
