from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.io import fits

import astrozoo
from astrozoo.density import log_density
from astrozoo.errors import DataError, InputError
from astrozoo.images.posterior import posterior_images
from astrozoo.models import denoise


def dense_posterior(problem):
    """Mean and SD of the image by dense linear algebra."""
    pixels, field = problem.args
    shape = pixels.values.shape
    unit = torch.eye(shape[0] * shape[1], dtype=torch.float64).unflatten(-1, shape)
    root = problem.model.prior.image(unit, field._replace(mean=field.mean * 0)).flatten(1).numpy()
    covariance = root.T @ root
    seen = pixels.mask.flatten().numpy()
    noise = pixels.noise.flatten().numpy()[seen]
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + np.diag(noise**2), covariance[seen]).T
    residual = pixels.values.flatten().numpy()[seen] - float(field.mean)
    mean = float(field.mean) + gain @ residual
    variance = np.diag(covariance) - np.einsum("ij,ji->i", gain, covariance[seen])
    return mean.reshape(shape), np.sqrt(variance).reshape(shape)


def test_wiener_and_hmc_agree_with_dense_linear_algebra():
    data, _ = denoise.simulate(0, size=10)
    problem = denoise.problem(data)
    mean, sd = dense_posterior(problem)
    options = {"compile": "never", "progress": False, "seed": 1}
    exact = posterior_images(problem, astrozoo.infer(problem, "wiener", draws=500, **options))
    np.testing.assert_allclose(exact["MEAN"], mean, atol=1e-4)
    np.testing.assert_allclose(exact["SD"], sd, rtol=5 / np.sqrt(2 * 500))
    chains = astrozoo.infer(problem, "hmc", chains=8, draws=60, warmup=40, **options)
    ours = posterior_images(problem, chains)
    assert np.abs((ours["MEAN"] - mean) / sd).max() < 5 / np.sqrt(200)
    assert np.mean(ours["SD"] / sd) == pytest.approx(1, abs=0.03)


def test_intervals_cover_simulated_images_whose_power_is_fitted():
    inside, error = [], []
    for seed in range(5):
        data, truth = denoise.simulate(seed, size=24)
        mean, sd = dense_posterior(denoise.problem(denoise.NoisyData(data.pixels)))
        distance = np.abs(truth["image"].numpy() - mean)
        inside.append(distance < sd)
        error.append(np.sqrt(np.mean(distance**2)))
    # Neighbouring pixels are not independent: about 16 cells of 6 x 6 pixels in each image.
    assert np.mean(inside) == pytest.approx(0.68, abs=3 * np.sqrt(0.68 * 0.32 / (5 * 16)))
    assert np.mean(error) < 0.7 * 0.5  # of the noise


def test_images_are_read_with_a_margin(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((24, 33)) + 5
    image[3, 4] = np.nan
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 2.0})
    header.update({"CRPIX1": 1.0, "CRPIX2": 1.0, "CDELT1": -1e-4, "CDELT2": 1e-4})
    fits.PrimaryHDU(image, header).writeto(tmp_path / "image.fits")
    sd = np.full(image.shape, 0.5)
    sd[0, 0] = 0
    fits.PrimaryHDU(sd).writeto(tmp_path / "sd.fits")
    np.save(tmp_path / "mask.npy", np.arange(33) > 2 * np.ones((24, 1)))
    data = denoise.read(tmp_path / "image.fits", noise=tmp_path / "sd.fits", mask_map=tmp_path / "mask.npy")
    assert data.wcs.wcs.crval[0] == 10
    assert data.pixels.values.shape == (27, 37)
    assert data.cropped(data.pixels.mask).sum() == data.pixels.mask.sum() == 24 * 30 - 1
    np.savez(tmp_path / "image.npz", image=image, noise=0.5)
    same = denoise.read(tmp_path / "image.npz", margin=0)
    assert same.pixels.values.shape == (24, 33)
    assert not same.pixels.mask[3, 4]
    problem = denoise.problem(same)
    assert float(problem.args[1].mean) == pytest.approx(5, abs=0.2)
    assert log_density(problem, compile="never").dim == 24 * 33


def test_bad_images_are_refused(tmp_path):
    good = np.ones((8, 8))
    np.save(tmp_path / "good.npy", good)
    with pytest.raises(InputError, match="noise: got none"):
        denoise.read(tmp_path / "good.npy")
    for noise in ("0", "-1", "nan"):
        with pytest.raises(InputError, match=r"noise: got .* expected a number above 0"):
            denoise.read(tmp_path / "good.npy", noise=noise)
    with pytest.raises(InputError, match="margin: got -1"):
        denoise.read(tmp_path / "good.npy", noise=1, margin=-1)
    np.save(tmp_path / "wide.npy", np.ones((8, 9)))
    with pytest.raises(InputError, match=r"mask: got \(8, 9\) pixels"):
        denoise.read(tmp_path / "good.npy", noise=1, mask_map=tmp_path / "wide.npy")
    with pytest.raises(InputError, match=r"noise: got \(8, 9\) pixels"):
        denoise.read(tmp_path / "good.npy", noise=tmp_path / "wide.npy")
    np.save(tmp_path / "nan.npy", good * np.nan)
    with pytest.raises(InputError, match="no pixel with data"):
        denoise.read(tmp_path / "nan.npy", noise=1)
    np.save(tmp_path / "cube.npy", np.ones((3, 8, 8)))
    with pytest.raises(InputError, match=r"an image of shape \(3, 8, 8\)"):
        denoise.read(tmp_path / "cube.npy", noise=1)
    np.save(tmp_path / "complex.npy", good + 1j)
    with pytest.raises(InputError, match="values of type complex128"):
        denoise.read(tmp_path / "complex.npy", noise=1)
    np.savez(tmp_path / "other.npz", data=good)
    with pytest.raises(DataError, match="no array 'image'"):
        denoise.read(tmp_path / "other.npz", noise=1)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"bad\.npz"):
        denoise.read(tmp_path / "bad.npz", noise=1)
    with pytest.raises(DataError, match="no such file"):
        denoise.read(tmp_path / "none.npy", noise=1)


def test_bad_settings_are_refused():
    data, _ = denoise.simulate(0)
    with pytest.raises(InputError, match="prior: got 'flat'"):
        denoise.problem(data, prior="flat")
    with pytest.raises(InputError, match=r"prior: got two_moons.*the data are an image"):
        denoise.problem(data, prior="two_moons")
    with pytest.raises(InputError, match="slope: got -1"):
        denoise.problem(data, slope=-1.0)
