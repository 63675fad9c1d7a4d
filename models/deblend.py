"""A blend: several galaxies and stars in any number of bands, each band with its own PSF.

    log flux of a source in a band ~ N(mu_band, 2^2)
    position of a source ~ N(that of the detection, 0.5^2 px^2)
    shape of a galaxy ~ a prior of :mod:`astrozoo.models.deblend_priors`, the same in all bands
    pixel ~ N(sum over sources of flux x PSF * shape, noise^2)

``mu_band`` is the log flux of a source with a signal-to-noise ratio of 50. All latents are normal, so that a
Gauss-Newton search (:mod:`astrozoo.models.deblend_mode`) finds the mode from which every method starts.

References:
    Melchior et al. 2018, A&C 24, 129 (scarlet); Lanusse et al. 2019, arXiv 1912.03980 (learned priors);
    Biswas et al. 2024, arXiv 2408.15236 (MADNESS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from astropy.table import Table
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from astrozoo.data.scenes import Scene, psf_fwhm
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.models.deblend_priors import PRIORS, Morphology
from astrozoo.physics.convolved_gaussians import image_of, point_transform, product, transfer_function
from astrozoo.types import Problem

__all__ = ["Deblend", "Pixels", "Sources", "order", "problem", "simulate"]

LOG_FLUX_SD = 2.0
"""SD of the log flux of a source in a band: a factor of 50 either way is within two SDs."""
FLUX_SNR = 50.0
"""Signal-to-noise ratio, as a point source, of the median flux of the prior."""
POSITION_SD = 0.5
"""[px] SD of each coordinate of a source about its detection, as of detected peaks. With 1 px more sources
move onto a clump of a neighbour."""


class Pixels(NamedTuple):
    """The data.

    Attributes:
        image: values of the pixels, 0 where they are not used [unit of the images].
        sd: their noise.
        mask: True where a pixel is used.
        transfer: of the PSFs (:func:`astrozoo.physics.convolved_gaussians.transfer_function`).
    """

    image: Float[Tensor, "*b band y x"]
    sd: Float[Tensor, "*b band y x"]
    mask: Bool[Tensor, "*b band y x"]
    transfer: Float[Tensor, "*b band 2 ky kx"]


class Sources(NamedTuple):
    """What is known of the sources before the fit.

    Attributes:
        galaxies, stars: (x, y) of the detections from the centre of the image [px].
        log_flux: mean of the prior of the log flux in each band.
        fwhm: of the sharpest PSF [px], the unit of radii.
    """

    galaxies: Float[Tensor, "*b g 2"]
    stars: Float[Tensor, "*b s 2"]
    log_flux: Float[Tensor, "*b band"]
    fwhm: Float[Tensor, "*b"]

    @property
    def detected(self) -> Float[Tensor, "*b source 2"]:
        """Detections of the galaxies, then of the stars."""
        return torch.cat((self.galaxies, self.stars), -2)


@dataclass(frozen=True)
class Deblend:
    """The model of a scene. Galaxies come first in all sites, then stars.

    Latent sites: ``log_flux`` [source, band]; ``position`` [source, 2], offsets from the detections [px]; and
    those of the prior of shapes, which have the axis of the galaxies first.

    Args:
        morphology: prior of the shape of a galaxy.
    """

    morphology: Morphology

    def __call__(self, pixels: Pixels, sources: Sources) -> None:
        offset = torch.zeros_like(sources.detected)
        mean = sources.log_flux.expand(len(offset), -1)
        values = {
            "log_flux": pyro.sample("log_flux", dist.Normal(mean, LOG_FLUX_SD).to_event(2)),
            "position": pyro.sample("position", dist.Normal(offset, POSITION_SD).to_event(2)),
        }
        if len(sources.galaxies):
            for name, site in self.morphology.sites.items():
                shape = (len(sources.galaxies), *site.shape)
                prior = dist.Normal(mean.new_full(shape, site.mean), site.sd).to_event(len(shape))
                values[name] = pyro.sample(name, prior)
        expected = self.image(values, pixels, sources)
        noise = dist.Normal(expected, pixels.sd).mask(pixels.mask).to_event(3)
        pyro.sample("image", noise, obs=pixels.image)

    def transforms(
        self, values: Mapping[str, Tensor], pixels: Pixels, sources: Sources
    ) -> Float[Tensor, "source 2 ky kx"]:
        """Fourier transforms of the sources, of unit flux and without PSF."""
        frame, count = pixels.transfer[0], len(sources.galaxies)
        position = sources.detected + values["position"]
        parts = []
        if count:
            fwhm = sources.fwhm.expand(count)
            parts.append(self.morphology.transform(values, position[:count], fwhm, frame))
        if len(sources.stars):
            parts.append(point_transform(position[count:], frame))
        return torch.cat(parts)

    def image(
        self, values: Mapping[str, Tensor], pixels: Pixels, sources: Sources
    ) -> Float[Tensor, "band y x"]:
        """The noiseless image of the scene."""
        light = torch.einsum(
            "sb,scyx->bcyx", values["log_flux"].exp(), self.transforms(values, pixels, sources)
        )
        return image_of(product(light, pixels.transfer), _stamp(pixels))

    def source_images(
        self, values: Mapping[str, Tensor], pixels: Pixels, sources: Sources
    ) -> Float[Tensor, "source band y x"]:
        """The noiseless image of each source alone."""
        light = self.transforms(values, pixels, sources)[:, None]
        images = image_of(product(light, pixels.transfer), _stamp(pixels))
        return values["log_flux"].exp()[..., None, None] * images


def _stamp(pixels: Pixels) -> tuple[int, int]:
    return pixels.image.shape[-2], pixels.image.shape[-1]


def order(table: Table) -> np.ndarray:
    """Rows of a table of sources in the order of the model: galaxies, then stars."""
    return np.argsort(np.asarray(table["is_star"]), kind="stable")


def _morphology(prior: str | Morphology) -> Morphology:
    if not isinstance(prior, str):
        return prior
    if prior not in PRIORS:
        raise UnknownNameError("prior", prior, PRIORS)
    return PRIORS[prior]()


def tensors(scene: Scene) -> tuple[Pixels, Sources]:
    """The arguments of the model, in double precision. Bands without any used pixel are left out."""

    def tensor(x: Any) -> Tensor:
        return torch.as_tensor(np.array(x, float))

    used = scene.used
    mask = scene.mask[used]
    sd = np.where(mask, scene.noise[used], 1.0)
    psfs = scene.psfs[used]
    pixels = Pixels(
        tensor(np.where(mask, scene.images[used], 0.0)),
        tensor(sd),
        torch.as_tensor(np.array(mask)),
        transfer_function(tensor(psfs), scene.shape),
    )
    ny, nx = scene.shape
    centre = np.array([(nx - 1) / 2, (ny - 1) / 2])
    rows = scene.sources[order(scene.sources)]
    place = np.stack((rows["x"], rows["y"]), 1) - centre
    stars = np.asarray(rows["is_star"])
    typical = np.array([np.median(s[m]) for s, m in zip(sd, mask, strict=True)])
    unit = typical / np.sqrt((psfs**2).sum((1, 2)))  # SD of the flux of a point source
    sources = Sources(
        tensor(place[~stars]).reshape(-1, 2),
        tensor(place[stars]).reshape(-1, 2),
        tensor(np.log(FLUX_SNR * unit)),
        tensor(min(psf_fwhm(psf) for psf in psfs)),
    )
    return pixels, sources


def problem(
    data: Scene | Sequence[Scene], *, prior: str | Morphology = "sersic", search: bool = True
) -> Problem:
    """The problem of one scene, or of a batch of scenes.

    Its start is a mode, which a Gauss-Newton search finds.

    Args:
        data: a scene, or a sequence of scenes of one shape and with the same numbers of galaxies and stars.
        prior: name of a prior of :data:`astrozoo.models.deblend_priors.PRIORS`, or one of your own.
        search: search the mode. Without it the start is that of the search: fluxes of a joint fit.

    Raises:
        InputError: the scenes of a batch differ in shape or in the numbers of their sources.
        UnknownNameError: there is no prior of that name.
    """
    from astrozoo.models.deblend_mode import find_mode, first_guess

    scenes = [data] if isinstance(data, Scene) else list(data)
    if not scenes:
        raise InputError("scenes", "none", "at least one")
    model = Deblend(_morphology(prior))
    rows = [tensors(scene) for scene in scenes]
    kinds = [(r[0].image.shape, r[0].transfer.shape, len(r[1].galaxies), len(r[1].stars)) for r in rows]
    for scene, kind in zip(scenes, kinds, strict=True):
        if kind != kinds[0]:
            got = f"image {tuple(kind[0])}, {kind[2]} galaxies, {kind[3]} stars"
            expected = f"as {scenes[0].name!r}: {tuple(kinds[0][0])}, {kinds[0][2]}, {kinds[0][3]}"
            raise InputError(f"scene {scene.name!r}", got, expected)
    pixels, sources = tree_map(lambda *leaves: torch.stack(leaves), *rows)
    start = first_guess(model, pixels, sources)
    if search:
        start = find_mode(model, pixels, sources, start).values
    args: tuple[Any, ...] = (pixels, sources)
    if isinstance(data, Scene):
        args, start = tree_map(lambda leaf: leaf[0], (args, start))
    first = scenes[0]
    named = [str(i) for i in order(first.sources)]
    bands = [band for band, used in zip(first.bands, first.used, strict=True) if used]
    return Problem(
        model,
        args,
        name="deblend",
        batch=None if isinstance(data, Scene) else len(scenes),
        start=start,
        dims=_dims(model, bool(kinds[0][2])),
        coords={"source": named, "band": bands, "component": ["x", "y"]}
        | ({"galaxy": named[: kinds[0][2]]} if kinds[0][2] else {}),
        images=("image",),
    )


def _dims(model: Deblend, galaxies: bool) -> dict[str, tuple[str, ...]]:
    dims: dict[str, tuple[str, ...]] = {"log_flux": ("source", "band"), "position": ("source", "component")}
    for name, site in model.morphology.sites.items() if galaxies else ():
        dims[name] = ("galaxy", *(f"{name}_{k}" for k in range(len(site.shape))))
    return dims


def simulate(
    seed: int = 0,
    *,
    size: int = 14,
    bands: int = 2,
    galaxies: int = 2,
    fwhm: float = 3.5,
    prior: str | Morphology = "sersic",
) -> tuple[Scene, dict[str, Tensor]]:
    """A scene of the model itself: shapes and offsets from the prior, Gaussian PSFs, white noise.

    Detections lie on a circle around the centre. Fluxes are drawn with a quarter of the prior's SD, so that
    every source is seen.

    Args:
        size: pixels along a side.
        bands: number of bands.
        galaxies: number of galaxies.
        fwhm: of the PSF of the first band [px]; each further one is a tenth wider.
    """
    g = torch.Generator().manual_seed(seed)
    morphology = _morphology(prior)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    widths = fwhm * (1 + 0.1 * np.arange(bands))
    psfs = np.stack([_gaussian(width, math.ceil(1.7 * widths.max())) for width in widths])
    angle = 2 * math.pi * (np.arange(galaxies) / galaxies + float(torch.rand((), generator=g)))
    radius = 0.2 * size * (galaxies > 1)
    middle = (size - 1) / 2
    table = Table({"x": middle + radius * np.cos(angle), "y": middle + radius * np.sin(angle)})
    flat = np.ones((bands, size, size))
    blank = Scene(0 * flat, flat, flat > 0, psfs, tuple("ugrizy"[:bands]), table, f"simulated {seed}")
    model = Deblend(morphology)
    pixels, sources = tensors(blank)
    truth = {
        "log_flux": sources.log_flux + LOG_FLUX_SD / 4 * normal(galaxies, bands),
        "position": 0.2 * POSITION_SD * normal(galaxies, 2),
    }
    for name, site in morphology.sites.items():
        truth[name] = site.mean + site.sd * normal(galaxies, *site.shape)
    with torch.no_grad():
        image = model.image(truth, pixels, sources)
    noisy = (image + normal(*image.shape)).numpy()
    return Scene(noisy, flat, flat > 0, psfs, blank.bands, table, blank.name), truth


def _gaussian(fwhm: float, half: int) -> Float[np.ndarray, "k k"]:
    axis = np.arange(-half, half + 1)
    bell = np.exp(-0.5 * (axis / (fwhm / 2.3548)) ** 2)
    return bell[:, None] * bell / bell.sum() ** 2
