"""Draws of galaxies' parameters under an interim prior, by importance sampling around each mode."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.data.observed_stamps import ObservedStamps, read_observed
from astrozoo.density import LogDensity, log_density
from astrozoo.errors import InputError
from astrozoo.infer.maximise import maximise
from astrozoo.infer.progress import progress_bar
from astrozoo.models.sersic_stamp import Interim, SersicStamp, stamp_modes
from astrozoo.models.shear import GalaxyDraws
from astrozoo.physics.ellipticity import SERSIC_INDICES
from astrozoo.types import Problem

__all__ = ["Fits", "check_index", "fit_stamps", "point_fits", "read", "wide_prior"]

_BATCH = 500
"""Galaxies that are fitted at once, so that an array of their modes stays in a processor's cache."""
_TOLERANCE = 0.01
"""[posterior SD] Length of the last Newton step of a mode: a hundredth of the noise."""
_ITERATIONS = 60
"""Newton steps. Modes take 5 to 10; only a galaxy that is lost in the noise takes more."""
_FREEDOM = 8
"""Degrees of freedom of the t distributions that are drawn from. Their tails are heavier than those of the
posterior of a small galaxy, and in six dimensions half of the draws still count."""
_OFFSET_SD = 1.0
"""[px] Prior SD of each coordinate of a galaxy's centre: stamps are cut at a measured position."""
_DIM = 6


@dataclass(frozen=True, eq=False)
class Fits:
    """Fits of all galaxies of some stamps.

    Args:
        draws: for :func:`astrozoo.models.shear.problem`.
        mode: of the interim posterior: eta_1, eta_2, ln r, ln F, x, y.
        effective: effective number of independent draws of each galaxy.
        interim: the prior.
        seconds: of the fits.
    """

    draws: GalaxyDraws
    mode: Float[Tensor, "galaxy 6"]
    effective: Float[Tensor, "galaxy"]
    interim: Interim
    seconds: float


def check_index(index: float) -> None:
    """Raise an InputError if a Sersic index has no transform in closed form."""
    if index not in SERSIC_INDICES:
        raise InputError("Sersic index", index, f"one of {', '.join(map(str, SERSIC_INDICES))}")


def read(
    path: Path, *, pixel_scale: float | None = None, sersic: float = 1.0, interim_draws: int = 128
) -> GalaxyDraws:
    """Draws of the galaxies of a file of stamps (:func:`astrozoo.data.observed_stamps.read_observed`).

    Raises:
        DataError: the file is unusable.
        InputError: the Sersic index is not supported.
    """
    return fit_stamps(read_observed(path, pixel_scale), sersic, draws=interim_draws).draws


def fit_stamps(
    stamps: ObservedStamps,
    index: float = 1.0,
    *,
    draws: int = 128,
    seed: int = 0,
    interim: Interim | None = None,
    progress: bool = True,
) -> Fits:
    """Draw from each galaxy's posterior under an interim prior.

    The proposal is a t distribution at the posterior's mode with the covariance of its curvature. Draws are
    quasi-random: a Sobol sequence, shifted at random for each galaxy, and its mirror image.

    Args:
        index: Sersic index of the galaxies.
        draws: of each galaxy, an even number.
        seed: of the draws. Random numbers of galaxy ``i`` depend on the seed and ``i`` alone.
        interim: the prior; by default a wide one around the median flux and the PSF's size.

    Raises:
        InputError: the Sersic index is not supported, or the number of draws is odd.
    """
    check_index(index)
    if draws < 2 or draws % 2:
        raise InputError("draws", draws, "an even number")
    interim = wide_prior(stamps) if interim is None else interim
    started, parts = time.monotonic(), []
    target = _target(stamps, index, interim)
    with progress_bar("galaxies", len(stamps.image), progress) as report:
        for first in range(0, len(stamps.image), _BATCH):
            rows = torch.arange(first, min(first + _BATCH, len(stamps.image)))
            part = target.take(rows)
            found = _modes(part, _start(stamps, interim, rows), interim)
            parts.append(_draw(part, found, draws, seed, rows))
            report(int(rows[-1]) + 1, "")
    mode, z, log_weight, effective = (torch.cat(part) for part in zip(*parts, strict=True))
    density = log_weight - _log_interim(interim, z)
    values = GalaxyDraws(z[..., :2].contiguous(), z[..., 2].contiguous(), z[..., 3].contiguous(), density)
    return Fits(values, mode, effective, interim, time.monotonic() - started)


def point_fits(
    stamps: ObservedStamps, index: float = 1.0, *, start: Float[Tensor, "galaxy 6"] | None = None
) -> Float[Tensor, "galaxy 6"]:
    """Maximum-likelihood fits, for comparison: parameters as those of :class:`Fits`.

    The prior is so wide that it matters only for parameters that the data do not constrain.

    Args:
        start: first values; by default those of :func:`fit_stamps`.
    """
    check_index(index)
    wide = wide_prior(stamps)
    flat = wide._replace(
        eta_sd=wide.eta_sd * 10,
        log_radius=wide.log_radius * wide.log_radius.new_tensor([1.0, 5.0]),
        log_flux=wide.log_flux * wide.log_flux.new_tensor([1.0, 5.0]),
        offset_sd=wide.offset_sd * 5,
    )
    target, parts = _target(stamps, index, flat), []
    for first in range(0, len(stamps.image), _BATCH):
        rows = torch.arange(first, min(first + _BATCH, len(stamps.image)))
        first_values = _start(stamps, wide, rows) if start is None else start[rows]
        parts.append(_modes(target.take(rows), first_values, wide)[0])
    return torch.cat(parts)


def wide_prior(stamps: ObservedStamps) -> Interim:
    """An interim prior around the median flux and the size of the PSF."""
    flux = stamps.image.sum((1, 2)).median().clamp_min(float(stamps.noise_rms.median()))
    area = 1 / stamps.psf.square().sum((1, 2)).median()  # [px^2], 4 pi sigma^2 of a Gaussian
    radius = stamps.pixel_scale * (area / (4 * math.pi)).sqrt()
    return Interim(
        flux.new_tensor(0.8),
        torch.stack((radius.log(), flux.new_tensor(1.0))),
        torch.stack((flux.log(), flux.new_tensor(1.5))),
        flux.new_tensor(_OFFSET_SD * stamps.pixel_scale),
    )


def _target(stamps: ObservedStamps, index: float, interim: Interim) -> LogDensity:
    """The log density of each galaxy under the interim prior."""
    count = len(stamps.image)
    modes = stamp_modes(stamps.image, stamps.psf, stamps.noise_rms, stamps.pixel_scale)
    everywhere = Interim(*(part.expand(count, *part.shape) for part in interim))
    return log_density(
        Problem(SersicStamp(index), (modes, everywhere), name="sersic_stamp", batch=count), compile="never"
    )


def _start(stamps: ObservedStamps, interim: Interim, rows: Tensor) -> Float[Tensor, "b 6"]:
    """Round galaxies of the prior's radius at the stamps' centres, with the stamps' fluxes."""
    start = stamps.image.new_zeros(len(rows), _DIM)
    start[:, 2] = interim.log_radius[0]
    flux = stamps.image[rows].sum((1, 2))
    start[:, 3] = torch.maximum(flux, (interim.log_flux[0] - interim.log_flux[1]).exp()).log()
    return start


def _modes(
    target: LogDensity, start: Float[Tensor, "b 6"], interim: Interim
) -> tuple[Float[Tensor, "b 6"], Float[Tensor, "b 6 6"]]:
    """The mode of each galaxy, and the inverse of the curvature there."""
    solution = maximise(target, start, max_iterations=_ITERATIONS, tolerance=_TOLERANCE, radius=1.0)
    hessian = solution.hessian
    assert hessian is not None
    value, vector = torch.linalg.eigh(-hessian)
    least = 1 / torch.stack((interim.eta_sd, interim.log_radius[1], interim.log_flux[1], interim.offset_sd))
    value = torch.maximum(value, least.min() ** 2)  # the prior's curvature bounds that of the posterior
    return solution.w, (vector / value[:, None]) @ vector.mT


def _draw(
    target: LogDensity, mode: tuple[Tensor, Tensor], draws: int, seed: int, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Modes, draws, log weights under the interim posterior, and effective numbers of draws."""
    centre, covariance = mode
    uniform = torch.stack([_uniform(draws // 2, seed, int(row)) for row in rows]).to(centre)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform[..., :_DIM] - 1)
    normal, uniform = torch.cat((normal, -normal), 1), torch.cat((uniform, uniform), 1)
    # A chi2 variable of an even number of degrees of freedom is a sum of exponentials.
    chi2 = -2 * uniform[..., _DIM:].log().sum(-1)
    stretch = torch.sqrt(_FREEDOM / chi2)
    root = torch.linalg.cholesky(covariance)
    z = centre[:, None] + stretch[..., None] * normal @ root.mT
    square = normal.square().sum(-1) * stretch**2
    log_q = -0.5 * (_FREEDOM + _DIM) * torch.log1p(square / _FREEDOM)
    log_q = log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
    value = torch.cat([target.values(z[:, k]) for k in range(draws)], 1)
    log_weight = value - log_q
    weight = log_weight.softmax(-1)
    return centre, z, log_weight, 1 / weight.square().sum(-1)


def _uniform(draws: int, seed: int, row: int) -> Float[Tensor, "draw u"]:
    """A Sobol sequence in the open unit cube, shifted at random."""
    width = _DIM + _FREEDOM // 2
    points = torch.quasirandom.SobolEngine(width).draw(draws, dtype=torch.float64)
    random = torch.Generator().manual_seed((seed << 32) + row)
    shift = torch.rand(width, generator=random, dtype=torch.float64)
    return ((points + shift) % 1).clamp(1e-12, 1 - 1e-12)


def _log_interim(interim: Interim, z: Float[Tensor, "b k 6"]) -> Float[Tensor, "b k"]:
    """Log density of the interim prior of the parameters that the population describes, up to a constant."""
    shape = (z[..., :2] / interim.eta_sd).square().sum(-1)
    radius = ((z[..., 2] - interim.log_radius[0]) / interim.log_radius[1]).square()
    flux = ((z[..., 3] - interim.log_flux[0]) / interim.log_flux[1]).square()
    return -0.5 * (shape + radius + flux)
