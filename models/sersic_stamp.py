"""One galaxy of a stamp: a Sersic profile, fitted in Fourier space.

The Fourier transform of the profile has a closed form, so that a likelihood takes no transform. It is that of
the pixels: for white noise, the chi2 of pixels equals that of their Fourier modes. Modes beyond the PSF's
resolution contain noise alone and are left out. The stamp is taken for periodic, so the galaxy must be small
against it, and its PSF must be sampled at two pixels per FWHM or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.physics.ellipticity import profile_transform, quadratic_form

__all__ = ["Interim", "SersicStamp", "StampModes", "log_likelihood", "render", "stamp_modes"]

_LEAST_TRANSFER = 0.02
"""[1] Least modulus of the PSF's transfer function in a mode that is used, for the sharpest PSF. A galaxy
appears in the other modes with less than 2 % of its flux. To leave them out loses information, but it biases
nothing."""


class StampModes(NamedTuple):
    """The data of one galaxy, as products of the stamp's Fourier modes with the PSF's.

    Attributes:
        kx, ky: angular frequencies [rad/arcsec].
        real, imaginary: of ``w D conj(P) / (n sigma^2)``, with the modes D of the image and P of the PSF, the
            number of pixels n, the variance of their noise, and w = 2 for modes that stand for two.
        power: ``w |P|^2 / (n sigma^2)``.
    """

    kx: Float[Tensor, "mode"]
    ky: Float[Tensor, "mode"]
    real: Float[Tensor, "mode"]
    imaginary: Float[Tensor, "mode"]
    power: Float[Tensor, "mode"]


class Interim(NamedTuple):
    """The interim prior: independent normals.

    Attributes:
        eta_sd: SD of each component of the ellipticity.
        log_radius, log_flux: (mean, SD) of ln r [ln arcsec] and ln F.
        offset_sd: SD of each coordinate of the centre [arcsec].
    """

    eta_sd: Float[Tensor, ""]
    log_radius: Float[Tensor, "2"]
    log_flux: Float[Tensor, "2"]
    offset_sd: Float[Tensor, ""]


@dataclass(frozen=True)
class SersicStamp:
    """The model of one stamp.

    Args:
        index: Sersic index, one of :data:`astrozoo.physics.ellipticity.SERSIC_INDICES`.
    """

    index: float = 1.0

    def __call__(self, modes: StampModes, interim: Interim) -> None:
        zeros = interim.eta_sd.new_zeros(2)
        eta = pyro.sample("eta", dist.Normal(zeros, interim.eta_sd).to_event(1))
        log_radius = pyro.sample("log_radius", dist.Normal(interim.log_radius[0], interim.log_radius[1]))
        log_flux = pyro.sample("log_flux", dist.Normal(interim.log_flux[0], interim.log_flux[1]))
        offset = pyro.sample("offset", dist.Normal(zeros, interim.offset_sd).to_event(1))
        pyro.factor("stamp", log_likelihood(modes, self.index, eta, log_radius, log_flux, offset))


def log_likelihood(
    modes: StampModes,
    index: float,
    eta: Float[Tensor, "2"],
    log_radius: Float[Tensor, ""],
    log_flux: Float[Tensor, ""],
    offset: Float[Tensor, "2"],
) -> Float[Tensor, ""]:
    """Log likelihood of the stamp's pixels over that of no galaxy.

    Args:
        offset: of the galaxy from the stamp's centre (x, y) [arcsec].
    """
    square = torch.exp(2 * log_radius) * quadratic_form(modes.kx, modes.ky, eta)
    light = torch.exp(log_flux) * profile_transform(square, index)
    phase = modes.kx * offset[0] + modes.ky * offset[1]
    seen = modes.real * torch.cos(phase) - modes.imaginary * torch.sin(phase)
    return (light * (seen - 0.5 * light * modes.power)).sum(-1)


def stamp_modes(
    image: Float[Tensor, "n y x"],
    psf: Float[Tensor, "n y x"],
    noise_rms: Float[Tensor, "n"],
    pixel_scale: float,
) -> StampModes:
    """The modes of many stamps, with a leading axis of stamps. Frequencies are views of one row.

    Args:
        image: sky-subtracted.
        psf: of unit sum with the pixel, centred as the stamps are.
        noise_rms: of white noise.
        pixel_scale: [arcsec].
    """
    ny, nx = image.shape[-2:]
    data, transfer = torch.fft.rfft2(image), torch.fft.rfft2(psf)
    kx, ky = _frequencies(image, pixel_scale)
    twice = torch.full((ny, nx // 2 + 1), 2.0, dtype=image.dtype)
    twice[:, 0] = 1.0
    keep = (transfer.abs() > _LEAST_TRANSFER).any(0)
    if nx % 2 == 0:
        keep[:, -1] = False  # Nyquist modes have no phase, so that an offset would not move them
    if ny % 2 == 0:
        keep[ny // 2] = False
    scale = twice[keep] / (ny * nx * noise_rms[:, None] ** 2)
    product = (data * transfer.conj())[:, keep] * scale
    count = len(image)
    return StampModes(
        kx[keep].expand(count, -1),
        ky[keep].expand(count, -1),
        product.real.contiguous(),
        product.imag.contiguous(),
        transfer.abs().square()[:, keep] * scale,
    )


def render(
    parameters: Float[Tensor, "n 6"], psf: Float[Tensor, "n y x"], index: float, pixel_scale: float
) -> Float[Tensor, "n y x"]:
    """Noiseless stamps of galaxies: of eta_1, eta_2, ln r, ln F, x and y, as :func:`log_likelihood` takes."""
    kx, ky = _frequencies(psf, pixel_scale)

    def one(z: Float[Tensor, "6"]) -> Float[Tensor, "y k"]:
        square = torch.exp(2 * z[2]) * quadratic_form(kx, ky, z[:2])
        phase = kx * z[4] + ky * z[5]
        return torch.polar(torch.exp(z[3]) * profile_transform(square, index), -phase)

    return torch.fft.irfft2(torch.stack([one(z) for z in parameters]) * torch.fft.rfft2(psf), psf.shape[-2:])


def _frequencies(
    like: Float[Tensor, "*n y x"], pixel_scale: float
) -> tuple[Float[Tensor, "y k"], Float[Tensor, "y k"]]:
    """Angular frequencies (kx, ky) of a real image's Fourier modes [rad/arcsec]."""
    ny, nx = like.shape[-2:]
    ky = 2 * torch.pi * torch.fft.fftfreq(ny, pixel_scale, dtype=like.dtype)
    kx = 2 * torch.pi * torch.fft.rfftfreq(nx, pixel_scale, dtype=like.dtype)
    grid_y, grid_x = torch.meshgrid(ky, kx, indexing="ij")
    return grid_x, grid_y
