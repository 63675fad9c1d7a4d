import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import galsim
import numpy as np
import pytest
import torch
from torch import Tensor

from astrozoo import GalSimGalaxy
from astrozoo.errors import InputError


@dataclass(frozen=True)
class Blobs:
    """A Gaussian of a random orientation, with a constant level at its edge as networks leave."""

    size: int = 64
    pixel_scale: float | None = 0.05
    inputs: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"radius": (2.0, 8.0)})

    def draw(self, random: torch.Generator, inputs: Mapping[str, float]) -> Tensor:
        axis = torch.arange(self.size) - (self.size - 1) / 2
        e = 0.3 * torch.randn(2, generator=random)
        x, y = axis[None, :], axis[:, None]
        r2 = (1 + e[0]) * x**2 + (1 - e[0]) * y**2 + 2 * e[1] * x * y
        return torch.exp(-0.5 * r2 / inputs["radius"] ** 2) + 0.008


def test_flux_is_exact_and_the_edge_is_tapered() -> None:
    psf = galsim.Moffat(beta=3, fwhm=0.2)
    for size in (63, 64):
        galaxy = GalSimGalaxy(Blobs(size=size), galsim.BaseDeviate(1), flux=7.0, radius=4.0)
        assert (galaxy.stamp_size, galaxy.pixel_size) == (size, 0.05)
        image = galsim.Convolve(galaxy.shear(g1=0.1), psf).drawImage(nx=401, ny=401, scale=0.05)
        assert image.array.sum(dtype=float) == pytest.approx(7.0, rel=1e-3)  # the PSF's wings leave the image
        alone = galaxy.drawImage(nx=256, ny=256, scale=0.05, method="no_pixel", dtype=float)
        assert alone.array.sum() == pytest.approx(7.0, rel=1e-4)
        edge = galaxy.image.array[0]
        assert np.abs(edge).max() < 1e-3 * galaxy.image.array.max()


def test_the_seed_decides_the_galaxy() -> None:
    one, same, other = (
        GalSimGalaxy(Blobs(), galsim.BaseDeviate(seed), radius=4.0).image.array for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    rng = galsim.BaseDeviate(5)
    first, second = (GalSimGalaxy(Blobs(), rng, radius=4.0).image.array for _ in range(2))
    assert np.array_equal(first, one)
    assert not np.array_equal(first, second)


def test_a_model_of_the_zoo_by_name() -> None:
    galaxy = GalSimGalaxy("learned_source", galsim.BaseDeviate(2), pixel_scale=0.1)
    assert galaxy.flux == pytest.approx(1.0, rel=1e-5)
    image = galsim.Convolve(galaxy, galsim.Gaussian(fwhm=0.3)).drawImage(nx=128, ny=128, scale=0.1)
    assert image.array.sum(dtype=float) == pytest.approx(1.0, rel=1e-4)
    assert image.calculateHLR() > 0.3


def test_it_is_made_and_drawn_in_milliseconds() -> None:
    psf, model = galsim.Moffat(beta=3, fwhm=0.2), Blobs()
    seconds = []
    for seed in range(15):
        start = time.process_time()
        galaxy = GalSimGalaxy(model, galsim.BaseDeviate(seed + 1), radius=4.0)
        galsim.Convolve(galaxy.shear(g1=0.02), psf).drawImage(nx=64, ny=64, scale=0.1)
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < 0.012  # 3 ms on an idle machine


def test_configuration_file_draws_another_galaxy_for_each_object() -> None:
    config = {
        "modules": ["astrozoo.galsim_galaxy"],
        "gal": {
            "type": "GalSimGalaxy",
            "model": "learned_source",
            "pixel_scale": 0.1,
            "flux": {"type": "List", "items": [10.0, 20.0]},
            "shear": {"type": "G1G2", "g1": 0.02, "g2": 0.0},
        },
        "psf": {"type": "Gaussian", "fwhm": 0.3},
        "image": {"type": "Tiled", "nx_tiles": 2, "ny_tiles": 1, "stamp_size": 96, "pixel_scale": 0.1},
    }

    def image(seed: int) -> np.ndarray:
        config["image"]["random_seed"] = seed  # type: ignore[index]
        return galsim.config.BuildImage(galsim.config.CopyConfig(config)).array

    one = image(1)
    halves = one[:, :96], one[:, 96:]
    assert [half.sum(dtype=float) for half in halves] == pytest.approx([10, 20], rel=1e-3)
    assert np.abs(halves[1] / 2 - halves[0]).max() > 0.05 * halves[0].max()
    assert np.array_equal(one, image(1))
    assert not np.array_equal(one, image(2))


def test_inputs_outside_the_trained_range_give_a_warning_with_the_range() -> None:
    with pytest.warns(UserWarning, match=r"radius: got 9, outside 2 to 8"):
        GalSimGalaxy(Blobs(), galsim.BaseDeviate(1), radius=9.0)


def test_bad_inputs() -> None:
    rng = galsim.BaseDeviate(1)
    with pytest.raises(InputError, match=r"conditional inputs: got none, expected exactly radius \(2 to 8\)"):
        GalSimGalaxy(Blobs(), rng)
    with pytest.raises(InputError, match=r"got radius, size, expected exactly radius \("):
        GalSimGalaxy(Blobs(), rng, radius=3.0, size=2.0)
    with pytest.raises(InputError, match=r"model: got 'celeste', expected a model that draws galaxies"):
        GalSimGalaxy("celeste", rng)
    with pytest.raises(InputError, match=r"pixel_scale \[arcsec\]: got None"):
        GalSimGalaxy("learned_source", rng)
    with pytest.raises(InputError, match=r"flux: got -1"):
        GalSimGalaxy(Blobs(), rng, flux=-1.0, radius=3.0)
    with pytest.raises(InputError, match=r"rng: got int"):
        GalSimGalaxy(Blobs(), 3, radius=3.0)  # type: ignore[arg-type]
