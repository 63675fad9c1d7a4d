"""A decoder from latents to galaxies without PSF, noise and pixels, and an encoder of stamps.

Both know what a galaxy is: a flux, a centre, a size, a shear, and a profile in that frame. Convolutional
decoders that are trained on noisy stamps make nearly round galaxies.

Lengths are in pixels of the stamp and fluxes in units of the noise of a pixel, unless a method says
otherwise. Coordinates are (x, y) from the centre of the stamp.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = [
    "ENCODED",
    "FRAME",
    "LATENT",
    "GalaxyDecoder",
    "MomentEncoder",
    "Networks",
    "Units",
    "flux_latent",
    "in_units",
    "log_flux",
    "size_latent",
]

LATENT = 16
"""Length of the latent vector: six coordinates of the frame, then ten of the structure."""
FRAME = 6
"""Latents that are linear in physical quantities: log flux, centre x and y, log size, shear 1 and 2."""
_LADDER = 12
"""Concentric components: their widths are a geometric series."""
_KNOTS = 4
"""Further components, which may lie off the centre: knots, ends of bars, lopsided discs."""
_WIDTHS = (0.12, 2.2)
"""[half-light radii] Widths (sigma) of the narrowest and the widest of the concentric components."""
_KNOT_WIDTH = 0.35
"""[half-light radii] Initial width of a knot."""
_KNOT_FLUX = -4.5
"""Initial log flux of a knot, relative to that of all concentric components."""
_DISC = 1.678
"""Half-light radius of an exponential disc, divided by its scale length."""
_LOG_FLUX = (6.5, 1.2)
"""Mean and SD of the log flux [noise of a pixel]. The training set has signal-to-noise ratios of 5 to 500."""
_LOG_SIZE = (1.3, 0.5)
"""Mean and SD of the log half-light radius [px]: two thirds of the galaxies have 2.2 to 6 px."""
_CENTRE = 1.0
"""[px] SD of each coordinate of the centre."""
_SHEAR = 0.3
"""SD of each component of the shear ``s``, whose axis ratio is ``exp(-2 abs(s))``."""
_HIDDEN = 256
"""Width of the decoder's two hidden layers. The decoder has 95,000 weights."""


class Units(NamedTuple):
    """Units of a galaxy's latents, in those of one exposure.

    Attributes:
        flux: unit of flux, in units of the image.
        length: unit of length [px].
    """

    flux: Float[Tensor, "*b"]
    length: Float[Tensor, "*b"]


def _ladder() -> tuple[Tensor, Tensor]:
    """Log widths and log fluxes of the concentric components: an exponential disc of unit flux.

    In two dimensions an exponential profile is a mixture of Gaussians whose variance has the density
    ``v^(1/2) exp(-v / 2)``, in units of the squared scale length.
    """
    width = torch.linspace(math.log(_WIDTHS[0]), math.log(_WIDTHS[1]), _LADDER)
    variance = (_DISC * width.exp()) ** 2
    return width, (1.5 * variance.log() - variance / 2).log_softmax(0)


class GalaxyDecoder(nn.Module):
    """Latents to sums of Gaussians: positive light, without PSF, noise or pixels.

    The first latents are linear in log flux, centre, log size and shear, and nothing else depends on flux,
    centre and size: the decoder works for any pixel scale and any noise. The other latents and the shear
    determine, by a linear map and a network, the flux, width, position and shear of each component.
    """

    width: Tensor
    log_flux: Tensor

    def __init__(self) -> None:
        super().__init__()
        width, log_flux = _ladder()
        knots = torch.ones(_KNOTS)
        self.register_buffer("width", torch.cat((width, math.log(_KNOT_WIDTH) * knots)), persistent=False)
        self.register_buffer("log_flux", torch.cat((log_flux, _KNOT_FLUX * knots)), persistent=False)
        inputs, outputs = LATENT - 4, 6 * (_LADDER + _KNOTS)
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.network = nn.Sequential(
            nn.Linear(inputs, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(),
            nn.Linear(_HIDDEN, outputs),
        )  # fmt: skip
        with torch.no_grad():
            for parameter in self.network[-1].parameters():
                parameter.mul_(0.1)
            self.linear.weight.copy_(_initial_map(self.width))

    def forward(
        self, z: Float[Tensor, "*b z"]
    ) -> tuple[Float[Tensor, "*b c"], Float[Tensor, "*b c 2"], Float[Tensor, "*b c 3"]]:
        """Flux, mean (x, y) and covariance (xx, xy, yy) of each component, in units of the latents."""
        structure = z[..., 4:]
        change = self.linear(structure) + self.network(structure)
        flux, width, x, y, shear_1, shear_2 = change.unflatten(-1, (6, -1)).unbind(-2)
        log_size = _LOG_SIZE[0] + _LOG_SIZE[1] * z[..., 3, None]
        total = log_flux(z[..., 0, None]).exp()
        variance = (2 * (log_size + self.width + width)).exp()
        s1, s2 = _SHEAR * z[..., 4, None] + shear_1, _SHEAR * z[..., 5, None] + shear_2
        centre = _CENTRE * z[..., None, 1:3]
        return (
            total * (self.log_flux + flux).softmax(-1),
            centre + log_size.exp()[..., None] * torch.stack((x, y), -1),
            variance[..., None] * sheared(2 * s1, 2 * s2),
        )

    @staticmethod
    def half_light_radius(z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b"]:
        """The size of the frame, which is the half-light radius of an exponential disc [unit of length]."""
        return (_LOG_SIZE[0] + _LOG_SIZE[1] * z[..., 3]).exp()


def size_latent(log_radius: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The fourth latent of a log half-light radius [unit of length]."""
    return (log_radius - _LOG_SIZE[0]) / _LOG_SIZE[1]


def log_flux(z: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Log flux [unit of flux] from the first latent."""
    return _LOG_FLUX[0] + _LOG_FLUX[1] * z


def flux_latent(log_flux: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The first latent of a log flux [unit of flux]."""
    return (log_flux - _LOG_FLUX[0]) / _LOG_FLUX[1]


def sheared(s1: Float[Tensor, "*b"], s2: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3"]:
    """Elements (xx, xy, yy) of the exponential of the symmetric matrix ((s1, s2), (s2, -s1))."""
    size = (s1**2 + s2**2 + 1e-6).sqrt()  # the root has no derivative at 0
    cosh, ratio = size.cosh(), size.sinh() / size
    return torch.stack((cosh + ratio * s1, ratio * s2, cosh - ratio * s1), -1)


def _initial_map(width: Tensor) -> Float[Tensor, "outputs inputs"]:
    """The linear map from shear and structure to the components: each structure latent has a meaning at
    first.

    These are: concentration, flux from narrow to wide components, a gradient of the two components of
    ellipticity, a shift of wide against narrow components along x and y, and the fluxes of the knots. A
    latent without any effect would collapse to its prior.
    """
    concentric = torch.arange(len(width)) < _LADDER
    slope = torch.where(concentric, 2 * torch.arange(len(width)) / (_LADDER - 1) - 1, 0.0)
    first = 2  # after the two components of the shear
    change = torch.zeros(6, len(width), LATENT - 4)
    change[1, :, first] = 0.25 * slope
    change[0, :, first + 1] = 0.8 * slope
    change[4, :, first + 2] = 0.12 * slope
    change[5, :, first + 3] = 0.12 * slope
    change[2, :, first + 4] = 0.12 * slope
    change[3, :, first + 5] = 0.12 * slope
    for k in range(_KNOTS):
        angle = 2 * math.pi * k / _KNOTS
        change[0, _LADDER + k, first + 6 + k] = 1.0
        change[2, _LADDER + k, first + 6 + k] = 0.4 * math.cos(angle)
        change[3, _LADDER + k, first + 6 + k] = 0.4 * math.sin(angle)
    return change.flatten(0, 1)


ENCODED = 32
"""[px] Side of the part of a stamp that the encoder sees. Larger stamps are cut to it, smaller ones are
padded with zeros."""
_APERTURES = (1.5, 3.0, 5.5, 10.0)
"""[px] Widths (sigma) of the Gaussian weights of the encoder's moments."""
_LOG_VARIANCE = (-12.0, 2.0)
"""Range of the log variances of the encoder."""
_INITIAL_LOG_VARIANCE = -4.0
"""Initial log variances. Wide initial posteriors hide the latents from the decoder, which then ignores
them."""


class MomentEncoder(nn.Module):
    """A stamp, its PSF and its noise to the means and SDs of the latents.

    The inputs of the last layers are moments of the image with four Gaussian weights, their compressed
    values, the same moments of the PSF, and the output of a convolutional network. The latents are in
    the unit of the stamp's own noise and pixels, and are converted to the given units exactly.

    A second network corrects this first guess by the gradient of the log posterior there (:meth:`correct`).
    """

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 64), hidden: int = 192) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((2, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        flat = channels[-1] * (ENCODED // 2 ** len(channels)) ** 2
        self.convolutions = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.SiLU())
        moments = 6 * len(_APERTURES)
        self.mixed = nn.Sequential(
            nn.Linear(hidden + 3 * moments + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.last = nn.Linear(hidden, 2 * LATENT)
        self.correction = nn.Sequential(
            nn.Linear(hidden + 4 * LATENT, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * LATENT),
        )  # fmt: skip
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.bias[LATENT:] = _INITIAL_LOG_VARIANCE
            for parameter in self.correction[-1].parameters():
                parameter.zero_()

    def forward(
        self, signal: Float[Tensor, "b y x"], psf: Float[Tensor, "b k l"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"], Float[Tensor, "b h"]]:
        """First guess of means and log variances, and the features that they come from.

        Args:
            signal: image divided by the noise of its pixels.
            psf: PSF of the same pixel scale.
        """
        seen = framed(signal, ENCODED)
        moments, of_psf = _moments(seen), _moments(framed(psf, ENCODED))
        scale = moments[:, 1, 0, None].clamp_min(1.0)
        ratios = (moments / moments[:, :1, :1].abs().clamp_min(1.0)).flatten(1)
        planes = torch.stack((20 * seen / scale[..., None], seen.asinh()), 1)
        inputs = (
            self.convolutions(planes), (moments / 2).asinh().flatten(1) / 3, ratios.clamp(-20, 20) / 3,
            (of_psf / of_psf[:, :1, :1]).flatten(1), scale.log() / 3,
        )  # fmt: skip
        features = self.mixed(torch.cat(inputs, 1))
        mean, log_variance = self.last(features).chunk(2, -1)
        return mean, log_variance.clamp(*_LOG_VARIANCE), features

    def correct(
        self, mean: Tensor, log_variance: Tensor, features: Tensor, score: Float[Tensor, "b z"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Means and log variances, corrected by the gradient of the log posterior at the means."""
        sd = (log_variance / 2).exp()
        step = (sd * score).asinh()
        inputs = torch.cat((features, step, (sd * sd * score).clamp(-5, 5), mean, log_variance / 4), 1)
        shift, change = self.correction(inputs).chunk(2, -1)
        return mean + sd * shift, (log_variance + change).clamp(*_LOG_VARIANCE)


def in_units(mean: Float[Tensor, "b z"], units: Units) -> Float[Tensor, "b z"]:
    """Latents in the given units, from those in units of a stamp's noise and pixels."""
    flux = mean[:, :1] - units.flux[:, None].log() / _LOG_FLUX[1]
    centre = mean[:, 1:3] / units.length[:, None]
    size = mean[:, 3:4] - units.length[:, None].log() / _LOG_SIZE[1]
    return torch.cat((flux, centre, size, mean[:, 4:]), 1)


def framed(image: Float[Tensor, "b y x"], side: int) -> Float[Tensor, "b side side"]:
    """The middle of an image; a smaller image is surrounded by zeros."""
    for axis in (-1, -2):
        n = image.shape[axis]
        if n > side:
            image = image.narrow(axis, (n - side) // 2, side)
    ny, nx = image.shape[-2:]
    left, top = (side - nx) // 2, (side - ny) // 2
    return pad(image, (left, side - nx - left, top, side - ny - top))


def _moments(image: Float[Tensor, "b y x"]) -> Float[Tensor, "b aperture 6"]:
    """Weighted sums of 1, x, y, x^2 - y^2, 2 x y and x^2 + y^2 - 2 w^2, each with unit variance for unit
    noise."""
    axes = [torch.arange(n, dtype=image.dtype, device=image.device) - (n - 1) / 2 for n in image.shape[-2:]]
    y, x = torch.meshgrid(*axes, indexing="ij")
    templates = []
    for w in _APERTURES:
        u, v = x / w, y / w
        weight = torch.exp(-0.5 * (u**2 + v**2))
        shapes = (u**0, u, v, u**2 - v**2, 2 * u * v, u**2 + v**2 - 2)
        templates += [weight * shape for shape in shapes]
    stacked = torch.stack(templates)
    stacked = stacked / stacked.square().sum((-2, -1), keepdim=True).sqrt()
    return (image.flatten(1) @ stacked.flatten(1).mT).unflatten(1, (len(_APERTURES), 6))


class Networks(NamedTuple):
    """A decoder and the encoder that is trained with it."""

    decoder: GalaxyDecoder
    encoder: MomentEncoder
