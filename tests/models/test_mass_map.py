from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

import astrozoo
from astrozoo.density import log_density
from astrozoo.errors import DataError, InputError
from astrozoo.massmap.maps import posterior_maps
from astrozoo.models import kappa_residual, mass_map
from astrozoo.models.kappa_spectrum import Spectrum, load_spectrum
from astrozoo.models.mass_map import MassMap, make_filters
from astrozoo.physics.fourier import binned_power, filtered


def white(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prior", ["gaussian", "lognormal"])
def test_draws_of_the_prior_have_the_power_of_the_spectrum(prior):
    shape, pixel = (64, 80), 1.0
    model = MassMap(prior)
    kappa = model.convergence(white(60, *shape), make_filters(shape, pixel, model))
    k, power = binned_power(kappa, 8)
    side = np.radians(pixel / 60)
    spectrum = load_spectrum()
    theory = np.exp(np.interp(np.log(2 * np.pi * k.numpy() / side), *np.log(spectrum))) / side**2
    np.testing.assert_allclose(power.mean(0)[1:].numpy(), theory[1:], rtol=0.12)
    assert abs(float(kappa.mean())) < 3e-4
    if prior == "lognormal":
        assert kappa.min() > -mass_map.SHIFT
        assert float((kappa**3).mean() / (kappa**2).mean() ** 1.5) > 1


def test_the_density_is_that_of_its_parts():
    maps, truth = mass_map.simulate(3, size=12)
    problem = mass_map.problem(maps)
    shear, noise, mask = maps.pixels
    z = truth["white"]
    expected = problem.model.observed(truth["kappa"], problem.args[1])
    by_hand = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    by_hand = by_hand + torch.distributions.Normal(expected, noise).log_prob(shear)[:, mask].sum()
    assert float(log_density(problem, compile="never").values(z.flatten()[None])) == pytest.approx(
        float(by_hand)
    )
    residual = ((shear - expected) / noise)[:, mask]
    assert float(residual.std()) == pytest.approx(1, abs=0.15)


def test_hmc_with_a_gaussian_prior_agrees_with_the_wiener_filter():
    maps, _ = mass_map.simulate(0, prior="gaussian")
    problem = mass_map.problem(maps, prior="gaussian")
    options = {"compile": "never", "progress": False, "seed": 1}
    exact = astrozoo.infer(problem, "wiener", draws=4000, **options)
    chains = astrozoo.infer(problem, "hmc", chains=8, draws=100, warmup=60, **options)
    mean, sd = (posterior_maps(problem, exact)[name] for name in ("MEAN", "SD"))
    ours = posterior_maps(problem, chains)
    z = (ours["MEAN"] - mean) / sd
    assert np.abs(z).max() < 0.3
    assert np.mean(ours["SD"] / sd) == pytest.approx(1, abs=0.03)


def test_the_log_normal_posterior_covers_the_truth_and_beats_the_gaussian():
    maps, truth = mass_map.simulate(1, size=20, pixel=1.0, noise=0.02)
    result = astrozoo.infer(
        mass_map.problem(maps), "hmc", chains=4, draws=100, warmup=60, compile="never", progress=False
    )
    found, true = posterior_maps(mass_map.problem(maps), result), truth["kappa"].numpy()
    inside = (found["Q025"] < true) & (true < found["Q975"])
    assert 0.9 < inside.mean() < 0.99
    gaussian = mass_map.problem(maps, prior="gaussian")
    wiener = astrozoo.infer(gaussian, "wiener", draws=2, compile="never", progress=False)
    error = np.std(posterior_maps(gaussian, wiener)["MEAN"] - true)
    assert np.std(found["MEAN"] - true) < error


def test_the_fourier_guide_finds_the_wiener_mean():
    maps, _ = mass_map.simulate(0, prior="gaussian")
    problem = mass_map.problem(maps, prior="gaussian")
    options = {"compile": "never", "progress": False}
    exact = astrozoo.infer(problem, "wiener", draws=400, **options)
    fitted = astrozoo.infer(problem, "trust_region", "fourier", draws=400, **options)
    mean, sd = (posterior_maps(problem, exact)[name] for name in ("MEAN", "SD"))
    assert np.abs((posterior_maps(problem, fitted)["MEAN"] - mean) / sd).max() < 0.35


def test_the_hybrid_density_is_the_log_normal_one_times_that_of_the_energy():
    maps, _ = mass_map.simulate(3, size=16)
    problem = mass_map.problem(maps, prior="hybrid")
    base = mass_map.problem(maps, shift=kappa_residual.SHIFT)
    z = white(2, 256, seed=1)
    (value, gradient), (value_0, gradient_0) = (
        log_density(p, compile="never").value_and_grad(z) for p in (problem, base)
    )
    root = base.args[1].root
    latent = z.clone().requires_grad_()
    g = filtered(latent.view(2, 1, 16, 16), root)
    level = torch.full((2,), kappa_residual.LEVELS[0], dtype=torch.float64)
    energy = kappa_residual.load()(g, level)
    assert energy.abs().min() > 0.01  # the network does something
    torch.testing.assert_close(value, value_0 - energy.detach(), rtol=0, atol=1e-3)
    (slope,) = torch.autograd.grad(energy.sum(), latent)
    torch.testing.assert_close(gradient, gradient_0 - slope, rtol=1e-4, atol=1e-4)


def test_the_hybrid_posterior_is_sampled():
    maps, truth = mass_map.simulate(1, size=16, noise=0.05)
    problem = mass_map.problem(maps, prior="hybrid")
    result = astrozoo.infer(
        problem, "hmc", chains=4, draws=30, warmup=30, compile="never", progress=False, keep=["kappa"]
    )
    found = posterior_maps(problem, result)
    assert found["MEAN"].min() > -kappa_residual.SHIFT
    assert np.corrcoef(found["MEAN"].ravel(), truth["kappa"].numpy().ravel())[0, 1] > 0.5


def test_maps_that_the_hybrid_prior_was_not_trained_for_are_refused():
    maps, _ = mass_map.simulate(0)
    for data, options, message in (
        (replace(maps, pixel=1.0), {}, r"pixel: got 1 arcmin, expected 0\.29 with prior 'hybrid'"),
        (mass_map.simulate(0, size=20)[0], {}, r"sides of the map: got \(20, 20\), expected multiples of 8"),
        (maps, {"shift": 0.05}, "shift: got 0.05, expected none with prior 'hybrid'"),
        (maps, {"spectrum": "s.txt"}, "spectrum: got s.txt, expected none"),
    ):
        with pytest.raises(InputError, match=message):
            mass_map.problem(data, prior="hybrid", **options)
    with pytest.raises(InputError, match="has no direct draws"):
        mass_map.simulate(0, prior="hybrid")


def test_latents_in_which_the_mode_misleads_are_not_offered():
    entry = astrozoo.get("mass_map")
    assert {"laplace", "auto"} <= set(entry.unsuited)


# Reading


def catalogue(n=3000, ra=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "ra": (ra + rng.uniform(-0.15, 0.15, n)) % 360,
        "dec": rng.uniform(-0.1, 0.1, n),
        "e1": 0.3 * rng.standard_normal(n),
        "e2": 0.3 * rng.standard_normal(n),
        "w": rng.uniform(0.5, 1.5, n),
    }


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".parquet", ".npz"])
def test_a_catalogue_across_ra_0_is_read_from_any_format(tmp_path, suffix):
    columns = catalogue()
    path = tmp_path / f"shear{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        Table(columns).write(path)
    maps = mass_map.read(path, pixel=1.0, margin=2.0)
    assert maps.pixels.mask.shape == (24, 24)
    assert not maps.pixels.mask[:2].any()
    assert maps.wcs.wcs.crval[0] == pytest.approx(0, abs=0.01) or maps.wcs.wcs.crval[0] > 359.99
    z = (maps.pixels.shear / maps.pixels.noise)[:, maps.pixels.mask]
    assert float(z.std()) == pytest.approx(1, abs=0.1)
    flipped = mass_map.read(path, pixel=1.0, margin=2.0, x_axis="east")
    torch.testing.assert_close(flipped.pixels.shear[1], -maps.pixels.shear[1])


def test_columns_are_named_and_weights_may_be_missing(tmp_path):
    columns = catalogue()
    named = {"RAJ2000": columns["ra"], "DEJ2000": columns["dec"], "first": columns["e1"], "G2": columns["e2"]}
    Table(named).write(tmp_path / "c.csv")
    with pytest.raises(
        DataError, match="RAJ2000, DEJ2000, first, G2, expected a column for e1: name it with --e1"
    ):
        mass_map.read(tmp_path / "c.csv")
    maps = mass_map.read(tmp_path / "c.csv", e1="first", sigma_e=0.3, pixel=1.0)
    galaxies = (0.3 / maps.pixels.noise[0][maps.pixels.mask]) ** 2  # of equal weights
    torch.testing.assert_close(galaxies, galaxies.round())
    assert galaxies.sum() == 3000
    with pytest.raises(DataError, match="a column 'second' \\(e2\\)"):
        mass_map.read(tmp_path / "c.csv", e1="first", e2="second")


def test_bad_catalogues_are_refused(tmp_path):
    columns = catalogue(50)
    columns["e1"][3] = np.nan
    Table(columns).write(tmp_path / "nan.fits")
    with pytest.raises(InputError, match="column e1: got 1 of 50 values NaN or infinite, the first in row 3"):
        mass_map.read(tmp_path / "nan.fits")
    with pytest.raises(InputError, match=r"mask_map.*expected no mask_map with a catalogue"):
        mass_map.read(tmp_path / "nan.fits", mask_map="m.fits")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"bad\.parquet"):
        mass_map.read(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no such file"):
        mass_map.read(tmp_path / "none.csv")


def test_maps_are_read_with_noise_and_mask(tmp_path):
    maps, _ = mass_map.simulate(0, size=31)
    shear, noise, mask = (x.numpy() for x in maps.pixels)
    shear = shear.copy()
    shear[0, 5, 6] = np.nan
    header = maps.wcs.to_header()
    fits.PrimaryHDU(shear[0], header).writeto(tmp_path / "e1.fits")
    fits.PrimaryHDU(shear[1]).writeto(tmp_path / "e2.fits")
    fits.PrimaryHDU(np.moveaxis(shear, 0, 2)).writeto(tmp_path / "both.fits")
    fits.PrimaryHDU(noise[0]).writeto(tmp_path / "sd.fits")
    fits.PrimaryHDU(mask.astype(np.uint8)).writeto(tmp_path / "mask.fits")
    fits.PrimaryHDU(noise[0][:9]).writeto(tmp_path / "small.fits")
    rest = {"noise_map": tmp_path / "sd.fits", "mask_map": tmp_path / "mask.fits"}
    read = mass_map.read(tmp_path / "e1.fits", second=tmp_path / "e2.fits", **rest)
    assert read.pixel == pytest.approx(0.29)
    assert not read.pixels.mask[5, 6]
    assert int((read.pixels.mask != maps.pixels.mask).sum()) == int(mask[5, 6])
    both = mass_map.read(tmp_path / "both.fits", pixel=0.29, **rest)
    torch.testing.assert_close(both.pixels.shear, read.pixels.shear)
    assert log_density(mass_map.problem(both), compile="never").dim == 31**2  # an odd side
    with pytest.raises(InputError, match="pixel: got none, and no WCS"):
        mass_map.read(tmp_path / "both.fits", **rest)
    with pytest.raises(InputError, match=r"noise_map: got \(9, 31\) pixels, expected those of the shear"):
        mass_map.read(tmp_path / "both.fits", noise_map=tmp_path / "small.fits")
    with pytest.raises(InputError, match="noise_map: got none"):
        mass_map.read(tmp_path / "both.fits")
    with pytest.raises(InputError, match="second: got none"):
        mass_map.read(tmp_path / "e1.fits", **rest)
    with pytest.raises(InputError, match="e1: got x, expected no e1 with maps"):
        mass_map.read(tmp_path / "both.fits", e1="x")


def test_bad_masks_are_refused(tmp_path):
    maps, _ = mass_map.simulate(0)
    for name, values in (
        ("both", maps.pixels.shear.numpy()),
        ("sd", maps.pixels.noise[0].numpy()),
        ("small", np.ones((16, 9), np.uint8)),
        ("empty", np.zeros((16, 16), np.uint8)),
    ):
        fits.PrimaryHDU(values).writeto(tmp_path / f"{name}.fits")
    rest = {"noise_map": tmp_path / "sd.fits", "pixel": 0.29}
    with pytest.raises(InputError, match=r"mask_map: got \(16, 9\) pixels, expected those of the shear"):
        mass_map.read(tmp_path / "both.fits", mask_map=tmp_path / "small.fits", **rest)
    with pytest.raises(InputError, match="maps: got no pixel with data"):
        mass_map.read(tmp_path / "both.fits", mask_map=tmp_path / "empty.fits", **rest)


def test_a_catalogue_with_empty_pixels_on_a_map_that_is_no_square(tmp_path):
    """Pixels without galaxies have no likelihood: their uncertainty is that of the prior."""
    columns = catalogue(6000)
    away = np.hypot((columns["ra"] + 180) % 360 - 180, columns["dec"]) > 0.06
    assert "z" not in columns  # redshifts are those of the spectrum's sources
    Table({name: x[away] for name, x in columns.items()}).write(tmp_path / "hole.fits")
    maps = mass_map.read(tmp_path / "hole.fits", pixel=1.0, margin=2.0)
    ny, nx = maps.pixels.mask.shape
    assert ny == nx == 24
    assert not maps.pixels.mask[10:14, 10:14].any()
    cut = replace(maps, pixels=mass_map.Pixels(*(x[..., 1:] for x in maps.pixels)))
    problem = mass_map.problem(cut, prior="gaussian")
    result = astrozoo.infer(problem, "wiener", draws=200, compile="never", progress=False)
    sd = posterior_maps(problem, result)["SD"]
    assert sd.shape == (24, 23)
    seen = cut.pixels.mask.numpy()
    prior = float(problem.args[1].variance.sqrt())
    assert sd[12, 12] < 1.2 * prior
    assert sd[10:14, 9:13].mean() > sd[seen].mean()


def test_bad_settings_are_refused(tmp_path):
    maps, _ = mass_map.simulate(0)
    with pytest.raises(InputError, match="prior: got 'flat'"):
        mass_map.problem(maps, prior="flat")
    with pytest.raises(InputError, match="shift: got 0"):
        mass_map.problem(maps, shift=0)
    short = tmp_path / "short.csv"
    np.savetxt(short, [[100, 1e-9], [2000, 1e-10]], delimiter=",")
    with pytest.raises(InputError, match="multipoles 100 to 2000, expected those of the map, 4655"):
        mass_map.problem(maps, spectrum=short)
    with pytest.raises(InputError, match="increasing multipoles"):
        make_filters((8, 8), 1.0, MassMap(), Spectrum(np.array([2.0, 1.0]), np.ones(2)))
    (tmp_path / "text.csv").write_text("no numbers")
    with pytest.raises(DataError, match="two columns"):
        load_spectrum(tmp_path / "text.csv")


def test_a_spectrum_from_a_file_is_used(tmp_path):
    maps, _ = mass_map.simulate(0)
    table = np.stack(load_spectrum())
    np.save(tmp_path / "s.npy", table * np.array([[1.0], [4.0]]))
    ours, theirs = (
        mass_map.problem(maps, prior="gaussian", spectrum=path).args[1].root
        for path in (None, tmp_path / "s.npy")
    )
    torch.testing.assert_close(theirs, 2 * ours)
