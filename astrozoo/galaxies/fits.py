"""Least-squares fits of parametric profiles to many stamps at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data.stamps import Pixels
from astrozoo.errors import InputError
from astrozoo.infer.least_squares import LeastSquaresFit, least_squares
from astrozoo.physics.galaxy_profiles import KINDS, Kind, profile_image, profile_start

__all__ = ["ProfileFits", "fit_profiles"]

_STEP = {"gaussian": 2.0, "sersic": 1.0, "bulge_disc": 1.0}
"""First radius of the trust region, in SDs of the start's scale of the flux, in px, and in e-folds of
radii."""


@dataclass(frozen=True)
class ProfileFits:
    """Fits of one kind of profile.

    Args:
        fit: parameters of :mod:`astrozoo.physics.galaxy_profiles`, where fluxes are in units of ``scale``.
        image: the fitted images.
        scale: of each stamp's fluxes: its rough total flux.
    """

    fit: LeastSquaresFit
    image: Float[Tensor, "b y x"]
    scale: Float[Tensor, "b"]


def fit_profiles(
    pixels: Pixels,
    kind: Kind,
    psf: Float[Tensor, "b k k"] | None = None,
    *,
    supersample: int = 1,
    max_iterations: int = 60,
) -> ProfileFits:
    """Fit a profile to each stamp.

    Args:
        pixels: stamps, with a leading axis.
        kind: one of :data:`astrozoo.physics.galaxy_profiles.KINDS`.
        psf: PSF of each stamp; None: profiles are fitted to the images as they are.
        supersample: see :func:`~astrozoo.physics.galaxy_profiles.profile_image`.

    Raises:
        InputError: for an unknown kind.
    """
    if kind not in KINDS:
        raise InputError("kind", repr(kind), f"one of {', '.join(KINDS)}")
    image, noise = pixels.image.double(), pixels.noise.double()
    size = image.shape[-1]
    weight = pixels.used / noise[:, None, None]
    start = profile_start(kind, image * pixels.used)
    fluxes = 2 if kind == "bulge_disc" else 1
    scale = start[:, :fluxes].sum(1).clamp_min(1e-12)
    start[:, :fluxes] /= scale[:, None]

    def drawn(theta: Tensor, scale: Tensor, *psf: Tensor) -> Tensor:
        return scale * profile_image(kind, theta, size, *psf, supersample=supersample)

    def residual(theta: Tensor, image: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return ((image - drawn(theta, *rest)) * weight).flatten()

    rest = (scale,) if psf is None else (scale, psf.double())
    fit = least_squares(
        residual, start, (image, weight, *rest), max_iterations=max_iterations, radius=_STEP[kind]
    )
    images = [
        torch.func.vmap(drawn)(*part)
        for part in zip(*(x.split(64) for x in (fit.parameters, *rest)), strict=True)
    ]
    return ProfileFits(fit, torch.cat(images), scale)
