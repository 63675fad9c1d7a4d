"""Maps of the convergence (projected mass) from weak lensing.

    white ~ N(0, 1) in each pixel
    g = the field of that white noise with a given power spectrum
    kappa = g                                (Gaussian prior)
    kappa = k0 (exp(g - s^2 / 2) - 1)        (log-normal prior; s^2 is the variance of g)
    the same, times exp(-E(g))               (hybrid prior; E is a learned energy)
    shear ~ N(D kappa, noise^2) in each pixel with data

D is the Kaiser-Squires operator (:mod:`astrozoo.physics.shear`). With both priors the power spectrum of
kappa is that of the theory. For the log-normal, g has the correlation ``log(1 + xi / k0^2)``, where
``xi`` is that of kappa; negative power is set to 0. The map is periodic. Pixels without data have no
likelihood.

The energy of the hybrid prior (:mod:`astrozoo.models.kappa_residual`) is what simulated halo maps have beyond
a log-normal field. It is a number, so that the prior is a density, and samplers with a Metropolis test are
exact.

With the Gaussian prior the posterior is exact (method ``wiener``). The log-normal prior describes the tail of
massive haloes, which is why its mean map has a smaller error.

References:
    Kaiser & Squires 1993, ApJ 404, 441; Coles & Jones 1991, MNRAS 248, 1 (log-normal fields); Remy et al.
    2022, A&A 672, A51 (posteriors of mass maps); Fiedorowicz et al. 2022, MNRAS 512, 73 (log-normal prior).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from astropy.wcs import WCS
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.data import shear_files
from astrozoo.errors import InputError
from astrozoo.models import kappa_residual
from astrozoo.models.kappa_spectrum import Spectrum, checked, load_spectrum, mode_power
from astrozoo.physics import fourier
from astrozoo.physics.shear import reduced_shear, shear_kernels, shear_of
from astrozoo.physics.shear_catalogue import bin_shear, checked_rows, sky_frame, tangent_wcs
from astrozoo.types import Problem

__all__ = [
    "SHIFT",
    "Filters",
    "MassMap",
    "Pixels",
    "Prior",
    "ShearMaps",
    "make_filters",
    "problem",
    "read",
    "simulate",
]

Prior = Literal["lognormal", "gaussian", "hybrid"]

SHIFT = 0.035
"""k0 of the log-normal prior: minus the least convergence. It matches the skewness of simulated halo maps for
sources at redshift 1; from 0.03 to 0.05 the error of the mean map changes by less than 0.3 per cent."""
_PIXEL = 0.29
"""[arcmin] Side of a pixel by default: that of published maps of COSMOS."""
_PIXEL_TOLERANCE = 0.01
"""Largest relative difference between the side of a pixel and that of the maps that the hybrid prior was
trained on. Power at a given pixel frequency changes by about as much."""
_MARGIN = 5.0
"""[arcmin] Width of the empty margin around a catalogue. Without it, opposite edges of the periodic map would
be neighbours."""
_NOISE = 0.148
"""SD of a shear component in a simulated pixel: 4 galaxies of sigma_e = 0.3 in a pixel of COSMOS."""


class Pixels(NamedTuple):
    """What the model is given of the data.

    Args:
        shear: components gamma_1 and gamma_2, 0 where there are no data.
        noise: SD of each.
        mask: pixels with data.
    """

    shear: Float[Tensor, "2 y x"]
    noise: Float[Tensor, "2 y x"]
    mask: Bool[Tensor, "y x"]


class Filters(NamedTuple):
    """Linear operators of the model in Fourier space, and the variance of the field.

    Args:
        root: from white noise to the Gaussian field g.
        shear: from convergence to shear.
        variance: s^2 of g.
    """

    root: Float[Tensor, "y h"]
    shear: Float[Tensor, "2 y h"]
    variance: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class ShearMaps:
    """Maps of shear with their noise, and where they lie on the sky.

    Args:
        pixels: shear, noise and mask (double precision).
        pixel: side of a pixel [arcmin].
        wcs: of the map; None if it is unknown.
        origin: one line on the data.
    """

    pixels: Pixels
    pixel: float
    wcs: WCS | None = None
    origin: str = ""


@dataclass(frozen=True)
class MassMap:
    """The model of a shear map. The latent site ``white`` has the shape of the map.

    Args:
        prior: of the convergence.
        shift: k0 of the log-normal prior, and of the hybrid one.
        reduced: whether the data are the reduced shear ``gamma / (1 - kappa)``. The likelihood is then not
            linear in the convergence.
    """

    prior: Prior = "lognormal"
    shift: float = SHIFT
    reduced: bool = False

    def __post_init__(self) -> None:
        if self.prior not in get_args(Prior):
            raise InputError("prior", repr(self.prior), " or ".join(map(repr, get_args(Prior))))
        if not self.shift > 0:
            raise InputError("shift", self.shift, "a number above 0")

    def __call__(self, pixels: Pixels, filters: Filters, weights: dict[str, Tensor] | None = None) -> None:
        """The model; ``weights`` are those of the energy, with the hybrid prior."""
        blank = torch.zeros_like(pixels.shear[0])
        white = pyro.sample("white", dist.Normal(blank, 1.0).to_event(2))
        if weights is not None:
            field = fourier.filtered(white, filters.root)
            pyro.factor("residual", -kappa_residual.energy_at(field, weights))
        kappa = pyro.deterministic("kappa", self.convergence(white, filters))
        expected = self.observed(kappa, filters)
        noise = dist.Normal(expected, pixels.noise).mask(pixels.mask).to_event(3)
        pyro.sample("shear", noise, obs=pixels.shear)

    def convergence(self, white: Float[Tensor, "*b y x"], filters: Filters) -> Float[Tensor, "*b y x"]:
        """kappa of given white noise."""
        field = fourier.filtered(white, filters.root)
        if self.prior == "gaussian":
            return field
        return self.shift * torch.expm1(field - filters.variance / 2)

    def observed(self, kappa: Float[Tensor, "*b y x"], filters: Filters) -> Float[Tensor, "*b 2 y x"]:
        """The shear that is expected in each pixel, without noise."""
        shear = shear_of(kappa, filters.shear)
        return reduced_shear(shear, kappa) if self.reduced else shear


def make_filters(
    shape: tuple[int, int], pixel: float, model: MassMap, spectrum: Spectrum | None = None
) -> Filters:
    """The operators of a map.

    Args:
        shape: rows and columns.
        pixel: side of a pixel [arcmin].
        spectrum: of the convergence; the shipped one if it is not given.

    Raises:
        InputError: the spectrum does not cover the multipoles of the map; a log-normal field cannot have the
            power spectrum with this shift.
    """
    like = torch.zeros((), dtype=torch.float64)
    power = mode_power(shape, pixel, checked(spectrum or load_spectrum()), like)
    if model.prior != "gaussian":
        correlation = torch.fft.irfft2(power, s=shape)
        ratio = correlation / model.shift**2
        if ratio.min() <= -1:
            raise InputError("shift", model.shift, f"more than {float((-correlation.min()).sqrt()):.3g}")
        power = torch.fft.rfft2(torch.log1p(ratio)).real.clamp_min(0)
        power[0, 0] = 0
    variance = torch.fft.irfft2(power, s=shape)[0, 0]
    return Filters(power.sqrt(), shear_kernels(shape, like), variance)


def problem(
    data: ShearMaps,
    *,
    prior: Prior = "lognormal",
    shift: float | None = None,
    reduced: bool = False,
    spectrum: str | Path | None = None,
) -> Problem:
    """The inference problem of a shear map.

    Args:
        prior, reduced: of :class:`MassMap`.
        shift: k0 of the log-normal prior; :data:`SHIFT` if it is not given.
        spectrum: file of the power spectrum of the convergence (:func:`load_spectrum`).

    Raises:
        InputError: as :class:`MassMap`, :func:`load_spectrum` and :func:`make_filters`; with the hybrid
            prior, pixels, sides, a shift or a spectrum that its network was not trained for.
        DataError: as :func:`load_spectrum`.
    """
    model = _model(prior, shift, reduced)
    ny, nx = data.pixels.mask.shape
    weights = (_checked_weights((ny, nx), data.pixel, spectrum),) if prior == "hybrid" else ()
    filters = make_filters((ny, nx), data.pixel, model, load_spectrum(spectrum))
    return Problem(
        model,
        (data.pixels, filters, *weights),
        name="mass_map",
        start={"white": torch.zeros(ny, nx, dtype=torch.float64)},
        dims={"white": ("y", "x"), "kappa": ("y", "x"), "shear": ("component", "y", "x")},
        guides={"fourier": "astrozoo.guides.mass_map:fourier"},
        preconditioner={"white": "fourier"},
    )


def _model(prior: Prior, shift: float | None, reduced: bool) -> MassMap:
    """The model with the default shift of its prior."""
    if prior != "hybrid":
        return MassMap(prior, SHIFT if shift is None else shift, reduced)
    if shift is not None:
        expected = f"none with prior 'hybrid', whose network was trained with {kappa_residual.SHIFT}"
        raise InputError("shift", shift, expected)
    return MassMap(prior, kappa_residual.SHIFT, reduced)


def _checked_weights(shape: tuple[int, int], pixel: float, spectrum: str | Path | None) -> dict[str, Tensor]:
    """The weights of the hybrid prior, for maps as its network was trained on."""
    if abs(pixel / kappa_residual.PIXEL - 1) > _PIXEL_TOLERANCE:
        raise InputError("pixel", f"{pixel:.4g} arcmin", f"{kappa_residual.PIXEL} with prior 'hybrid'")
    if any(side % kappa_residual.MULTIPLE for side in shape):
        expected = f"multiples of {kappa_residual.MULTIPLE} with prior 'hybrid': add empty pixels"
        raise InputError("sides of the map", shape, expected)
    if spectrum is not None:
        raise InputError("spectrum", str(spectrum), "none with prior 'hybrid', whose network has its own")
    return kappa_residual.weights()


def simulate(
    seed: int = 0,
    *,
    size: int = 16,
    pixel: float = _PIXEL,
    noise: float = _NOISE,
    prior: Prior = "lognormal",
    shift: float | None = None,
    reduced: bool = False,
    spectrum: str | Path | None = None,
) -> tuple[ShearMaps, dict[str, Tensor]]:
    """Shear maps drawn from the model, with an unseen border and unseen discs around bright stars.

    Args:
        size: side of the map [px].
        pixel: side of a pixel [arcmin].
        noise: mean SD of a shear component in a pixel. It varies by a third over the map.
        prior, shift, reduced, spectrum: as :func:`problem`.

    Raises:
        InputError: the hybrid prior, which has no direct draws; as :func:`problem`.
    """
    if prior == "hybrid":
        raise InputError("prior", "'hybrid', which has no direct draws", "'lognormal' or 'gaussian'")
    model = _model(prior, shift, reduced)
    generator = torch.Generator().manual_seed(seed)
    filters = make_filters((size, size), pixel, model, load_spectrum(spectrum))
    white = torch.randn(size, size, generator=generator, dtype=torch.float64)
    kappa = model.convergence(white, filters)
    axis = torch.arange(size, dtype=torch.float64)
    sd = noise * (1 + torch.sin(2 * math.pi * axis / size) / 3).expand(2, size, size)
    mask = _simulated_mask(size, generator)
    drawn = model.observed(kappa, filters) + sd * torch.randn(sd.shape, generator=generator, dtype=sd.dtype)
    pixels = Pixels(torch.where(mask, drawn, 0.0), torch.where(mask, sd, 1.0), mask)
    wcs = tangent_wcs(np.array([150.0]), np.array([2.0]), pixel)[0]
    wcs.wcs.crpix = [(size + 1) / 2] * 2
    maps = ShearMaps(pixels, pixel, wcs, f"simulated by the model itself, seed {seed}")
    return maps, {"white": white, "kappa": kappa}


def _simulated_mask(size: int, generator: torch.Generator) -> Bool[Tensor, "y x"]:
    """A border of a 32nd, and a disc for every 32 x 32 pixels."""
    border = size // 32
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[border : size - border, border : size - border] = True
    axis = torch.arange(size)
    for y, x, r in torch.rand((size // 32) ** 2, 3, generator=generator).tolist():
        mask &= (axis[:, None] - y * size) ** 2 + (axis - x * size) ** 2 > (1 + 4 * r) ** 2
    return mask


def read(
    path: str | Path,
    *,
    pixel: float | None = None,
    margin: float = _MARGIN,
    ra: str | None = None,
    dec: str | None = None,
    e1: str | None = None,
    e2: str | None = None,
    weight: str | None = None,
    x_axis: Literal["west", "east"] = "west",
    sigma_e: float | None = None,
    second: str | Path | None = None,
    noise_map: str | Path | None = None,
    mask_map: str | Path | None = None,
) -> ShearMaps:
    """Shear maps from a catalogue (FITS, Parquet, CSV, NPZ), or from maps (FITS images).

    A catalogue is binned on a tangent plane with north up and east left. Galaxies without weights have equal
    ones. The noise of a pixel follows from the scatter of ellipticities and the weights.

    Maps are the two planes of an image, or one image each. Their components refer to the axes of the pixels.

    Args:
        pixel: side of a pixel [arcmin]. Of a catalogue 0.29 by default, of maps that of the header.
        margin: width of the empty margin around a catalogue [arcmin].
        ra, dec, e1, e2, weight: names of columns; common names are known.
        x_axis: where the x axis of the catalogue's components points.
        sigma_e: SD of a component of the ellipticity of one galaxy; measured if it is not given.
        second: of maps, the file of the second component.
        noise_map, mask_map: of maps. The noise map may have two planes.

    Raises:
        DataError: a file that is missing or unreadable, or a column that it lacks.
        InputError: values that no catalogue has, a map of another shape, or an option of the other kind.
    """
    path = Path(path)
    maps = {"second": second, "noise_map": noise_map, "mask_map": mask_map}
    if shear_files.is_image(path):
        columns = {"ra": ra, "dec": dec, "e1": e1, "e2": e2, "weight": weight, "sigma_e": sigma_e}
        _refuse_given(columns, f"no {{}} with maps; {path} is an image")
        found = shear_files.read_maps(path, second, noise_map, mask_map)
        side = pixel or found.pixel
        if side is None:
            raise InputError("pixel", "none, and no WCS in the header", "the side of a pixel [arcmin]")
        tensors = (torch.as_tensor(x) for x in (found.shear, found.noise, found.mask))
        return ShearMaps(Pixels(*tensors), side, found.wcs, str(path))
    _refuse_given(maps, f"no {{}} with a catalogue; {path} is a table")
    table = shear_files.read_columns(path, ra=ra, dec=dec, e1=e1, e2=e2, weight=weight)
    checked_rows(**table)
    side = pixel or _PIXEL
    wcs, shape = tangent_wcs(table["ra"], table["dec"], side, math.ceil(margin / side))
    x, y = wcs.all_world2pix(table["ra"], table["dec"], 0)
    ellipticity = np.stack((table["e1"], sky_frame(table["e2"], x_axis)))
    binned = bin_shear(x, y, ellipticity, table["weight"], shape, sigma_e)
    tensors = (torch.as_tensor(a) for a in (binned.shear, binned.noise, binned.mask))
    origin = f"{path}: {len(x):,} galaxies in {int(binned.mask.sum()):,} of {binned.mask.size:,} pixels"
    return ShearMaps(Pixels(*tensors), side, wcs, origin)


def _refuse_given(options: dict[str, Any], expected: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(name, value, expected.format(name))
