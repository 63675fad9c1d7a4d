"""Simulated maps of the convergence, for training: halo maps, and log-normal maps.

    python -m experiments.simulate_kappa --out maps.npz [--kind halos] [--maps 200] [--size 120] [--seed 0]

Halo maps. The line of sight is cut into planes. In each, a Gaussian field of the linear density is drawn.
Halos of the Tinker mass function are Poisson draws in each pixel, around a log-normal function of their bias
times that field. They have truncated NFW profiles with Duffy's concentrations. The matter outside of halos
follows the linear field. The power spectrum of the sum is then scaled to that of ``mass_map``, by a filter
that is the same for all maps.

Log-normal maps are draws of the prior of ``mass_map``.

Maps are periodic. None of the maps that a method is tested with enters. The file has ``kappa [map, y, x]``,
``pixel`` [arcmin], and the filter's rings. SD, skewness and kurtosis of the maps are printed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from astrozoo.models import mass_map
from astrozoo.models.kappa_spectrum import load_spectrum
from astrozoo.physics.cosmology import Cosmology, growth, make_cosmology
from astrozoo.physics.matter_power import (
    Matter,
    halo_bias,
    halo_waves,
    lensing_weights,
    linear_power,
    mass_function,
)

PIXEL = 0.29
"""[arcmin] Side of a pixel by default."""
PLANES = 40
"""Planes up to redshift 2.5. Each is thinner than 100 Mpc / h, over which lensing weights hardly change."""
FARTHEST = 2.5
"""Redshift beyond which matter is left out. The scaling of the power makes up for it."""
MASSES = np.logspace(12, 15.6, 25)
"""[Msun / h] Edges of the classes of halos. Smaller ones are unresolved, and part of the linear field."""
RINGS = 24
"""Rings of the filter that scales the power."""
CALIBRATED = 48
"""Fewest maps from which the filter is measured. Its largest ring has 4 modes of each map."""


@dataclass(frozen=True)
class Plane:
    """Matter between two distances.

    Args:
        weight: convergence of a density contrast of 1 in the plane.
        root: from white noise to the linear density contrast, per mode.
        numbers: mean number of halos in a pixel, per mass.
        bias: of the halos.
        waves: convergence of a halo that is spread over a pixel, per mass and mode.
        smooth: fraction of matter outside of halos.
    """

    weight: float
    root: Float[np.ndarray, "y h"]
    numbers: Float[np.ndarray, "m"]
    bias: Float[np.ndarray, "m"]
    waves: Float[np.ndarray, "m y h"]
    smooth: float


def planes(size: int, pixel: float, cosmology: Cosmology) -> list[Plane]:
    """The planes of a map, for sources with n(z) ~ z^2 exp(-(z / 0.66)^1.2)."""
    z = np.linspace(0.004, 5, 1500)
    lensing = lensing_weights(z, z**2 * np.exp(-((z / 0.66) ** 1.2)), cosmology)
    matter = Matter.of(cosmology)
    side = math.radians(pixel / 60)
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    ell = 2 * np.pi / side * np.hypot(ky, kx)
    ell[0, 0] = ell[0, 1] / 2
    farthest = np.interp(FARTHEST, z, lensing.distance)
    edges = np.linspace(lensing.distance[0], farthest, PLANES + 1)
    table = np.geomspace(ell.min() / 2, 1.01 * ell.max(), 200)
    mass = np.sqrt(MASSES[1:] * MASSES[:-1])
    made = []
    for near, far in itertools.pairwise(edges):
        distance = (near + far) / 2
        redshift = float(np.interp(distance, lensing.distance, z))
        d1 = float(growth(torch.tensor([1 / (1 + redshift)]), cosmology).d1)
        k = torch.as_tensor(ell / distance)
        power = linear_power(k, cosmology).numpy() * d1**2 / (distance**2 * (far - near))
        power[0, 0] = 0
        at = torch.as_tensor(mass)
        number = mass_function(at, redshift, cosmology, matter).numpy() * np.diff(np.log(MASSES))
        volume = side**2 * distance**2 * (far - near)  # of a pixel [(Mpc / h)^3]
        weight = float(np.interp(distance, lensing.distance, lensing.weight)) * (far - near)
        profiles = [np.interp(ell, table, halo_waves(table / distance, m, redshift, cosmology)) for m in mass]
        share = mass / (float(matter.mean) * volume)  # density contrast of one halo in a pixel
        made.append(
            Plane(
                weight,
                np.sqrt(power / side**2),
                number * volume,
                halo_bias(at, redshift, cosmology, matter).numpy(),
                weight * share[:, None, None] * np.stack(profiles),
                1 - float((number * mass).sum() / float(matter.mean)),
            )
        )
    return made


def halo_map(parts: list[Plane], size: int, generator: np.random.Generator) -> Float[np.ndarray, "y x"]:
    """One map, whose power is not scaled."""
    total = np.zeros((size, size // 2 + 1), complex)
    for part in parts:
        linear = np.fft.rfft2(generator.standard_normal((size, size))) * part.root
        field = np.fft.irfft2(linear, s=(size, size))
        biased = part.bias[:, None, None] * field
        density = np.exp(biased - biased.var((1, 2), keepdims=True) / 2)
        counts = generator.poisson(part.numbers[:, None, None] * density)
        counts = counts.astype(np.float32)
        total += (np.fft.rfft2(counts) * part.waves).sum(0) + part.weight * part.smooth * linear
    total[0, 0] = 0
    return np.fft.irfft2(total, s=(size, size))


def scaled(maps: Float[np.ndarray, "n y x"], pixel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rings of multipole, and the factors that scale the maps' power to that of ``mass_map``."""
    size = maps.shape[-1]
    side = math.radians(pixel / 60)
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    ell = 2 * np.pi / side * np.hypot(ky, kx)
    edges = np.geomspace(ell[0, 1] * 0.99, ell.max() * 1.01, RINGS + 1)
    ring = np.digitize(ell.ravel(), edges) - 1
    power = (np.abs(np.fft.rfft2(maps)) ** 2).mean(0).ravel() / size**2
    spectrum = load_spectrum()
    theory = np.exp(np.interp(np.log(ell.ravel().clip(1)), *np.log(spectrum))) / side**2
    kept = [i for i in range(RINGS) if (ring == i).any()]
    centre = np.array([np.exp(np.log(ell.ravel()[ring == i]).mean()) for i in kept])
    factor = np.array([np.sqrt(theory[ring == i].mean() / power[ring == i].mean()) for i in kept])
    filter_ = np.interp(np.log(ell.clip(1)), np.log(centre), factor)
    return centre, factor, filter_


def simulate_halos(count: int, size: int, pixel: float, seed: int) -> dict[str, np.ndarray]:
    """Halo maps whose power is that of ``mass_map``."""
    parts = planes(size, pixel, make_cosmology())
    generator = np.random.default_rng(seed)
    maps = np.stack([halo_map(parts, size, generator) for _ in range(max(count, CALIBRATED))])
    centre, factor, filter_ = scaled(maps, pixel)
    maps = np.fft.irfft2(np.fft.rfft2(maps[:count]) * filter_, s=(size, size))
    return {"kappa": maps.astype(np.float32), "ell": centre, "factor": factor}


def simulate_lognormal(count: int, size: int, pixel: float, seed: int) -> dict[str, np.ndarray]:
    """Draws of the log-normal prior of ``mass_map``."""
    model = mass_map.MassMap()
    filters = mass_map.make_filters((size, size), pixel, model)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return {"kappa": model.convergence(white, filters).numpy().astype(np.float32)}


def moments(kappa: np.ndarray) -> dict[str, float]:
    """SD, skewness and kurtosis of all pixels."""
    x = kappa - kappa.mean()
    sd = float(x.std())
    return {
        "SD": sd, "skewness": float((x**3).mean()) / sd**3, "kurtosis": float((x**4).mean()) / sd**4,
        "least": float(kappa.min()), "most": float(kappa.max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("halos", "lognormal"), default="halos")
    parser.add_argument("--maps", type=int, default=200)
    parser.add_argument("--size", type=int, default=120, help="side of a map [px]")
    parser.add_argument("--pixel", type=float, default=PIXEL, help="side of a pixel [arcmin]")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    simulate: Any = {"halos": simulate_halos, "lognormal": simulate_lognormal}[chosen.kind]
    made = simulate(chosen.maps, chosen.size, chosen.pixel, chosen.seed)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(chosen.out, pixel=chosen.pixel, seed=chosen.seed, **made)
    cost = {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    print({name: round(value, 4) for name, value in (moments(made["kappa"]) | cost).items()})


if __name__ == "__main__":
    main()
