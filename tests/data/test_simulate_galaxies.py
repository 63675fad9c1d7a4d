from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from astrozoo.data import root
from astrozoo.data.galaxy_morphology import draw_components
from astrozoo.data.galaxy_population import FILE, Galaxy, load_population
from astrozoo.data.galaxy_survey import BANDS
from astrozoo.data.simulate_galaxies import (
    KINDS,
    GalaxyStamps,
    GalaxySurvey,
    PsfRange,
    noise_kernel,
    simulate_galaxies,
)
from astrozoo.errors import DataError, InputError

SMALL = GalaxySurvey(size=24, pixel_scale=0.2, psf=PsfRange(fwhm=(0.4, 0.6)))


def _equal(a: GalaxyStamps, b: GalaxyStamps) -> bool:
    names = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_galaxies_depend_on_the_seed_alone_whatever_the_workers_and_the_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("astrozoo.data.simulate_galaxies._CHUNK", 4)
    many = simulate_galaxies(SMALL, 10, seed=3, progress=False)
    assert _equal(many, simulate_galaxies(SMALL, 10, seed=3, workers=2, progress=False))
    assert _equal(many[:7], simulate_galaxies(SMALL, 7, seed=3, progress=False))
    assert not torch.equal(many.image[:7], simulate_galaxies(SMALL, 7, seed=4, progress=False).image)


def test_a_galaxy_is_the_same_for_other_instruments() -> None:
    one = simulate_galaxies(SMALL, 6, seed=1, progress=False)
    sharp = replace(SMALL, size=48, pixel_scale=0.1, psf=PsfRange(fwhm=(0.2, 0.3)), snr=None, noise_rms=0.01)
    other = simulate_galaxies(sharp, 6, seed=1, progress=False)
    for name in ("flux", "half_light_radius", "e1", "e2", "kind", "redshift"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.allclose(one.noiseless.sum((1, 2)), other.noiseless.sum((1, 2)), rtol=0.05)
    assert (other.noise_rms == 0.01).all()


def test_stamps_have_the_flux_noise_and_snr_of_the_truth() -> None:
    survey = replace(SMALL, size=64, radius=(0.2, 0.4), noise_correlation=0.48, centre_scatter=0.0)
    stamps = simulate_galaxies(survey, 30, seed=2, progress=False)
    inside = stamps.noiseless.sum((1, 2)) / stamps.flux
    assert inside.median() > 0.985
    assert inside.max() < 1.003
    assert torch.allclose(stamps.psf.sum((1, 2)), torch.ones(30), atol=1e-5)
    noise = (stamps.image - stamps.noiseless) / stamps.noise_rms[:, None, None]
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean().item() == pytest.approx(0.48, abs=0.02)
    assert (noise[:, -1] * noise[:, 0]).mean().abs() < 0.1  # opposite edges are independent
    kernel = noise_kernel(0.48)
    assert np.correlate(kernel, kernel, "full")[len(kernel) - 1 :][:2] == pytest.approx([1, 0.48], abs=1e-6)
    snr = stamps.noiseless.square().sum((1, 2)).sqrt() / stamps.noise_rms
    assert torch.allclose(snr, stamps.snr, rtol=1e-4)
    assert snr.min() > 10
    assert snr.max() < 200
    assert torch.allclose(25 - 2.5 * stamps.flux.log10(), stamps.magnitude, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_half_light_radius_is_that_of_the_drawn_light(kind: str) -> None:
    galaxy = Galaxy(22.0, 0.4, 1.5, 1.0, 0.5, 0.3)
    for seed in range(2):
        light = draw_components(np.random.default_rng(seed), galaxy, kind, BANDS["F814W"])
        assert light.profile.flux == pytest.approx(light.flux, rel=1e-6)
        image = light.profile.drawImage(nx=201, ny=201, scale=0.03, method="no_pixel")
        assert image.calculateHLR(flux=light.flux) == pytest.approx(0.4, rel=0.03)


def test_shapes_follow_the_shear_and_the_rotation() -> None:
    smooth = replace(SMALL, size=64, kinds=(1, 0, 0, 0, 0), radius=(0.4, 0.8), centre_scatter=0.0)
    one = simulate_galaxies(smooth, 5, seed=5, progress=False)
    turned = simulate_galaxies(replace(smooth, rotation=90.0), 5, seed=5, progress=False)
    assert torch.allclose(one.e1, -turned.e1, atol=1e-5)
    assert torch.allclose(one.e2, -turned.e2, atol=1e-5)
    sheared = simulate_galaxies(replace(smooth, shear=(0.05, 0.0)), 5, seed=5, progress=False)
    expected = [
        galsim.Shear(g1=0.05) + galsim.Shear(g1=float(a), g2=float(b))
        for a, b in zip(one.e1, one.e2, strict=True)
    ]
    assert sheared.e1.tolist() == pytest.approx([shape.g1 for shape in expected], abs=1e-5)
    measured = galsim.hsm.FindAdaptiveMom(galsim.Image(sheared.noiseless[0].numpy())).observed_shape
    assert (measured.beta - expected[0].beta).wrap() / galsim.degrees == pytest.approx(0, abs=3)
    assert 0.4 < measured.g / expected[0].g < 1  # the PSF makes it rounder


def test_bands_differ_in_colour_by_component() -> None:
    galaxy = Galaxy(22.0, 0.4, 1.5, 0.7, 0.5, 0.5)
    blue, red = (
        draw_components(np.random.default_rng(1), galaxy, "spiral", BANDS[band]).profile
        for band in ("g", "z")
    )
    outside, inside = ([p.xValue(x, 0.0) / p.xValue(0.5, 0.0) for p in (blue, red)] for x in (0.9, 0.05))
    assert inside[1] > inside[0]
    assert outside != inside


def test_neighbours_are_in_the_image_alone() -> None:
    crowded = simulate_galaxies(replace(SMALL, neighbours=3.0), 8, seed=6, progress=False)
    alone = simulate_galaxies(SMALL, 8, seed=6, progress=False)
    assert torch.equal(crowded.noiseless, alone.noiseless)
    extra = (crowded.image - alone.image).sum((1, 2))
    assert (extra >= -1e-3).all()
    assert (extra > 0).float().mean() > 0.7


def test_cache_is_reused_continued_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate_galaxies(SMALL, 5, seed=7, cache=tmp_path, progress=False)
    longer = simulate_galaxies(SMALL, 8, seed=7, cache=tmp_path, progress=False)
    assert _equal(first, longer[:5])
    monkeypatch.setattr("astrozoo.data.simulate_galaxies.render_chunk", None)
    assert _equal(longer, simulate_galaxies(SMALL, 8, seed=7, cache=tmp_path, progress=False))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="wrong checksum"):
        simulate_galaxies(SMALL, 8, seed=7, cache=tmp_path, progress=False)


def test_without_the_fits_a_multivariate_normal_of_the_same_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root()
    if folder is None or not (folder / FILE).is_file():
        pytest.skip("no COSMOS fits in the local data")
    bootstrap = load_population()
    monkeypatch.setenv("ASTROZOO_DATA", str(tmp_path))
    normal = load_population()
    assert "normal" in normal.name
    rng = np.random.default_rng(0)
    ranges = (0.05, 2.0), (17.0, 23.5)
    draws = [[p.draw(rng, *ranges) for _ in range(800)] for p in (bootstrap, normal)]
    for name in ("magnitude", "half_light_radius", "index", "axis_ratio", "redshift"):
        a, b = ([getattr(galaxy, name) for galaxy in part] for part in draws)
        assert ks_2samp(a, b).statistic < 0.15, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "size of stamps"),
        ({"pixel_scale": 0.0}, "pixel_scale"),
        ({"psf": PsfRange(fwhm=(0.5, 5.0))}, "quarter of a stamp"),
        ({"noise_rms": 1.0}, "one of them"),
        ({"snr": None, "noise_rms": float("nan")}, "noise_rms"),
        ({"noise_correlation": 1.0}, "noise_correlation"),
        ({"kinds": (0, 0, 0, 0, 0)}, "kinds"),
        ({"band": "Q"}, "band"),
        ({"shear": (0.9, 0.9)}, "shear"),
        ({"radius": (0.4, 0.2)}, "radius"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **settings)


def test_bad_calls() -> None:
    with pytest.raises(InputError, match="PSF profile"):
        PsfRange("square")
    with pytest.raises(InputError, match="count"):
        simulate_galaxies(SMALL, 0, seed=0)
    with pytest.raises(InputError, match="ranges of radius"):
        simulate_galaxies(replace(SMALL, radius=(50.0, 60.0)), 1, seed=0, progress=False)
