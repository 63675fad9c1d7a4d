"""Galaxies seen through a PSF: one latent vector, a deconvolved galaxy without noise, any number of
exposures.

Latents ``z ~ N(0, I)`` describe a galaxy ``g(z)``: positive light, without PSF, noise and pixels. Exposure
``k`` is ``x_k ~ N(P_k(PSF_k * g(z)), Sigma_k)``, where ``P_k`` samples its pixels. ``Sigma_k`` is white,
given per pixel, or correlated. Each exposure after the first has its own total flux, as in another band, and
the same shape.

With ``discrepancy``, pixels without noise scatter about ``P_k(PSF_k * g(z))`` by a fraction of its light,
which is one more latent (:mod:`astrozoo.models.galaxy_discrepancy`).

The units of the latents come from the first exposure: the noise of a pixel and its side, after the binning
that brings the stamp to the size that the encoder was trained on. So the prior of size and flux is that of
the training set in pixels and signal-to-noise ratios, and the same networks serve any pixel scale, depth and
instrument.

The networks are trained by :mod:`astrozoo.models.galaxy_population`.

References:
    Lanusse et al. 2021, MNRAS 504, 5543 (x ~ N(P(PSF * g(z)), Sigma); the encoder sees the PSF).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from astrozoo._trained import Trained
from astrozoo.data.psf_stamps import Galaxy, PsfStamp, read_galaxies
from astrozoo.errors import InputError
from astrozoo.models import galaxy_discrepancy, galaxy_population
from astrozoo.models.galaxy_discrepancy import LOG_FRACTION, total_sd
from astrozoo.models.galaxy_encoder import binning, encode, typical_noise
from astrozoo.models.galaxy_start import gauss_newton
from astrozoo.models.stamp_noise import StampNoise
from astrozoo.nets.galaxy import LATENT, Networks, flux_latent, log_flux
from astrozoo.physics.convolved_gaussians import (
    GaussianSum,
    convolved_image,
    surface_brightness,
    transfer_function,
)
from astrozoo.physics.correlated_noise import Whitening, whitening
from astrozoo.types import Problem

__all__ = [
    "Exposure",
    "Galaxy",
    "PsfStamp",
    "PsfVae",
    "Start",
    "problem",
    "read",
    "simulate",
]

FLUX_RATIO = 1.0
"""SD of the log flux of a further exposure, relative to the first: colours of galaxies differ by about
this."""


class Exposure(NamedTuple):
    """One exposure of a galaxy, or of each galaxy of a batch along a leading axis.

    Attributes:
        image: values of the pixels [unit of the image].
        transfer: of the PSF (:func:`astrozoo.physics.convolved_gaussians.transfer_function`).
        sd: standard deviation of each pixel [unit of the image].
        mask: True where a pixel is used.
        flux: unit of the latents' flux [unit of the image].
        length: unit of the latents' lengths [px].
    """

    image: Float[Tensor, "*b y x"]
    transfer: Float[Tensor, "*b 2 ky kx"]
    sd: Float[Tensor, "*b y x"]
    mask: Bool[Tensor, "*b y x"]
    flux: Float[Tensor, "*b"]
    length: Float[Tensor, "*b"]


class Start(NamedTuple):
    """A normal approximation of the posterior, from the encoder and Gauss-Newton steps. The model ignores it.

    Attributes:
        mean: of all latents in the order of the model's sites: ``latent``, ``log_flux_ratio``,
            ``log_discrepancy``.
        root: lower triangular root of the covariance.
    """

    mean: Float[Tensor, "*b d"]
    root: Float[Tensor, "*b d d"]


@dataclass(frozen=True, eq=False)
class PsfVae:
    """The generative model of one galaxy under fixed networks.

    Latent sites: ``latent``, 16 numbers; ``log_flux_ratio``, one per exposure after the first; with
    ``discrepancy``, ``log_discrepancy``, one number.

    Args:
        weights: of the networks, from :func:`astrozoo.load_weights`. None: those of the package.
        correlations: correlation function of the noise of each exposure; None where it is white.
        discrepancy: whether pixels scatter about the decoder's light.
    """

    weights: Trained | None = None
    correlations: tuple[Tensor | None, ...] = (None,)
    discrepancy: bool = False

    def __call__(self, exposures: tuple[Exposure, ...], start: Start | None = None) -> None:
        like = exposures[0].image
        z = pyro.sample("latent", dist.Normal(like.new_zeros(LATENT), 1.0).to_event(1))
        ratios = None
        if len(exposures) > 1:
            prior = dist.Normal(like.new_zeros(len(exposures) - 1), FLUX_RATIO).to_event(1)
            ratios = pyro.sample("log_flux_ratio", prior)
        fraction = None
        if self.discrepancy:
            mean, sd = (like.new_full((1,), value) for value in LOG_FRACTION)
            fraction = pyro.sample(galaxy_discrepancy.SITE, dist.Normal(mean, sd).to_event(1))[0]
        images = self.images(exposures, z, ratios)
        for k, (exposure, image) in enumerate(zip(exposures, images, strict=True)):
            site = image_site(k)
            ny, nx = image.shape
            sd = exposure.sd if fraction is None else total_sd(exposure.sd, image, fraction)
            with pyro.plate(f"{site}_y", ny, dim=-2), pyro.plate(f"{site}_x", nx, dim=-1):
                noise = StampNoise(image, sd, self.white(k, exposure)).mask(exposure.mask)
                pyro.sample(site, noise, obs=exposure.image)

    def white(self, number: int, exposure: Exposure) -> Whitening | None:
        """The whitening of the noise of an exposure; None for white noise."""
        image = exposure.image
        return _whitening(self.correlations[number], tuple(image.shape[-2:]), image.dtype, image.device)

    def noise_labels(self, exposures: Sequence[Exposure]) -> list[str]:
        """A line for reports on the noise of each exposure."""
        whites = (self.white(k, exposure) for k, exposure in enumerate(exposures))
        return ["independent noise in each pixel" if white is None else white.label for white in whites]

    def light(self, z: Float[Tensor, "*b z"]) -> GaussianSum:
        """The galaxy without PSF and noise, in units of the latents."""
        return GaussianSum(*networks(self.weights, z.dtype, z.device).decoder(z))

    def images(
        self, exposures: Sequence[Exposure], z: Float[Tensor, "*b z"], ratios: Tensor | None = None
    ) -> list[Float[Tensor, "*b y x"]]:
        """The noiseless image of each exposure [unit of the image]."""
        light, images = self.light(z), []
        for k, exposure in enumerate(exposures):
            flux = exposure.flux if k == 0 or ratios is None else exposure.flux * ratios[..., k - 1].exp()
            seen = light.scaled(flux, exposure.length)
            stamp = (exposure.image.shape[-2], exposure.image.shape[-1])
            images.append(convolved_image(seen, exposure.transfer, stamp))
        return images

    def deconvolved(
        self, exposure: Exposure, z: Float[Tensor, "*b z"], side: int, step: float
    ) -> Float[Tensor, "*b side side"]:
        """Surface brightness without PSF and noise [unit of the image / px^2].

        Args:
            side: points along a side of the map, whose centre is that of the stamp.
            step: distance of the points [px of the exposure].
        """
        axis = (torch.arange(side, dtype=z.dtype, device=z.device) - (side - 1) / 2) * step
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return surface_brightness(self.light(z).scaled(exposure.flux, exposure.length), x, y)


def image_site(number: int) -> str:
    """Name of the observed site of an exposure."""
    return "image" if number == 0 else f"image_{number}"


@cache
def networks(weights: Trained | None, dtype: torch.dtype, device: torch.device) -> Networks:
    """The frozen networks of a model."""
    return galaxy_population.load(weights or "psf_vae", dtype=dtype, device=device)


@cache
def _whitening(
    correlation: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Whitening | None:
    """The whitening of an exposure, computed once. It is float64 until the end."""
    if correlation is None:
        return None
    return whitening(correlation, (shape[0], shape[1])).to(torch.zeros((), dtype=dtype, device=device))


def problem(
    data: PsfStamp | Galaxy | Sequence[PsfStamp | Galaxy],
    *,
    weights: str | Path | Trained | None = None,
    flux_unit: float | None = None,
    length_unit: float | None = None,
    discrepancy: bool = False,
) -> Problem:
    """The problem of one galaxy, or of a batch of galaxies.

    Args:
        data: a stamp, a galaxy with several exposures, or a sequence of these (a batch). The galaxies of a
            batch have stamps and PSFs of the same shapes, and the same correlation of the noise.
        weights: name or file of other weights than the package's, or the result of training.
        flux_unit: unit of the latents' flux, in the unit of the first image. None: see :mod:`~.psf_vae`.
        length_unit: unit of the latents' lengths [arcsec]. None: see :mod:`~.psf_vae`.
        discrepancy: whether pixels scatter about the decoder's light (:mod:`.galaxy_discrepancy`).

    Raises:
        InputError: there is no galaxy; the galaxies of a batch differ in shape or noise; a unit is not
            positive; or there is a discrepancy beside correlated noise.
        DataError: the weights are missing, corrupt, of another version or of another model.
        UnknownNameError: there are no weights of that name.
    """
    one = isinstance(data, PsfStamp | Galaxy)
    galaxies = [_galaxy(item) for item in ([data] if isinstance(data, PsfStamp | Galaxy) else data)]
    if not galaxies:
        raise InputError("galaxies", "none", "at least one")
    for name, unit in (("flux_unit", flux_unit), ("length_unit", length_unit)):
        if unit is not None and not 0 < unit < math.inf:
            raise InputError(name, unit, "a positive number")
    _check_alike(galaxies)
    trained = _trained(weights)
    rows = [_tensors(galaxy, flux_unit, length_unit) for galaxy in galaxies]
    given = [stamp.correlation for stamp in galaxies[0].exposures]
    correlations = tuple(None if c is None else torch.as_tensor(c, dtype=torch.float64) for c in given)
    if discrepancy and any(c is not None for c in correlations):
        raise InputError("discrepancy", "exposures with correlated noise", "independent noise in each pixel")
    model = PsfVae(trained, correlations, discrepancy)
    starts = [_start(model, galaxy, row) for galaxy, row in zip(galaxies, rows, strict=True)]
    args = [(row, start) for row, start in zip(rows, starts, strict=True)]
    joined = args[0] if one else tree_map(lambda *leaves: torch.stack(leaves), *args)
    mean = joined[1].mean
    count = len(galaxies[0].exposures)
    sizes = {"latent": LATENT, "log_flux_ratio": count - 1, galaxy_discrepancy.SITE: int(discrepancy)}
    parts = dict(zip(sizes, mean.split(list(sizes.values()), -1), strict=True))
    start = {name: part for name, part in parts.items() if sizes[name]}
    dims = {"latent": ("component",), "log_flux_ratio": ("exposure",)}
    return Problem(
        model,
        joined,
        name="psf_vae",
        batch=None if one else len(galaxies),
        start=start,
        dims={name: axes for name, axes in dims.items() if name in start},
        images=tuple(image_site(k) for k in range(count)),
        guides={name: f"astrozoo.guides.psf_vae:{name}" for name in ("encoder", "encoder_iaf")},
    )


def _trained(weights: str | Path | Trained | None) -> Trained | None:
    if weights is None or isinstance(weights, Trained):
        return weights
    return galaxy_population.load_weights(weights)


def _galaxy(item: PsfStamp | Galaxy) -> Galaxy:
    return item if isinstance(item, Galaxy) else Galaxy((item,), item.name)


def _check_alike(galaxies: Sequence[Galaxy]) -> None:
    """Raise an error if galaxies cannot be one batch."""

    def shapes(galaxy: Galaxy) -> list[tuple[Any, ...]]:
        return [(stamp.shape, stamp.psf.shape) for stamp in galaxy.exposures]

    first = galaxies[0]
    for galaxy in galaxies[1:]:
        if shapes(galaxy) != shapes(first):
            expected = (
                f"those of {first.name!r}, {shapes(first)} (shapes of image and PSF): one batch per shape"
            )
            raise InputError(f"galaxy {galaxy.name!r}", shapes(galaxy), expected)
        for stamp, other in zip(galaxy.exposures, first.exposures, strict=True):
            if not _same(stamp.correlation, other.correlation):
                expected = f"the noise correlation of {first.name!r} in all of a batch"
                raise InputError(f"galaxy {galaxy.name!r}", "another noise correlation", expected)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)


def _tensors(galaxy: Galaxy, flux_unit: float | None, length_unit: float | None) -> tuple[Exposure, ...]:
    first = galaxy.exposures[0]
    bins = binning(first)
    unit_flux = typical_noise(first) * bins if flux_unit is None else flux_unit
    unit_length = first.pixel_scale * bins if length_unit is None else length_unit

    def tensor(x: Any) -> Tensor:
        return torch.as_tensor(np.array(x), dtype=torch.float64)

    return tuple(
        Exposure(
            image=tensor(stamp.image),
            transfer=transfer_function(tensor(stamp.psf), stamp.shape),
            sd=tensor(stamp.noise),
            mask=torch.as_tensor(np.array(stamp.mask)),
            flux=tensor(unit_flux * 10 ** (0.4 * (stamp.zero_point - first.zero_point))),
            length=tensor(unit_length / stamp.pixel_scale),
        )
        for stamp in galaxy.exposures
    )


def _start(model: PsfVae, galaxy: Galaxy, exposures: tuple[Exposure, ...]) -> Start:
    """The normal at a mode near the encoder's mean."""
    nets = networks(model.weights, torch.float64, torch.device("cpu"))
    units = [float(e.flux) for e in exposures], [float(e.length) for e in exposures]
    mean, _ = encode(nets, galaxy.exposures, *units)
    with torch.no_grad():
        start = _mode(model, exposures, mean)
        return _with_discrepancy(model, exposures, start) if model.discrepancy else start


def _mode(model: PsfVae, exposures: tuple[Exposure, ...], mean: Float[Tensor, "d"]) -> Start:
    """The normal at a mode near some latents, without a discrepancy."""
    whites = [model.white(k, exposure) for k, exposure in enumerate(exposures)]

    def residuals(z: Tensor) -> Tensor:
        latent, ratios = z[:, :LATENT], z[:, LATENT:]
        parts = [latent, ratios / FLUX_RATIO]
        images = model.images(exposures, latent, ratios if ratios.shape[1] else None)
        for exposure, image, white in zip(exposures, images, whites, strict=True):
            scaled = torch.where(exposure.mask, (exposure.image - image) / exposure.sd, 0.0)
            parts.append((scaled if white is None else white(scaled)).flatten(1))
        return torch.cat(parts, 1)

    return Start(*gauss_newton(residuals, mean))


def _with_discrepancy(model: PsfVae, exposures: tuple[Exposure, ...], start: Start) -> Start:
    """The same with the discrepancy, and at the mode under it."""
    ratios = start.mean[LATENT:] if len(start.mean) > LATENT else None
    images = model.images(exposures, start.mean[:LATENT], ratios)
    fraction, spread = galaxy_discrepancy.start(exposures, images)
    wider = tuple(
        exposure._replace(sd=total_sd(exposure.sd, image, fraction))
        for exposure, image in zip(exposures, images, strict=True)
    )
    mean, root = _mode(model, wider, start.mean)
    return Start(torch.cat((mean, fraction[None])), torch.block_diag(root, spread[None, None]))


def read(
    path: str | Path,
    *,
    first: int = 0,
    count: int | None = None,
    size: int | None = None,
    pixel_scale: float | None = None,
    noise: float | None = None,
) -> Galaxy | list[Galaxy]:
    """Stamps with their PSFs and noise: one galaxy, or a list of several.

    Args:
        path: see :func:`astrozoo.data.psf_stamps.read_galaxies`, and for the options.

    Raises:
        DataError: the files are missing, unreadable or incomplete.
        InputError: the stamps are not valid.
    """
    galaxies = read_galaxies(
        Path(path), first=first, count=count, size=size, pixel_scale=pixel_scale, noise=noise
    )
    return galaxies[0] if len(galaxies) == 1 else galaxies


def simulate(
    seed: int = 0,
    *,
    size: int = 24,
    pixel_scale: float = 0.1,
    snr: float = 60.0,
    fwhm: float = 0.3,
    weights: str | Path | Trained | None = None,
    discrepancy: bool = False,
) -> tuple[PsfStamp, dict[str, Tensor]]:
    """A galaxy of the model itself: latents from the prior, a Gaussian PSF, white noise.

    The flux is not drawn from the prior: it follows from the signal-to-noise ratio.

    Args:
        seed: seed of all draws.
        size: pixels along a side.
        pixel_scale: side of a pixel [arcsec].
        snr: root of the sum of the squares of the noiseless pixels, divided by the noise of a pixel.
        fwhm: full width at half maximum of the PSF [arcsec].
        weights, discrepancy: see :func:`problem`.

    Returns:
        The stamp, and the latents by site name.
    """
    for name, value in (("size", size - 7), ("pixel_scale", pixel_scale), ("snr", snr), ("fwhm", fwhm)):
        if not 0 < value < math.inf:
            raise InputError(
                name, value + 7 * (name == "size"), "8 px or more" if name == "size" else "a number above 0"
            )
    g = torch.Generator().manual_seed(seed)
    sigma = max(fwhm / pixel_scale / 2.3548, 0.1)
    side = min(2 * math.ceil(4 * sigma) + 1, size - 1 + size % 2)
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    bell = torch.exp(-0.5 * (axis / sigma) ** 2)
    psf = bell[:, None] * bell / bell.sum() ** 2
    model = PsfVae(_trained(weights))
    z = torch.randn(LATENT, generator=g, dtype=torch.float64)
    one, zeros = torch.ones((), dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    blank = Exposure(zeros, transfer_function(psf, (size, size)), zeros + 1, zeros == 0, one, one)
    with torch.no_grad():
        (image,) = model.images((blank,), z)
        z[0] = flux_latent(log_flux(z[0]) + math.log(snr) - image.square().sum().sqrt().log())
        (image,) = model.images((blank,), z)
    noise = torch.randn(size, size, generator=g, dtype=torch.float64)
    truth = {"latent": z}
    if discrepancy:
        mean, sd = LOG_FRACTION
        truth[galaxy_discrepancy.SITE] = mean + sd * torch.randn(1, generator=g, dtype=torch.float64)
        noise = noise * total_sd(noise.new_ones(()), image, truth[galaxy_discrepancy.SITE][0])
    stamp = PsfStamp((image + noise).numpy(), psf.numpy(), 1.0, pixel_scale, name=f"simulated {seed}")
    return stamp, truth
