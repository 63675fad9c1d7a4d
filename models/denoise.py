"""Images, or points, without their noise.

    image ~ prior                            (:mod:`astrozoo.models.image_prior`)
    data ~ N(image, noise^2) in each pixel with data

With the prior ``gaussian`` the image is a Gaussian field. Its power spectrum is a power law with a knee, by
default fitted to the data (:mod:`astrozoo.physics.power_law`), and the posterior is exact (method
``wiener``). Pixels without data are filled in by the prior. The field is periodic, so that images from files
get an empty margin.

With the prior ``two_moons`` the data are points in the plane. Their prior is a learned energy, which was
fitted to samples of two interleaved half circles (:mod:`astrozoo.models.two_moons`): a test of learned
priors, because the exact posterior is known.

References:
    Wiener 1949; Remy et al. 2022, A&A 672, A51.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from astropy.wcs import WCS
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.data.image_files import read_noisy_image, read_npz
from astrozoo.errors import DataError, InputError
from astrozoo.models import two_moons
from astrozoo.models.image_prior import Field, ImagePrior, PointPrior
from astrozoo.physics.power_law import PowerLaw, fit_power_law
from astrozoo.types import Problem

__all__ = ["Denoise", "NoisyData", "Pixels", "Prior", "problem", "read", "simulate"]

Prior = Literal["gaussian", "two_moons"]

_NOISE = 0.5
"""SD of the noise of simulated images, in units of the SD of the image; of simulated points, their SD."""
_SIMULATED = PowerLaw(1.0, 4.0, 0.06)
"""Power of simulated images, before they are scaled to unit variance: structure of about 16 pixels."""
_POINTS = 8
"""Number of simulated points."""


class Pixels(NamedTuple):
    """What the model is given of the data.

    Args:
        values: of pixels ``[y, x]`` or points ``[point, 2]``; 0 where there are no data.
        noise: SD of each.
        mask: those with data.
    """

    values: Float[Tensor, "y x"]
    noise: Float[Tensor, "y x"]
    mask: Bool[Tensor, "y x"]


@dataclass(frozen=True, eq=False)
class NoisyData:
    """An image with noise, or points.

    Args:
        pixels: values, noise and mask (double precision), with the margin.
        margin: rows and columns without data at the end of each axis [px].
        points: the values are points.
        power: power spectrum of the image, if it is known.
        wcs: of the image; None if it is unknown.
        origin: one line on the data.
    """

    pixels: Pixels
    margin: tuple[int, int] = (0, 0)
    points: bool = False
    power: PowerLaw | None = None
    wcs: WCS | None = None
    origin: str = ""

    def cropped(self, array: Any) -> Any:
        """An array ``[..., y, x]`` without the margin."""
        ny, nx = self.pixels.values.shape
        return array[..., : ny - self.margin[0], : nx - self.margin[1]]


@dataclass(frozen=True)
class Denoise:
    """The model of an image with noise.

    Args:
        prior: of the image, :class:`ImagePrior` or :class:`PointPrior`.
    """

    prior: ImagePrior | PointPrior = dataclass_field(default_factory=ImagePrior)

    def __call__(self, pixels: Pixels, field: Field) -> None:
        image = pyro.deterministic("image", self.prior(pixels.values, field))
        noise = dist.Normal(image, pixels.noise).mask(pixels.mask).to_event(2)
        pyro.sample("data", noise, obs=pixels.values)


def problem(data: NoisyData, *, prior: Prior = "gaussian", slope: float | None = None) -> Problem:
    """The inference problem of an image or of points.

    Args:
        prior: ``gaussian`` of images, ``two_moons`` of points.
        slope: of the power spectrum of the Gaussian prior. It is fitted to the data if not given.

    Raises:
        InputError: an unknown prior, one that is not of these data, or a slope out of range.
    """
    if prior not in get_args(Prior):
        raise InputError("prior", repr(prior), " or ".join(map(repr, get_args(Prior))))
    if data.points != (prior == "two_moons"):
        kind = "points" if data.points else "an image"
        raise InputError(
            "prior", prior, "two_moons for points, gaussian for images" + f"; the data are {kind}"
        )
    axes = ("point", "coordinate") if data.points else ("y", "x")
    pixels = data.pixels
    if data.points:
        if slope is not None:
            raise InputError("slope", slope, "none with the prior two_moons")
        model = Denoise(PointPrior(two_moons.load(), two_moons.LEVELS[0]))
        field = two_moons.base(pixels.values)
        start = {"white": (pixels.values - field.mean) / field.root}
    else:
        model = Denoise()
        law = data.power
        if law is None or slope is not None:
            values, noise, mask = (data.cropped(x).numpy() for x in pixels)
            law = fit_power_law(values, noise, mask, slope)
        shape = (pixels.values.shape[0], pixels.values.shape[1])
        mean = pixels.values[pixels.mask].mean()
        field = Field(mean if data.power is None else torch.zeros_like(mean), law.modes(shape, mean).sqrt())
        start = {"white": torch.zeros_like(pixels.values)}
    return Problem(
        model,
        (pixels, field),
        name="denoise",
        start=start,
        dims=dict.fromkeys(("white", "image", "data"), axes),
        guides={"fourier": "astrozoo.guides.denoise:fourier"},
        preconditioner=None if data.points else {"white": "fourier"},
    )


def simulate(
    seed: int = 0,
    *,
    size: int = 16,
    noise: float = _NOISE,
    prior: Prior = "gaussian",
    slope: float | None = None,
) -> tuple[NoisyData, dict[str, Tensor]]:
    """Data drawn from the model: an image of unit variance with a hole, or points of the two moons.

    Args:
        size: side of the image [px]. The points are 8.
        noise: SD of a pixel, or of a coordinate.
        prior: as :func:`problem`.
        slope: of the power spectrum, 4 by default.
    """
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if prior == "two_moons":
        points = two_moons.draw(_POINTS, generator)
        sd = torch.full_like(points, noise)
        pixels = Pixels(points + sd * normals(*points.shape), sd, torch.ones_like(points, dtype=torch.bool))
        field = two_moons.base(points)
        truth = {"white": (points - field.mean) / field.root, "image": points}
        return NoisyData(pixels, points=True, origin=f"points of two moons, simulated, seed {seed}"), truth
    law = _SIMULATED if slope is None else _SIMULATED._replace(slope=slope)
    blank = torch.zeros(size, size, dtype=torch.float64)
    variance = torch.fft.irfft2(law.modes((size, size), blank), s=(size, size))[0, 0]
    law = law._replace(amplitude=law.amplitude / float(variance))
    white = normals(size, size)
    image = ImagePrior().image(white, Field(blank[0, 0], law.modes((size, size), blank).sqrt()))
    mask = torch.ones_like(blank, dtype=torch.bool)
    mask[size // 2 : size // 2 + size // 8, size // 4 : size // 4 + size // 8] = False
    sd = torch.full_like(blank, noise)
    pixels = Pixels(torch.where(mask, image + sd * normals(size, size), 0.0), sd, mask)
    origin = f"simulated by the model itself, seed {seed}"
    return NoisyData(pixels, power=law, origin=origin), {"white": white, "image": image}


def read(
    path: str | Path,
    *,
    noise: str | Path | float | None = None,
    mask_map: str | Path | None = None,
    margin: int | None = None,
) -> NoisyData:
    """An image with noise (FITS, NPY or NPZ), or points (NPZ with an array ``points``).

    Pixels that are not finite have no data.

    Args:
        noise: SD of each pixel: a number, or the file of an image. An NPZ file may have its own, ``noise``.
        mask_map: file of an image that is not 0 where there are data.
        margin: width of the empty margin [px], an eighth of each side by default. Without it, opposite edges
            would be neighbours.

    Raises:
        DataError: a file that is missing or unreadable.
        InputError: no noise, shapes that do not agree, no pixel with data, or a negative margin.
    """
    path = Path(path)
    if path.suffix == ".npz" and "points" in (arrays := read_npz(path)):
        return _points(path, arrays, noise)
    if margin is not None and margin < 0:
        raise InputError("margin", margin, "0 or more")
    found = read_noisy_image(path, noise, mask_map)
    sides = found.image.shape
    wide = tuple(side // 8 if margin is None else margin for side in sides)
    ends = ((0, wide[0]), (0, wide[1]))
    pads = ((found.image, 0.0), (found.noise, 1.0), (found.mask, False))
    pixels = (torch.as_tensor(np.pad(x, ends, constant_values=empty)) for x, empty in pads)
    empty = int((~found.mask).sum())
    origin = f"{path}: {sides[0]} x {sides[1]} pixels, {empty:,} without data"
    return NoisyData(Pixels(*pixels), (wide[0], wide[1]), wcs=found.wcs, origin=origin)


def _points(path: Path, arrays: dict[str, np.ndarray], noise: Any) -> NoisyData:
    points = np.asarray(arrays["points"], dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise DataError(f"{path}, points", f"shape {points.shape}", "finite numbers [point, 2]")
    try:
        sd = np.asarray(arrays.get("noise") if noise is None else noise, dtype=float)
        sd = np.broadcast_to(sd, points.shape)
    except (TypeError, ValueError) as error:
        raise InputError("noise", noise, f"a number, or an array of shape {points.shape}") from error
    if not (sd > 0).all() or not np.isfinite(sd).all():
        raise InputError("noise", "none, or values that are not above 0", "the SD of each coordinate")
    tensors = torch.as_tensor(points), torch.as_tensor(sd.copy())
    pixels = Pixels(*tensors, torch.ones(points.shape, dtype=torch.bool))
    return NoisyData(pixels, points=True, origin=f"{path}: {len(points):,} points")
